"""Constants that decide how kernels are cut name a command of `benchmarks` that shows what they do."""

from __future__ import annotations

import functools
import shlex
from dataclasses import fields, replace

import numpy as np
import pytest
from benchmarks import kernels, layers
from benchmarks.suite.cases import find

from onward.compile.codegen.target import host_target
from onward.compile.codegen.tuning import Caches, Tuning, tuning_for

_COMPARED = {
    "product_in_place_left": ("product in place 64x64x128", "product packed 64x64x128"),
    "product_in_place_right": ("product in place 2048x256x1024", "product packed 2048x256x1024"),
    "product_short": ("product in place 128x256x256", "product packed 128x256x256"),
    "product_widened": (
        "weights rows 8x1024x1024 int8 in blocks of 32",
        "weights packed 8x1024x1024 int8 in blocks of 32",
    ),
    "dots_line": ("product dots 64x128x128 b", "product packed 64x128x128 b"),
    "dots_block": ("product dots 64x64x4096 b", "product packed 64x64x4096 b"),
    "dots_few": ("product dots 16x64x4096 b", "product packed 16x64x4096 b"),
    "winograd_channels": ("resnet20.1 F", "resnet20.1 F winograd"),
    "winograd_extent": ("resnet18.4 F", "resnet18.4 F winograd"),
}
"""What decides between kernels changes none of them: there are rows of both."""

_SETTINGS = {one.name: one.metadata["setting"] for one in fields(Tuning)}
_OF_KERNELS = [name for name, setting in _SETTINGS.items() if setting.shown.startswith("kernels.py ")]


@pytest.fixture(autouse=True)
def nothing_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "random", lambda n: np.zeros(1, np.float32))


def _rows(only: str, **moved: float) -> dict[str, str]:
    """The kernels that a command prints by name, as they are on one machine wherever the test runs."""
    caches = Caches()
    tuning = replace(tuning_for(caches), **moved)
    target = replace(host_target(), vector_bytes=64, registers=32, fused=True, caches=caches, tuning=tuning)
    return {row.name: row.kernel.ir for row in kernels.rows(target, 2, only)}


@functools.cache
def _plain(only: str) -> dict[str, str]:
    return _rows(only)


@pytest.mark.parametrize("name", _OF_KERNELS)
def test_rows_show_a_constant(name: str) -> None:
    setting = _SETTINGS[name]
    only = shlex.split(setting.shown)[1]
    plain = _plain(only)
    if name in _COMPARED:
        assert set(_COMPARED[name]) <= set(plain)
        return
    kept = getattr(tuning_for(Caches()), name)
    for factor in (4.0, 0.25, 2.0, 0.5, 0.0):
        value = setting.value(Caches(), factor) if factor else 0.0
        moved = value if setting.multiple == 0 else int(value)
        if moved != kept and moved >= setting.least and _rows(only, **{name: moved}) != plain:
            return
    raise AssertionError(f"{setting.shown}: no row changes with {name}")


def test_commands_name_what_there_is() -> None:
    for name, setting in _SETTINGS.items():
        command = shlex.split(setting.shown)
        if command[0] == "make":
            assert find(command[2].removeprefix("ONLY=")), name
        elif command[0] == "python":
            assert find(layers.arguments(command[3:]).name), name
