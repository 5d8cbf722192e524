"""`make load`: requests a second and latencies, ours beside a bare handler, in turns, with the same client.

    python -m benchmarks.service.load [--seconds S] [--rounds N]

The bare handler (`bare.py`) decodes, runs onnxruntime and encodes; no checks, no isolation, no statistics.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import uvloop
from benchmarks.service.models import write_mlp
from benchmarks.service.starting import INFER, cpu_seconds, request, server

_CONCURRENCY = (1, 8, 32)


async def measure(
    address: str, pid: int, data: bytes, concurrency: int, seconds: float
) -> tuple[float, float, float, float]:
    """Requests a second, median and 99th percentile of milliseconds, the server's CPU microseconds."""
    times: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(INFER)
        for _ in range(50):
            await call(data)
        await asyncio.sleep(0.5)
        before = cpu_seconds(pid)
        end = time.perf_counter() + seconds

        async def client() -> None:
            while (start := time.perf_counter()) < end:
                await call(data)
                times.append(time.perf_counter() - start)

        begin = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        took = time.perf_counter() - begin
    used = 1e6 * (cpu_seconds(pid) - before) / len(times)
    times.sort()
    return len(times) / took, 1e3 * statistics.median(times), 1e3 * times[int(0.99 * (len(times) - 1))], used


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (4)")
    parser.add_argument("--rounds", type=int, default=2, help="(2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = write_mlp(Path(folder))
        write_mlp(Path(folder), "batched", "in_process = 'never'\n[batching]\nmax_batch = 32\n")
        write_mlp(Path(folder), "worker", "in_process = 'never'\n")
        first, ours = stack.enter_context(server("--repository", folder))
        second, off = stack.enter_context(server("--repository", folder, "--cross-check", "off"))
        third, bare = stack.enter_context(server("-m", "benchmarks.service.bare", str(path)))
        x = np.random.default_rng(0).standard_normal((1, 784)).astype(np.float32)
        peers = {
            "bare handler": (bare["address"], third.pid, request("mlp", x)),
            "ours": (ours["address"], first.pid, request("mlp", x)),
            "ours, no cross-check": (off["address"], second.pid, request("mlp", x)),
            "ours, in a worker": (off["address"], second.pid, request("worker", x)),
            "ours, batched in a worker": (off["address"], second.pid, request("batched", x)),
        }
        columns = ("concurrency", "requests/s", "of bare", "p50 ms", "p99 ms", "CPU us")
        print(" " * 26, *(f"{column:>11}" for column in columns))
        for concurrency in _CONCURRENCY:
            found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in peers}
            for _ in range(options.rounds):
                for name, (address, pid, data) in peers.items():
                    found[name].append(uvloop.run(measure(address, pid, data, concurrency, options.seconds)))
            best = {name: max(rounds) for name, rounds in found.items()}
            for name, (rate, median, tail, used) in best.items():
                ratio = rate / best["bare handler"][0]
                figures = (f"{rate:11.0f}", f"{ratio:11.2f}", f"{median:11.2f}", f"{tail:11.2f}")
                print(f"{name:26} {concurrency:11}", *figures, f"{used:11.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
