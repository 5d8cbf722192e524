"""A whole training run beside torch's: LeNet-5 on Fashion-MNIST, accuracy on its own test part and seconds.

python -m benchmarks.epochs [--epochs N] [--threads N] [--data FOLDER]

Both sides have the same first weights, normalised images, batch size, AdamW, and the same learning rate at
every update; each shuffles in its own way. What is timed is all of training: cutting batches, steps, the
running loss (ours: and accuracy); not reading the files, imports, evaluation, or the preparation of the first
steps, which is told apart. torch runs in $ONWARD_TORCH_PYTHON with the fused optimizer, in the faster of NCHW
and channels_last over 20 steps. FOLDER is the data set's, by default $ONWARD_DATA/fashion_mnist.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from benchmarks.suite import ours
from benchmarks.suite.peers import torch_python

from onward import data, train
from onward.data import Dataset
from onward.nn import zoo
from onward.train.schedules import Progress

_BATCH = 64
_RATE = 0.002
_WARMUP = 100
_DECAY = 0.01
_ROOT = Path(__file__).parents[1]


def _parts(folder: Path) -> tuple[Dataset, Dataset]:
    """Training and test part, normalised by the training part."""
    training, test = data.load_idx_folder(folder)
    if test is None:
        sys.exit(f"{folder} has no test part")
    scale = data.Normalization.fit(training)
    return scale.apply_to(training), scale.apply_to(test)


def _trainer(threads: int) -> train.Trainer:
    return train.Trainer(
        zoo.build("lenet5"),
        "cross_entropy",
        train.AdamW(learning_rate=_RATE, weight_decay=_DECAY),
        metrics=["accuracy"],
        schedule=train.Cosine(warmup=_WARMUP),
        threads=threads,
    )


def _ours(training: Dataset, test: Dataset, epochs: int, threads: int) -> dict[str, float]:
    trainer = _trainer(threads)
    few = training.take(np.arange(_BATCH + len(training) % _BATCH))
    started = time.perf_counter()
    trainer.fit(few, epochs=1, batch_size=_BATCH, progress=False)  # plans of a whole and of the last batch
    ready = time.perf_counter() - started
    trainer = _trainer(threads)
    started = time.perf_counter()
    trainer.fit(training, epochs=epochs, batch_size=_BATCH, progress=False)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "first": ready, "accuracy": float(trainer.evaluate(test)["accuracy"])}


def _torch(training: Dataset, test: Dataset, epochs: int, threads: int) -> dict[str, float]:
    python = torch_python()
    if python is None:
        sys.exit("set ONWARD_TORCH_PYTHON to an interpreter that has torch and numpy")
    updates = epochs * -(-len(training) // _BATCH)
    schedule = train.Cosine(warmup=_WARMUP)
    rates = [_RATE * schedule.factor(Progress(i, updates, 0), {}) for i in range(updates)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.npz"
        arrays: dict[str, Any] = {
            f"weight:{k}": v for k, v in ours.weights(zoo.build("lenet5").model).items()
        }
        for name, part in (("training", training), ("test", test)):
            assert part.targets is not None
            arrays[f"{name}:x"], arrays[f"{name}:y"] = part.inputs["image"], part.targets
        np.savez(file, rates=np.array(rates), **arrays)
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(_ROOT)}
        command = [
            python,
            "-m",
            "benchmarks.suite.torch_epochs",
            str(file),
            str(_BATCH),
            str(threads),
            str(_DECAY),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"torch failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("ONWARD_DATA", ".")) / "fashion_mnist"
    )
    options = parser.parse_args()
    training, test = _parts(options.data)
    mine = _ours(training, test, options.epochs, options.threads)
    theirs = _torch(training, test, options.epochs, options.threads)
    print(f"LeNet-5, {training.name}, {options.epochs} epochs, batch {_BATCH}, {options.threads} threads")
    print(f"{'':8} {'seconds':>8} {'test accuracy':>14}")
    for name, found in (("onward", mine), ("torch", theirs)):
        print(f"{name:8} {found['seconds']:8.1f} {found['accuracy']:14.4f}")
    ratio = mine["seconds"] / theirs["seconds"]
    print(f"ratio {ratio:.2f}; before that, Onward prepared its first steps in {mine['first']:.1f} s")


if __name__ == "__main__":
    main()
