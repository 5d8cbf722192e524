from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onward.errors import StorageError
from onward.model import atomic_write


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_creates_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for content in (b"one", b"two, longer"):
        with atomic_write(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.bin"]


def test_the_old_file_is_there_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("function", ["os.replace", "os.fsync"])
def test_a_failing_device_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(function, no_space)
    with (
        pytest.raises(StorageError, match=r"a\.bin: cannot be written \(No space left"),
        atomic_write(path) as file,
    ):
        file.write(b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_flushing_the_folder_may_fail_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    monkeypatch.setattr("onward.model.atomic._flush_folder", no_space)
    with pytest.raises(StorageError, match="written, but"), atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_failing_write_is_a_storage_error(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(StorageError), atomic_write(path):
        no_space()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt])
def test_other_exceptions_pass_through(tmp_path: Path, kind: type[BaseException]) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def stop() -> None:
        raise kind("stop")

    with pytest.raises(kind), atomic_write(path):
        stop()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_real_full_file_system_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    script = """
import resource, signal, sys
from onward.errors import StorageError
from onward.model.atomic import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with atomic_write(sys.argv[1]) as file:
        file.write(b"x" * 100_000)
except StorageError as error:
    print("refused", error)
"""
    root = Path(sys.modules["onward"].__path__[0]).parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout.startswith("refused")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("place", ["missing/a.bin", "file/a.bin", "folder", "nul\0l"])
def test_impossible_places(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(StorageError), atomic_write(tmp_path / place) as file:
        file.write(b"new")
    assert sorted(os.listdir(tmp_path)) == before


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="not a file"), atomic_write(pipe) as file:
        file.write(b"new")
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_proc_refuses() -> None:
    with pytest.raises(StorageError), atomic_write("/proc/a.bin") as file:
        file.write(b"new")


def test_keeps_permission_bits_and_replaces_links(tmp_path: Path) -> None:
    path, link = tmp_path / "a.bin", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.stat().st_mode & 0o777 == 0o640
    with atomic_write(link) as file:
        file.write(b"other")
    assert not link.is_symlink()
    assert path.read_bytes() == b"new"
