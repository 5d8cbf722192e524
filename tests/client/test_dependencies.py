"""The client needs numpy, grpcio, protobuf and the protocol; its own distribution holds no more."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import TensorProto
from packaging.requirements import Requirement

from onward.version import __version__
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


@pytest.fixture(params=["repository", "wheel", "wheel from a source distribution"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the client is imported from."""
    if request.param == "repository":
        return os.pathsep.join(str(ROOT / part) for part in ("protos", "client"))
    source = ROOT / "client"
    if "source" in request.param:
        with tarfile.open(_built("sdist", source, tmp_path)) as archive:
            archive.extractall(tmp_path, filter="data")
        (source,) = tmp_path.glob("onward_client-*/")
    zipfile.ZipFile(_built("wheel", source, tmp_path)).extractall(tmp_path / "installed")
    return str(tmp_path / "installed")


def _built(kind: str, source: Path, folder: Path) -> Path:
    pytest.importorskip("hatchling")
    code = f"import hatchling.build as b, sys; print(b.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=source, capture_output=True, text=True, check=True
    )
    return folder / done.stdout.split()[-1]


def test_the_client_runs_without_anything_else(address: str, path: str) -> None:
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


def test_the_distribution_is_the_projects_client(tmp_path: Path) -> None:
    wheel = zipfile.ZipFile(_built("wheel", ROOT / "client", tmp_path))
    metadata = email.message_from_bytes(wheel.read(f"onward_client-{__version__}.dist-info/METADATA"))
    assert metadata["Version"] == __version__
    needed = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    assert {r.name for r in needed if r.marker is None} == {"grpcio", "numpy", "protobuf"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    whole = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    assert {r.name: r.specifier for r in needed} == {r.name: whole[r.name] for r in needed}
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(ROOT / top))
        for top, package in (("client", "onward_client"), ("protos", "onward_protos"))
        for path in (ROOT / top / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files == wanted


def test_commands_without_typer_say_what_they_need() -> None:
    code = "import sys; sys.modules['typer'] = None; import onward_client.__main__ as m; m.main()"
    path = os.pathsep.join(str(ROOT / part) for part in ("protos", "client"))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: the commands need typer: pip install 'onward-client[cli]'\n"
