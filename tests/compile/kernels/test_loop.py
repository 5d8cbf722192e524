"""Python functions as kernels: on any number of threads, kept without Numba, and what they may not do."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onward.compile.codegen.target import Target, host_target
from onward.compile.kernels.loop import STATUS, Operand, loop
from onward.errors import UnsupportedError
from onward.graph import Array

Run = Callable[..., None]

_Y = Operand("y", "output", "float32", 2)
_X = Operand("x", "operand", "float32", 2)
_I = Operand("i", "operand", "int64", 1)


def _gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def _picked(thread: int, threads: int, y: Array, x: Array, i: Array, missing: None, scale: float) -> None:
    for row in range(len(i) * thread // threads, len(i) * (thread + 1) // threads):
        for column in range(x.shape[1]):
            y[row, column] = scale * _gelu(x[i[row], column])
    if missing is not None:
        y[0, 0] = 0


def _raising(thread: int, threads: int, y: Array, x: Array) -> None:
    if thread == 1 and x[0, 0] > 0:
        raise ValueError("wrong")
    y[thread, 0] = x[thread, 0]


def _allocating(thread: int, threads: int, y: Array, x: Array) -> None:
    y[:] = np.zeros(x.shape)


def _untyped(thread: int, threads: int, y: Array, x: Array) -> None:
    y[0, 0] = x.no_such_thing  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_loop(threads: int, target: Target, run: Run) -> None:
    x = np.random.default_rng(0).standard_normal((5, 7), np.float32)
    i = np.array([4, 0, -1, 2])
    y = np.full((4, 7), 3, np.float32)
    kernel = loop(_picked, (_Y, _X, _I, None), (0.5,), target)
    extents = {"y_0": 4, "y_1": 7, "x_0": 5, "x_1": 7, "i_0": 4}
    run(kernel, target, {"y": y, "x": x, "i": i, **extents}, threads)
    erf = np.vectorize(math.erf)
    np.testing.assert_allclose(y, (0.25 * x * (1 + erf(x / math.sqrt(2))))[i], rtol=1e-6)
    assert loop(_picked, (_Y, _X, _I, None), (0.25,), target).ir != kernel.ir


def test_one_that_raises_leaves_a_flag(run: Run) -> None:
    kernel = loop(_raising, (_Y, _X), (), host_target())
    assert STATUS in kernel.slots
    for first, flags in ((-1, [0, 0]), (1, [0, 1])):
        x, y = np.full((2, 1), first, np.float32), np.zeros((2, 1), np.float32)
        status = np.full(2, 7)
        values = {"y": y, "x": x, STATUS: status, "y_0": 2, "y_1": 1, "x_0": 2, "x_1": 1}
        run(kernel, host_target(), values, 2)
        assert status.tolist() == flags


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_allocating, r"loop _allocating \(.*test_loop.py:\d+\) needs .* makes, reshapes or prints none"),
        (_untyped, r"Numba cannot compile loop _untyped \(.*\): Unknown attribute 'no_such_thing'[^\x1b]*$"),
        (lambda thread, threads, y, x: None, ""),
        (math.sqrt, "a loop is a function of a module"),
    ],
)
def test_what_is_refused(function: Callable[..., None], message: str) -> None:
    if message:
        with pytest.raises(UnsupportedError, match=message):
            loop(function, (_Y, _X), (), host_target())
    else:
        assert loop(function, (_Y, _X), (), host_target()).ir


@pytest.mark.parametrize("colour", ["", "\x1b[1m\x1b[31m"])
@pytest.mark.parametrize(
    ("head", "reason"), [("Failed in nopython mode", "no such name"), ("", "no such name")]
)
def test_numba_s_reason_is_plain(
    colour: str, head: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numba
    from numba.core.errors import TypingError

    def fails(*_: object, **__: object) -> None:
        raise TypingError(f"{head}\n{colour}{head}\n{colour}{reason}\n{colour}During: a pass")

    monkeypatch.setattr(numba, "cfunc", fails)
    with pytest.raises(UnsupportedError, match=rf"\): {reason}$"):
        loop(_untyped, (_Y, _X), (), host_target())


_PROCESS = """
import sys
from onward.compile.codegen.target import host_target
from onward.compile.kernels.loop import loop
from onward.ops.grid_sample import _planes
from tests.compile.kernels.test_loop import _X, Operand
y, x = Operand("y", "output", "float32", 4), Operand("x", "operand", "float32", 4)
loop(_planes, (y, x, Operand("g", "operand", "float32", 4)), (2, 0, False), host_target())
print("numba" in sys.modules)
"""


def test_what_is_on_disk_needs_no_numba(tmp_path: Path) -> None:
    environment = {**os.environ, "ONWARD_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    said = [
        subprocess.run(
            [sys.executable, "-c", _PROCESS], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert said == ["True", "False"]
