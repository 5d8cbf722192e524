"""`make soak`: hundreds of thousands of requests of every kind; memory and open files must not grow.

python -m benchmarks.service.soak [--requests N]

Calls answered in the server's process, in a worker and in batches; streams, HTTP, compressed, malformed,
unknown, cancelled and late ones, from clients that connect anew now and then. Memory of the server and of
each of its workers, and its open files, are looked at after each fifth of the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import grpc
import numpy as np
import uvloop
from benchmarks.service.models import write_mlp
from benchmarks.service.starting import INFER, STREAM, family, memory_mb, private_mb, request, role, server

_CONNECTION = 2000
_FORBIDDEN = ("UNKNOWN", "INTERNAL", "500")
_GROWTH_MB = 40
_OWN_GROWTH_MB = 16
"""Of one process, in memory that it shares with no other; the first fifth of the requests warms it up."""


def files(pid: int) -> int:
    """How many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def _calls(address: str, count: int, random_: np.random.Generator) -> collections.Counter[str]:
    """`count` calls over one connection."""
    codes: collections.Counter[str] = collections.Counter()
    rows = random_.standard_normal((8, 784)).astype(np.float32)
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call, stream = channel.unary_unary(INFER), channel.stream_stream(STREAM)
        while count > 0:
            kind = random_.random()
            model = str(random_.choice(["mlp", "worker", "batched"], p=[0.7, 0.1, 0.2]))
            data = request(model, rows[: random_.integers(1, 9)])
            count -= 1
            try:
                if kind < 0.02:
                    count -= 9
                    async for _ in stream(iter([data] * 10)):
                        codes["streamed"] += 1
                    continue
                if kind < 0.03:
                    data = data[: random_.integers(0, len(data))]
                elif kind < 0.04:
                    data = request("nobody", rows)
                timeout = 0.001 if 0.04 <= kind < 0.05 else 30.0
                compression = grpc.Compression.Gzip if 0.05 <= kind < 0.06 else None
                sent = call(data, timeout=timeout, compression=compression)
                if 0.06 <= kind < 0.07:
                    await asyncio.sleep(0.0005)
                    sent.cancel()
                await sent
                codes["OK"] += 1
            except grpc.RpcError as error:
                late = error.details() == "Internal error from Core"
                codes["not sent" if late else error.code().name] += 1
            except asyncio.CancelledError:
                codes["CANCELLED"] += 1
    return codes


async def _posts(address: str, count: int, random_: np.random.Generator) -> collections.Counter[str]:
    codes: collections.Counter[str] = collections.Counter()
    async with aiohttp.ClientSession() as session:
        for _ in range(count):
            shape = [1, int(random_.choice([784, 784, 784, 3]))]
            tensor = {"name": "x", "datatype": "FP32", "shape": shape, "data": [0.5] * shape[1]}
            url = f"http://{address}/v2/models/mlp/infer"
            async with session.post(url, json={"inputs": [tensor]}) as response:
                await response.read()
                codes[str(response.status)] += 1
    return codes


async def run(grpc_address: str, http_address: str, count: int, seed: int) -> collections.Counter[str]:
    """What became of `count` requests, 24 at a time."""
    codes: collections.Counter[str] = collections.Counter()
    left = count

    async def client(number: int) -> None:
        nonlocal left
        random_ = np.random.default_rng((seed, number))
        while left > 0:
            size = min(_CONNECTION, left)
            left -= size
            if number:
                codes.update(await _calls(grpc_address, size, random_))
            else:
                codes.update(await _posts(http_address, size // 4, random_))
                codes.update(await _calls(grpc_address, size - size // 4, random_))

    await asyncio.gather(*(client(number) for number in range(24)))
    return codes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=500_000, help="(500000)")
    options = parser.parse_args()
    codes: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        write_mlp(Path(folder))
        write_mlp(Path(folder), "batched", "in_process = 'never'\n[batching]\nmax_batch = 32\n")
        write_mlp(Path(folder), "worker", "in_process = 'never'\n")
        with server("--repository", folder, "--http-listen", "127.0.0.1:0") as (process, event):
            begin = time.perf_counter()
            seen: list[tuple[float, int]] = []
            own: list[dict[tuple[str, int], float]] = []
            for part in range(5):
                arguments = (event["address"], event["http_address"], options.requests // 5, part)
                codes.update(uvloop.run(run(*arguments)))
                time.sleep(1.0)
                seen.append((memory_mb(family(process.pid)), files(process.pid)))
                own.append({(role(pid), pid): private_mb(pid) for pid in family(process.pid)})
                done = sum(codes.values())
                print(f"{done:>8} requests: {seen[-1][0]:.0f} MB, {seen[-1][1]} files", flush=True)
            took = time.perf_counter() - begin
        code = process.returncode
    wrong = sum(codes[name] for name in _FORBIDDEN)
    print("memory of each process's own, after each fifth, MB:")
    grown = 0.0
    for key in sorted({key for sizes in own for key in sizes}):
        sizes = [each.get(key) for each in own]
        known = [size for size in sizes if size is not None]
        grown = max(grown, known[-1] - known[0])
        row = " ".join(f"{'-' if size is None else f'{size:.1f}':>8}" for size in sizes)
        print(f"  {key[0]:8} {key[1]:8} {row}  grew by {known[-1] - known[0]:.1f}")
    checks = [
        (f"no process's own memory grew by {_OWN_GROWTH_MB} MB", grown < _OWN_GROWTH_MB),
        ("no process was lost", own[0].keys() <= own[-1].keys()),
        (f"memory grew by less than {_GROWTH_MB} MB", seen[-1][0] - seen[0][0] < _GROWTH_MB),
        ("no file stayed open", seen[-1][1] - seen[0][1] <= 2),
        ("no INTERNAL, UNKNOWN or 500", wrong == 0),
        ("it stopped with exit code 0", code == 0),
    ]
    print(dict(codes.most_common()), f"in {took:.0f} s")
    for name, holds in checks:
        print(f"{'pass' if holds else 'FAIL'}: {name}")
    return 0 if all(holds for _, holds in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
