"""Operators whose bodies have kernels: compiled in every step, and what the interpreter gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.units import left_to_numpy

from onward.engine import Session
from onward.graph import Array, Builder

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4, 6)).astype(np.float32)
EDGES = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 0.5, 1.5, 2.5, -0.5, 1e9, -1e9, 127.5], np.float32)
BYTES = RNG.integers(0, 256, (5, 300)).astype(np.uint8)

Build = Callable[..., ir.Value | tuple[ir.Value, ...]]


def _both(build: Build, feed: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 26}, name="body")
    g = Builder(graph)
    values = [g.input(name, ir.DataType.from_numpy(x.dtype), x.shape) for name, x in feed.items()]
    found = build(g, *values)
    for i, value in enumerate(found if isinstance(found, tuple) else (found,)):
        g.output(value, f"y{i}")
    model = ir.Model(graph, ir_version=13)
    with Session(model, engine="compiled", threads=2) as compiled:
        plan = compiled._engine.plan({n: x.shape for n, x in feed.items()})  # type: ignore[attr-defined]
        given = compiled.run(feed)
        assert not left_to_numpy(plan, *feed.values(), *given.values())
    with Session(model, engine="interpreter") as exact:
        return given, exact.run(feed)


def _equal(build: Build, feed: Mapping[str, Array], rtol: float = 0.0) -> None:
    found, expected = _both(build, feed)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        if rtol:
            np.testing.assert_allclose(found[name], array, rtol=rtol, atol=rtol)
        else:
            np.testing.assert_array_equal(found[name].astype(np.float64), array.astype(np.float64))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, bool, ml_dtypes.bfloat16])
@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -2, 1, 9, -9])
def test_triangles(dtype: type, upper: int, k: int | None) -> None:
    x = (X * 50 % 2 if dtype is bool else np.abs(X) * 9).astype(dtype)
    _equal(lambda g, v: g.Trilu(v, None if k is None else g.const(k, np.int64), upper=upper), {"x": x})


@pytest.mark.parametrize(
    ("op_type", "dtype", "axis", "exclusive", "reverse"),
    [
        ("CumSum", np.float32, 1, 0, 0),
        ("CumSum", np.float32, 0, 1, 1),
        ("CumSum", np.uint64, -1, 1, 0),
        ("CumSum", np.float16, -1, 0, 1),
        ("CumProd", np.int32, 1, 1, 0),
        ("CumProd", np.float64, -1, 0, 1),
    ],
)
def test_running_totals(op_type: str, dtype: type, axis: int, exclusive: int, reverse: int) -> None:
    x = np.abs(np.round(X * 3)).astype(dtype) + (np.array(2**63, np.uint64) if dtype is np.uint64 else 0)
    _equal(
        lambda g, v: g.emit(op_type, v, g.const(axis, np.int64), exclusive=exclusive, reverse=reverse)[0],
        {"x": x.astype(dtype)},
    )


@pytest.mark.parametrize("axes", [[0], [1], [2], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(axes: list[int], keepdims: int) -> None:
    for op_type in ("ReduceProd", "ReduceLogSumExp"):
        _equal(
            lambda g, v, kind=op_type: g.emit(kind, v, g.const(axes, np.int64), keepdims=keepdims)[0],
            {"x": X},
            1e-6,
        )


def test_exponentials_of_infinities() -> None:
    x = np.array([[np.inf, 1], [-np.inf, -np.inf], [-np.inf, 3], [np.nan, 1], [1e30, 1e30]], np.float32)
    _equal(lambda g, v: g.ReduceLogSumExp(v, g.const([1], np.int64)), {"x": x}, 1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_rows_that_are_compared_or_divided(axis: int, dtype: type) -> None:
    x = np.round(X * 2).astype(dtype)
    x[1] = 0
    _equal(lambda g, v: g.Hardmax(v, axis=axis), {"x": x})
    for p in (1, 2):
        rtol = 4 * float(np.finfo(dtype).eps)
        _equal(lambda g, v, p=p: g.LpNormalization(v, axis=axis, p=p), {"x": x}, rtol)


@pytest.mark.parametrize("bias", [None, (), (1,), (4, 1), (4, 5), (5,)])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.25), (2.0, 0.0)])
def test_products_with_any_bias(bias: tuple[int, ...] | None, alpha: float, beta: float) -> None:
    feed = {"a": X[0, :, :3].T.copy(), "b": RNG.standard_normal((3, 5)).astype(np.float32)}
    feed["a"] = RNG.standard_normal((4, 3)).astype(np.float32)
    if bias is not None:
        feed["c"] = np.asarray(RNG.standard_normal(bias), np.float32)
    _equal(lambda g, *v: g.Gemm(*v, alpha=alpha, beta=beta), feed, 1e-6)


@pytest.mark.parametrize("kind", ["INT8", "UINT8", "INT16", "UINT16", "INT4", "UINT4", "FLOAT8E4M3FN"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_quantising(kind: str, dtype: type) -> None:
    wanted = ir.DataType[kind]
    with np.errstate(all="ignore"):
        x = np.stack([EDGES, np.linspace(-400, 400, 12, dtype=np.float32), X.reshape(-1)[:12]]).astype(dtype)
    scales = np.array([0.5, 2.0, 0.1], dtype)
    _equal(lambda g, v: g.QuantizeLinear(v, g.const(scales), axis=0, output_dtype=int(wanted)), {"x": x})
    if wanted.is_integer():
        zero = np.array([1, 2, 3]).astype(wanted.numpy())
        _equal(lambda g, v: g.QuantizeLinear(v, g.const(scales), g.const(zero), axis=0), {"x": x})
        y = np.arange(36).reshape(3, 12).astype(wanted.numpy())
        _equal(lambda g, v: g.DequantizeLinear(v, g.const(scales), g.const(zero), axis=0), {"y": y})


def test_blocks() -> None:
    scale = np.array([[1, 2, 3], [4, 5, 6]], np.float32) / 7
    x = RNG.integers(-128, 128, (2, 11)).astype(np.int8)
    _equal(lambda g, v: g.DequantizeLinear(v, g.const(scale), axis=1, block_size=4), {"x": x})
    _equal(
        lambda g, v: g.QuantizeLinear(v, g.const(scale), axis=1, block_size=4), {"x": x.astype(np.float32)}
    )


def test_quantising_by_the_range() -> None:
    for x in (X, np.abs(X), -np.abs(X), np.zeros_like(X)):
        _equal(lambda g, v: g.emit("DynamicQuantizeLinear", v, outputs=3), {"x": x})


@pytest.mark.parametrize("terms", [20, 300])
def test_integer_products(terms: int) -> None:
    a, b = BYTES[:, :terms], RNG.integers(-128, 128, (terms, 7)).astype(np.int8)
    az, bz = np.array([3, 1, 2, 250, 0], np.uint8), np.arange(-3, 4).astype(np.int8)
    _equal(lambda g, *v: g.MatMulInteger(*v), {"a": a, "b": b, "az": az, "bz": bz})
    scales = {"a": np.float32(0.02), "b": (np.arange(7, dtype=np.float32) + 1) / 90, "y": np.float32(2.5)}
    one = np.asarray(np.uint8(128))
    _equal(
        lambda g, a, b: g.QLinearMatMul(
            a,
            g.const(scales["a"]),
            g.const(one),
            b,
            g.const(scales["b"]),
            g.const(bz),
            g.const(scales["y"]),
            g.const(one),
        ),
        {"a": a, "b": b},
    )


@pytest.mark.parametrize("group", [1, 2])
def test_integer_convolutions(group: int) -> None:
    x = RNG.integers(0, 256, (2, 4, 7, 6)).astype(np.uint8)
    w = RNG.integers(-128, 128, (6, 4 // group, 3, 3)).astype(np.int8)
    one, zeros = np.asarray(np.uint8(9)), np.arange(6).astype(np.int8)
    bias = RNG.integers(-5000, 5000, 6).astype(np.int32)
    _equal(
        lambda g, x, w: g.ConvInteger(x, w, g.const(one), g.const(zeros), pads=[1, 1, 1, 1], group=group),
        {"x": x, "w": w},
    )
    scale, scales = np.float32(0.02), (np.arange(6, dtype=np.float32) + 1) / 50
    _equal(
        lambda g, x, w: g.QLinearConv(
            x,
            g.const(scale),
            g.const(one),
            w,
            g.const(scales),
            g.const(zeros),
            g.const(np.float32(3)),
            g.const(one),
            g.const(bias),
            strides=[2, 1],
            group=group,
        ),
        {"x": x, "w": w},
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32])
def test_positions_in_new_axes(axis: int, dtype: type) -> None:
    indices = np.array([[0, 3, -1], [4, -5, 7]]).astype(dtype)
    for values in (np.array([0.5, 2], np.float32), np.array([3, 7], np.int32), np.array([False, True])):
        _equal(
            lambda g, i, v: g.OneHot(i, g.const(5, np.int64), v, axis=axis), {"i": indices, "values": values}
        )


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_blocks_of_space(mode: str, dtype: type) -> None:
    x = np.arange(2 * 8 * 4 * 6).reshape(2, 8, 4, 6).astype(dtype)
    _equal(lambda g, v: g.DepthToSpace(v, blocksize=2, mode=mode), {"x": x})
    _equal(lambda g, v: g.SpaceToDepth(v, blocksize=2), {"x": x})


def test_shrinking() -> None:
    x: dict[str, Any] = {"x": np.concatenate([EDGES, X.reshape(-1)])}
    _equal(lambda g, v: g.Shrink(v, bias=0.25, lambd=0.5), x)


def test_bodies_that_are_an_operand_or_constant() -> None:
    _equal(lambda g, v: g.Pad(v, g.const([0] * 6, np.int64), mode="reflect"), {"x": X})
    _equal(lambda g, v: g.Hardmax(v, axis=1), {"x": X[:0]})
    _equal(lambda g, v: g.Neg(g.Pad(v, g.const([0] * 6, np.int64), mode="edge")), {"x": X})


def _scan(g: Builder, x: ir.Value, state: ir.Value, axis: int, direction: int) -> tuple[ir.Value, ...]:
    """Totals of tanh(factor · slice), and twice the total of each iteration; the factor is captured."""
    factor = g.Exp(g.ReduceMax(state, keepdims=0))
    body = ir.Graph([], [], nodes=[], opset_imports={"": 26}, name="step")
    b = g.inside(body)
    kept = [n for i, n in enumerate(x.shape or ()) if i != axis % 3]
    total = b.input("total", ir.DataType.FLOAT, tuple(kept))
    piece = b.input("piece", ir.DataType.FLOAT, tuple(kept))
    new = b.Add(total, b.Tanh(b.Mul(piece, factor)))
    b.output(new, "new")
    b.output(b.Mul(new, 2.0), "twice")
    last, totals = g.emit(
        "Scan",
        state,
        x,
        outputs=2,
        body=body,
        num_scan_inputs=1,
        scan_input_axes=(axis,),
        scan_input_directions=(direction,),
        scan_output_axes=(axis,),
        scan_output_directions=(direction,),
    )
    last.type, last.shape = state.type, state.shape
    totals.type, totals.shape = x.type, x.shape
    return last, totals


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_short_scans_are_part_of_the_plan(axis: int, direction: int) -> None:
    state = np.moveaxis(X, axis, 0)[0] / 4
    _equal(lambda g, x, s: _scan(g, x, s, axis, direction), {"x": X, "state": state}, rtol=1e-5)


def test_long_scans_are_iterations_of_a_plan() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 26}, name="long")
    g = Builder(graph)
    x, state = g.input("x", ir.DataType.FLOAT, (500, 4, 6)), g.input("state", ir.DataType.FLOAT, (4, 6))
    for i, value in enumerate(_scan(g, x, state, 0, 0)):
        g.output(value, f"y{i}")
    model = ir.Model(graph, ir_version=13)
    feed = {"x": RNG.standard_normal((500, 4, 6)).astype(np.float32), "state": X[0]}
    with (
        Session(model, engine="compiled", threads=1) as compiled,
        Session(model, engine="interpreter") as exact,
    ):
        plan = compiled._engine.plan({n: a.shape for n, a in feed.items()})  # type: ignore[attr-defined]
        assert len(plan.rows) < 10
        found, expected = compiled.run(feed), exact.run(feed)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4)
