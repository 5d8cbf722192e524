"""Training on data that are larger than memory, beside the same steps on data in memory.

python -m benchmarks.streaming [--gigabytes 10] [--memory 1.0] [--batch N] [--turn STEPS] [--threads N]

Two processes train the same network with the same batch size, in turns of some steps, so that other load on
the machine meets both. One reads a made file of --gigabytes, each sample once, through `data.open_npy`; the
other has 200 MB of the same samples in memory. What is timed is `Trainer.fit` between the ends of turns; the
first turn, in which steps are planned and compiled, is left out. The program fails where the resident memory
of the process that streams was ever above --memory GB (ru_maxrss; files are read, not mapped, so the page
cache is no part of it).

The file is sparse but for the first 64 MiB, and lies in $TMPDIR: the disk's own speed is not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from onward import data, train
from onward.nn import zoo
from onward.train.run import Run

_SHAPE = (3, 32, 32)
_CLASSES = 10
_IN_MEMORY = 200_000_000
_REAL_BYTES = 64 << 20


class _Turns(train.Callback):
    """Trains for some steps when it is told to, and says how long they took."""

    def __init__(self, pipe: Connection, steps: int) -> None:
        self._pipe, self._steps, self._done = pipe, steps, 0

    def on_train_begin(self, run: Run) -> None:
        self._wait()

    def on_step_end(self, run: Run) -> None:
        self._done += 1
        if self._done % self._steps == 0:
            ended = np.array([time.perf_counter(), time.process_time()])
            self._pipe.send(ended - self._begin)
            self._wait()

    def _wait(self) -> None:
        if not self._pipe.recv():
            raise KeyboardInterrupt
        self._begin = np.array([time.perf_counter(), time.process_time()])


def _make(folder: Path, samples: int) -> None:
    """x.npy and y.npy: random numbers at the beginning, a hole after them."""
    generator = np.random.default_rng(0)
    real = min(samples, _REAL_BYTES // (4 * int(np.prod(_SHAPE))))
    with (folder / "x.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (samples, *_SHAPE)}
        np.lib.format.write_array_header_1_0(file, header)
        begin = file.tell()
        file.write(generator.standard_normal((real, *_SHAPE), dtype=np.float32).tobytes())
        file.truncate(begin + samples * 4 * int(np.prod(_SHAPE)))
    np.save(folder / "y.npy", generator.integers(0, _CLASSES, samples))


def _work(pipe: Connection, folder: Path | None, options: Any) -> None:
    network = zoo.lenet5(_CLASSES, image_size=_SHAPE[1], channels=_SHAPE[0])
    trainer = train.Trainer(network, "cross_entropy", train.SGD(0.001), threads=options.threads)
    fit: dict[str, Any]
    if folder is not None:
        fit = {"data": data.open_npy(folder), "epochs": 1}
    else:
        generator = np.random.default_rng(0)
        count = _IN_MEMORY // (4 * int(np.prod(_SHAPE)))
        images = generator.standard_normal((count, *_SHAPE), dtype=np.float32)
        fit = {"data": images, "targets": generator.integers(0, _CLASSES, count), "epochs": 1_000_000}
    turns = _Turns(pipe, options.turn)
    with contextlib.suppress(KeyboardInterrupt):
        trainer.fit(
            **fit, batch_size=options.batch, prefetch=options.prefetch, callbacks=[turns], progress=False
        )
    pipe.send(None)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--memory", type=float, default=1.0, help="resident GB that are allowed")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--turn", type=int, default=100, help="steps of one side before it is the other's turn"
    )
    parser.add_argument("--prefetch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    samples = int(options.gigabytes * 1e9 / (4 * np.prod(_SHAPE)))
    if samples // options.batch < 3 * options.turn:
        parser.error("the data are too few for three turns")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make(folder, samples)
        sides = []
        for where in (folder, None):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, where, options))
            process.start()
            theirs.close()
            sides.append((ours, process))
        (stream, streaming), (memory, remembering) = sides
        seconds: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        while True:
            stream.send(True)
            streamed = stream.recv()
            if streamed is None:
                break
            memory.send(True)
            seconds.append((streamed, memory.recv()))
        memory.send(False)
        peak = stream.recv() / 1e9
        for process in (streaming, remembering):
            process.join()
    timed = np.array(seconds[1:])
    clock, processor = timed[:, :, 0], timed[:, :, 1].sum(axis=0)
    ratio = clock[:, 0].sum() / clock[:, 1].sum()
    rate = len(timed) * options.turn * options.batch / clock.sum(axis=0)
    print(
        f"lenet5 on {options.gigabytes:g} GB of float32 {list(_SHAPE)}, batch {options.batch}, "
        f"{options.threads} thread(s), {len(timed)} turns of {options.turn} steps; load "
        f"{os.getloadavg()[0]:.1f}\n"
        f"streamed {rate[0]:,.0f} samples/s, in memory {rate[1]:,.0f}; time {ratio:.3f} of in memory "
        f"(median of turns {np.median(clock[:, 0] / clock[:, 1]):.3f}); processor time, the reading thread's "
        f"included, {processor[0] / processor[1]:.3f} of in memory\n"
        f"peak resident memory while streaming: {peak:.3f} GB of {options.memory:g} allowed"
    )
    if peak > options.memory:
        sys.exit("it took more memory than allowed")


if __name__ == "__main__":
    main()
