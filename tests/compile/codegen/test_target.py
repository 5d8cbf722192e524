from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from onward.compile.codegen.target import host_caches, host_cores, host_target
from onward.compile.codegen.tuning import Caches, Tuning, tuning_for
from onward.compile.codegen.types import ELEMENT_TYPES, element_type
from onward.errors import ConfigError, UnsupportedError

ROOT = Path(__file__).parents[3]


def _describe(folder: Path, caches: list[tuple[str, str, str, str]]) -> Path:
    for number, (level, kind, size, shared) in enumerate(caches):
        index = folder / f"index{number}"
        index.mkdir()
        values = {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}
        for name, text in {**values, "coherency_line_size": "64"}.items():
            (index / name).write_text(text + "\n")
    return folder


def test_caches_are_read_as_linux_describes_them(tmp_path: Path) -> None:
    caches = [
        ("1", "Data", "48K", "0,4"),
        ("1", "Instruction", "32K", "0,4"),
        ("2", "Unified", "2048K", "0,4"),
    ]
    folder = _describe(tmp_path, [*caches, ("3", "Unified", "32M", "0-7")])
    assert host_caches(folder) == Caches(l1=48 << 10, l2=2 << 20, l3=32 << 20, line=64)


def test_a_second_level_that_cores_share_counts_by_its_part(tmp_path: Path) -> None:
    folder = _describe(tmp_path, [("1", "Data", "64K", "0"), ("2", "Unified", "4M", "0-3")])
    assert host_caches(folder).l2 == 1 << 20


def test_what_is_not_described_is_asked_of_the_library_or_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _describe(tmp_path, [("1", "Data", "much", "0"), ("2", "Unified", "512K", "0")])
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr("os.sysconf", lambda name: {188: 24 << 10}.get(name, 0))
    assert host_caches(folder) == replace(Caches(), l1=24 << 10, l2=512 << 10)
    monkeypatch.setattr("os.sysconf", lambda name: -1)
    assert host_caches(tmp_path / "none") == Caches()


def test_this_machine_has_caches_and_cores() -> None:
    caches = host_target().caches
    assert 1 << 12 <= caches.l1 <= caches.l2
    assert host_target().cores == host_cores() >= 1


def test_a_seed_moves_every_constant_within_its_bounds() -> None:
    plain = tuning_for(Caches())
    seen: dict[str, set[float]] = {one.name: set() for one in fields(Tuning)}
    for seed in range(40):
        moved = tuning_for(Caches(), seed)
        assert moved == tuning_for(Caches(), seed)
        for one in fields(Tuning):
            setting, value = one.metadata["setting"], getattr(moved, one.name)
            assert setting.least <= value <= setting.most
            assert setting.multiple == 0 or value % setting.multiple == 0
            seen[one.name].add(value)
    assert all(len(values | {getattr(plain, name)}) > 1 for name, values in seen.items())


def test_constants_follow_the_caches_and_name_the_command_that_shows_them() -> None:
    half, double = tuning_for(Caches(l1=16 << 10)), tuning_for(Caches(l1=64 << 10, l2=4 << 20))
    assert half.product_depth * 4 == double.product_depth
    assert half.conv_weights * 4 == double.conv_weights
    for one in fields(Tuning):
        command = one.metadata["setting"].shown
        assert command.startswith(("kernels.py ", "make bench ONLY=", "python -m benchmarks.layers "))
    source = (ROOT / "runtime/onward/compile/codegen/tuning.py").read_text()
    for one in fields(Tuning):
        assert source.split(f"    {one.name}: ")[1].split("\n", 1)[1].lstrip().startswith('"""'), one.name


def test_the_environment_moves_constants_and_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = host_target(4)
    monkeypatch.setenv("ONWARD_TUNING_SEED", "3")
    monkeypatch.setenv("ONWARD_LANES", "4")
    host_target.cache_clear()
    try:
        moved = host_target()
        assert moved.lanes == 4
        assert moved.tuning == tuning_for(moved.caches, 3)
        assert moved.plan_key != replace(moved, tuning=tuning_for(moved.caches, 4)).plan_key
        assert moved.key == plain.key
        for name, text in (("ONWARD_TUNING_SEED", "x"), ("ONWARD_LANES", "5")):
            host_target.cache_clear()
            monkeypatch.setenv(name, text)
            with pytest.raises(ConfigError, match=name):
                host_target()
            monkeypatch.setenv(name, "4")
    finally:
        host_target.cache_clear()


def test_the_environment_sets_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONWARD_THREADS", "3")
    assert host_cores() == 3
    for text in ("0", "two"):
        monkeypatch.setenv("ONWARD_THREADS", text)
        with pytest.raises(ConfigError, match="ONWARD_THREADS"):
            host_cores()


def test_plans_depend_on_caches_and_not_on_elements() -> None:
    target = host_target()
    assert target.plan_key != replace(target, caches=replace(target.caches, l2=3 << 20)).plan_key
    assert target.typed("float64").plan_key == target.plan_key


def test_a_row_of_the_table_says_how_elements_are_computed() -> None:
    target = host_target()
    double = target.typed("float64")
    assert (double.lanes * 2, double.nbytes, double.line * 2) == (target.lanes, 8, target.line)
    assert double.typed("float64") is double
    assert double.typed("float32") == target
    assert element_type("float64").llvm == "double"
    for name, row in ELEMENT_TYPES.items():
        assert row.storage == name
        if not row.generated:
            with pytest.raises(UnsupportedError, match=f"of type {name}: choose one of float32, float64"):
                target.typed(name)
