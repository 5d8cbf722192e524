"""The data plane: loading, choosing versions, validation, cross-check policies, bounds."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onward.errors import LimitError, OnwardError, UnsupportedError, VerificationError
from onward.graph import Array
from onward_server.dataplane import CheckOutcome, DataPlane, InferRequest, RequestedOutput
from onward_server.dataplane.executors import EngineFactory
from onward_server.errors import (
    DrainingError,
    ExecutionError,
    MemoryLimitError,
    ModelNotFoundError,
    ModelUnavailableError,
    OverloadedError,
    RequestError,
)
from serving import FLOAT_PAIR, RIGHT, engines, identity, model, put, settings, two_by_two

ROOT = Path(__file__).parents[3]


@pytest.fixture
async def planes() -> AsyncIterator[Any]:
    opened: list[DataPlane] = []

    async def open_plane(repository: Path, using: Mapping[str, EngineFactory] = RIGHT, **fields: Any) -> Any:
        opened.append(await DataPlane.open(settings(repository, **fields), using))
        return opened[-1]

    yield open_plane
    for plane in opened:
        plane.close()


async def infer(
    plane: DataPlane, inputs: Mapping[str, Array], outputs: list[str] | None = None, version: str = ""
) -> Any:
    wanted = None if outputs is None else [RequestedOutput(name) for name in outputs]
    return await plane.infer(InferRequest("m", inputs, version, wanted))


def outcome_of(answer: Any) -> CheckOutcome:
    return CheckOutcome(answer.parameters["cross_check"])


FAIL = {"on_mismatch": "fail"}


def one_wrong(outputs: dict[str, Array]) -> dict[str, Array]:
    return {name: array + np.float32(1) for name, array in outputs.items()}


def test_importing_the_data_plane_does_not_import_grpc() -> None:
    code = "import sys, onward_server.dataplane; print([m for m in sys.modules if m.startswith('grpc')])"
    path = ":".join(str(ROOT / part) for part in ("runtime", "protos", "server"))
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


async def test_the_latest_version_answers_unless_one_is_named(repository: Path, planes: Any) -> None:
    for version, op in [(2, "Neg"), (10, "Abs"), (9, "Identity")]:
        kind = {"x": (TensorProto.FLOAT, ["n"])}
        put(repository, "m", version, model(op, kind, {"y": kind["x"]}))
    plane = await planes(repository)
    x = np.array([-1.0, 2.0], dtype=np.float32)
    assert plane.versions("m") == [2, 9, 10]
    for version, expected in [("", [1, 2]), ("10", [1, 2]), ("9", [-1, 2]), ("2", [1, -2])]:
        answer = await infer(plane, {"x": x}, version=version)
        assert answer.outputs["y"].tolist() == expected


@pytest.mark.parametrize("version", ["3", "02", "0", "-2", "x", " 2", "9" * 30, "²"])
async def test_unknown_versions_are_not_found(repository: Path, planes: Any, version: str) -> None:
    put(repository, "m", 2, identity(TensorProto.FLOAT))
    with pytest.raises(ModelNotFoundError, match="versions served: 2"):
        (await planes(repository)).model("m", version)


@pytest.mark.parametrize("name", ["", "other", "../m", "m/2", "/etc/passwd", "m\0"])
async def test_unknown_names_are_not_found(repository: Path, planes: Any, name: str) -> None:
    put(repository, "m", 2, identity(TensorProto.FLOAT))
    with pytest.raises(ModelNotFoundError, match="models served: m"):
        (await planes(repository)).model(name)


async def test_a_bad_model_is_reported_and_the_others_are_served(
    repository: Path, planes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    put(repository, "good", 1, identity(TensorProto.FLOAT))
    put(repository, "good", 2, b"not a model at all")
    put(repository, "bad", 1, identity(TensorProto.FLOAT).SerializeToString()[:-20])
    plane = await planes(repository)
    assert plane.names == ["good"]
    assert plane.model("good").version == 1
    assert set(plane.problems) == {("good", 2), ("bad", 1)}
    for name, version in [("good", "2"), ("bad", ""), ("bad", "1")]:
        with pytest.raises(ModelUnavailableError, match="could not be loaded"):
            plane.model(name, version)
    assert "model bad version 1 is not served" in caplog.text


async def test_external_data_may_not_leave_the_version_folder(repository: Path, planes: Any) -> None:
    (repository / "secret.bin").write_bytes(bytes(8))
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], bytes(8), raw=True)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../secret.bin")
    content = model(
        "Add", {"x": (TensorProto.FLOAT, [2]), "w": (TensorProto.FLOAT, [2])}, {"y": (TensorProto.FLOAT, [2])}
    )
    del content.graph.input[1]
    content.graph.initializer.append(weight)
    put(repository, "m", 1, content)
    plane = await planes(repository)
    assert plane.names == []
    assert "secret.bin" in plane.problems["m", 1]


async def test_an_empty_repository_is_allowed_with_a_warning(
    repository: Path, planes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await planes(repository)).names == []
    assert "no model that can be served" in caplog.text


async def test_a_subset_of_outputs_in_the_order_asked_for(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, cross_check={"policy": "every"})
    answer = await infer(plane, FLOAT_PAIR, ["product", "total"])
    assert list(answer.outputs) == ["product", "total"]
    answer = await infer(plane, FLOAT_PAIR, ["product"])
    assert list(answer.outputs) == ["product"]
    np.testing.assert_array_equal(answer.outputs["product"], FLOAT_PAIR["a"] * 2)


A, B = FLOAT_PAIR["a"], FLOAT_PAIR["b"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        ({"a": A}, None, "input 'b' is missing"),
        ({}, None, "input 'a' is missing"),
        ({"a": A, "b": B, "c": B}, None, "no input 'c'; its inputs are 'a', 'b'"),
        ({"a": A.astype(np.float64), "b": B}, None, "input 'a': datatype of FP64"),
        ({"a": A.T, "b": B}, None, "input 'a': shape of FP32\\[3, 2\\]; the model takes FP32\\[batch, 3\\]"),
        ({"a": A[0], "b": B}, None, "input 'a': shape of FP32\\[3\\]"),
        ({"a": A[:1], "b": B}, None, "dimension 'batch' is 2, but 1 in input 'a'"),
        ({"a": A, "b": B}, ["sum"], "no output 'sum'; its outputs are 'total', 'product'"),
        ({"a": A, "b": B}, ["total", "total"], "'total' is requested twice"),
    ],
)
async def test_what_does_not_fit_the_model_is_refused(
    repository: Path, planes: Any, inputs: dict[str, Array], outputs: list[str] | None, text: str
) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository)
    with pytest.raises(RequestError, match=text):
        await infer(plane, inputs, outputs)


async def test_policy_off_checks_nothing(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, engines(one_wrong))
    answer = await infer(plane, FLOAT_PAIR)
    assert outcome_of(answer) is CheckOutcome.SKIPPED
    assert plane.model("m").check_statistics.checks == 0


async def test_policy_every_finds_agreement(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, cross_check={"policy": "every", "on_mismatch": "fail"})
    for _ in range(3):
        answer = await infer(plane, FLOAT_PAIR)
        assert (outcome_of(answer), answer.parameters["engine"]) == (CheckOutcome.PASSED, "onward")
    statistics = plane.model("m").check_statistics
    assert (statistics.requests, statistics.checks, statistics.passed, statistics.failed) == (3, 3, 3, 0)


async def test_a_mismatch_is_logged_and_answered(
    repository: Path, planes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, engines(one_wrong), cross_check={"policy": "every"})
    answer = await infer(plane, FLOAT_PAIR)
    assert (outcome_of(answer), answer.parameters["engine"]) == (CheckOutcome.FAILED, "onward")
    np.testing.assert_array_equal(answer.outputs["total"], A + B + 1)
    assert "cross-check of m version 1: output 'total': 6 of 6 elements differ" in caplog.text
    statistics = plane.model("m").check_statistics
    assert (statistics.failed, statistics.max_absolute_error) == (1, 1.0)


async def test_a_mismatch_can_refuse_the_answer(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, engines(one_wrong), cross_check={"policy": "every", **FAIL})
    with pytest.raises(VerificationError, match="engines disagree: output 'total'"):
        await infer(plane, FLOAT_PAIR)
    assert plane.model("m").infer_statistics.fail_count == 1


@pytest.mark.parametrize("engine", ["onward", "onnxruntime"])
async def test_a_mismatch_can_prefer_onnxruntime(repository: Path, planes: Any, engine: str) -> None:
    put(repository, "m", 1, two_by_two())
    check = {"policy": "every", "on_mismatch": "prefer-onnxruntime"}
    plane = await planes(repository, engines(one_wrong), cross_check=check, engine=engine)
    answer = await infer(plane, FLOAT_PAIR)
    assert (outcome_of(answer), answer.parameters["engine"]) == (CheckOutcome.FAILED, "onnxruntime")
    np.testing.assert_array_equal(answer.outputs["total"], A + B)


async def test_a_witness_that_fails_is_a_mismatch(repository: Path, planes: Any) -> None:
    def broken(outputs: dict[str, Array]) -> dict[str, Array]:
        raise FloatingPointError("engine trouble")

    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, engines(broken), cross_check={"policy": "every"}, engine="onnxruntime")
    answer = await infer(plane, FLOAT_PAIR)
    assert (outcome_of(answer), answer.parameters["engine"]) == (CheckOutcome.FAILED, "onnxruntime")
    assert (
        plane.model("m").check_statistics.last_mismatch == "onward failed: FloatingPointError: engine trouble"
    )


@pytest.mark.parametrize("error", [LimitError, MemoryLimitError, UnsupportedError])
@pytest.mark.parametrize("on_mismatch", ["log", "fail", "prefer-onnxruntime"])
async def test_a_witness_at_its_limits_says_nothing_about_the_answer(
    repository: Path, planes: Any, error: type[OnwardError], on_mismatch: str
) -> None:
    def limited(outputs: dict[str, Array]) -> dict[str, Array]:
        raise error("its result would take 1 byte")

    put(repository, "m", 1, two_by_two())
    check = {"policy": "every", "on_mismatch": on_mismatch}
    plane = await planes(repository, engines(limited), cross_check=check, engine="onnxruntime")
    answer = await infer(plane, FLOAT_PAIR)
    assert (outcome_of(answer), answer.parameters["engine"]) == (CheckOutcome.SKIPPED, "onnxruntime")
    assert answer.parameters["cross_check_reason"] == "the witness could not compute it within its limits"
    counts = plane.model("m").check_statistics
    assert (counts.requests, counts.checks, counts.skipped, counts.unchecked) == (1, 0, 1, 1)
    assert counts.last_unchecked == "onward: its result would take 1 byte"
    assert not counts.last_mismatch


async def test_an_engine_that_fails_is_an_execution_error(repository: Path, planes: Any) -> None:
    def broken(outputs: dict[str, Array]) -> dict[str, Array]:
        raise FloatingPointError("engine trouble")

    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, engines(broken))
    with pytest.raises(ExecutionError, match="FloatingPointError: engine trouble"):
        await infer(plane, FLOAT_PAIR)


async def test_policy_sample_checks_its_share(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, cross_check={"policy": "sample", "rate": 0.25, "on_mismatch": "fail"})
    outcomes = [outcome_of(await infer(plane, FLOAT_PAIR)) for _ in range(8)]
    passed, skipped = CheckOutcome.PASSED, CheckOutcome.SKIPPED
    assert outcomes == [passed, skipped, skipped, skipped] * 2
    statistics = plane.model("m").check_statistics
    assert (statistics.requests, statistics.checks, statistics.skipped) == (8, 2, 6)


async def test_policy_sample_answers_first_where_it_only_logs(repository: Path, planes: Any) -> None:
    release = threading.Event()

    def held(outputs: dict[str, Array]) -> dict[str, Array]:
        assert release.wait(30)
        return one_wrong(outputs)

    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, engines(held), cross_check={"policy": "sample"}, engine="onnxruntime")
    try:
        answer = await infer(plane, FLOAT_PAIR)
    finally:
        release.set()
    assert outcome_of(answer) is CheckOutcome.SHADOW
    await plane.model("m").settle()
    assert plane.model("m").check_statistics.failed == 1


async def test_policy_sample_checks_fewer_where_they_would_take_more_than_their_share(
    repository: Path, planes: Any
) -> None:
    def slow(outputs: dict[str, Array]) -> dict[str, Array]:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        return outputs

    put(repository, "m", 1, two_by_two())
    check = {"policy": "sample", "rate": 1.0, "share": 0.1}
    plane = await planes(repository, engines(slow), cross_check=check, engine="onnxruntime")
    served = plane.model("m")
    begun = time.monotonic()
    outcomes = []
    for _ in range(60):
        outcomes.append(outcome_of(await infer(plane, FLOAT_PAIR)))
        await served.settle()
        await asyncio.sleep(0.02)
    took = time.monotonic() - begun
    checks = served.check_statistics.checks
    assert outcomes[0] is CheckOutcome.SHADOW
    assert checks == outcomes.count(CheckOutcome.SHADOW)
    assert 2 <= checks <= 0.1 * (took + 1) / (0.05 / len(os.sched_getaffinity(0))) + 2
    assert served.check_statistics.skipped == 60 - checks


async def test_requests_are_checked_together(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, engines(one_wrong), cross_check={"policy": "shadow"})
    served = plane.model("m")
    for number in range(1, 40):
        assert outcome_of(await infer(plane, {"a": A * number, "b": B})) is CheckOutcome.SHADOW
    assert served.check_statistics.checks < 39
    await served.settle()
    assert (served.check_statistics.failed, served.check_statistics.max_absolute_error) == (39, 1.0)


async def test_policy_shadow_answers_first_and_counts_drops(repository: Path, planes: Any) -> None:
    release, entered = threading.Event(), threading.Event()

    def held(outputs: dict[str, Array]) -> dict[str, Array]:
        entered.set()
        assert release.wait(30)
        return one_wrong(outputs)

    put(repository, "m", 1, two_by_two())
    check = {"policy": "shadow", "shadow_queue": 2}
    plane = await planes(repository, engines(held), cross_check=check, engine="onnxruntime")
    served = plane.model("m")
    try:
        outcomes = [outcome_of(await infer(plane, FLOAT_PAIR)) for _ in range(3)]
    finally:
        release.set()
    assert outcomes == [CheckOutcome.SHADOW, CheckOutcome.SHADOW, CheckOutcome.SKIPPED]
    await served.settle()
    assert entered.is_set()
    statistics = served.check_statistics
    assert (statistics.requests, statistics.failed, statistics.dropped) == (3, 2, 1)


async def test_the_event_loop_stays_free_and_the_queue_is_bounded(repository: Path, planes: Any) -> None:
    release = threading.Event()

    def held(outputs: dict[str, Array]) -> dict[str, Array]:
        assert release.wait(30)
        return outputs

    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, engines(held), instances=1, queue_size=1)
    served = plane.model("m")
    waiting = [asyncio.create_task(infer(plane, FLOAT_PAIR)) for _ in range(2)]
    try:
        while served.scheduler.waiting < 1:
            await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError, match="1 requests of this model wait"):
            await infer(plane, FLOAT_PAIR)
        rejected = served.infer_statistics.failures["REJECTED"]
        with pytest.raises(OverloadedError, match="1 requests of this model wait"):
            plane.check_room("m", "", None)
        assert served.infer_statistics.failures["REJECTED"] == rejected + 1
        plane.check_room("unknown", "", None)
        assert not await plane.drain(0.05)
    finally:
        release.set()
    assert len(await asyncio.gather(*waiting)) == 2
    plane.check_room("m", "", None)
    assert await plane.drain(10)
    with pytest.raises(DrainingError), plane.admitted():
        pass


async def test_a_cancelled_request_gives_its_place_back_when_it_has_ended(
    repository: Path, planes: Any
) -> None:
    release = threading.Event()

    def held(outputs: dict[str, Array]) -> dict[str, Array]:
        assert release.wait(30)
        return outputs

    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, engines(held), instances=1, queue_size=1)
    running, queued = (asyncio.create_task(infer(plane, FLOAT_PAIR)) for _ in range(2))
    try:
        await asyncio.sleep(0.05)
        for task in (running, queued):
            task.cancel()
        await asyncio.gather(running, queued, return_exceptions=True)
        assert plane.pending == 1
    finally:
        release.set()
    assert await plane.drain(10)
