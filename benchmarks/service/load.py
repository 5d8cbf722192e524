"""`make load`: requests a second and latencies, ours beside other servers, in turns, with the same client.

    python -m benchmarks.service.load [--seconds S] [--rounds N] [--kinds K,...]

The bare handler (`bare.py`) decodes, runs onnxruntime and encodes; no checks, no isolation, no statistics.
ONWARD_MLSERVER_PYTHON and ONWARD_KSERVE_PYTHON name interpreters of environments with these servers
(and onnxruntime); without them they are left out. Kinds: `calls` (one row each), `rows` (32 rows each),
`streams` (one row a message, eight unanswered a stream), `checks` (calls with the default cross-check over
calls without, medians of pairs in turns), `networks` (ResNet-18, one image each, both engines of one server),
`sizes` (a client's latencies while another one sends batches of sizes that are new). A verdict for each goal
that was measured; exit code 0: all hold.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import uvloop
from benchmarks.service.models import write_mlp, write_network
from benchmarks.service.starting import INFER, STREAM, cpu_seconds, request, server

_KINDS: dict[str, tuple[int, ...]] = {
    "calls": (1, 8, 32),
    "rows": (1, 8),
    "streams": (1, 4),
    "checks": (1, 8, 32),
    "networks": (1, 4),
    "sizes": (1,),
}
"""Kinds of load, and their concurrencies."""
_RATES = {"calls": {1: 0.85, 8: 1.0, 32: 1.3}, "rows": {1: 1.0, 8: 1.0}, "streams": {1: 1.0, 4: 1.0}}
"""What our rate has to be at least, of the bare handler's."""
_CHECKED = 0.95
_PAIRS = 8
_SCALES = 1.9
_OF_OTHER_ENGINE = 1.3
_NEW_SIZES = range(2, 60)
_ROWS = 32
_UNANSWERED = 8


async def measure(
    address: str, pid: int, data: bytes, concurrency: int, seconds: float, kind: str, first: int = 50
) -> tuple[float, float, float, float]:
    """Requests a second, median and 99th percentile of milliseconds, the server's CPU microseconds."""
    times: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(INFER)
        for _ in range(first):
            await call(data)
        await asyncio.sleep(0.5)
        before = cpu_seconds(pid)
        end = time.perf_counter() + seconds

        async def client() -> None:
            while (start := time.perf_counter()) < end:
                await call(data)
                times.append(time.perf_counter() - start)

        async def stream() -> None:
            begun: collections.deque[float] = collections.deque()
            room = asyncio.Semaphore(_UNANSWERED)

            async def requests() -> AsyncIterator[bytes]:
                while time.perf_counter() < end:
                    await room.acquire()
                    begun.append(time.perf_counter())
                    yield data

            async for _ in channel.stream_stream(STREAM)(requests()):
                times.append(time.perf_counter() - begun.popleft())
                room.release()

        begin = time.perf_counter()
        await asyncio.gather(*((stream if kind == "streams" else client)() for _ in range(concurrency)))
        took = time.perf_counter() - begin
    used = 1e6 * (cpu_seconds(pid) - before) / len(times)
    times.sort()
    return len(times) / took, 1e3 * statistics.median(times), 1e3 * times[int(0.99 * (len(times) - 1))], used


@contextmanager
def other(name: str, module: str, model: Path) -> Iterator[tuple[str, int] | None]:
    """Address and process of another server, in the environment that ONWARD_<name>_PYTHON names."""
    python = os.environ.get(f"ONWARD_{name}_PYTHON")
    if not python:
        yield None
        return
    with server("-m", module, str(model), python=python) as (process, event):
        yield event["address"], process.pid


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (4)")
    parser.add_argument("--rounds", type=int, default=2, help="(2)")
    parser.add_argument("--kinds", default=",".join(_KINDS), help="all by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = write_mlp(Path(folder))
        write_mlp(Path(folder), "batched", "in_process = 'never'\n[batching]\nmax_batch = 32\n")
        write_mlp(Path(folder), "worker", "in_process = 'never'\n")
        first, ours = stack.enter_context(server("--repository", folder))
        second, off = stack.enter_context(server("--repository", folder, "--cross-check", "off"))
        third, bare = stack.enter_context(server("-m", "benchmarks.service.bare", str(path)))
        peers = {
            "bare handler": (bare["address"], third.pid, "mlp"),
            "ours": (ours["address"], first.pid, "mlp"),
            "ours, no cross-check": (off["address"], second.pid, "mlp"),
            "ours, in a worker": (off["address"], second.pid, "worker"),
            "ours, batched in a worker": (off["address"], second.pid, "batched"),
        }
        for name, module in (("MLSERVER", "mlserver_peer"), ("KSERVE", "kserve_peer")):
            found = stack.enter_context(other(name, f"benchmarks.service.{module}", path))
            if found is not None:
                peers[name] = (*found, "mlp")
        verdicts: dict[str, bool] = {}
        for kind in options.kinds.split(","):
            print(f"\n{kind}")
            measured = {"checks": checks, "networks": networks, "sizes": sizes}.get(kind, table)
            verdicts |= measured(peers, kind, options.rounds, options.seconds)
    print()
    for name, holds in verdicts.items():
        print(f"{'pass' if holds else 'FAIL'}: {name}")
    return 0 if all(verdicts.values()) else 1


def checks(peers: dict[str, tuple[str, int, str]], kind: str, rounds: int, seconds: float) -> dict[str, bool]:
    """Print what the cross-check costs, from pairs of measurements in turns.

    What a version may spend is saved up for a second: bursts far below that would get more than their share.
    """
    data = request("mlp", np.random.default_rng(0).standard_normal((1, 784)).astype(np.float32))
    holds = {}
    for concurrency in _KINDS[kind]:
        rates, used = [], []
        for turn in range(_PAIRS * rounds):
            found = {}
            # neither is always the first
            for name in ("ours", "ours, no cross-check")[:: 1 if turn % 2 else -1]:
                address, pid, _ = peers[name]
                found[name] = uvloop.run(measure(address, pid, data, concurrency, seconds / 2, "calls"))
            with_, without = found["ours"], found["ours, no cross-check"]
            rates.append(with_[0] / without[0])
            used.append(with_[3] / without[3])
        low, middle, high = statistics.quantiles(rates, n=4)
        print(
            f"{concurrency:2} at a time: {middle:.3f} of the rate without (quartiles {low:.3f}, {high:.3f}), "
            f"{statistics.median(used):.3f} of the processor time a request"
        )
        holds[f"cross-check, {concurrency} at a time: {_CHECKED} of the rate without"] = middle >= _CHECKED
    return holds


def networks(
    peers: dict[str, tuple[str, int, str]], kind: str, rounds: int, seconds: float
) -> dict[str, bool]:
    """Print how a network of milliseconds scales over workers, in both engines."""
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = {"onward": "", "onnxruntime": "engine = 'onnxruntime'\n"}
        for engine, config in settings.items():
            name = write_network(Path(folder), "resnet18", engine, config)
        with server("--repository", folder, "--cross-check", "off") as (process, event):
            for turn in range(rounds + 1):
                for engine in settings:
                    for concurrency in _KINDS[kind]:
                        data = request(engine, image, name)
                        measured = measure(
                            event["address"], process.pid, data, concurrency, seconds, "calls", 4
                        )
                        rate = uvloop.run(measured)[0]
                        # in the first one the second worker starts
                        if turn:
                            found.setdefault((engine, concurrency), []).append(rate)
    rates = {key: statistics.median(values) for key, values in found.items()}
    for (engine, concurrency), rate in rates.items():
        print(f"{engine:12} {concurrency:2} at a time: {rate:8.2f} images/s")
    first, most = _KINDS[kind]
    scaled = rates["onward", most] / rates["onward", first]
    other = rates["onward", most] / rates["onnxruntime", most]
    print(f"{scaled:.2f} of one at a time, {other:.2f} of onnxruntime's engine")
    return {
        f"resnet18, {most} at a time: {_SCALES} of one at a time": scaled >= _SCALES,
        f"resnet18, {most} at a time: {_OF_OTHER_ENGINE} of onnxruntime's engine": other >= _OF_OTHER_ENGINE,
    }


def sizes(peers: dict[str, tuple[str, int, str]], kind: str, rounds: int, seconds: float) -> dict[str, bool]:
    """Print what new sizes of one client do to the latencies of another one."""
    address, _, model = peers["ours, in a worker"]
    known = request(model, np.zeros((1, 784), np.float32))
    new = iter(np.random.default_rng(0).permutation(_NEW_SIZES).tolist())
    count = len(_NEW_SIZES) // rounds

    async def turn(sent: list[int]) -> list[float]:
        times: list[float] = []
        async with grpc.aio.insecure_channel(address) as mine, grpc.aio.insecure_channel(address) as theirs:
            call, other = mine.unary_unary(INFER), theirs.unary_unary(INFER)
            end = time.perf_counter() + seconds

            async def client() -> None:
                while (start := time.perf_counter()) < end:
                    await call(known)
                    times.append(time.perf_counter() - start)

            async def arrive() -> None:
                for rows in sent:
                    await other(request(model, np.zeros((rows, 784), np.float32)))
                    await asyncio.sleep(seconds / count / 2)

            await asyncio.gather(client(), arrive())
        return times

    without: list[float] = []
    beside: list[float] = []
    again: list[float] = []
    for _ in range(rounds):
        without += uvloop.run(turn([]))
        sent = [next(new) for _ in range(count)]
        beside += uvloop.run(turn(sent))
        again += uvloop.run(turn(sent))
    bound = 2 * sorted(without)[int(0.99 * (len(without) - 1))]
    slow = {}
    for name, times in (
        ("without", without),
        ("beside new sizes", beside),
        ("beside the same sizes again", again),
    ):
        times.sort()
        slow[name] = sum(t > bound for t in times)
        print(
            f"{name:27} {len(times):7} requests, p99 {1e3 * times[int(0.99 * (len(times) - 1))]:7.2f} ms, "
            f"slowest {1e3 * times[-1]:7.2f} ms, above twice the p99 without: {slow[name]}"
        )
    # processes that share cores wait for each other: only what new sizes add to that is theirs. Rare events
    # scatter as their square root does
    new, same = slow["beside new sizes"], slow["beside the same sizes again"]
    holds = new - same <= 3 * math.sqrt(new + same + 1)
    return {"new sizes: no more requests of others above twice their p99 than beside known sizes": holds}


def table(peers: dict[str, tuple[str, int, str]], kind: str, rounds: int, seconds: float) -> dict[str, bool]:
    """Print what each of the peers does with requests of a kind; which goals hold."""
    verdicts = {}
    rows = _ROWS if kind == "rows" else 1
    x = np.random.default_rng(0).standard_normal((rows, 784)).astype(np.float32)
    columns = (
        "concurrency",
        f"{'rows' if rows > 1 else 'requests'}/s",
        "of bare",
        "p50 ms",
        "p99 ms",
        "CPU us",
    )
    print(" " * 26, *(f"{column:>11}" for column in columns))
    for concurrency in _KINDS[kind]:
        found: dict[str, list[tuple[float, float, float, float]]] = {}
        for _ in range(rounds):
            for name, (address, pid, model) in peers.items():
                if kind == "streams" and name in ("MLSERVER", "KSERVE"):
                    continue
                measured = measure(address, pid, request(model, x), concurrency, seconds, kind)
                found.setdefault(name, []).append(uvloop.run(measured))
        best = {name: max(figures) for name, figures in found.items()}
        for name, (rate, median, tail, used) in best.items():
            ratio = rate / best["bare handler"][0]
            figures = (f"{rate * rows:11.0f}", f"{ratio:11.2f}", f"{median:11.2f}", f"{tail:11.2f}")
            print(f"{name:26} {concurrency:11}", *figures, f"{used:11.0f}")
        ours, bare = best["ours"], best["bare handler"]
        goal = _RATES[kind][concurrency]
        verdicts[f"{kind}, {concurrency} at a time: {goal} of the bare handler's rate"] = (
            ours[0] >= goal * bare[0]
        )
        if kind == "calls" and concurrency > 1:
            tails = {name: min(tail for _, _, tail, _ in found[name]) for name in ("ours", "bare handler")}
            holds = tails["ours"] <= tails["bare handler"]
            verdicts[f"calls, {concurrency} at a time: p99 no higher than the bare handler's"] = holds
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
