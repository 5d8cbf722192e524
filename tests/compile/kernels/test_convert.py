from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.units import left_to_numpy

from onward.compile.codegen.conversions import STORAGE
from onward.compile.codegen.target import Target
from onward.compile.kernels.convert import convert
from onward.engine import Session
from onward.graph import Array, Builder
from onward.graph.types import numpy_dtype
from onward.ops.cast import converted

Run = Callable[..., None]

FLOATS = ("float16", "bfloat16", "float32", "float64")
EXOTIC = [
    ir.DataType[f"{kind}{name}"]
    for kind, names in {
        "FLOAT": ("8E4M3FN", "8E4M3FNUZ", "8E5M2", "8E5M2FNUZ", "8E8M0", "4E2M1"),
        "INT": ("4", "2"),
        "UINT": ("4", "2"),
    }.items()
    for name in names
]


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)


@functools.cache
def _numbers(name: str) -> Array:
    """Every bit pattern of short types; extremes, halfway cases and random bits of long ones."""
    dtype = _dtype(name)
    if name == "bool":
        return np.array([False, True])
    if dtype.itemsize <= 2:
        return np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, 4096 * dtype.itemsize, dtype=np.uint8).view(dtype)
    with np.errstate(all="ignore"):
        small = (rng.standard_normal(4096) * 300).astype(dtype)
        # halfway between two 2-byte floats, and next to it
        halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)[::17].astype(np.float64)
        ties = np.concatenate([(halves[1:] + halves[:-1]) / 2, halves * (1 + 2**-12), halves * (1 + 2**-30)])
        if dtype.kind == "f":
            info = np.finfo(dtype)
            edges = [
                0.0,
                -0.0,
                np.inf,
                -np.inf,
                np.nan,
                info.max,
                info.min,
                info.tiny,
                info.smallest_subnormal,
            ]
            return np.concatenate([bits, small, ties.astype(dtype), np.array(edges, dtype)])
    limits = np.iinfo(dtype)
    return np.concatenate([bits, small, np.array([limits.min, limits.max, 0, 1], dtype)])


def _fits(x: Array, target: str) -> Array:
    """Where NumPy's result is the same whatever loop of it runs."""
    if _dtype(target).kind not in "iu" or x.dtype.name not in FLOATS:
        return np.ones(x.shape, bool)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
    limits = np.iinfo(target)
    low, high = (limits.min, limits.max) if limits.bits >= 32 else (-(2**31), 2**31 - 1)
    return (wide > low - 1.0) & (wide < high) if limits.bits < 64 else (wide >= low) & (wide < high)


def _same(found: Array, expected: Array) -> None:
    if found.dtype.name in FLOATS:
        unknown = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(found), unknown)
        found, expected = found[~unknown], expected[~unknown]
    bits = f"u{found.dtype.itemsize}"
    np.testing.assert_array_equal(found.view(bits), expected.view(bits))


@pytest.mark.parametrize("source", STORAGE)
def test_numbers_become_what_numpy_makes_of_them(source: str, target: Target, run: Run) -> None:
    x = _numbers(source)
    for wanted in STORAGE:
        if wanted == source or ("float16" in (source, wanted) and not target.converts_halves):
            continue
        stored = np.zeros(x.size * _dtype(wanted).itemsize, np.uint8)
        slots = {"x": np.frombuffer(x.tobytes(), np.uint8).copy(), "y": stored, "batch": x.size}
        run(convert(source, wanted, target), target, slots, 2)
        y = stored.view(_dtype(wanted))
        with np.errstate(all="ignore"):
            expected = x.astype(y.dtype)
        fits = _fits(x, wanted)
        _same(y[fits], expected[fits])


def test_numbers_that_do_not_fit_are_the_smallest_ones(target: Target, run: Run) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 2.0**31, 2.0**63, -(2.0**70), 1e30], np.float32)
    for wanted, value in (("int32", -(2**31)), ("int64", -(2**63)), ("int8", 0), ("uint16", 0)):
        y = np.zeros(x.shape, wanted)
        given = x if wanted != "int64" else np.delete(x, 3)
        run(convert("float32", wanted, target), target, {"x": given, "y": y, "batch": given.size}, 1)
        assert set(y[: given.size].tolist()) == {value}


def _cast(source: ir.DataType, to: ir.DataType, **attributes: Any) -> Session:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 25}, name="cast")
    g = Builder(graph)
    x = g.input("x", source, ("n",))
    g.output(g.Cast(x, to=int(to), **attributes), "y")
    return Session(ir.Model(graph, ir_version=13), engine="compiled", threads=1)


@pytest.mark.parametrize("kind", EXOTIC, ids=lambda kind: kind.name)
def test_types_that_are_looked_up(kind: ir.DataType) -> None:
    exotic = numpy_dtype(kind)
    for name in ("float32", "float16", "bfloat16", "int8", "float64"):
        with np.errstate(all="ignore"):
            x = _numbers(name)
            if not kind.name.startswith("FLOAT"):  # what does not fit is not the same everywhere
                limits = ml_dtypes.iinfo(exotic)
                wide = x.astype(np.float64)
                x = x[(wide > limits.min - 1.0) & (wide < limits.max + 1.0)]
            other = ir.DataType.from_numpy(x.dtype)
            with _cast(other, kind) as session:
                plan = session._engine.plan({"x": x.shape})  # type: ignore[attr-defined]
                assert not left_to_numpy(plan, x)
                y = session.run({"x": x})["y"]
            expected = converted(x, int(kind))
            np.testing.assert_array_equal(y.view(np.uint8), expected.view(np.uint8), err_msg=name)
            back = np.arange(256, dtype=np.uint8).view(exotic)
            if not kind.name.startswith("FLOAT8"):
                back = np.unique(expected.view(np.uint8)).view(exotic)
            with _cast(kind, other) as session:
                _same(session.run({"x": back})["y"], converted(back, int(other)))
