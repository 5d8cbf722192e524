from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from onward.compile.codegen.target import Target
from onward.compile.kernels.element import Operand, channel, contiguous
from onward.compile.kernels.expression import constant, operand
from onward.compile.kernels.reduce import Columns, Finish, finish_columns, partial_size, reduce_columns
from onward.compile.kernels.rows import Rows, rows_kernel
from onward.errors import ShapeError

Array = npt.NDArray[np.float32]
Run = Callable[..., None]
x, y, z = operand(0), operand(1), operand(2)


def random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(5,), (4, 1), (3, 7, 16), (9, 8, 70), (200, 6)])
def test_columns(shape: tuple[int, ...], threads: int, target: Target, run: Run) -> None:
    whole = contiguous(shape)
    spec = Columns(shape, (whole, whole, channel(shape)), (x, (x - z) * y, x), ("sum", "sum", "max"))
    finish = Finish((1, 0), (1, 1, 1), (x / operand(4), y + operand(3), z))
    c = shape[-1]
    for batch in (1, 5, 0):
        a, b, k, n = random(batch, *shape), random(batch, *shape), random(c), np.full(1, 3, np.float32)
        partial = np.full(partial_size(spec, target, threads), np.nan, np.float32)
        run(
            reduce_columns(spec, target),
            target,
            {"x0": a, "x1": b, "x2": k, "partial": partial, "batch": batch},
            threads,
        )
        out = np.full((3, c + 1), 7, np.float32)
        values = {"partial": partial, "x0": k, "x1": n, "parts": threads}
        values |= {f"y{i}": out[i] for i in range(3)}
        run(finish_columns(spec, finish, target), target, values, 2)
        a64, axes = a.astype(np.float64), tuple(range(len(shape)))
        tolerance = {"rtol": 1e-5, "atol": 1e-5 * max(1, a.size // c) ** 0.5}
        np.testing.assert_allclose(out[0, :-1], a64.sum(axes) / 3, **tolerance)
        np.testing.assert_allclose(out[1, :-1], ((a64 - k) * b).sum(axes) + k, **tolerance)
        np.testing.assert_array_equal(out[2, :-1], np.max(a, axes, initial=-np.inf))
        assert (out[:, -1] == 7).all()


@pytest.mark.parametrize("shape", [(3,), (4, 5, 33)])
def test_everything(shape: tuple[int, ...], target: Target, run: Run) -> None:
    spec = Columns(
        shape, (contiguous(shape),), (x * x, x, x + constant(1.0)), ("sum", "min", "sum"), everything=True
    )
    finish = Finish((), (0, 0, 0), (x.apply("sqrt"), y, z))
    a = random(6, *shape)
    partial = np.full(partial_size(spec, target, 2), np.nan, np.float32)
    run(reduce_columns(spec, target), target, {"x0": a, "partial": partial, "batch": 6})
    out = np.full((3, 2), 7, np.float32)
    values = {"partial": partial, "parts": 2} | {f"y{i}": out[i] for i in range(3)}
    run(finish_columns(spec, finish, target), target, values)
    want = [np.sqrt((a.astype(np.float64) ** 2).sum()), a.min(), a.astype(np.float64).sum() + a.size]
    np.testing.assert_allclose(out[:, 0], want, rtol=1e-5)
    assert (out[:, 1] == 7).all()


def test_long_sums_stay_accurate(target: Target, run: Run) -> None:
    shape = (4096, 1)
    spec = Columns(shape, (contiguous(shape),), (x,), ("sum",))
    a = (np.random.default_rng(0).random((64, *shape)) + 1).astype(np.float32)
    partial = np.zeros(partial_size(spec, target, 1), np.float32)
    out = np.zeros(1, np.float32)
    run(reduce_columns(spec, target), target, {"x0": a, "partial": partial, "batch": 64}, 1)
    run(
        finish_columns(spec, Finish((), (1,), (x,)), target),
        target,
        {"partial": partial, "y0": out, "parts": 1},
    )
    assert abs(out[0] / a.astype(np.float64).sum() - 1) < 3e-6


def test_nan_and_inf(target: Target, run: Run) -> None:
    spec = Columns((4,), (contiguous((4,)),), (x, x, x), ("sum", "max", "min"))
    a = random(50, 4)
    a[17, 0], a[3, 1], a[49, 2] = np.nan, np.inf, -np.inf
    partial = np.zeros(partial_size(spec, target, 3), np.float32)
    out = np.zeros((3, 4), np.float32)
    run(reduce_columns(spec, target), target, {"x0": a, "partial": partial, "batch": 50}, 3)
    values = {"partial": partial, "parts": 3} | {f"y{i}": out[i] for i in range(3)}
    run(finish_columns(spec, Finish((), (1, 1, 1), (x, y, z)), target), target, values)
    assert np.isnan(out[:, 0]).all()
    np.testing.assert_array_equal(out[1:, 1:], [a.max(0)[1:], a.min(0)[1:]])
    assert out[0, 1] == np.inf
    assert out[0, 2] == -np.inf


@pytest.mark.parametrize("columns", [1, 3, 10, 16, 45])
@pytest.mark.parametrize("threads", [1, 3])
def test_softmax_cross_entropy_and_its_gradient(columns: int, threads: int, target: Target, run: Run) -> None:
    number, top, total = operand(2), operand(3), operand(4)
    e = (x - top).apply("exp")
    chosen = number.apply("eq", y)
    picked = chosen.apply("select", x, constant(0.0))
    spec = Rows(
        columns,
        (Operand((columns, 1)), Operand((1, 0), "int64")),
        (("max", x, None), ("sum", e, None), ("sum", picked, None)),
        ((Operand((columns, 1)), e / total - chosen.apply("float")),),
        (("float32", total.apply("log") + top - operand(5)), ("int64", y + y)),
    )
    kernel = rows_kernel(spec, target)
    for batch in (7, 1, 0):
        a = random(batch, columns) * 5
        labels = np.random.default_rng(1).integers(0, columns, batch)
        gradient, loss, twice = np.zeros_like(a), np.zeros(batch + 1, np.float32), np.zeros(batch, np.int64)
        values = {"x0": a, "x1": labels, "y0": gradient, "r0": loss, "r1": twice, "batch": batch}
        run(kernel, target, values, threads)
        p = np.exp(a.astype(np.float64) - a.max(1, keepdims=True, initial=-np.inf))
        p /= p.sum(1, keepdims=True)
        np.testing.assert_allclose(gradient, p - np.eye(columns)[labels], atol=1e-6)
        np.testing.assert_allclose(loss[:-1], -np.log(p[np.arange(batch), labels]), atol=3e-6)
        np.testing.assert_array_equal(twice, 2 * labels)
        assert loss[-1] == 0


def test_layer_normalisation_in_two_passes(target: Target, run: Run) -> None:
    n = 37
    mean, rstd = operand(4), operand(5)
    spec = Rows(
        n,
        (Operand((n, 1)), Operand((0, 1)), Operand((0, 1))),
        (
            ("sum", x, operand(4) / constant(n)),
            ("sum", (x - mean) * (x - mean), (operand(5) / constant(n) + constant(1e-5)).apply("rsqrt")),
        ),
        ((Operand((n, 1)), (x - mean) * rstd * y + z),),
        (("float32", mean), ("float32", rstd)),
    )
    a, g, b = random(5, n) + 100, random(n), random(n)
    out, m, r = np.zeros_like(a), np.zeros(5, np.float32), np.zeros(5, np.float32)
    values = {"x0": a, "x1": g, "x2": b, "y0": out, "r0": m, "r1": r, "batch": 5}
    run(rows_kernel(spec, target), target, values)
    a64 = a.astype(np.float64)
    want_r = 1 / np.sqrt(a64.var(1) + 1e-5)
    np.testing.assert_allclose(m, a64.mean(1), rtol=1e-6)
    np.testing.assert_allclose(r, want_r, rtol=1e-5)
    np.testing.assert_allclose(out, (a64 - a64.mean(1, keepdims=True)) * want_r[:, None] * g + b, atol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="operands"):
        Columns((3,), (contiguous((3,)),), (y,), ("sum",))
    with pytest.raises(ShapeError, match="combine"):
        Columns((3,), (contiguous((3,)),), (x,), ("product",))
