"""Part of `make faults`: promotions under full load, and a server that is killed with its job."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from benchmarks.service.starting import INFER, server

from onward_client import AsyncClient
from onward_client.errors import ClientError
from onward_protos import grpc_service_pb2 as pb

__all__ = ["ANSWERS", "trials"]

ANSWERS = 20_000
_CLIENTS = 16
_SWAPS = 6
_RUN: dict[str, Any] = {"model": "mlp", "data": "iris", "epochs": 2}


async def trials(folder: Path) -> list[tuple[str, str, str, float]]:
    """For each fault: its name, what became of it, what other requests got, and seconds to recover."""
    repository = folder / "models"
    repository.mkdir()
    os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
    os.environ["ONWARD_SERVER_TRAINING__FOLDER"] = str(folder / "training")
    os.environ["ONWARD_SERVER_TRAINING__NICE"] = "5"
    try:
        with server("--repository", str(repository)) as (_, event):
            promotions = await _promotions(event["address"])
        return [promotions, await _restart(repository)]
    finally:
        for name in ("SOURCE_DATE_EPOCH", "ONWARD_SERVER_TRAINING__FOLDER", "ONWARD_SERVER_TRAINING__NICE"):
            del os.environ[name]


async def _promotions(address: str) -> tuple[str, str, str, float]:
    x = np.ones((1, 4), np.float32)
    codes: Counter[str] = Counter()
    answers: dict[bytes, set[str]] = {}
    async with AsyncClient(address, timeout=600) as client, grpc.aio.insecure_channel(address) as channel:
        jobs = [await client.training.start({**_RUN, "seed": seed}) for seed in range(2)]
        for job in jobs:
            [_ async for _ in client.training.watch(job.id)]
        await client.training.promote(jobs[0].id, "m")
        name = (await client.metadata("m")).inputs[0].name
        tensor = {"name": name, "datatype": "FP32", "shape": x.shape}
        message = pb.ModelInferRequest(model_name="m", inputs=[tensor], raw_input_contents=[x.tobytes()])
        data = message.SerializeToString()
        infer = channel.unary_unary(INFER)
        going = True

        async def steady() -> None:
            while going:
                try:
                    answer = pb.ModelInferResponse.FromString(await infer(data, timeout=60))
                except grpc.RpcError as error:
                    codes[error.code().name] += 1
                else:
                    codes["OK"] += 1
                    answers.setdefault(answer.raw_output_contents[0], set()).add(answer.model_version)

        clients = [asyncio.ensure_future(steady()) for _ in range(_CLIENTS)]
        slowest = 0.0
        for number in range(_SWAPS):
            start = time.perf_counter()
            if number % 3 == 2:
                await client.training.rollback("m")
            else:
                await client.training.promote(jobs[(number + 1) % 2].id, "m")
            slowest = max(slowest, time.perf_counter() - start)
        while sum(codes.values()) < ANSWERS:
            await asyncio.sleep(0.1)
        going = False
        await asyncio.gather(*clients)
        versions = [entry.version for entry in await client.training.lineage("m")]
    # two jobs were promoted in turn: every answer is one's or the other's, and a version has one answer
    mixed = len(answers) > 2 or any(a & b for a in answers.values() for b in answers.values() if a is not b)
    seen = f"{len(versions)} versions" + (", MIXED" if mixed else "")
    return "promote under full load", seen, ", ".join(f"{n} {code}" for code, n in codes.items()), slowest


async def _restart(repository: Path) -> tuple[str, str, str, float]:
    run = {**_RUN, "epochs": 60, "checkpoint": {"every": 20}}
    with server("--repository", str(repository)) as (process, event):
        async with AsyncClient(event["address"], timeout=600) as client:
            job = await client.training.start(run)
            while not (await client.training.get(job.id)).resumable:
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            start = time.perf_counter()
    with server("--repository", str(repository)) as (_, event):
        async with AsyncClient(event["address"], timeout=600) as client:
            while (await client.training.get(job.id)).state == "queued":
                await asyncio.sleep(0.02)
            seconds = time.perf_counter() - start
            whole = await client.training.start(run)
            last = {}
            for each in (job, whole):
                try:
                    last[each.id] = [event.kind async for event in client.training.watch(each.id)][-1]
                except ClientError as error:
                    last[each.id] = error.code
            found = [(await client.training.get(each.id)).sha256 for each in (job, whole)]
    same = "same bytes" if found[0] and found[0] == found[1] else f"OTHER BYTES {json.dumps(last)}"
    return "restart during a training job", f"{last[job.id]}, {same}", "", seconds
