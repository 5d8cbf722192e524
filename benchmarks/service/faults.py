"""`make faults`: what breaks while requests flow, what clients saw of it, and when all was well again.

    python -m benchmarks.service.faults [--parts P,...]

A steady load of eight clients asks `mlp` throughout; nothing but the fault's own requests may fail, and those
as they should. A table of fault, what its own requests saw, what the others saw and seconds to recover; exit
code 0: what should fail failed, and only that. Parts: `serving` (workers, crashes, loops, loads, clients),
`training` (promotions under load, a server that is killed with its job), `disk` (one that is full; needs to
mount a small file system).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import uvloop
from benchmarks.service import faults_disk, faults_training
from benchmarks.service.models import write_endless, write_filled, write_mlp, write_slow
from benchmarks.service.starting import INFER, family, request, role, server
from onnx import TensorProto, helper

from onward_protos import grpc_service_pb2 as pb

_PARTS = ("serving", "training", "disk")
_SERVICE = "/inference.GRPCInferenceService/"
_OURS_TO_LOSE = {"UNAVAILABLE"}
_WORKER_BYTES = 1 << 30
_RUN_TIMEOUT = 3.0
_IDLE_SECONDS = 5.0
_SILENT = 500


_UNCHECKED = "cross_check = { policy = 'off' }\n"
_WRONG = ("MIXED", "OTHER", "MISSING", "BROKEN", "INTERNAL", "UNKNOWN")
_WANTED = {
    "a model that crashes its engine": "UNAVAILABLE",
    "a corrupt model loaded": "load: UNAVAILABLE",
    "five reloads under load": "5 loads OK",
    "two loops that never end": "DEADLINE_EXCEEDED, DEADLINE_EXCEEDED",
    "2e9, 1e14 and -1 elements asked for": "RESOURCE_EXHAUSTED, RESOURCE_EXHAUSTED, INVALID_ARGUMENT",
    "a reader that pauses for 3 s": "64 of 64 answered",
    f"{_SILENT} silent connections": f"{_SILENT} closed",
    "a new version, by SIGHUP": "version 2 serves",
}
"""What a fault's own requests have to see, where that is one thing."""


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def write_divide(repository: Path) -> None:
    """Integer division in onnxruntime, which INT64_MIN / -1 kills."""
    kind = (TensorProto.INT64, ["n"])
    graph = helper.make_graph(
        [helper.make_node("Div", ["a", "b"], ["q"])],
        "divide",
        [helper.make_tensor_value_info(name, *kind) for name in ("a", "b")],
        [helper.make_tensor_value_info("q", *kind)],
    )
    path = repository / "divide" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    config = "engine = 'onnxruntime'\ncross_check = { policy = 'off' }\n"
    (repository / "divide" / "config.toml").write_text(config)


def divide() -> bytes:
    tensors = [{"name": name, "datatype": "INT64", "shape": [1]} for name in ("a", "b")]
    raw = [np.array([number], np.int64).tobytes() for number in (-(2**63), -1)]
    message = pb.ModelInferRequest(model_name="divide", inputs=tensors, raw_input_contents=raw)
    return message.SerializeToString()


async def code_of(call: Awaitable[Any]) -> str:
    """The status that a call ended with."""
    try:
        await call
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


async def trials(address: str, pid: int, repository: Path) -> list[tuple[str, str, str, float]]:
    """For each fault: its name, what its own requests and the others got, and seconds to recover."""
    rows: list[tuple[str, str, str, float]] = []
    mlp = request("mlp", np.zeros((1, 784), np.float32))
    slow = request("slow", np.zeros((64, 256), np.float32))
    async with grpc.aio.insecure_channel(address) as channel:
        infer = channel.unary_unary(INFER)
        load = channel.unary_unary(f"{_SERVICE}RepositoryModelLoad")
        codes: Counter[str] = Counter()

        async def steady() -> None:
            while True:
                codes[await code_of(infer(mlp, timeout=30))] += 1

        async def recovered(data: bytes) -> float:
            start = time.perf_counter()
            while await code_of(infer(data, timeout=30)) != "OK":
                await asyncio.sleep(0.01)
            return time.perf_counter() - start

        async def trial(
            name: str, fault: Callable[[], Awaitable[str | tuple[str, float]]], probe: bytes = mlp
        ) -> None:
            codes.clear()
            found = await fault()
            seen, seconds = (found, await recovered(probe)) if isinstance(found, str) else found
            await asyncio.sleep(0.5)
            text = ", ".join(f"{count} {code}" for code, count in codes.items())
            rows.append((name, seen, text, seconds))

        def those(*roles: str) -> list[int]:
            return [member for member in family(pid) if role(member) in roles]

        async def kill(which: Callable[[], list[int]]) -> tuple[str, float]:
            """Seconds count from the kill: calls that wait meanwhile would hide how long it took."""
            pids = which()
            running = [asyncio.ensure_future(code_of(infer(slow, timeout=60))) for _ in range(2)]
            await asyncio.sleep(0.02)
            for worker in pids:
                os.kill(worker, signal.SIGKILL)
            start = time.perf_counter()
            while any(_lives(worker) for worker in pids):
                await asyncio.sleep(0.01)
            await recovered(slow)
            seconds = time.perf_counter() - start
            return ", ".join(await asyncio.gather(*running)), seconds

        async def corrupt() -> str:
            path = repository / "mlp" / "1" / "model.onnx"
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            seen = await code_of(load(pb.RepositoryModelLoadRequest(model_name="mlp").SerializeToString()))
            path.write_bytes(content)
            return f"load: {seen}"

        async def reload() -> str:
            seen = []
            for number in range(5):
                write_mlp(repository, config=f"default_priority = {number + 1}\nin_process = 'never'\n")
                seen.append(
                    await code_of(load(pb.RepositoryModelLoadRequest(model_name="mlp").SerializeToString()))
                )
            return f"{seen.count('OK')} loads OK"

        async def hang_up() -> str:
            for _ in range(20):
                stream = channel.stream_stream(f"{_SERVICE}ModelStreamInfer")(iter([slow] * 16))
                await asyncio.sleep(0.02)
                stream.cancel()
            return "20 streams cancelled"

        async def crash() -> str:
            return await code_of(infer(divide(), timeout=60))

        async def endless() -> str:
            data = request("endless", np.array([2**63 - 1], np.int64))
            return ", ".join(await asyncio.gather(*(code_of(infer(data, timeout=60)) for _ in range(2))))

        async def filled() -> str:
            sizes = (2 * 10**9, 10**14, -1)
            calls = [code_of(infer(request("filled", np.array([n], np.int64)), timeout=60)) for n in sizes]
            return ", ".join([await call for call in calls])

        async def slow_reader() -> str:
            large = request("mlp", np.zeros((4096, 784), np.float32))
            stream = channel.stream_stream(f"{_SERVICE}ModelStreamInfer")(iter([large] * 64))
            await asyncio.sleep(3)
            answers = [pb.ModelStreamInferResponse.FromString(answer) async for answer in stream]
            return f"{sum(not answer.error_message for answer in answers)} of 64 answered"

        async def silent() -> str:
            host, port = address.rsplit(":", 1)
            opened = [await asyncio.open_connection(host, int(port)) for _ in range(_SILENT)]
            ends = [asyncio.wait_for(reader.read(), 4 * _IDLE_SECONDS) for reader, _ in opened]
            closed = await asyncio.gather(*ends, return_exceptions=True)
            for _, writer in opened:
                writer.close()
            return f"{sum(isinstance(end, bytes) for end in closed)} closed"

        async def new_version() -> str:
            path = write_mlp(repository, "later")
            (path.parent.parent / "2").mkdir()
            await code_of(load(pb.RepositoryModelLoadRequest(model_name="later").SerializeToString()))
            shutil.copy(path, path.parent.parent / "2")
            os.kill(pid, signal.SIGHUP)
            ready = channel.unary_unary(f"{_SERVICE}ModelReady")
            asked = pb.ModelReadyRequest(name="later", version="2").SerializeToString()
            for _ in range(500):
                if pb.ModelReadyResponse.FromString(await ready(asked)).ready:
                    return "version 2 serves"
                await asyncio.sleep(0.02)
            return "version 2 MISSING"

        clients = [asyncio.ensure_future(steady()) for _ in range(8)]
        await recovered(slow)
        await trial("all workers killed -9", lambda: kill(lambda: those("worker")))
        await trial("zygote and spare killed -9", lambda: kill(lambda: those("zygote", "spare")))
        # last of these: a spare that took its place is no descendant of the server
        await trial("the zygote killed -9", lambda: kill(lambda: those("zygote")))
        await trial("a model that crashes its engine", crash)
        await trial("a corrupt model loaded", corrupt)
        await trial("five reloads under load", reload)
        await trial("clients that disconnect mid-stream", hang_up, slow)
        one = np.array([1], np.int64)
        await trial("two loops that never end", endless, request("endless", one))
        await trial("2e9, 1e14 and -1 elements asked for", filled, request("filled", one))
        await trial("a reader that pauses for 3 s", slow_reader)
        await trial(f"{_SILENT} silent connections", silent)
        await trial("a new version, by SIGHUP", new_version)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    return rows


def serving() -> tuple[list[tuple[str, str, str, float]], bool]:
    """The faults of one server, and whether it outlived them and stopped as it should."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        write_mlp(repository, config="in_process = 'never'\n")
        write_slow(repository, config="cross_check = { policy = 'off' }\n")
        write_divide(repository)
        write_endless(
            repository, config=f"engine = 'onnxruntime'\nrun_timeout = {_RUN_TIMEOUT}\n{_UNCHECKED}"
        )
        write_filled(repository, config=_UNCHECKED)
        bounds = {
            "ONWARD_SERVER_WORKER_MEMORY_BYTES": str(_WORKER_BYTES),
            "ONWARD_SERVER_LIMITS__IDLE_SECONDS": str(_IDLE_SECONDS),
        }
        os.environ.update(bounds)
        with server("--repository", folder, "--model-control", "explicit") as (process, event):
            for name in bounds:
                del os.environ[name]
            rows = uvloop.run(trials(event["address"], process.pid, repository))
            alive = process.poll() is None
        return rows, alive and process.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", default=",".join(_PARTS), help="all by default")
    parts = parser.parse_args().parts.split(",")
    if unknown := [name for name in parts if name not in _PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(_PARTS)}")
    rows: list[tuple[str, str, str, float]] = []
    good = True
    for name in parts:
        part = {"training": faults_training, "disk": faults_disk}.get(name)
        if part is None:
            found, good = serving()
        else:
            with tempfile.TemporaryDirectory() as folder:
                found = uvloop.run(part.trials(Path(folder)))
        rows += found
    print(f"{'fault':36} {'its own requests':48} {'the others':34} {'well again, s':>13}")
    for name, seen, others, seconds in rows:
        lost = {entry.split()[1] for entry in others.split(", ") if entry} - {"OK"}
        holds = not lost or ("killed" in name and lost <= _OURS_TO_LOSE)
        holds &= not any(word in seen for word in _WRONG)
        holds &= _WANTED.get(name, seen) == seen
        good &= holds
        print(f"{name:36} {seen:48} {others:34} {seconds:13.2f}" + ("" if holds else "  WRONG"))
    print(f"{'pass' if good else 'FAIL'}: what should fail failed, and only that")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
