"""`make batches`: requests of random sizes through dynamic batching, each answer compared with its rows' own.

python -m benchmarks.service.batches [--requests N] [--clients N] [--seed S]

Every row of a pool is answered once by itself, by the same model without batching. A request then takes
random rows, at random priorities, some with a deadline or cancelled on the way; its answer has to be that of
its rows, in their order, within ULPS units in the last place of a row's largest element. Resident memory of
the server is looked at after a tenth of the requests and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import sys
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np
import uvloop
from benchmarks.service.models import write_mlp
from benchmarks.service.starting import INFER, memory_mb, server

from onward_protos import grpc_service_pb2 as pb

ULPS = 8
_POOL = 512
_MOST_ROWS = 16
_CONFIG = """in_process = 'never'
queue_size = 4096
[cross_check]
policy = 'off'
[batching]
max_batch = 32
preferred = [16, 32]
max_delay_ms = 1.0
"""


def message(model: str, x: np.ndarray, number: int = 0, priority: int = 0) -> bytes:
    """A request whose id is its number."""
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape)}
    request = pb.ModelInferRequest(
        model_name=model, id=str(number), inputs=[tensor], raw_input_contents=[x.tobytes()]
    )
    if priority:
        request.parameters["priority"].int64_param = priority
    return request.SerializeToString()


def answered(data: bytes) -> tuple[int, np.ndarray]:
    """The id and the output of an answer."""
    response = pb.ModelInferResponse.FromString(data)
    shape = tuple(response.outputs[0].shape)
    found = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(shape)
    return int(response.id), found


async def run(address: str, pid: int, count: int, clients: int, seed: int) -> dict[str, float]:
    """What became of the requests."""
    generator = np.random.default_rng(seed)
    pool = generator.standard_normal((_POOL, 784)).astype(np.float32)
    codes: collections.Counter[str] = collections.Counter()
    wrong, exact, furthest = 0, 0, 0.0
    numbers = iter(range(1, count + 1))
    memory: dict[str, float] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(INFER)
        alone = np.concatenate([answered(await call(message("alone", row[None])))[1] for row in pool])
        unit = np.spacing(np.abs(alone).max(axis=1, keepdims=True))

        async def client(random_: np.random.Generator) -> None:
            nonlocal wrong, exact, furthest
            for number in numbers:
                if number == count // 10:
                    memory["early"] = memory_mb([pid])
                rows = random_.integers(0, _POOL, random_.integers(1, _MOST_ROWS + 1))
                kind = random_.random()
                data = message("batched", pool[rows], number, int(random_.integers(0, 4)))
                sent = call(data, timeout=0.004 if kind < 0.01 else 60.0)
                try:
                    if kind > 0.99:
                        await asyncio.sleep(0.002)
                        sent.cancel()
                    identity, found = answered(await sent)
                except grpc.RpcError as error:
                    codes[error.code().name] += 1
                    continue
                except asyncio.CancelledError:
                    codes["CANCELLED"] += 1
                    continue
                codes["OK"] += 1
                if identity != number or found.shape != (len(rows), 10):
                    wrong += 1
                    continue
                distance = float((np.abs(found - alone[rows]) / unit[rows]).max())
                furthest = max(furthest, distance)
                exact += distance == 0.0
                wrong += distance > ULPS

        await asyncio.gather(*(client(np.random.default_rng((seed, n))) for n in range(clients)))
    memory["late"] = memory_mb([pid])
    early, late = memory["early"], memory["late"]
    return {**codes, "wrong": wrong, "exact": exact, "furthest": furthest, "early": early, "late": late}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000, help="(1000000)")
    parser.add_argument("--clients", type=int, default=48, help="requests at a time (48)")
    parser.add_argument("--seed", type=int, default=0, help="of the random generators (0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_mlp(Path(folder), "batched", _CONFIG)
        write_mlp(Path(folder), "alone", "in_process = 'never'\n[cross_check]\npolicy = 'off'\n")
        with server("--repository", folder) as (process, event):
            begin = time.perf_counter()
            found = uvloop.run(
                run(event["address"], process.pid, options.requests, options.clients, options.seed)
            )
            took = time.perf_counter() - begin
        code = process.returncode
    ends = ("OK", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
    total = sum(int(found.get(name, 0)) for name in ends)
    checks = [
        (f"each of {options.requests} requests was answered, or ended as asked", total == options.requests),
        (f"no answer is mixed, split wrongly or further off than {ULPS} ulp", found["wrong"] == 0),
        ("most were answered", found["OK"] > 0.9 * options.requests),
        ("the server's memory grew by less than 32 MB", found["late"] - found["early"] < 32),
        ("it stopped with exit code 0", code == 0),
    ]
    print({name: int(found[name]) for name in ends if name in found}, f"in {took:.0f} s")
    print(
        f"bit for bit: {int(found['exact'])}; furthest: {found['furthest']:g} ulp of the row's largest value"
    )
    print(f"server's resident memory: {found['early']:.0f} MB early, {found['late']:.0f} MB at the end")
    for name, holds in checks:
        print(f"{'pass' if holds else 'FAIL'}: {name}")
    return 0 if all(holds for _, holds in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
