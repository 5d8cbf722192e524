from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from onward.compile.codegen.target import Target
from onward.compile.kernels.element import Element, channel, contiguous, element
from onward.compile.kernels.expression import operand
from onward.compile.kernels.norm import backward_finish, backward_sums, forward_finish, statistics
from onward.compile.kernels.reduce import Columns, Finish, finish_columns, partial_size, reduce_columns

Array = npt.NDArray[np.float32]
Run = Callable[..., None]


def reduced(
    spec: Columns,
    finish: Finish,
    target: Target,
    run: Run,
    batch: int,
    operands: list[Array],
    more: list[Array],
) -> list[Array]:
    c = spec.shape[-1]
    partial = np.full(partial_size(spec, target, 2), np.nan, np.float32)
    values: dict[str, Array | int] = {f"x{i}": o for i, o in enumerate(operands)}
    run(reduce_columns(spec, target), target, values | {"partial": partial, "batch": batch})
    out = [np.full(c, np.nan, np.float32) for _ in finish.results]
    values = {f"x{i}": o for i, o in enumerate(more)} | {f"y{i}": o for i, o in enumerate(out)}
    run(finish_columns(spec, finish, target), target, values | {"partial": partial, "parts": 2})
    return out


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_batch_normalisation_with_relu_forward_and_backward(mean: float, target: Target, run: Run) -> None:
    shape, c, batch, epsilon = (4, 5, 19), 19, 3, 1e-5
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((batch, *shape)) + mean).astype(np.float32)
    dy = rng.standard_normal(x.shape, np.float32)
    gamma, beta, old_mean, old_variance = rng.standard_normal((4, c), np.float32)
    count = np.array([x.size // c], np.float32)
    whole, vector = contiguous(shape), channel(shape)

    got_mean, rstd, scale, shift, new_mean, new_variance = reduced(
        statistics(shape, whole),
        forward_finish(epsilon, 0.9),
        target,
        run,
        batch,
        [x, x],
        [x, count, gamma, beta, old_mean, old_variance],
    )
    x64, axes = x.astype(np.float64), (0, 1, 2)
    want_mean, want_variance = x64.mean(axes), x64.var(axes)
    np.testing.assert_allclose(got_mean, want_mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(want_variance + epsilon), rtol=2e-5)
    np.testing.assert_allclose(new_mean, old_mean * 0.9 + want_mean * 0.1, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new_variance, old_variance * 0.9 + want_variance * 0.1, rtol=1e-5, atol=1e-6)

    y = np.zeros_like(x)
    apply = Element(
        shape, (whole, vector, vector), (whole,), ((operand(0) * operand(1) + operand(2)).apply("relu"),)
    )
    run(element(apply, target), target, {"x0": x, "x1": scale, "x2": shift, "y0": y, "batch": batch})
    hat = (x64 - want_mean) / np.sqrt(want_variance + epsilon)
    accuracy = 1e-5 * (1 + mean)
    np.testing.assert_allclose(y, np.maximum(hat * gamma + beta, 0), atol=accuracy)

    gradient = operand(2).apply("gt", 0.0).apply("select", operand(0), 0.0)
    dgamma, dbeta, a, b, k = reduced(
        backward_sums(shape, (whole, whole, whole, vector), gradient, operand(1)),
        backward_finish(),
        target,
        run,
        batch,
        [dy, x, y, got_mean],
        [count, gamma, rstd, got_mean],
    )
    g = dy.astype(np.float64) * (y > 0)
    n = count[0]
    np.testing.assert_allclose(dbeta, g.sum(axes), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dgamma, (g * hat).sum(axes), rtol=1e-4, atol=accuracy)
    dx = np.zeros_like(x)
    spec = Element(
        shape,
        (whole, whole, whole, vector, vector, vector),
        (whole,),
        (gradient * operand(3) + operand(1) * operand(4) + operand(5),),
    )
    values = {"x0": dy, "x1": x, "x2": y, "x3": a, "x4": b, "x5": k, "y0": dx, "batch": batch}
    run(element(spec, target), target, values)
    want = gamma / np.sqrt(want_variance + epsilon) * (g - g.sum(axes) / n - hat * (g * hat).sum(axes) / n)
    np.testing.assert_allclose(dx, want, atol=2 * accuracy)
