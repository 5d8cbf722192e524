"""`make overload`: ten times what the server can do. A verdict for each goal; exit code 0: all hold.

    python -m benchmarks.service.overload [--seconds S] [--clients N]

Every health check is answered within 100 ms, what is accepted is answered before its deadline, all else is
RESOURCE_EXHAUSTED, memory stays. The server has one half of the processors and the clients the other one, for
the capacity too: clients that send ten times as much as is answered take what they find, and a server that
has lost its processors to them would look slow.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import uvloop
from benchmarks.service.models import write_slow
from benchmarks.service.starting import INFER, family, memory_mb, request, server
from grpc_health.v1 import health_pb2, health_pb2_grpc

_DEADLINE = 2.0
_LOAD = 10
_HEALTH_MS = 100.0


def watch(address: str, pid: int, seconds: float, processors: set[int]) -> tuple[list[float], list[float]]:
    """Seconds that health checks took, and each second the memory of the server and its workers."""
    os.sched_setaffinity(0, processors)
    health: list[float] = []
    memory: list[float] = []
    begun = time.perf_counter()
    with grpc.insecure_channel(address) as channel:
        checks = health_pb2_grpc.HealthStub(channel)
        while (start := time.perf_counter()) < begun + seconds:
            checks.Check(health_pb2.HealthCheckRequest(), timeout=10)
            health.append(time.perf_counter() - start)
            if start - begun >= len(memory):
                memory.append(memory_mb(family(pid)))
            time.sleep(0.05)
    return health, memory


async def capacity(address: str, seconds: float) -> float:
    """Requests a second that are answered when few wait."""
    data = request("slow", np.zeros((64, 256), np.float32))
    answered = 0
    begun = time.perf_counter()
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(INFER)

        async def client() -> None:
            nonlocal answered
            while time.perf_counter() < begun + seconds:
                await call(data)
                answered += 1

        await asyncio.gather(*(client() for _ in range(4)))
    return answered / (time.perf_counter() - begun)


async def storm(
    address: str, pid: int, seconds: float, clients: int, processors: set[int]
) -> dict[str, float]:
    """What clients saw: counts by code, and the slowest of each kind in ms."""
    data = request("slow", np.zeros((64, 256), np.float32))
    codes: collections.Counter[str] = collections.Counter()
    slowest: dict[str, float] = collections.defaultdict(float)
    end = time.perf_counter() + seconds
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(INFER)

        async def client() -> None:
            while time.perf_counter() < end:
                start = time.perf_counter()
                try:
                    await call(data, timeout=_DEADLINE)
                    code = "OK"
                except grpc.RpcError as error:
                    code = error.code().name
                codes[code] += 1
                slowest[code] = max(slowest[code], time.perf_counter() - start)
                if code != "OK":
                    await asyncio.sleep(0.05)

        # a process of its own: what the clients here wait for themselves is not the server's
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            watched = asyncio.get_running_loop().run_in_executor(
                pool, watch, address, pid, seconds, processors
            )
            await asyncio.gather(*(client() for _ in range(clients)))
            health, memory = await watched
    quarter = max(len(memory) // 4, 1)
    health.sort()
    return {
        **{f"{code}, requests": count for code, count in codes.items()},
        **{f"{code}, slowest ms": 1e3 * value for code, value in slowest.items()},
        "health, p99 ms": 1e3 * health[int(0.99 * (len(health) - 1))],
        "health, p99.9 ms": 1e3 * health[int(0.999 * (len(health) - 1))],
        "health, slowest ms": 1e3 * health[-1],
        "memory, first quarter MB": max(memory[:quarter]),
        "memory, last quarter MB": max(memory[-quarter:]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="(60)")
    parser.add_argument("--clients", type=int, default=400, help="that wait for answers at a time (400)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_slow(Path(folder), config="queue_size = 16\ncross_check = { policy = 'off' }\n")
        processors = sorted(os.sched_getaffinity(0))
        half = max(len(processors) // 2, 1)
        os.sched_setaffinity(0, processors[:half])
        with server("--repository", folder) as (process, event):
            os.sched_setaffinity(0, processors[half:] or processors)
            able = uvloop.run(capacity(event["address"], min(5.0, options.seconds)))
            seen = uvloop.run(
                storm(event["address"], process.pid, options.seconds, options.clients, set(processors))
            )
            alive = process.poll() is None
    for name, value in sorted(seen.items()):
        print(f"{name:32} {value:12.1f}")
    counts = {name.split(",")[0]: value for name, value in seen.items() if name.endswith("requests")}
    load = sum(counts.values()) / options.seconds / able
    print(f"{'capacity, requests/s':32} {able:12.1f}")
    print(f"{'load, of capacity':32} {load:12.1f}")
    answered = counts.get("OK", 0)
    checks = {
        f"the load is {_LOAD} times the capacity at least": load >= _LOAD,
        "half of the capacity or more is answered": answered >= 0.5 * able * options.seconds,
        "what is accepted keeps its deadline": not counts.get("DEADLINE_EXCEEDED"),
        "the rest is RESOURCE_EXHAUSTED": counts.keys() <= {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"},
        f"health within {_HEALTH_MS:.0f} ms, each time": seen["health, slowest ms"] < _HEALTH_MS,
        "memory grows by less than a tenth": seen["memory, last quarter MB"]
        < 1.1 * seen["memory, first quarter MB"] + 10,
        "the server lives": alive,
    }
    for name, holds in checks.items():
        print(f"{'pass' if holds else 'FAIL'}: {name}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
