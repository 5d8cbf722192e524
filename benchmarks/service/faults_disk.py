"""Part of `make faults`: the disk of jobs and of the repository is full, and has room again."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from benchmarks.service.starting import INFER, request, server

from onward_client import AsyncClient
from onward_client.errors import ClientError

__all__ = ["trials"]

_MB = 24
_RUN: dict[str, Any] = {"model": "mlp", "data": "iris", "epochs": 20, "checkpoint": {"every": 5}}


async def trials(folder: Path) -> list[tuple[str, str, str, float]]:
    """The row of the fault: what the fault's own calls saw, what others got, and seconds to recover."""
    if shutil.which("unshare") is None or os.geteuid():
        return [("a full disk", "not tried: it needs unshare, as root", "", 0.0)]
    disk = folder / "disk"
    disk.mkdir()
    os.environ["ONWARD_SERVER_TRAINING__FOLDER"] = str(disk / "training")
    os.environ["ONWARD_SERVER_TRAINING__NICE"] = "5"
    os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
    try:
        # a file system of its own, which ends with the server
        script = f'mount -t tmpfs -o size={_MB}m tmpfs "$0" && mkdir "$0/models" && exec "$@"'
        prefix = ("unshare", "--mount", "sh", "-c", script, str(disk))
        with server("--repository", str(disk / "models"), prefix=prefix, log=folder / "log") as (
            process,
            event,
        ):
            inside = Path(f"/proc/{process.pid}/root{disk}")
            row = await _filled(event["address"], inside)
        good = process.returncode == 0 and "Traceback" not in (folder / "log").read_text()
        return [(*row[:1], row[1] + ("" if good else " BROKEN"), *row[2:])]
    finally:
        for name in ("ONWARD_SERVER_TRAINING__FOLDER", "ONWARD_SERVER_TRAINING__NICE", "SOURCE_DATE_EPOCH"):
            del os.environ[name]


async def _filled(address: str, disk: Path) -> tuple[str, str, str, float]:
    codes: Counter[str] = Counter()
    going = True
    async with AsyncClient(address, timeout=600) as client, grpc.aio.insecure_channel(address) as channel:
        training = client.training
        first = await training.start(_RUN)
        [_ async for _ in training.watch(first.id)]
        first = await training.get(first.id)
        await training.promote(first.id, "m")
        infer = channel.unary_unary(INFER)
        name = (await client.metadata("m")).inputs[0].name
        data = request("m", np.ones((1, 4), np.float32), name)

        async def steady() -> None:
            while going:
                try:
                    await infer(data, timeout=60)
                    codes["OK"] += 1
                except grpc.RpcError as error:
                    codes[error.code().name] += 1

        others = [asyncio.ensure_future(steady()) for _ in range(4)]
        running = await training.start(_RUN)
        while not (await training.get(running.id)).resumable:
            await asyncio.sleep(0.02)
        count = (await training.parameters("m")).values.size
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 12))
        delta = np.ones(count, np.float32)
        rows: list[dict[str, np.ndarray]] = [
            {"x": np.ones((4096, 64), np.float32), "y": np.zeros(4096, np.int64)}
        ]
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "Start": lambda: training.start(_RUN),
            "StartStream": lambda: training.start({"model": "mlp"}, batches=rows),
            "Promote": lambda: training.promote(first.id, "m"),
            "SubmitDelta": lambda: training.submit_delta(
                "m", "", delta, round="r", contributor="c", weight=1.0
            ),
            "SetParameters": lambda: training.set_parameters("m", "", delta),
        }
        seen: dict[str, list[str]] = {}
        for title, call in calls.items():
            try:
                await call()
                code = "OK"
            except ClientError as error:
                code = error.code
            seen.setdefault(code, []).append(title)
        with suppress(ClientError):
            [_ async for _ in training.watch(running.id)]
        filler.unlink()
        start = time.perf_counter()
        if (await training.get(running.id)).state == "failed":
            await training.resume(running.id)
            [_ async for _ in training.watch(running.id)]
        seconds = time.perf_counter() - start
        ended = await training.get(running.id)
        await training.promote(running.id, "m")
        going = False
        await asyncio.gather(*others)
    same = (
        "the job's bytes" if ended.sha256 == first.sha256 else f"OTHER BYTES: {ended.state}, {ended.reason}"
    )
    told = "; ".join(f"{', '.join(titles)}: {code}" for code, titles in seen.items())
    return (
        "a full disk",
        f"{told}; then {same}",
        ", ".join(f"{n} {code}" for code, n in codes.items()),
        seconds,
    )
