from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from onward.compile.codegen.target import Target
from onward.compile.kernels.element import Element, Operand, channel, contiguous, element, scalar
from onward.compile.kernels.expression import Expression, constant, operand
from onward.errors import ShapeError

Array = npt.NDArray[np.float32]
Run = Callable[..., None]
x, y, z = operand(0), operand(1), operand(2)


def random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 13), (3, 4, 64), (1, 257)])
def test_flat_runs_of_any_length(shape: tuple[int, ...], threads: int, target: Target, run: Run) -> None:
    whole = contiguous(shape)
    spec = Element(shape, (whole, whole, scalar(shape)), (whole, whole), (x * z + y, (x - y).apply("relu")))
    kernel = element(spec, target)
    for batch in (1, 6, 67):
        a, b, s = random(batch, *shape), random(batch, *shape) * 2, random(1)
        out = np.full((2, batch * math.prod(shape) + 1), 5, np.float32)
        run(kernel, target, {"x0": a, "x1": b, "x2": s, "y0": out[0], "y1": out[1], "batch": batch}, threads)
        np.testing.assert_allclose(out[0, :-1], (a * s + b).ravel(), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(out[1, :-1], np.maximum(a - b, 0).ravel())
        assert out[0, -1] == out[1, -1] == 5
    run(kernel, target, {"x0": a, "x1": b, "x2": s, "y0": out[0], "y1": out[1], "batch": 0}, threads)


@pytest.mark.parametrize("channels", [1, 3, 16, 21])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_broadcast_channel_row_and_image(channels: int, threads: int, target: Target, run: Run) -> None:
    shape = (5, 6, channels)
    per_image = Operand((channels, 0, 0, 1))
    per_row = Operand((5, 1, 0, 0))
    spec = Element(
        shape,
        (contiguous(shape), channel(shape), per_image, per_row),
        (contiguous(shape),),
        (x * y + z - operand(3),),
    )
    a, c, i, r = random(3, *shape), random(channels), random(3, channels), random(3, 5)
    out = np.full_like(a, np.nan)
    run(element(spec, target), target, {"x0": a, "x1": c, "x2": i, "x3": r, "y0": out, "batch": 3}, threads)
    want = a * c + i[:, None, None] - r[:, :, None, None]
    np.testing.assert_allclose(out, want, rtol=1e-6, atol=1e-6)


def test_an_operand_inside_a_border_and_in_place(target: Target, run: Run) -> None:
    big = random(3, 9, 10, 4)
    inner = big[:, 1:8, 2:9]
    strides = tuple(s // 4 for s in inner.strides)
    shape = (7, 7, 4)
    spec = Element(shape, (Operand(strides), contiguous(shape)), (Operand(strides),), (x + y,))
    other, want = random(3, *shape), big.copy()
    want[:, 1:8, 2:9] += other
    run(element(spec, target), target, {"x0": inner, "x1": other, "y0": inner, "batch": 3})
    np.testing.assert_array_equal(big, want)


UNARY = {
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "sqrt": np.sqrt,
    "reciprocal": lambda v: 1 / v,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sigmoid": lambda v: 1 / (1 + np.exp(-v.astype(np.float64))),
    "erf": lambda v: np.array([math.erf(t) for t in v]),
    "rsqrt": lambda v: 1 / np.sqrt(v),
    "relu": lambda v: np.where(v < 0, 0, v),
}


@pytest.mark.parametrize("op", UNARY)
def test_unary(op: str, target: Target, run: Run) -> None:
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, 0.5, 1.5, 2.5, -2.5]
    a = np.concatenate([np.array(special, np.float32), random(40) * 3])
    out = np.full_like(a, 9)
    spec = Element((), (contiguous(()),), (contiguous(()),), (x.apply(op),))
    run(element(spec, target), target, {"x0": a, "y0": out, "batch": a.size})
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(out, UNARY[op](a), rtol=3e-7, atol=1e-44)


BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.minimum,
    "max": np.maximum,
}
COMPARE = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}


@pytest.mark.parametrize("op", [*BINARY, *COMPARE])
def test_binary_on_every_pair_of_special_values(op: str, target: Target, run: Run) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -2.5, 1e-40, 3e38], np.float32)
    a, b = (m.ravel().copy() for m in np.meshgrid(values, values))
    whole = contiguous(())
    out, truth = np.full_like(a, 9), np.full(a.size, 7, np.uint8)
    if op in COMPARE:
        spec = Element(
            (),
            (whole, whole),
            (whole, contiguous((), "bool")),
            (x.apply(op, y).apply("float"), x.apply(op, y)),
        )
        run(element(spec, target), target, {"x0": a, "x1": b, "y0": out, "y1": truth, "batch": a.size})
        np.testing.assert_array_equal(truth, COMPARE[op](a, b).astype(np.uint8))
        np.testing.assert_array_equal(out, truth.astype(np.float32))
        return
    spec = Element((), (whole, whole), (whole,), (x.apply(op, y),))
    run(element(spec, target), target, {"x0": a, "x1": b, "y0": out, "batch": a.size})
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(out, BINARY[op](a, b))


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0, -1.0, -2.0, 0.5, -0.5, 1.7, 7.0])
def test_power(exponent: float, target: Target, run: Run) -> None:
    a = np.abs(random(37)) + np.float32(0.1)
    out = np.full_like(a, np.nan)
    spec = Element((), (contiguous(()),), (contiguous(()),), (x.power(exponent),))
    run(element(spec, target), target, {"x0": a, "y0": out, "batch": a.size})
    np.testing.assert_allclose(out, a.astype(np.float64) ** exponent, rtol=2e-6)


def test_select_logic_and_other_types(target: Target, run: Run) -> None:
    shape = (19,)
    labels = np.arange(-4, 15, dtype=np.int64)[None].repeat(2, 0).copy()
    keep = (random(2, 19) > 0).astype(np.uint8)
    a = random(2, 19)
    both = Expression("and", (x.apply("gt", constant(0.0)), y.apply("ne", constant(0.0))))
    either = Expression("or", (both, z.apply("lt", constant(3.0))))
    spec = Element(
        shape,
        (contiguous(shape), contiguous(shape, "bool"), contiguous(shape, "int64")),
        (contiguous(shape), contiguous(shape, "int64")),
        (Expression("select", (either, z, Expression("select", (either.apply("not"), x, y)))), z + z),
    )
    out, twice = np.zeros_like(a), np.zeros_like(labels)
    values = {"x0": a, "x1": keep, "x2": labels, "y0": out, "y1": twice, "batch": 2}
    run(element(spec, target), target, values)
    np.testing.assert_array_equal(out, np.where(((a > 0) & (keep > 0)) | (labels < 3), labels, a))
    np.testing.assert_array_equal(twice, 2 * labels)


def test_what_cannot_be_written_is_refused(target: Target) -> None:
    with pytest.raises(ShapeError, match="stride 2"):
        Operand((4, 2))
    with pytest.raises(ShapeError, match="dtype"):
        Operand((1,), "complex64")
    with pytest.raises(ShapeError, match="operands"):
        Element((), (contiguous(()),), (contiguous(()),), (y,))
    with pytest.raises(ShapeError, match="several times"):
        element(Element((3,), (contiguous((3,)),), (scalar((3,)),), (x,)), target)
