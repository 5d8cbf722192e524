"""Models that come and go while requests flow."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.json_format import MessageToDict
from onnx import TensorProto

from onward.errors import ConfigError
from onward_server.dataplane import DataPlane, InferRequest
from onward_server.dataplane.overrides import override_from
from onward_server.errors import ControlError, ModelNotFoundError, ModelUnavailableError, RequestError
from onward_server.grpc_convert import model_config
from serving import put, settings

X = np.float32([-3, 4])


def unary(op: str) -> onnx.ModelProto:
    from serving import model

    kind = {"x": (TensorProto.FLOAT, ["n"])}
    return model(op, kind, {"y": kind["x"]})


@pytest.fixture
async def planes() -> AsyncIterator[Any]:
    opened: list[DataPlane] = []

    async def open_plane(repository: Path, **fields: Any) -> DataPlane:
        fields = {"isolation": "thread", "model_control": "explicit", **fields}
        opened.append(await DataPlane.open(settings(repository, **fields)))
        return opened[-1]

    yield open_plane
    for plane in opened:
        plane.close()


async def ask(plane: DataPlane, version: str = "") -> list[float]:
    return (await plane.infer(InferRequest("m", {"x": X}, version))).outputs["y"].tolist()


def states(plane: DataPlane) -> list[tuple[str, int, str]]:
    return [state[:3] for state in plane.states()]


async def test_loading_swaps_and_unloading_ends(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, unary("Neg"))
    plane = await planes(repository)
    assert await ask(plane) == [3, -4]
    before = plane.model("m")
    put(repository, "m", 1, unary("Abs"))
    put(repository, "m", 2, unary("Identity"))
    assert await ask(plane) == [3, -4]
    await plane.load("m")
    assert plane.model("m", "1") is not before
    assert (await ask(plane, "1"), await ask(plane)) == ([3, 4], [-3, 4])
    same = plane.model("m", "2")
    await plane.load("m")
    assert plane.model("m", "2") is same, "what has not changed is not opened again"
    await plane.unload("m")
    assert states(plane) == [("m", 1, "UNAVAILABLE"), ("m", 2, "UNAVAILABLE")]
    with pytest.raises(ModelUnavailableError, match="unloaded"):
        await ask(plane)
    await plane.load("m")
    assert states(plane) == [("m", 1, "READY"), ("m", 2, "READY")]


async def test_a_load_that_fails_changes_nothing(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, unary("Neg"))
    plane = await planes(repository)
    put(repository, "m", 1, b"no model")
    with pytest.raises(ModelUnavailableError, match="could not be loaded"):
        await plane.load("m")
    assert await ask(plane) == [3, -4]


async def test_requests_flow_while_a_model_is_loaded_again(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, unary("Neg"))
    plane = await planes(repository, isolation="process")
    answers: list[list[float]] = []
    done = asyncio.Event()

    async def client() -> None:
        while not done.is_set():
            answers.append(await ask(plane))
            await asyncio.sleep(0)

    clients = [asyncio.create_task(client()) for _ in range(4)]
    for op in ("Abs", "Neg", "Abs"):
        put(repository, "m", 1, unary(op))
        await plane.load("m")
        count = len(answers)
        while len(answers) < count + 20:
            await asyncio.sleep(0.01)
    done.set()
    await asyncio.gather(*clients)
    assert answers[-1] == [3, 4]
    assert all(answer in ([3, -4], [3, 4]) for answer in answers)
    assert plane.model("m").infer_statistics.fail_count == 0


async def test_the_version_policy_chooses(repository: Path, planes: Any) -> None:
    for version, op in [(1, "Neg"), (3, "Abs"), (10, "Identity")]:
        put(repository, "m", version, unary(op))
    plane = await planes(repository)
    assert plane.versions("m") == [1, 3, 10]
    for policy, versions in [("latest = 2", [3, 10]), ("specific = [1, 7]", [1])]:
        (repository / "m" / "config.toml").write_text(f"[versions]\n{policy}\n")
        await plane.load("m")
        assert plane.versions("m") == versions
    (repository / "m" / "config.toml").write_text("[versions]\nspecific = [7]\n")
    with pytest.raises(ModelUnavailableError, match="the version policy chooses none of 1, 3, 10"):
        await plane.load("m")


async def test_settings_and_files_of_a_load_replace_the_repositorys(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, unary("Neg"))
    plane = await planes(repository)
    config = {
        "max_batch_size": 8,
        "dynamic_batching": {"preferred_batch_size": [4], "max_queue_delay_microseconds": 500},
        "instance_group": [{"count": 3, "kind": "KIND_CPU"}],
        "input": [],
    }
    await plane.load("m", override_from({"config": json.dumps(config)}))
    chosen = plane.model("m").settings
    assert chosen.batching is not None
    assert (chosen.batching.max_batch, chosen.batching.preferred, chosen.batching.max_delay_ms) == (
        8,
        (4,),
        0.5,
    )
    assert chosen.instances == 3
    await plane.refresh()
    assert plane.model("m").settings.instances == 3
    given = {"config": "{}", "file:7/model.onnx": unary("Abs").SerializeToString()}
    await plane.load("m", override_from(given))
    assert (plane.versions("m"), await ask(plane)) == ([7], [3, 4])
    await plane.refresh()
    assert plane.versions("m") == [7]
    await plane.load("m")
    assert (plane.versions("m"), await ask(plane)) == ([1], [3, -4])


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[[warm_up]]\nx = [5]\n[[warm_up]]\nx = [2]\n",
        "engine = 'onnxruntime'\nthreads = 2\ninstances = 3\nqueue_size = 7\nrun_timeout = 2.5\n"
        "fallback = false\nin_process = 'never'\ndefault_priority = 3\nlabels = 'labels.txt'\n"
        "response_cache = true\n"
        "[batching]\nmax_batch = 8\npreferred = [2, 4]\nmax_delay_ms = 1.5\n"
        "[cross_check]\npolicy = 'every'\non_mismatch = 'fail'\n"
        "tolerance.float32 = { rtol = 1e-3, atol = 0 }\n",
    ],
)
async def test_a_configuration_that_is_given_back_changes_nothing(
    repository: Path, planes: Any, config: str
) -> None:
    put(repository, "m", 1, unary("Neg"))
    (repository / "m" / "config.toml").write_text(config)
    (repository / "m" / "labels.txt").write_text("one\n")
    plane = await planes(repository)
    before = plane.model("m")
    described = model_config(before, plane.versions("m"))
    answered = json.dumps(MessageToDict(described, preserving_proto_field_name=True))
    await plane.load("m", override_from({"config": answered}))
    after = plane.model("m")
    assert after.number != before.number
    assert model_config(after, plane.versions("m")) == described
    same_apart = {"versions": after.settings.versions, "cross_check": after.settings.cross_check}
    assert after.settings == before.settings.model_copy(update=same_apart)
    assert {t: after.check.tolerance_of(t) for t in ("float16", "float32", "float64")} == {
        t: before.check.tolerance_of(t) for t in ("float16", "float32", "float64")
    }


def test_fields_of_tritons_configuration_have_their_meaning_here() -> None:
    config = {
        "max_batch_size": 4,
        "dynamic_batching": {
            "preserve_ordering": True,
            "priority_levels": 2,
            "default_priority_level": 2,
            "default_queue_policy": {"timeout_action": "REJECT", "max_queue_size": 5},
        },
        "response_cache": {"enable": True},
        "model_warmup": [{"name": "w", "batch_size": 3, "inputs": {"x": {"dims": ["2"], "zero_data": True}}}],
        "version_policy": {"latest": {}},
    }
    override = override_from({"config": json.dumps(config)})
    assert override is not None
    chosen = override.settings
    assert chosen is not None
    assert (chosen.default_priority, chosen.queue_size, chosen.response_cache) == (2, 5, True)
    assert (chosen.warm_up, chosen.versions.latest) == (({"x": (3, 2)},), 1)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"file:1/model.onnx": b""}, "needs 'config'"),
        ({"config": "{}", "file:../m/1/model.onnx": b""}, "file:<version>/<file name>"),
        ({"config": "{}", "file:1/../../x": b""}, "file:<version>/<file name>"),
        ({"config": "{}", "file:/etc/passwd": b""}, "file:<version>/<file name>"),
        ({"config": "{}", "file:1/..": b""}, "file:<version>/<file name>"),
        ({"config": "{}", "file:01/a": b""}, "file:<version>/<file name>"),
        ({"config": "{}", "file:1/a": "text"}, "is not bytes"),
        ({"config": "["}, "not JSON"),
        ({"config": "[]"}, "not a JSON object"),
        ({"config": 1}, "not a string of JSON"),
        ({"config": '{"max_batch_size": "many"}'}, "max_batch_size has an unexpected form"),
        ({"config": '{"surprise": 1}'}, "surprise: there is no such setting"),
        ({"config": '{"instances": 0}'}, "instances: Input should be"),
        ({"config": '{"dynamic_batching": {"priority_queue_policy": {"1": {}}}}'}, "is not supported"),
        ({"config": '{"dynamic_batching": {"surprise": 1}}'}, "dynamic_batching.surprise is not supported"),
        (
            {"config": '{"dynamic_batching": {"default_queue_policy": {"timeout_action": "DELAY"}}}'},
            "dynamic_batching.default_queue_policy.timeout_action is not supported",
        ),
        ({"config": '{"instance_group": [{"kind": "KIND_GPU"}]}'}, "there is no GPU"),
        ({"config": '{"sequence_batching": {}}'}, "sequence_batching: there is no such setting"),
        ({"config": '{"parameters": {"surprise": {"string_value": "1"}}}'}, "surprise: there is no such"),
        ({"config": '{"parameters": {"threads": 1, "engine": {}}}'}, "parameters has an unexpected form"),
        ({"config": '{"model_warmup": [{"inputs": {"x": {}}}]}'}, "model_warmup has an unexpected form"),
        ({"other": "x"}, "'other'] is unknown"),
    ],
)
def test_overrides_that_are_refused(parameters: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError, match="parameters") as caught:
        override_from(parameters)
    assert text in str(caught.value)


@pytest.mark.parametrize("name", ["../m", "/etc", "a/b", "", "..", "m\0", ".hidden", "x" * 129])
async def test_names_are_checked_before_they_touch_a_path(repository: Path, planes: Any, name: str) -> None:
    plane = await planes(repository)
    for call in (plane.load, plane.unload):
        with pytest.raises(RequestError, match="cannot be a model's name"):
            await call(name)


async def test_what_is_not_there(repository: Path, planes: Any) -> None:
    plane = await planes(repository)
    with pytest.raises(ModelNotFoundError, match="no model 'm'"):
        await plane.load("m")
    with pytest.raises(ModelNotFoundError, match="no model 'm' is loaded"):
        await plane.unload("m")


@pytest.mark.parametrize("control", ["none", "poll"])
async def test_clients_do_not_load_unless_it_is_enabled(repository: Path, planes: Any, control: str) -> None:
    put(repository, "m", 1, unary("Neg"))
    plane = await planes(repository, model_control=control)
    for call in (plane.load, plane.unload):
        with pytest.raises(ControlError, match="model_control is"):
            await call("m")


async def test_startup_models_are_chosen(repository: Path, planes: Any) -> None:
    for name in ("m", "n"):
        put(repository, name, 1, unary("Neg"))
    plane = await planes(repository, startup_models=["n"])
    assert plane.names == ["n"]
    await plane.load("m")
    assert plane.names == ["m", "n"]
    with pytest.raises(ConfigError, match="no model 'z'"):
        await planes(repository, startup_models=["z"])


async def test_polling_follows_the_repository(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, unary("Neg"))
    plane = await planes(repository, model_control="poll", poll_seconds=0.05)
    watching = asyncio.create_task(plane.watch())

    async def until(versions: list[int]) -> None:
        for _ in range(600):
            if plane.versions("m") == versions:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{plane.versions('m')}, not {versions}")

    try:
        put(repository, "m", 2, unary("Abs"))
        await until([1, 2])
        assert await ask(plane) == [3, 4]
        shutil.rmtree(repository / "m" / "1")
        await until([2])
        put(repository, "m", 3, b"no model")
        await asyncio.sleep(0.3)
        assert await ask(plane) == [3, 4]
        assert plane.problems["m", 3]
        shutil.rmtree(repository / "m")
        await until([])
    finally:
        watching.cancel()


async def test_shapes_are_warmed_up_before_a_version_is_ready(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, unary("Neg"))
    (repository / "m" / "config.toml").write_text("[[warm_up]]\nx = [5]\n")
    plane = await planes(repository)
    assert plane.names == ["m"]
    (repository / "m" / "config.toml").write_text("[[warm_up]]\nz = [5]\n")
    with pytest.raises(ModelUnavailableError, match="warm_up: give a shape for each of the inputs x"):
        await plane.load("m")


async def test_a_repository_that_cannot_be_read_is_said_once(
    repository: Path, planes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    put(repository, "m", 1, unary("Neg"))
    plane = await planes(repository, model_control="none")
    away = repository.with_name("away")
    for _ in range(2):
        repository.rename(away)
        for _ in range(3):
            await plane.refresh()
        assert await ask(plane) == [3, -4]
        away.rename(repository)
        await plane.refresh()
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 2
    assert "the repository stays as it is" in said[0]


async def test_what_cannot_be_read_takes_nothing_away(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, unary("Neg"))
    put(repository, "m", 2, unary("Abs"))
    plane = await planes(repository, model_control="none")
    served = plane.model("m")
    config, file = repository / "m" / "config.toml", repository / "m" / "2" / "model.onnx"
    config.write_text("surprise = 1\n")
    for _ in range(2):
        await plane.refresh()
        assert (plane.versions("m"), plane.model("m").number) == ([1, 2], served.number)
    ready, *others = plane.states()[::-1]
    assert ready[1:] == (2, "READY", "")
    assert [(version, state) for _, version, state, _ in others] == [(1, "READY"), (0, "UNAVAILABLE")]
    assert "surprise: there is no such setting" in others[-1][3]
    config.unlink()
    content = file.read_bytes()
    file.write_bytes(b"nonsense")
    await plane.refresh()
    assert (plane.versions("m"), await ask(plane)) == ([1, 2], [3, 4])
    name, version, state, reason = plane.states()[-1]
    assert (name, version, state) == ("m", 2, "READY")
    assert reason.startswith("what was there before is served: ")
    file.write_bytes(content)
    await plane.refresh()
    assert [state for *_, state, reason in plane.states() if not reason] == ["READY", "READY"]
    shutil.rmtree(file.parent)
    await plane.refresh()
    assert plane.versions("m") == [1]
