"""The example that trains in a stock onnxruntime, in Python and in JavaScript."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "in_onnxruntime"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in_onnxruntime")
    subprocess.run([sys.executable, FOLDER / "export.py", folder], check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def in_python(exported: Path) -> str:
    code = (
        "import runpy, sys; sys.argv[:] = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__');"
        "assert not {'onward', 'onnx', 'onnx_ir'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, FOLDER / "train.py", exported]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout


def test_python_without_onward_trains(in_python: str) -> None:
    losses = [float(text) for text in re.findall(r"loss ([\d.]+)", in_python)]
    assert len(losses) == 3
    assert losses[2] < losses[0] / 3
    (accuracy,) = re.findall(r"accuracy ([\d.]+)", in_python)
    assert float(accuracy) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_javascript_trains_the_same(exported: Path, in_python: str, package: str) -> None:
    node, modules = shutil.which("node"), os.environ.get("ONWARD_NODE_MODULES", "")
    if node is None:
        pytest.skip("node is not installed")
    if not (Path(modules) / package).is_dir():
        pytest.skip(f"ONWARD_NODE_MODULES names no node_modules with {package}; npm install {package}")
    command = [node, FOLDER / "train.cjs", exported, package]
    environment = {**os.environ, "NODE_PATH": modules}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=environment)
    assert len(done.stdout.splitlines()) == len(in_python.splitlines()) == 4
    # other kernels round otherwise, and that grows over 141 steps
    for theirs, ours in zip(done.stdout.split(), in_python.split(), strict=True):
        if "." in ours:
            assert float(theirs) == pytest.approx(float(ours), rel=0.02)
        else:
            assert theirs == ours
