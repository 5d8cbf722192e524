"""Every family of kernels in float64, through the generators that make float32, against NumPy at 1e-12."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.compile.kernels import test_conv, test_conv_weights, test_depthwise, test_pool, test_winograd
from tests.compile.kernels.targets import tuned

from onward.compile.codegen.target import Target
from onward.compile.kernels import conv, conv_narrow, conv_pack, conv_weights, depthwise, winograd
from onward.compile.kernels.batched_update import batched_update
from onward.compile.kernels.copy import StridedCopy, clear, copy
from onward.compile.kernels.dots import dots
from onward.compile.kernels.element import Element, Operand, contiguous, element
from onward.compile.kernels.embedding import gather_rows, scatter_rows
from onward.compile.kernels.expression import OPS, Expression, constant, operand
from onward.compile.kernels.gemm import Gemm, Outer, gemm
from onward.compile.kernels.kernel import Kernel
from onward.compile.kernels.layout import Convolution, Image, oihw
from onward.compile.kernels.local_response import Response, response_backward, response_forward
from onward.compile.kernels.norm import backward_finish, backward_sums, forward_finish, statistics
from onward.compile.kernels.packed import packed_gemm
from onward.compile.kernels.panels import block_width, pack_columns, packed_size, panel_size
from onward.compile.kernels.pool import Pool, pool_backward, pool_forward
from onward.compile.kernels.reduce import Columns, Finish, finish_columns, partial_size, reduce_columns
from onward.compile.kernels.rows import Rows, rows_kernel
from onward.compile.kernels.tile import Epilogue
from onward.compile.kernels.weight_finish import finish_weights

Array = npt.NDArray[np.float64]
DOUBLE = "float64"


def random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape) + len(shape)).standard_normal(shape)


def empty(*shape: int) -> Array:
    return np.full(shape, np.nan)


def close(got: Array, want: Any) -> None:
    """To 1e-12 of the largest number."""
    assert got.dtype == np.float64
    want = np.broadcast_to(want, got.shape)
    scale = max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * scale)


UNARY = {
    "exp": np.exp,
    "log": lambda x: np.log(np.abs(x)),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "sqrt": lambda x: np.sqrt(np.abs(x)),
    "rsqrt": lambda x: 1 / np.sqrt(np.abs(x)),
    "reciprocal": lambda x: 1 / x,
    "abs": np.abs,
    "neg": np.negative,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
}


@pytest.mark.parametrize("op", UNARY)
def test_functions(op: str, run: Any, target: Target) -> None:
    line = contiguous((), DOUBLE)
    x = operand(0).apply("abs") if op in ("log", "sqrt", "rsqrt") else operand(0)
    assert op in OPS
    spec = Element((), (line,), (line,), (x.apply(op),), DOUBLE)
    values, y = random(1003) * 3, empty(1003)
    run(element(spec, target), target, {"x0": values, "y0": y, "batch": 1003})
    close(y, UNARY[op](values))


def test_operands_of_every_type_and_layout(run: Any, target: Target) -> None:
    shape = (5, 7)
    operands = (
        contiguous(shape, DOUBLE),
        Operand((0, 0, 1), DOUBLE),
        Operand((35, 7, 1), "int64"),
        Operand((35, 7, 1), "bool"),
        Operand((0, 0, 0), "float32"),
    )
    total = operand(0) * operand(1) + operand(2) + operand(3).apply("ne", 0.0).apply("float") * operand(4)
    results = (contiguous(shape, DOUBLE), contiguous(shape, "bool"), contiguous(shape, "int64"))
    expressions = (total, total.apply("gt", 1.0), total.apply("floor"))
    x, row = random(3, 5, 7), random(7)
    whole = np.arange(105).reshape(3, 5, 7) + (1 << 40)
    flag = whole % 3 == 0
    single = np.array([0.1]).astype("f4")
    y, more, down = empty(3, 5, 7), np.zeros((3, 5, 7), bool), np.zeros((3, 5, 7), np.int64)
    values = {"x0": x, "x1": row, "x2": whole, "x3": flag, "x4": single}
    values |= {"y0": y, "y1": more, "y2": down, "batch": 3}
    run(element(Element(shape, operands, results, expressions, DOUBLE), target), target, values)
    want = x * row + whole + flag * np.float64(single)
    np.testing.assert_allclose(y, want, rtol=1e-15)
    np.testing.assert_array_equal(more, want > 1)
    np.testing.assert_array_equal(down, np.floor(y))


def test_casts_between_the_two(run: Any, target: Target) -> None:
    narrow, wide = contiguous(()), contiguous((), DOUBLE)
    x, single, again = random(37), np.zeros(37, "f4"), empty(37)
    down = Element((), (wide,), (narrow,), (operand(0),), DOUBLE)
    run(element(down, target), target, {"x0": x, "y0": single, "batch": 37})
    np.testing.assert_array_equal(single, x.astype("f4"))
    up = Element((), (narrow,), (wide,), (operand(0),), DOUBLE)
    run(element(up, target), target, {"x0": single, "y0": again, "batch": 37})
    np.testing.assert_array_equal(again, single.astype("f8"))


def test_batched_updates_of_an_optimizer(run: Any, target: Target) -> None:
    """Momentum: v = 0.9 v + g; w = w - 0.1 v."""
    line = contiguous((), DOUBLE)
    v = operand(1) * 0.9 + operand(2)
    spec = Element((), (line,) * 3, (line, line), (operand(0) - v * 0.1, v), DOUBLE)
    values: dict[str, Any] = {"rows": 2}
    wanted, end = [], 0
    for row, n in enumerate((7, 130)):
        w, m, g = random(n), random(n, 1)[:, 0], random(1, n)[0]
        end += n
        values |= {f"end {row}": end, f"x0 {row}": w, f"x1 {row}": m, f"x2 {row}": g}
        values |= {f"y0 {row}": w, f"y1 {row}": m}
        wanted.append((w, m, w - (m * 0.9 + g) * 0.1, m * 0.9 + g))
    run(batched_update(spec, 2, target), target, values)
    for w, m, new_w, new_m in wanted:
        close(w, new_w)
        close(m, new_m)


@pytest.mark.parametrize("how", ["sum", "max", "min"])
@pytest.mark.parametrize("everything", [False, True])
def test_reductions(how: str, everything: bool, run: Any, target: Target) -> None:
    line = contiguous((9, 21), DOUBLE)
    spec = Columns((9, 21), (line,), (operand(0),), (how,), everything, DOUBLE)
    x, partial = random(40, 9, 21), empty(partial_size(spec, target, 3))
    run(reduce_columns(spec, target), target, {"x0": x, "partial": partial, "batch": 40}, 3)
    finish = Finish((), (0 if everything else 1,), (operand(0) * 2.0,))
    y = empty(1 if everything else 21)
    run(finish_columns(spec, finish, target), target, {"partial": partial, "y0": y, "parts": 3})
    close(y, getattr(np, how)(x, axis=None if everything else (0, 1)) * 2)


def test_batch_normalization(run: Any, target: Target) -> None:
    shape, n = (6, 19), 11
    line = contiguous(shape, DOUBLE)
    x, gamma, beta, mean, variance, dy = (
        random(n, *shape) + 30, random(19), random(19), random(19), abs(random(19)), random(n, *shape) * 2,
    )  # fmt: skip
    spec = statistics(shape, line)
    partial = empty(partial_size(spec, target, 2))
    run(reduce_columns(spec, target), target, {"x0": x, "x1": x.reshape(-1)[:19].copy(), "partial": partial,
                                               "batch": n})  # fmt: skip
    count = np.array([n * 6.0])
    results = {f"y{i}": empty(19) for i in range(6)}
    inputs = {
        "x0": x.reshape(-1)[:19].copy(),
        "x1": count,
        "x2": gamma,
        "x3": beta,
        "x4": mean,
        "x5": variance,
    }
    finish = finish_columns(spec, forward_finish(1e-5, 0.9), target)
    run(finish, target, {"partial": partial, **inputs, **results, "parts": 2})
    mu, var = x.mean((0, 1)), x.var((0, 1))
    rstd = 1 / np.sqrt(var + 1e-5)
    want = (
        mu,
        rstd,
        gamma * rstd,
        beta - mu * gamma * rstd,
        mean * 0.9 + mu * 0.1,
        variance * 0.9 + var * 0.1,
    )
    for i, expected in enumerate(want):
        close(results[f"y{i}"], expected)
    back = backward_sums(shape, (line, line, Operand((0, 0, 1), DOUBLE)), operand(0), operand(1))
    partial = empty(partial_size(back, target, 2))
    run(reduce_columns(back, target), target, {"x0": dy, "x1": x, "x2": mu, "partial": partial, "batch": n})
    results = {f"y{i}": empty(19) for i in range(5)}
    inputs = {"x0": count, "x1": gamma, "x2": rstd, "x3": mu}
    finish = finish_columns(back, backward_finish(), target)
    run(finish, target, {"partial": partial, **inputs, **results, "parts": 2})
    close(results["y0"], (dy * (x - mu)).sum((0, 1)) * rstd)
    close(results["y1"], dy.sum((0, 1)))


def test_softmax_by_rows(run: Any, target: Target) -> None:
    line = contiguous((21,), DOUBLE)
    shifted = (operand(0) - operand(2)).apply("exp")
    passes = (("max", operand(0), None), ("sum", shifted, None))
    logarithm = (DOUBLE, operand(2) + operand(3).apply("log"))
    spec = Rows(21, (line,), passes, ((line, shifted / operand(3)),), (logarithm,), DOUBLE)
    x, y, r = random(5, 21), empty(5, 21), empty(5)
    run(rows_kernel(spec, target), target, {"x0": x, "y0": y, "r0": r, "batch": 5})
    e = np.exp(x - x.max(1, keepdims=True))
    close(y, e / e.sum(1, keepdims=True))
    close(r, np.log(np.exp(x).sum(1)))


BIASED = Epilogue((operand(0) + operand(1)).apply("relu") - operand(2), ("channel", "full"))


@pytest.mark.parametrize("size", [(1, 1, 1), (7, 10, 13), (61, 33, 70), (5, 100, 600)])
@pytest.mark.parametrize("kind", ["in place", "panels", "packed", "packed turned", "dots"])
def test_products(kind: str, size: tuple[int, int, int], run: Any, target: Target) -> None:
    m, n, k = size
    typed = target.typed(DOUBLE)
    a, b, bias, c = random(m, k), random(k, n), random(n), random(m, n)
    spec = Gemm(None, n, k, k, 1, n, n, epilogue=BIASED, dtype=DOUBLE)
    values: dict[str, Any] = {"a": a, "b": b, "c": empty(m, n), "e0": bias, "e1": c, "batch": m}
    match kind:
        case "in place":
            kernel = gemm(spec, target)
        case "panels":
            panels = empty(packed_size(n, k, typed))
            run(pack_columns(n, k, k, 1, typed), target, {"b": b.T.copy(), "packed": panels}, 3)
            blocks = panels.reshape(
                -1, panel_size(n, k, typed) // block_width(n, typed), block_width(n, typed)
            )
            np.testing.assert_array_equal(blocks[:, :k].transpose(1, 0, 2).reshape(k, -1)[:, :n], b)
            values["b"] = panels
            kernel = gemm(replace(spec, b_k=block_width(n, typed), b_block=panel_size(n, k, typed)), target)
        case "packed":
            kernel = packed_gemm(spec, target)
        case "packed turned":
            values |= {"a": a.T.copy(), "b": b.T.copy()}
            kernel = packed_gemm(replace(spec, m=m, a_row=1, a_k=m, b_k=1, b_column=k), target)
        case _:
            values["b"] = b.T.copy()
            kernel = dots(replace(spec, b_k=1, b_column=k), target)
    run(kernel, target, values, 3)
    close(values["c"], np.maximum(a @ b + bias, 0) - c)


@pytest.mark.parametrize("packed", [False, True])
def test_sums_over_the_batch_and_outer_products(packed: bool, run: Any, target: Target) -> None:
    m, n = 15, 40
    make = packed_gemm if packed else gemm
    for k in (0, 1, 300):
        a, b, c = random(k, m), random(k, n), np.full((m, n), 2.0)
        spec = Gemm(m, n, None, 1, m, n, n, accumulate=True, dtype=DOUBLE)
        run(make(spec, target), target, {"a": a, "b": b, "c": c, "batch": k})
        close(c, a.T @ b + 2)
    a, b, c = random(3, 7, 20), random(3, 20, 9), empty(3, 7, 9)
    outer = (Outer(None, 140, 180, 63),)
    spec = Gemm(7, 9, 20, 20, 1, 9, 9, outer=outer, dtype=DOUBLE)
    run(make(spec, target), target, {"a": a, "b": b, "c": c, "batch": 3})
    close(c, a @ b)


@pytest.mark.parametrize("name", test_conv.CASES)
def test_convolution(name: str, run: Any, target: Target) -> None:
    g = replace(test_conv.CASES[name], dtype=DOUBLE)
    x, dy, w = test_conv.data(g, 2)
    order = oihw(g.inputs, *g.kernel)
    packed = empty(conv_pack.packed_forward_size(g, target))
    run(conv_pack.forward_pack(g, target, order), target, {"w": w, "packed": packed})
    y = test_conv.buffer(g.y, 2, 9.0, DOUBLE)
    run(conv.forward(g, target), target, {"a": x, "b": packed, "c": y, "batch": 2}, 3)
    close(test_conv.inside(g.y, y), test_conv.forward_reference(g, test_conv.inside(g.x, x), w))
    packed = empty(conv_pack.packed_backward_size(g, target))
    run(conv_pack.backward_data_pack(g, target, order), target, {"w": w, "packed": packed})
    dx = test_conv.buffer(g.x, 2, 9.0, DOUBLE)
    run(conv.backward_data(g, target), target, {"a": dy, "b": packed, "c": dx, "batch": 2}, 3)
    close(test_conv.inside(g.x, dx), test_conv.backward_reference(g, test_conv.inside(g.y, dy), w))


@pytest.mark.parametrize("c", [1, 2, 3])
def test_narrow_convolution(c: int, run: Any, target: Target) -> None:
    g = test_conv.geometry(9, 13, 4, c, (3, 3), pads=(1, 1, 1, 1))
    g = replace(g, y=Image(g.y.height, g.y.width, c, *g.gradient_halo()), dtype=DOUBLE)
    target = tuned(target, narrow_sums=1)
    if c > target.typed(DOUBLE).lanes:
        assert not conv_narrow.narrow_suits(g, target, backward=False)
        return
    x, _, w = test_conv.data(g, 2)
    packed = empty(conv_narrow.narrow_size(g, target, backward=False))
    pack = conv_narrow.narrow_forward_pack(g, target, oihw(g.inputs, *g.kernel))
    run(pack, target, {"w": w, "packed": packed})
    y = test_conv.buffer(g.y, 2, 0.0, DOUBLE)
    run(conv_narrow.narrow_forward(g, target), target, {"a": x, "b": packed, "c": y, "batch": 2})
    close(test_conv.inside(g.y, y), test_conv.forward_reference(g, test_conv.inside(g.x, x), w))


_WEIGHTS = (
    *("3x3 wide", "3x3 stride 2 wide", "7x7 stride 2 stem", "5x5 of one channel", "1x1 wide"),
    *("asymmetric", "dilated strided", "groups strided", "1-D text", "many weights"),
)


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        *((name, False) for name in _WEIGHTS),
        *((name, True) for name in ("3x3", "3x3 wide", "1x1 wide", "groups wide")),
    ],
)
def test_weight_gradients(name: str, packed: bool, run: Any, target: Target) -> None:
    g = replace(test_conv_weights.CASES[name], dtype=DOUBLE)
    target = tuned(target, weights_few=1 << 30, weights_few_busy=1 << 30) if packed else target
    x, dy = test_conv_weights.data(g, 3)
    panels = empty(conv_weights.partial_count(g, target, 2) * conv_weights.partial_size(g, target))
    run(conv_weights.weight_gradient(g, target), target, {"a": x, "b": dy, "c": panels, "batch": 3})
    dw = empty(g.y.channels, g.inputs, *g.kernel)
    parts = conv_weights.partial_count(g, target, 2)
    run(finish_weights(g, target), target, {"c": panels, "dw": dw, "parts": parts})
    close(dw, test_conv_weights.reference(g, test_conv.inside(g.x, x), test_conv.inside(g.y, dy)))


@pytest.mark.parametrize("g", test_depthwise.CASES, ids=range(len(test_depthwise.CASES)))
def test_depthwise_convolution(g: Convolution, run: Any, target: Target) -> None:
    g = replace(g, dtype=DOUBLE)
    c, order = g.x.channels, oihw(1, *g.kernel)
    x, x_in = test_depthwise.buffer(g.x, 2, 1, DOUBLE)
    dy, dy_in = test_depthwise.buffer(g.y, 2, 2, DOUBLE)
    w, packed = random(c, 1, *g.kernel), empty(*g.kernel, c)
    run(depthwise.depthwise_pack(g, target, order), target, {"x": w, "y": packed, "batch": 1})
    want = test_depthwise.reference(g, x_in, dy_in, w)
    y, y_in = test_depthwise.buffer(g.y, 2, None, DOUBLE)
    run(depthwise.depthwise_forward(g, target), target, {"a": x, "b": packed, "c": y, "batch": 2})
    close(y_in, want[0])
    dx, dx_in = test_depthwise.buffer(g.x, 2, None, DOUBLE)
    run(depthwise.depthwise_backward_data(g, target), target, {"a": dy, "b": packed, "c": dx, "batch": 2})
    close(dx_in, want[1])
    partial = empty(depthwise.depthwise_partial_size(g, target, 3))
    values = {"a": x, "b": dy, "c": partial, "batch": 2}
    run(depthwise.depthwise_weight_gradient(g, target), target, values, 3)
    dw = empty(*w.shape)
    finish = depthwise.depthwise_finish_weights(g, target, order)
    run(finish, target, {"c": partial, "dw": dw, "parts": 3})
    close(dw, want[2])


@pytest.mark.parametrize("g", test_winograd.CASES[:3], ids=range(3))
def test_winograd_convolution(g: Convolution, run: Any, target: Target) -> None:
    """F(2x2, 3x3): as accurate as direct sums are."""
    g = replace(test_winograd.bordered(g, 2), dtype=DOUBLE)
    x, x_in = test_winograd.buffer(g.x, 3, 1, DOUBLE)
    dy, dy_in = test_winograd.buffer(g.y, 3, 2, DOUBLE)
    w = random(g.y.channels, g.x.channels, 3, 3)
    order = oihw(g.inputs, 3, 3)
    y_want, dx_want = test_winograd.reference(g, x_in, dy_in, w)
    packed = empty(winograd.winograd_packed_size(g, target))
    run(winograd.winograd_pack(g, target, order), target, {"w": w, "packed": packed})
    y, y_in = test_winograd.buffer(g.y, 3, None, DOUBLE)
    run(winograd.winograd_forward(g, target), target, {"a": x, "b": packed, "c": y, "batch": 3})
    close(y_in, y_want)
    packed = empty(winograd.winograd_packed_size(g, target, backward=True))
    run(winograd.winograd_backward_pack(g, target, order), target, {"w": w, "packed": packed})
    dx, dx_in = test_winograd.buffer(g.x, 3, None, DOUBLE)
    run(winograd.winograd_backward_data(g, target), target, {"a": dy, "b": packed, "c": dx, "batch": 3})
    close(dx_in, dx_want)
    dw = test_winograd.weight_gradient(g, target, run, x, dy, 2)
    close(dw, test_winograd.weight_reference(g, x_in, dy_in))


@pytest.mark.parametrize("pool", test_pool.CASES, ids=range(len(test_pool.CASES)))
def test_pooling(pool: Pool, run: Any, target: Target) -> None:
    pool = replace(pool, dtype=DOUBLE)
    x, y = test_pool.buffer(pool.x, 2, 0.0, DOUBLE), test_pool.buffer(pool.y, 2, 9.0, DOUBLE)
    x_in, y_in = test_pool.inside(pool.x, x), test_pool.inside(pool.y, y)
    x_in[...] = random(*x_in.shape)
    dy, dx = test_pool.buffer(pool.y, 2, 0.0, DOUBLE), test_pool.buffer(pool.x, 2, 9.0, DOUBLE)
    dy_in, dx_in = test_pool.inside(pool.y, dy), test_pool.inside(pool.x, dx)
    dy_in[...] = random(*dy_in.shape)
    want_y, want_dx = test_pool.reference(pool, x_in, dy_in)
    run(pool_forward(pool, target), target, {"x": x, "y": y, "batch": 2})
    close(y_in, want_y)
    more = {"x": x, "y": y} if pool.kind == "max" else {}
    run(pool_backward(pool, target), target, {"dy": dy, "dx": dx, **more, "batch": 2}, 3)
    close(dx_in, want_dx)


def test_copies(run: Any, target: Target) -> None:
    x, y = random(3, 5, 9), empty(3, 9, 5)
    run(copy(StridedCopy((9, 5), (45, 1, 9), (45, 5, 1), 8), target), target, {"x": x, "y": y, "batch": 3})
    np.testing.assert_array_equal(y, x.transpose(0, 2, 1))
    run(clear(target.typed(DOUBLE)), target, {"y": y, "batch": y.size})
    assert not y.any()


def test_rows_of_a_table(run: Any, target: Target) -> None:
    typed, index, table = target.typed(DOUBLE), np.array([1, -1, 0, 1]), random(3, 21)
    y = empty(4, 21)
    run(gather_rows(3, 21, typed), target, {"table": table, "index": index, "y": y, "batch": 4})
    np.testing.assert_array_equal(y, table[index])
    want = table.copy()
    np.add.at(want, index, y)
    run(scatter_rows(3, 21, typed), target, {"dy": y, "index": index, "dtable": table, "batch": 4})
    close(table, want)


def test_local_response(run: Any, target: Target) -> None:
    image, c = Image(2, 3, 10), 10
    x, dy, y, dx = random(2, 2, 3, c), random(2, 2, 3, c) * 2, empty(2, 2, 3, c), empty(2, 2, 3, c)
    spec = Response((image,) * 2, 5, 1e-1, 0.75, 1.0, DOUBLE)
    run(response_forward(spec, target), target, {"x": x, "y": y, "batch": 2})
    near = abs(np.subtract.outer(np.arange(c), np.arange(c))) <= 2
    base = 1 + 0.1 / 5 * (x**2) @ near
    close(y, x * base**-0.75)
    back = replace(spec, images=(image,) * 3)
    run(response_backward(back, target), target, {"dy": dy, "x": x, "dx": dx, "batch": 2})
    close(dx, dy * base**-0.75 - 2 * 0.1 * 0.75 / 5 * x * ((dy * x * base**-1.75) @ near))


def test_numbers_keep_all_their_digits(run: Any, target: Target) -> None:
    """A constant of an expression is not rounded to float32."""
    line = contiguous((), DOUBLE)
    expression: Expression = operand(0) * constant(0.1) + constant(1 / 3)
    y = empty(9)
    kernel: Kernel = element(Element((), (line,), (line,), (expression,), DOUBLE), target)
    run(kernel, target, {"x0": np.ones(9), "y0": y, "batch": 9})
    np.testing.assert_allclose(y, 0.1 + 1 / 3, rtol=2e-16)
