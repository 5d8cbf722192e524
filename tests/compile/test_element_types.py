"""Element-wise passes in every type: compiled, and what the interpreter gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.units import left_to_numpy

from onward.compile.codegen.target import host_target
from onward.engine import Session
from onward.graph import Array, Builder

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
HALVES = ("float16", "bfloat16")

UNARY = ("BitwiseNot", "Abs", "Neg", "Sign", "Relu")
COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Max", "Min")
OF_INTEGERS = (*ARITHMETIC, *COMPARISONS, *UNARY, "Pow", "Mod", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
LIBRARY = ("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh")


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)


def _both(op_type: str, operands: Sequence[Array], **attributes: Any) -> tuple[Array, Array]:
    """What the compiled engine gives, every step of it compiled, and what the interpreter does."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 25}, name="element")
    g = Builder(graph)
    feed = {f"x{i}": x for i, x in enumerate(operands)}
    values = [g.input(name, ir.DataType.from_numpy(x.dtype), x.shape) for name, x in feed.items()]
    g.output(g.emit(op_type, *values, **attributes)[0], "y")
    model = ir.Model(graph, ir_version=13)
    found = []
    for engine in ("compiled", "interpreter"):
        with Session(model, engine=engine, threads=1) as session:  # type: ignore[arg-type]
            if engine == "compiled":
                plan = session._engine.plan({n: x.shape for n, x in feed.items()})  # type: ignore[attr-defined]
                assert plan.rows
                assert not left_to_numpy(plan, *operands)
            with np.errstate(all="ignore"):
                found.append(session.run(feed)["y"])
    return found[0], found[1]


def _same(found: Array, expected: Array) -> None:
    assert found.dtype == expected.dtype
    if found.dtype.kind in "iub":
        np.testing.assert_array_equal(found, expected)
        return
    unknown = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), unknown)
    bits = f"u{found.dtype.itemsize}"
    np.testing.assert_array_equal(found[~unknown].view(bits), expected[~unknown].view(bits))


def _whole_numbers(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """Extremes, and random bits."""
    limits = np.iinfo(name)
    rng = np.random.default_rng(seed)
    x = rng.integers(limits.min, limits.max, shape, dtype=name, endpoint=True)
    edges = [limits.min, limits.max, 0, 1, 2, 3, *([-1, -2, limits.min + 1] if limits.min else [])]
    x.reshape(-1)[: x.size // 2] = rng.choice(np.array(edges, name), x.size // 2)
    return x


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("op_type", OF_INTEGERS)
def test_integers(op_type: str, name: str) -> None:
    a, b = _whole_numbers(name, (5, 3, 37), 0), _whole_numbers(name, (3, 37), 1)
    if op_type in ("Neg", "Abs", "Sign", "Relu") and name.startswith("u"):
        pytest.skip("of numbers with a sign")
    if op_type == "Relu" and name not in ("int8", "int16", "int32", "int64"):
        pytest.skip("not in the standard")
    if op_type == "Pow":
        if name not in ("int32", "int64"):
            pytest.skip("not in the standard")
        b = np.abs(b % 70)
    _same(*_both(op_type, [a] if op_type in UNARY else [a, b]))


@pytest.mark.parametrize("name", INTEGERS)
def test_remainders_with_the_sign_of_the_dividend(name: str) -> None:
    _same(*_both("Mod", [_whole_numbers(name, (4, 33), 0), _whole_numbers(name, (4, 33), 1)], fmod=1))


@pytest.mark.parametrize("name", ["int32", "int64"])
def test_powers_below_zero(name: str) -> None:
    a = np.array([0, 1, -1, 2, -2, 7, 10], name)
    _same(*_both("Pow", [a[:, None], np.array([-1, -2, -3, 0, 1, 2], name)]))


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
@pytest.mark.parametrize("name", [name for name in INTEGERS if name.startswith("u")])
def test_shifts(name: str, direction: str) -> None:
    bits = np.iinfo(name).bits
    by = np.array([0, 1, bits - 1, bits, bits + 5, np.iinfo(name).max], name)
    _same(*_both("BitShift", [_whole_numbers(name, (9, 6), 0), by], direction=direction))


@pytest.mark.parametrize("name", [*INTEGERS, *HALVES, "bool"])
def test_choices(name: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2 if name == "bool" else 90, (4, 19)).astype(_dtype(name)) for _ in range(2))
    _same(*_both("Where", [rng.random((3, 4, 1)) < 0.5, a, b]))


def _halves(name: str, shape: tuple[int, ...], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(_dtype(name))
    info = ml_dtypes.finfo(_dtype(name))  # type: ignore[no-untyped-call]
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, info.max, info.min, info.tiny, info.smallest_subnormal, 1.0]
    with np.errstate(all="ignore"):
        x.reshape(-1)[: x.size // 2] = rng.choice(np.array(edges, np.float64).astype(x.dtype), x.size // 2)
    return x


@pytest.mark.skipif(not host_target().converts_halves, reason="float16 is left to NumPy here")
@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("op_type", [*ARITHMETIC, *COMPARISONS])
def test_floats_of_two_bytes(op_type: str, name: str) -> None:
    found, expected = _both(op_type, [_halves(name, (5, 3, 37), 0), _halves(name, (3, 37), 1)])
    if op_type in ("Max", "Min"):  # which of two zeros is the larger one is open
        found, expected = found + found.dtype.type(0), expected + found.dtype.type(0)
    _same(found, expected)


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("op_type", LIBRARY)
def test_functions_of_the_c_library(op_type: str, name: str) -> None:
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-30, 0.5, 1e4])
    x = np.concatenate([edges, np.random.default_rng(0).standard_normal(200)]).astype(name)
    found, expected = _both(op_type, [x])
    eps = float(np.finfo(name).eps)
    np.testing.assert_allclose(found, expected, rtol=4 * eps, atol=0)
    assert np.signbit(found[1]) == np.signbit(expected[1])


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_powers_and_remainders_of_tensors(name: str) -> None:
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 2.0, -3.0, 0.5, -0.25, 70.0], name)
    found, expected = _both("Pow", [edges[:, None], edges])
    np.testing.assert_allclose(found, expected, rtol=4 * float(np.finfo(name).eps), atol=0)
    for fmod in (0, 1):
        if fmod or name == "float32":
            _same(*_both("Mod", [edges[:, None], edges], fmod=1))


@pytest.mark.parametrize(
    ("base", "exponent"), [("float32", "int64"), ("int32", "float32"), ("int64", "int32")]
)
def test_powers_of_two_types(base: str, exponent: str) -> None:
    a = np.array([1, 2, 3, -2, 5], base)
    _same(*_both("Pow", [a[:, None], np.array([0, 1, 2, 3], exponent)]))


@pytest.mark.parametrize("name", ["int8", "int32", "uint64"])
def test_limits(name: str) -> None:
    x = _whole_numbers(name, (4, 33), 0)
    low, high = (np.asarray(v, name) for v in (3, 90))
    _same(*_both("Clip", [x, low, high]))
    _same(*_both("Clip", [x, low]))


def test_large_numbers_of_the_graph_are_exact() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 25}, name="large")
    g = Builder(graph)
    x = g.input("x", ir.DataType.INT64, (3,))
    large = 2**62 + 1
    g.output(g.Add(x, g.const(np.asarray(large, np.int64), np.int64)), "y")
    with Session(ir.Model(graph, ir_version=13), engine="compiled") as session:
        assert session.run({"x": np.arange(3)})["y"].tolist() == [large, large + 1, large + 2]


@pytest.mark.parametrize("kind", ["float32", "float64", "int32", "float16"])
def test_choices_by_large_integers_are_exact(kind: str) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 25}, name="mixed")
    g = Builder(graph)
    dtype = ir.DataType.from_numpy(np.dtype(kind))
    a, b = (g.input(name, ir.DataType.INT64, (6, 5)) for name in "ab")
    x, y = (g.input(name, dtype, (6, 5)) for name in "xy")
    equal, below = g.Equal(a, b), g.Less(a, g.Add(b, g.const(1, np.int64)))
    chosen = g.Where(equal, g.Add(x, y), g.Neg(x))
    both = g.And(g.Not(below), g.Greater(x, y))
    g.output(g.Where(both, chosen, g.Mul(chosen, x)), "z")
    g.output(g.Where(g.Or(equal, below), a, b), "c")
    rng = np.random.default_rng(0)
    large = rng.integers(2**60, 2**62, (6, 5))
    feed = {"a": large, "b": large + rng.integers(-1, 2, (6, 5))}
    feed |= {name: rng.integers(-9, 9, (6, 5)).astype(kind) for name in "xy"}
    model = ir.Model(graph, ir_version=13)
    with Session(model, engine="compiled") as compiled, Session(model, engine="interpreter") as exact:
        found, expected = compiled.run(feed), exact.run(feed)
    for name, array in expected.items():
        _same(found[name], array)
