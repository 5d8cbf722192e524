"""Models in worker processes: what one of them does costs the requests that it runs, and nothing else."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from faulty import MOST_ITERATIONS, blow_up, divide, large_answer, long_loop
from onward.errors import ShapeError
from onward_server.dataplane import DataPlane, InferAnswer, InferRequest
from onward_server.errors import MemoryLimitError, ModelUnavailableError, RunTimeoutError, WorkerLostError
from onward_server.workers.memory import Region, memory_file
from onward_server.workers.supervisor import Zygote
from serving import FLOAT_PAIR, identity, model, put, settings, two_by_two

SMALLEST = np.iinfo(np.int64).min
OVERFLOW = {"a": np.array([SMALLEST]), "b": np.array([-1])}
SIX_BY_TWO = {"a": np.array([6]), "b": np.array([2])}


@pytest.fixture
async def planes() -> AsyncIterator[Any]:
    opened: list[DataPlane] = []

    async def open_plane(repository: Path, **fields: Any) -> DataPlane:
        opened.append(await DataPlane.open(settings(repository, **{"instances": 1, **fields})))
        return opened[-1]

    yield open_plane
    for plane in opened:
        plane.close()


async def infer(plane: DataPlane, name: str, **inputs: Any) -> InferAnswer:
    return await plane.infer(InferRequest(name, inputs))


def worker_of(plane: DataPlane, name: str) -> int:
    pid: int = plane.model(name).scheduler.instances[0]._place._worker.pid  # type: ignore[attr-defined]
    return pid


async def test_every_type_travels_through_shared_memory(repository: Path, planes: Any) -> None:
    arrays = {
        "fp32": (TensorProto.FLOAT, np.array([1.5, -0.0, np.inf], np.float32)),
        "fp16": (TensorProto.FLOAT16, np.array([1.5], np.float16)),
        "bf16": (TensorProto.BFLOAT16, np.array([1.5, 2], ml_dtypes.bfloat16)),
        "int64": (TensorProto.INT64, np.array([SMALLEST, 7])),
        "bool": (TensorProto.BOOL, np.array([True, False])),
        "text": (TensorProto.STRING, np.array(["", "é", "a" * 100_000], object)),
        "empty": (TensorProto.FLOAT, np.zeros(0, np.float32)),
        "large": (TensorProto.FLOAT, np.arange(1_000_000, dtype=np.float32)),
    }
    for name, (element, _) in arrays.items():
        put(repository, name, 1, identity(element))
    plane = await planes(repository)
    for name, (_, array) in arrays.items():
        y = (await infer(plane, name, x=array)).outputs["y"]
        assert y.dtype == array.dtype
        np.testing.assert_array_equal(y, array)


async def test_a_killed_worker_costs_its_request_and_comes_back(repository: Path, planes: Any) -> None:
    put(repository, "long", 1, long_loop())
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository)
    before = worker_of(plane, "long")
    running = asyncio.create_task(infer(plane, "long", n=np.array(MOST_ITERATIONS), x=np.float32(1)))
    while not plane.model("long").scheduler.running:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    queued = asyncio.create_task(infer(plane, "long", n=np.array(3), x=np.float32(256)))
    await infer(plane, "m", **FLOAT_PAIR)
    os.kill(before, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        await running
    assert (await queued).outputs["y"] == np.float32(2)
    assert worker_of(plane, "long") != before
    assert plane.model("long").restarts == 1
    assert plane.model("m").restarts == 0


async def test_a_worker_that_dies_idle_comes_back_before_it_is_asked(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository)
    os.kill(worker_of(plane, "m"), signal.SIGKILL)
    for _ in range(1000):
        if plane.model("m").restarts:
            break
        await asyncio.sleep(0.01)
    assert plane.model("m").restarts == 1
    answer = await infer(plane, "m", **FLOAT_PAIR)
    np.testing.assert_array_equal(answer.outputs["total"], FLOAT_PAIR["a"] + FLOAT_PAIR["b"])


async def restarted(plane: DataPlane, times: int) -> None:
    for _ in range(3000):
        if plane.model("m").restarts >= times:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the worker did not come back")


async def spare_of(zygote: Zygote) -> int:
    while not zygote.pids[1]:
        await asyncio.sleep(0.01)
    return zygote.pids[1]


async def test_a_spare_takes_the_place_of_a_zygote_that_dies(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository)
    zygote = plane._host._zygote
    for times in (1, 2):  # the second one is a spare's spare
        spare = await spare_of(zygote)
        os.kill(zygote.pids[0], signal.SIGKILL)
        await restarted(plane, times)
        assert zygote.pids[0] == spare
        await infer(plane, "m", **FLOAT_PAIR)


async def test_a_spare_that_dies_is_replaced_and_costs_nothing(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository)
    zygote = plane._host._zygote
    spare = await spare_of(zygote)
    os.kill(spare, signal.SIGKILL)
    while zygote.pids[1] == spare:
        await asyncio.sleep(0.01)
    assert await spare_of(zygote) != spare
    assert plane.model("m").restarts == 0


async def test_a_fork_that_nobody_waits_for_leaves_nothing(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository)
    zygote = plane._host._zygote
    await spare_of(zygote)
    below = children(zygote.pids[0])
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        forked = asyncio.create_task(zygote.fork())
        await asyncio.sleep(0)
        forked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forked
    for _ in range(1000):
        if children(zygote.pids[0]) == below:
            break
        await asyncio.sleep(0.01)
    assert children(zygote.pids[0]) == below
    assert len(os.listdir("/proc/self/fd")) == files


def children(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


async def test_zygote_and_spare_may_die_together(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository)
    zygote = plane._host._zygote
    both = (zygote.pids[0], await spare_of(zygote))
    for pid in both:
        os.kill(pid, signal.SIGKILL)
    await restarted(plane, 1)
    assert not {*zygote.pids} & {*both}
    await infer(plane, "m", **FLOAT_PAIR)


async def test_zygote_and_spare_end_with_the_server(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository)
    zygote = plane._host._zygote
    handles = [os.pidfd_open(pid) for pid in (zygote.pids[0], await spare_of(zygote), worker_of(plane, "m"))]
    plane.close()
    for handle in handles:
        assert select.select([handle], [], [], 10)[0]
        os.close(handle)


async def test_a_run_that_takes_too_long_is_stopped(repository: Path, planes: Any) -> None:
    put(repository, "long", 1, long_loop())
    put(repository, "m", 1, two_by_two())
    (repository / "long" / "config.toml").write_text("run_timeout = 1.0\n")
    plane = await planes(repository)
    start = time.monotonic()
    running = asyncio.create_task(infer(plane, "long", n=np.array(MOST_ITERATIONS), x=np.float32(1)))
    await infer(plane, "m", **FLOAT_PAIR)
    with pytest.raises(RunTimeoutError, match="model 'long' version 1: it took longer than 1 s"):
        await running
    assert time.monotonic() - start < 20
    assert (await infer(plane, "long", n=np.array(1), x=np.float32(4))).outputs["y"] == np.float32(2)


async def test_an_integer_division_kills_no_more_than_its_worker(repository: Path, planes: Any) -> None:
    put(repository, "divide", 1, divide())
    plane = await planes(repository, engine="onnxruntime")
    with pytest.raises(WorkerLostError, match="SIGFPE"):
        await infer(plane, "divide", **OVERFLOW)
    assert (await infer(plane, "divide", **SIX_BY_TWO)).outputs["q"].tolist() == [3]


async def test_a_witness_that_dies_is_a_mismatch_and_is_started_again(repository: Path, planes: Any) -> None:
    put(repository, "divide", 1, divide())
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, cross_check={"policy": "every"})
    served = plane.model("divide")
    answer = await infer(plane, "divide", **OVERFLOW)
    assert answer.parameters["cross_check"] == "failed"
    assert "SIGFPE" in served.check_statistics.last_mismatch
    assert (await infer(plane, "divide", **SIX_BY_TWO)).parameters["cross_check"] == "passed"
    assert (await infer(plane, "m", **FLOAT_PAIR)).parameters["cross_check"] == "passed"
    assert served.restarts == 0


async def test_a_request_that_ends_the_witness_costs_those_checked_with_it_nothing(
    repository: Path, planes: Any
) -> None:
    put(repository, "divide", 1, divide())
    plane = await planes(repository, cross_check={"policy": "shadow"})
    served = plane.model("divide")
    for inputs in (SIX_BY_TWO, OVERFLOW, SIX_BY_TWO):
        assert (await infer(plane, "divide", **inputs)).parameters["cross_check"] == "shadow"
    await served.settle()
    counts = served.check_statistics
    assert (counts.passed, counts.failed, counts.dropped) == (2, 1, 0)
    assert "SIGFPE" in counts.last_mismatch


async def test_a_witness_gives_way_to_what_answers(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, worker_nice=3, cross_check={"policy": "sample"})
    served = plane.model("m")
    own = os.getpriority(os.PRIO_PROCESS, 0)
    (instance,) = served.scheduler.instances
    pids = [i._place._worker.pid for i in (instance, served._witness)]  # type: ignore[attr-defined,union-attr]
    found = [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids]
    assert found == [min(own + 3, 19), 19]
    # where memory runs out, the kernel ends them before the server
    for pid in pids:
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) >= 300


async def test_memory_is_bounded(repository: Path, planes: Any) -> None:
    put(repository, "blow_up", 1, blow_up())
    put(repository, "m", 1, two_by_two())
    plane = await planes(repository, worker_memory_bytes=600 * 2**20)
    with pytest.raises(MemoryLimitError, match="the worker ran out of memory"):
        await infer(plane, "blow_up", shape=np.array([200_000_000]))
    await infer(plane, "m", **FLOAT_PAIR)
    assert (await infer(plane, "blow_up", shape=np.array([10]))).outputs["y"] == 0


async def test_what_is_refused_before_it_runs_costs_no_worker(repository: Path, planes: Any) -> None:
    put(repository, "blow_up", 1, blow_up())
    put(repository, "long", 1, long_loop())
    plane = await planes(repository)
    workers = {name: worker_of(plane, name) for name in ("blow_up", "long")}
    with pytest.raises(ShapeError, match=r"ConstantOfShape.*its result would take 400,000,000,000,000"):
        await infer(plane, "blow_up", shape=np.array([10**14]))
    with pytest.raises(ShapeError, match=r"node 'roots', operator Loop.*the limit is 1,048,576"):
        await infer(plane, "long", n=np.array(MOST_ITERATIONS + 1), x=np.float32(1))
    assert (await infer(plane, "blow_up", shape=np.array([10]))).outputs["y"] == 0
    assert (await infer(plane, "long", n=np.array(1), x=np.float32(4))).outputs["y"] == np.float32(2)
    assert {name: worker_of(plane, name) for name in workers} == workers


async def test_answers_are_bounded(repository: Path, planes: Any) -> None:
    put(repository, "large", 1, large_answer())
    plane = await planes(repository, limits={"response_bytes": 4096})
    with pytest.raises(MemoryLimitError, match="the outputs take 8000 bytes; an answer may have 4096"):
        await infer(plane, "large", shape=np.array([2000]))
    assert len((await infer(plane, "large", shape=np.array([1000]))).outputs["y"]) == 1000


async def test_a_worker_does_not_come_back_with_another_file(repository: Path, planes: Any) -> None:
    kind = {"x": (TensorProto.FLOAT, ["n"])}
    put(repository, "m", 1, model("Neg", kind, {"y": kind["x"]}))
    plane = await planes(repository)
    put(repository, "m", 1, model("Abs", kind, {"y": kind["x"]}))
    assert (await infer(plane, "m", x=np.float32([-1]))).outputs["y"].tolist() == [1]
    os.kill(worker_of(plane, "m"), signal.SIGKILL)
    await asyncio.sleep(0.2)
    with pytest.raises(ModelUnavailableError, match="the file has changed since it was loaded"):
        await infer(plane, "m", x=np.float32([-1]))
    await plane.refresh()
    assert (await infer(plane, "m", x=np.float32([-1]))).outputs["y"].tolist() == [1]


async def test_what_onwards_engine_cannot_run_is_served_by_onnxruntime(
    repository: Path, planes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from onward.engine import Session
    from onward.errors import UnsupportedError

    kind = (TensorProto.FLOAT, ["n", "n"])
    content = model("Inverse", {"x": kind}, {"y": kind})
    content.graph.node[0].domain = "com.microsoft"
    content.opset_import.add(domain="com.microsoft", version=1)
    path = put(repository, "m", 1, content)
    with pytest.raises(UnsupportedError):
        Session(path)
    plane = await planes(repository, cross_check={"policy": "every"})
    answer = await infer(plane, "m", x=np.float32([[2, 0], [0, 4]]))
    assert answer.parameters == {"engine": "onnxruntime", "cross_check": "skipped"}
    np.testing.assert_allclose(answer.outputs["y"], [[0.5, 0], [0, 0.25]], rtol=1e-5)
    assert "Inverse" in plane.model("m").reason
    assert "served by onnxruntime, without a cross-check" in caplog.text
    for refused in ({"fallback": False}, {"cross_check": {"policy": "every", "on_mismatch": "fail"}}):
        strict = await planes(repository, **refused)
        assert "Inverse" in strict.problems["m", 1]


async def test_quick_runs_move_into_the_server_and_answer_the_same(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, two_by_two())
    put(repository, "long", 1, long_loop())
    plane = await planes(repository, in_process_us=1e6)
    served = plane.model("m")
    first = await infer(plane, "m", **FLOAT_PAIR)
    for _ in range(2000):
        answer = await infer(plane, "m", **FLOAT_PAIR)
        if served.infer_statistics.in_process:
            break
        await asyncio.sleep(0.005)
    assert served.infer_statistics.in_process >= 1
    for name, array in first.outputs.items():
        np.testing.assert_array_equal(answer.outputs[name], array)
    for _ in range(10):
        await infer(plane, "long", n=np.array(1), x=np.float32(4))
        await asyncio.sleep(0.02)
    await asyncio.to_thread(plane._pool.submit(lambda: None).result)
    await infer(plane, "long", n=np.array(1), x=np.float32(4))
    assert plane.model("long").infer_statistics.in_process == 0


async def test_cancelling_frees_the_place_in_the_queue(repository: Path, planes: Any) -> None:
    put(repository, "long", 1, long_loop())
    plane = await planes(repository, run_timeout=30)
    scheduler = plane.model("long").scheduler
    tasks = [
        asyncio.create_task(infer(plane, "long", n=np.array(MOST_ITERATIONS), x=np.float32(1)))
        for _ in range(3)
    ]
    while scheduler.waiting < 2:
        await asyncio.sleep(0.01)
    tasks[2].cancel()
    await asyncio.gather(tasks[2], return_exceptions=True)
    assert (scheduler.waiting, scheduler.running) == (1, 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_a_region_refuses_what_does_not_lie_in_it() -> None:
    region = Region(memory_file("test"))
    region.write({"x": np.zeros(4, np.float32)})
    for entry in (
        ("x", "FP32", [4], 2**40, 16),
        ("x", "FP32", [4], -16, 16),
        ("x", "FP32", [5], 0, 16),
    ):
        with pytest.raises(ValueError, match=r"'x'|shared memory"):
            region.read([entry], copy=True)
    region.close()


async def test_a_mismatch_is_computed_again_and_the_node_is_named(repository: Path, planes: Any) -> None:
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="first"),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="product"),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(generator.standard_normal((512, 8)).astype(np.float32), "w")],
    )
    put(
        repository,
        "m",
        1,
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
    )
    # two engines add up in different orders: without a tolerance they disagree
    exact = {"float32": {"rtol": 0.0, "atol": 0.0}}
    plane = await planes(repository, cross_check={"policy": "every", "tolerance": exact})
    x = generator.standard_normal((4, 512)).astype(np.float32)
    for _ in range(3):
        await infer(plane, "m", x=x)
    await plane.model("m").settle()
    counts = plane.model("m").check_statistics
    assert counts.failed == 3
    assert "product" in counts.first_difference
    assert "MatMul" in counts.first_difference
