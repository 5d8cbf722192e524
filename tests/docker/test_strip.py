"""Libraries without their symbol tables load and work as before."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def strip() -> ModuleType:
    spec = importlib.util.spec_from_file_location("strip", ROOT / "docker/strip.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform != "linux", reason="ELF files")
def test_a_stripped_library_is_shorter_and_loads(strip: ModuleType, tmp_path: Path) -> None:
    for name in ("numpy", "numpy.libs"):
        shutil.copytree(Path(np.__file__).parents[1] / name, tmp_path / name)
    libraries = sorted(tmp_path.rglob("*.so*"))
    before = sum(path.stat().st_size for path in libraries)
    saved = sum(strip.strip(path) for path in libraries)
    assert saved > 100_000
    assert sum(path.stat().st_size for path in libraries) == before - saved
    assert [strip.strip(path) for path in libraries] == [0] * len(libraries)
    code = "import numpy; print(numpy.__file__, (numpy.eye(40) @ numpy.eye(40)).sum())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    where, found = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path)
    assert float(found) == 40.0


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(80), b"#!/bin/sh\n" * 20])
def test_other_files_stay_as_they_are(strip: ModuleType, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "libother.so"
    path.write_bytes(content)
    assert strip.strip(path) == 0
    assert path.read_bytes() == content
