"""The example of Ray Train: `make frameworks` runs this, in an environment that has Ray and MPICH."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from onward.model import load

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ray_train.py"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or not Path(sys.executable).with_name("mpiexec.hydra").exists(),
    reason="needs Ray and MPICH: make frameworks",
)


@pytest.mark.slow
def test_two_workers_of_ray_are_two_ranks(tmp_path: Path) -> None:
    train = ["lenet5", "--data", "digits", "--epochs", "2", "--batch-size", "64"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--workers", "2", "--storage", str(tmp_path), *train],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"ranks"')))
    assert told["ranks"] == 2
    assert told["val_accuracy"] > 0.7
    assert load(told["model"]).graph.inputs[0].name == "input"
