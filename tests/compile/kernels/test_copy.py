from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from tests.compile.kernels.layouts import image_strides, nchw_strides

from onward.compile.codegen.target import Target
from onward.compile.kernels.copy import StridedCopy, clear, copy
from onward.compile.kernels.embedding import gather_rows, scatter_rows
from onward.compile.kernels.layout import Image
from onward.errors import ShapeError

Run = Callable[..., None]


@pytest.mark.parametrize("channels", [1, 3, 16, 37])
@pytest.mark.parametrize("threads", [1, 3])
def test_to_channels_last_with_a_border_and_back(
    channels: int, threads: int, target: Target, run: Run
) -> None:
    image = Image(5, 21, channels, 1, 2, 3, 1, pixel=channels + 2)
    shape = (channels, 5, 21)
    for batch in (3, 1, 0):
        x = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
        buffer = np.full((batch, 9, 24, channels + 2), 7, np.float32)
        inner = buffer[:, 1:6, 2:23, :channels]
        forth = StridedCopy(shape, nchw_strides(image), image_strides(image))
        run(
            copy(forth, target),
            target,
            {"x": x, "y": buffer.ravel()[image.origin :], "batch": batch},
            threads,
        )
        np.testing.assert_array_equal(inner, x.transpose(0, 2, 3, 1))
        back = np.zeros_like(x)
        spec = StridedCopy(shape, image_strides(image), nchw_strides(image))
        run(
            copy(spec, target),
            target,
            {"x": buffer.ravel()[image.origin :], "y": back, "batch": batch},
            threads,
        )
        np.testing.assert_array_equal(back, x)
        inner[...] = 7
        assert (buffer == 7).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_every_transpose(dtype: type, target: Target, run: Run) -> None:
    shape = (3, 18, 7)
    x = np.random.default_rng(0).integers(0, 200, (4, *shape)).astype(dtype)
    for order in itertools.permutations(range(3)):
        want = np.ascontiguousarray(x.transpose(0, *(i + 1 for i in order)))
        view = np.transpose(want, (0, *(i + 1 for i in np.argsort(order))))
        y = np.zeros_like(want)
        spec = StridedCopy(
            shape,
            tuple(s // x.itemsize for s in x.strides),
            tuple(s // x.itemsize for s in view.strides),
            x.itemsize,
        )
        run(copy(spec, target), target, {"x": x, "y": y, "batch": 4})
        np.testing.assert_array_equal(y, want)


def test_slices_and_joins_are_copies(target: Target, run: Run) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 6, 5, 8), np.float32)
    y = np.zeros((6, 5, 14), np.float32)
    for part, at in ((a, 0), (b[..., 1:7], 8)):
        width = part.shape[2]
        run(
            copy(StridedCopy((5, width), (40, 8, 1), (70, 14, 1)), target),
            target,
            {"x": part, "y": y.ravel()[at:], "batch": 6},
        )
    np.testing.assert_array_equal(y, np.concatenate([a, b[..., 1:7]], 2))
    every_other = np.zeros((6, 5, 4), np.float32)
    run(
        copy(StridedCopy((5, 4), (40, 8, 2), (20, 4, 1)), target),
        target,
        {"x": a, "y": every_other, "batch": 6},
    )
    np.testing.assert_array_equal(every_other, a[..., ::2])
    reverse = np.zeros((6, 5, 8), np.float32)
    values = {"x": a.ravel()[7:], "y": reverse, "batch": 6}
    run(copy(StridedCopy((5, 8), (40, 8, -1), (40, 8, 1)), target), target, values)
    np.testing.assert_array_equal(reverse, a[..., ::-1])


def test_clear(target: Target, run: Run) -> None:
    for n in (0, 1, 100, 1000):
        y = np.ones(n + 1, np.float32)
        run(clear(target), target, {"y": y, "batch": n}, 3)
        assert not y[:-1].any()
        assert y[-1] == 1


@pytest.mark.parametrize("columns", [1, 13, 48])
def test_embedding_and_its_gradient(columns: int, target: Target, run: Run) -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((9, columns), np.float32)
    index = rng.integers(-9, 9, 40)
    y = np.zeros((40, columns), np.float32)
    run(gather_rows(9, columns, target), target, {"table": table, "index": index, "y": y, "batch": 40}, 3)
    np.testing.assert_array_equal(y, table[index])
    for skip in (None, 3, -1):
        gradients = []
        for threads in (1, 3):
            d = np.ones_like(table)
            values = {"dy": y, "index": index, "dtable": d, "batch": 40}
            run(scatter_rows(9, columns, target, skip=skip), target, values, threads)
            gradients.append(d)
        want = np.ones((9, columns))
        np.add.at(want, index, y)
        if skip is not None:
            want[skip] = 1
        np.testing.assert_allclose(gradients[0], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(*gradients)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="strides"):
        StridedCopy((3,), (1,), (3, 1))
    with pytest.raises(ShapeError, match="bytes"):
        StridedCopy((3,), (3, 1), (3, 1), 3)
