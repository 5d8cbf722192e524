from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from onward.compile.codegen.builder import Module
from onward.compile.codegen.jit import Jit, default_jit
from onward.compile.codegen.target import LANES, host_target
from onward.compile.disk import DiskCache, cache_folder
from onward.errors import ConfigError

TARGET = host_target()


def store(number: int) -> str:
    """IR of a kernel that stores a number."""
    module = Module(TARGET)
    f = module.entry()
    f.store(f.value(number), f.load(f.arguments[0], "ptr"))
    f.ret()
    return module.text()


def call(address: int) -> int:
    out = np.zeros(1, np.int64)
    args = np.array([out.ctypes.data], np.int64)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(address)(args.ctypes.data, 0, 1)
    return int(out[0])


def entries(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*/*"))


def test_a_kernel_is_compiled_once_and_then_found_in_memory() -> None:
    jit = Jit(TARGET)
    first = jit.addresses([store(3), store(4), store(3)])
    assert [call(a) for a in first] == [3, 4, 3]
    assert first[0] == first[2]
    assert jit.address(store(4)) == first[1]
    assert jit.compiled == 2


def test_machine_code_outlives_the_jit() -> None:
    address = Jit(TARGET).address(store(5))
    assert call(address) == 5


def test_another_jit_loads_what_the_first_left_on_disk(tmp_path: Path) -> None:
    first, second = (Jit(TARGET, DiskCache(tmp_path / "new" / "folder")) for _ in range(2))
    assert call(first.address(store(7))) == 7
    assert call(second.address(store(7))) == 7
    assert (first.compiled, first.loaded, second.compiled, second.loaded) == (1, 0, 0, 1)
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "new" / "folder").stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "garbage"])
def test_a_damaged_entry_is_rebuilt(damage: str, tmp_path: Path) -> None:
    Jit(TARGET, DiskCache(tmp_path)).address(store(8))
    (entry,) = entries(tmp_path)
    data = entry.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    contents = {"empty": b"", "truncated": data[:-9], "flipped": bytes(flipped), "garbage": b"x" * 300}
    entry.write_bytes(contents[damage])
    jit = Jit(TARGET, DiskCache(tmp_path))
    assert call(jit.address(store(8))) == 8
    assert (jit.compiled, jit.loaded) == (1, 0)
    assert entry.read_bytes() == data


def test_the_target_is_part_of_the_key(tmp_path: Path) -> None:
    keys = {Jit(host_target(lanes)).key(store(1)) for lanes in LANES if lanes <= TARGET.lanes}
    assert len(keys) == sum(lanes <= TARGET.lanes for lanes in LANES)
    assert len({host_target(lanes).key for lanes in LANES if lanes <= TARGET.lanes}) == len(keys)


def test_the_folder_is_bounded_and_the_longest_unused_go_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, limit=10_000)
    keys = [f"{i:02x}" + "0" * 62 for i in range(30)]
    for age, key in enumerate(keys):
        cache.put(key, bytes(900))
        os.utime(cache._path(key), (age + 1000, age + 1000))
    cache.evict()
    assert sum(p.stat().st_size for p in entries(tmp_path)) <= 10_000
    assert cache.get(keys[0]) is None
    assert cache.get(keys[25]) == bytes(900)  # use makes it young
    cache.limit = 2_000
    cache.evict()
    assert [p.name for p in entries(tmp_path)] == [cache._path(keys[25]).name]


def test_a_folder_that_cannot_be_used_means_memory_only(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    for folder in (occupied, occupied / "below", shared):
        cache = DiskCache(folder)
        jit = Jit(TARGET, cache)
        assert call(jit.address(store(9))) == 9
        assert jit.compiled == 1
        if folder != shared or os.name == "posix":
            assert not cache.usable
    assert occupied.read_text() == "not a folder"
    assert not entries(shared)


def test_a_write_that_fails_half_way_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    jit = Jit(TARGET, DiskCache(tmp_path))
    assert call(jit.address(store(10))) == 10
    assert not entries(tmp_path)


def test_threads_may_share_a_jit() -> None:
    jit = Jit(TARGET)
    found: list[int] = []
    workers = [
        threading.Thread(target=lambda: found.extend(call(jit.address(store(n))) for n in range(12)))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(found) == sorted(list(range(12)) * 4)
    assert jit.compiled == 12


def test_processes_may_share_a_folder(tmp_path: Path) -> None:
    script = (
        "import sys, ctypes, numpy as np\n"
        "from pathlib import Path\n"
        "from onward.compile.codegen.builder import Module\n"
        "from onward.compile.codegen.jit import Jit\n"
        "from onward.compile.codegen.target import host_target\n"
        "from onward.compile.disk import DiskCache\n"
        "jit = Jit(host_target(), DiskCache(Path(sys.argv[1]), limit=20_000))\n"
        "for n in range(25):\n"
        "    m = Module(host_target()); f = m.entry()\n"
        "    f.store(f.value(n), f.load(f.arguments[0], 'ptr')); f.ret()\n"
        "    out = np.zeros(1, np.int64); args = np.array([out.ctypes.data])\n"
        "    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(jit.address(m.text()))(args.ctypes.data, 0, 1)\n"
        "    assert out[0] == n\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    children = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert not list(tmp_path.glob("*/.tmp-*"))


def test_the_default_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONWARD_CACHE_DIR", str(tmp_path / "chosen"))
    assert cache_folder("kernels") == tmp_path / "chosen" / "kernels"
    monkeypatch.delenv("ONWARD_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("kernels") == tmp_path / "onward" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("kernels") == Path.home() / ".cache" / "onward" / "kernels"
    assert default_jit() is default_jit()


def test_a_width_the_machine_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="32 vector lanes"):
        host_target(32)


def test_kernels_are_found_by_content_address_alone(tmp_path: Path) -> None:
    first = Jit(TARGET, DiskCache(tmp_path))
    keys = [first.key(store(n)) for n in (11, 12)]
    assert first.known(keys) is None
    addresses = first.addresses([store(11), store(12)])
    assert first.known([*keys, keys[0]]) == [*addresses, addresses[0]]
    second = Jit(TARGET, DiskCache(tmp_path))
    found = second.known(keys)
    assert found is not None
    assert [call(a) for a in found] == [11, 12]
    assert (second.compiled, second.loaded) == (0, 2)
    assert second.known([*keys, first.key(store(13))]) is None
    assert Jit(TARGET).known(keys) is None


def test_machine_code_under_the_name_of_another_kernel_is_built_again(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    jit = Jit(TARGET, cache)
    jit.addresses([store(14), store(15)])
    code = cache.get(jit.key(store(14)))
    assert code is not None
    cache.put(jit.key(store(15)), code)
    assert call(Jit(TARGET, cache).address(store(15))) == 15
