"""The ten scripts of tests/keras under Onward and under Keras 3 (torch): figures over seeds, side by side.

ONWARD_TORCH_PYTHON=... python -m benchmarks.keras_scripts [--seeds N] [--only NAME ...]

Accuracy on samples that training did not see, mean over the seeds; for `regression` the loss.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

SCRIPTS = Path(__file__).parents[1] / "tests" / "keras"
_WORKER = """
import json, os, sys
os.environ["KERAS_BACKEND"] = "torch"
sys.path.insert(0, sys.argv[1])
import keras, numpy as np, scripts, torch
torch.set_num_threads(1)
data = dict(np.load(sys.argv[2]))
for line in sys.stdin:
    name, seed = json.loads(line)
    print(json.dumps(scripts.run(keras, name, data, seed)), flush=True)
"""


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    options = parser.parse_args()
    python = os.environ.get("ONWARD_TORCH_PYTHON")
    if not python:
        sys.exit("set ONWARD_TORCH_PYTHON to an interpreter that has keras and torch")
    sys.path.insert(0, str(SCRIPTS))
    samples, scripts = (importlib.import_module(name) for name in ("samples", "scripts"))

    from onward import keras

    data = samples.samples()
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"keras_scripts_{os.getpid()}.npz"
    np.savez(path, **data)
    worker = subprocess.Popen(
        [python, "-c", _WORKER, str(SCRIPTS), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        for name in options.only or scripts.TRAINED:
            figure = "loss" if name == "regression" else "accuracy"
            ours: list[float] = []
            theirs: list[float] = []
            for seed in range(options.seeds):
                ours.append(scripts.run(keras, name, data, seed)[figure])
                worker.stdin.write(json.dumps([name, seed]) + "\n")
                worker.stdin.flush()
                answer: dict[str, Any] = json.loads(worker.stdout.readline())
                theirs.append(answer[figure])
            a, b = np.mean(ours), np.mean(theirs)
            print(
                f"{name:24} {figure:9} ours {a:.4f} ± {np.std(ours):.4f}  "
                f"Keras {b:.4f} ± {np.std(theirs):.4f}  difference {a - b:+.4f}",
                flush=True,
            )
    finally:
        worker.stdin.close()
        worker.wait()
        path.unlink()


if __name__ == "__main__":
    main()
