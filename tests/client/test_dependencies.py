"""The client needs numpy, grpcio, protobuf and the protocol definitions; nothing else of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import TensorProto

from onward_server import ServerThread
from serving import RIGHT, identity, put, settings

ROOT = Path(__file__).parents[2]
ALLOWED = {"numpy", "grpc", "google", "typing_extensions", "onward_client", "onward_protos"}
SCRIPT = f"""
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {ALLOWED!r} and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Refuse())
import numpy, onward_client
with onward_client.Client(sys.argv[1], timeout=30) as client:
    print(client.predict("m", [[1, 2.5]])["y"].tolist())
    print(client.predict("m", numpy.array([3], dtype=numpy.float32))["y"].tolist())
"""


@pytest.fixture
def address(repository: Path) -> Iterator[str]:
    put(repository, "m", 1, identity(TensorProto.FLOAT))
    with ServerThread(settings(repository), RIGHT) as server:
        yield server.address


def test_the_client_runs_without_anything_else(address: str) -> None:
    path = os.pathsep.join(str(ROOT / part) for part in ("protos", "client"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, address],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[1.0, 2.5]", "[3.0]"]
