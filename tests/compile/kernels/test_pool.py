from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from onward.compile.codegen.target import Target
from onward.compile.kernels.layout import Image
from onward.compile.kernels.pool import Pool, pool_backward, pool_forward
from onward.errors import ShapeError

Array = npt.NDArray[np.float32]
Run = Callable[..., None]


def make(
    kind: str,
    size: tuple[int, int],
    channels: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    include: bool = False,
    ceil: bool = False,
) -> Pool:
    out = []
    for i in range(2):
        span = size[i] + pads[i] + pads[i + 2] - (kernel[i] - 1) * dilations[i] - 1
        out.append((-(-span // strides[i]) if ceil else span // strides[i]) + 1)
    x = Image(*size, channels, 1, 0, 2, 1, pixel=channels + 1)
    return Pool(kind, x, Image(*out, channels, 0, 1, 1, 0), kernel, strides, pads, dilations, include)


CASES = [
    make("max", (8, 8), 6, (2, 2), (2, 2)),
    make("max", (11, 12), 19, (3, 3), (2, 2), (1, 1, 1, 1)),
    make("max", (9, 7), 70, (3, 2), (1, 2), (1, 0, 0, 1), (2, 1)),
    make("max", (7, 7), 4, (3, 3), (2, 2), ceil=True),
    make("max", (1, 20), 33, (1, 20), (1, 1)),
    make("max", (37, 9), 20, (3, 3), (2, 2), (1, 1, 1, 1)),
    make("max", (35, 6), 5, (4, 2), (1, 1), (2, 1, 1, 0), (3, 2)),
    make("max", (9, 11), 34, (2, 2), (3, 4)),
    make("max", (10, 9), 3, (2, 2), (2, 2), (1, 1, 1, 1)),
    make("max", (9, 9), 17, (3, 2), (9, 2), dilations=(2, 1)),
    make("max", (20, 5), 9, (5, 5), (1, 1), (2, 2, 2, 2)),
    make("max", (6, 13), 12, (2, 3), (2, 1)),
    make("average", (26, 5), 8, (4, 3), (2, 2), (1, 1, 1, 1)),
    make("average", (9, 8), 33, (2, 2), (3, 3)),
    make("average", (8, 8), 16, (2, 2), (2, 2)),
    make("average", (9, 10), 21, (3, 3), (2, 2), (1, 1, 1, 1)),
    make("average", (9, 10), 5, (3, 3), (1, 2), (1, 1, 1, 1), include=True),
    make("average", (7, 6), 40, (7, 6), (1, 1)),
]


def inside(image: Image, data: Array) -> Array:
    rows, columns = image.top + image.height, image.left + image.width
    return data[:, image.top : rows, image.left : columns, : image.channels]


def buffer(image: Image, batch: int, fill: float, dtype: str = "float32") -> Array:
    shape = (batch, image.top + image.height + image.bottom, image.left + image.width + image.right)
    return np.full((*shape, image.pixel), fill, dtype)


def reference(pool: Pool, x: Array, dy: Array) -> tuple[Array, Array]:
    """y and dx, window by window."""
    y, dx = np.zeros_like(dy), np.zeros(x.shape)
    for i in range(pool.y.height):
        for j in range(pool.y.width):
            taps = [
                (i * pool.strides[0] - pool.pads[0] + a * pool.dilations[0], b)
                for a in range(pool.kernel[0])
                for b in [
                    j * pool.strides[1] - pool.pads[1] + c * pool.dilations[1] for c in range(pool.kernel[1])
                ]
            ]
            taps = [(a, b) for a, b in taps if 0 <= a < pool.x.height and 0 <= b < pool.x.width]
            values = np.stack([x[:, a, b] for a, b in taps])
            if pool.kind == "max":
                y[:, i, j] = values.max(0)
                first = np.where(np.isnan(values).any(0), np.isnan(values).argmax(0), values.argmax(0))
                for t, (a, b) in enumerate(taps):
                    dx[:, a, b] += np.where(first == t, dy[:, i, j], 0)
            else:
                count = pool.kernel[0] * pool.kernel[1] if pool.count_include_pad else len(taps)
                y[:, i, j] = values.sum(0) / count
                for a, b in taps:
                    dx[:, a, b] += dy[:, i, j] / count
    return y, dx


@pytest.mark.parametrize("pool", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("threads", [1, 3])
def test_forward_and_backward(pool: Pool, threads: int, target: Target, run: Run) -> None:
    for batch in (2, 1, 0):
        rng = np.random.default_rng(2)
        x, y, dy, dx = (buffer(i, batch, 9) for i in (pool.x, pool.y, pool.y, pool.x))
        # Few different values, so that windows hold ties.
        inside(pool.x, x)[...] = rng.integers(-3, 4, inside(pool.x, x).shape)
        inside(pool.y, dy)[...] = rng.standard_normal(inside(pool.y, dy).shape)
        want_y, want_dx = reference(pool, inside(pool.x, x), inside(pool.y, dy))
        run(pool_forward(pool, target), target, {"x": x, "y": y, "batch": batch}, threads)
        np.testing.assert_allclose(inside(pool.y, y), want_y, rtol=1e-6)
        values = {"dy": dy, "dx": dx, "batch": batch}
        if pool.kind == "max":
            values |= {"x": x, "y": y}
        run(pool_backward(pool, target), target, values, threads)
        np.testing.assert_allclose(inside(pool.x, dx), want_dx, rtol=1e-5, atol=1e-6)
        for image, data in ((pool.x, dx), (pool.y, y)):
            inside(image, data)[...] = 9
            assert (data == 9).all()


def test_nan_is_the_maximum_and_receives_the_gradient(target: Target, run: Run) -> None:
    pool = make("max", (4, 4), 3, (2, 2), (2, 2))
    x, y, dy, dx = (buffer(i, 1, 1) for i in (pool.x, pool.y, pool.y, pool.x))
    inside(pool.x, x)[0, 1, 0, 2] = np.nan
    inside(pool.x, x)[0, 2, 2, 0] = -np.inf
    run(pool_forward(pool, target), target, {"x": x, "y": y, "batch": 1})
    want_y, want_dx = reference(pool, inside(pool.x, x), inside(pool.y, dy))
    np.testing.assert_array_equal(inside(pool.y, y), want_y)
    run(pool_backward(pool, target), target, {"dy": dy, "dx": dx, "x": x, "y": y, "batch": 1})
    np.testing.assert_array_equal(inside(pool.x, dx), want_dx)


@pytest.mark.parametrize("pool", [case for case in CASES if case.kind == "max"])
def test_nan_and_infinities_in_windows_that_share_taps(pool: Pool, target: Target, run: Run) -> None:
    rng = np.random.default_rng(3)
    x, y, dy, dx = (buffer(i, 2, 1) for i in (pool.x, pool.y, pool.y, pool.x))
    real = inside(pool.x, x)
    real[...] = rng.choice(
        [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], real.shape, p=[0.1, 0.1, 0.3, 0.2, 0.2, 0.1]
    )
    inside(pool.y, dy)[...] = rng.integers(1, 9, inside(pool.y, dy).shape)
    run(pool_forward(pool, target), target, {"x": x, "y": y, "batch": 2})
    want_y, want_dx = reference(pool, real, inside(pool.y, dy))
    np.testing.assert_array_equal(inside(pool.y, y), want_y)
    run(pool_backward(pool, target), target, {"dy": dy, "dx": dx, "x": x, "y": y, "batch": 2}, 3)
    np.testing.assert_array_equal(inside(pool.x, dx), want_dx)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="kind"):
        make("median", (4, 4), 3, (2, 2), (2, 2))
