"""Run on two ranks: whether an exchange goes on while nobody calls MPI, and that it changes no bit."""

from __future__ import annotations

import ctypes
import hashlib
import time
from typing import Any

import numpy as np

from onward.nn import zoo
from onward.parallel import MPICommunicator, world
from onward.parallel.calls import Operation
from onward.train import Trainer

FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)
SECONDS = 2.0
COUNT = 1 << 20


def exchanged(ranks: MPICommunicator, operation: Operation) -> tuple[float, float]:
    """Seconds that were waited, and that a block was under way, where two seconds passed in between."""
    calls = ranks.calls(operation)
    block = np.full(COUNT, ranks.rank + 1.0, np.float32)
    words = (calls.functions.context, block.ctypes.data, block.size, 1, 0)
    arguments = np.array(words, np.int64)
    ranks.barrier()
    assert FUNCTION(calls.functions.start)(arguments.ctypes.data) == 0
    time.sleep(SECONDS)
    while (answer := FUNCTION(calls.functions.wait)(arguments.ctypes.data)) > 0:
        pass
    assert answer == 0
    half = COUNT // 2
    if operation == "all-reduce":
        assert (block == 3).all()
    elif operation == "all-gather":
        assert (block[:half] == 1).all()
        assert (block[half:] == 2).all()
    else:  # the second half has a piece of each
        assert (block[half : half + half // 2] == 1).all()
        assert (block[half + half // 2 :] == 2).all()
    waited, under_way, nbytes = calls.counted()
    assert nbytes == block.nbytes
    return waited, under_way


def trained(ranks: MPICommunicator, **options: Any) -> str:
    trainer = Trainer(zoo.mlp(input_shape=(20,), hidden=(50, 30)), threads=1, parallel=ranks, **options)
    x = np.random.default_rng(0).standard_normal((60, 20)).astype(np.float32)
    trainer.fit((x, np.arange(60) % 10), batch_size=10, epochs=2, progress=False)
    return hashlib.sha256(b"".join(a.tobytes() for a in trainer.weights().values())).hexdigest()


def main() -> None:
    kinds = {
        "calls": MPICommunicator(progress="calls"),
        "thread": MPICommunicator(progress="thread"),
        "python": MPICommunicator(native=False),
    }
    for name, ranks in kinds.items():
        operations: tuple[Operation, ...] = ("all-reduce", "all-to-all", "all-gather")
        for operation in operations[: 1 if name == "calls" else 3]:
            waited, under_way = exchanged(ranks, operation)
            overlapped = under_way < 0.8 * SECONDS
            assert overlapped == (name != "calls"), (name, operation, waited, under_way)
            assert not overlapped or waited < 0.2 * SECONDS, (name, operation, waited, under_way)
    for options in ({}, {"shard": True}, {"exchange": "bfloat16", "accumulate": 2}):
        assert len({trained(ranks, bucket_bytes=1000, **options) for ranks in kinds.values()}) == 1
    if world().rank == 0:
        print("overlapped")


if __name__ == "__main__":
    main()
