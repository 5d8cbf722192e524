from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from tests.compile.kernels.layouts import hwio

from onward.compile.codegen.target import Target
from onward.compile.kernels import depthwise
from onward.compile.kernels.expression import operand
from onward.compile.kernels.layout import Convolution, Image, oihw
from onward.compile.kernels.tile import Epilogue
from onward.errors import ShapeError

Array = npt.NDArray[np.float32]
Run = Callable[..., None]


def make(
    h: int,
    w: int,
    c: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int] = (1, 1),
) -> Convolution:
    size = (h, w)
    out = [
        (size[i] + pads[i] + pads[i + 2] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
        for i in range(2)
    ]
    bare = Convolution(Image(h, w, c), Image(out[0], out[1], c), kernel, strides, dilations, pads, c)
    return replace(
        bare,
        x=Image(h, w, c, *bare.input_halo(), pixel=c + 1),
        y=Image(out[0], out[1], c, *bare.gradient_halo()),
    )


CASES = [
    make(7, 9, 21, (3, 3), (1, 1), (1, 1, 1, 1)),
    make(11, 14, 32, (3, 3), (2, 2), (1, 1, 1, 1)),
    make(8, 8, 5, (5, 5), (2, 1), (2, 2, 2, 2)),
    make(9, 10, 17, (3, 2), (1, 3), (2, 0, 1, 1), (2, 1)),
    make(1, 30, 19, (1, 7), (1, 1), (0, 3, 0, 3)),
    make(15, 15, 8, (7, 7), (1, 1), (3, 3, 3, 3)),
]


def buffer(image: Image, batch: int, seed: int | None, dtype: str = "float32") -> tuple[Array, Array]:
    """A buffer and the part of it inside its border; 9 everywhere without a seed."""
    shape = (batch, image.top + image.height + image.bottom, image.left + image.width + image.right)
    data = np.full((*shape, image.pixel), 9 if seed is None else 0, dtype)
    rows, columns = image.top + image.height, image.left + image.width
    view = data[:, image.top : rows, image.left : columns, : image.channels]
    if seed is not None:
        view[...] = np.random.default_rng(seed).standard_normal(view.shape)
    return data, view


def reference(g: Convolution, x: Array, dy: Array, w: Array) -> list[npt.NDArray[np.float64]]:
    """y, dx, dw with w[c, 0, kh, kw]."""
    t, left, b, r = g.pads
    xp = np.pad(x.astype(np.float64), ((0, 0), (t, b + 16), (left, r + 16), (0, 0)))
    y, dxp, dw = np.zeros(dy.shape), np.zeros_like(xp), np.zeros(w.shape)
    for i in range(g.kernel[0]):
        for j in range(g.kernel[1]):
            r0, c0 = i * g.dilations[0], j * g.dilations[1]
            rows = slice(r0, r0 + g.y.height * g.strides[0], g.strides[0])
            columns = slice(c0, c0 + g.y.width * g.strides[1], g.strides[1])
            y += xp[:, rows, columns] * w[:, 0, i, j]
            dxp[:, rows, columns] += dy * w[:, 0, i, j]
            dw[:, 0, i, j] = (xp[:, rows, columns] * dy).sum((0, 1, 2))
    return [y, dxp[:, t : t + g.x.height, left : left + g.x.width], dw]


@pytest.mark.parametrize("g", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("threads", [1, 3])
def test_three_directions(g: Convolution, threads: int, target: Target, run: Run) -> None:
    c = g.x.channels
    for batch in (2, 1):
        x, x_in = buffer(g.x, batch, 1)
        dy, dy_in = buffer(g.y, batch, 2)
        w = np.random.default_rng(3).standard_normal((c, 1, *g.kernel), np.float32)
        bias = np.random.default_rng(4).standard_normal(c, np.float32)
        order = oihw(1, *g.kernel)
        packed = np.full((*g.kernel, c), np.nan, np.float32)
        run(depthwise.depthwise_pack(g, target, order), target, {"x": w, "y": packed, "batch": 1}, threads)
        want = reference(g, x_in, dy_in, w)
        tolerance = {"rtol": 1e-5, "atol": 1e-5}

        y, y_in = buffer(g.y, batch, None)
        biased = Epilogue((operand(0) + operand(1)).apply("relu"), ("channel",))
        values = {"a": x, "b": packed, "c": y, "e0": bias, "batch": batch}
        run(depthwise.depthwise_forward(g, target, biased), target, values, threads)
        np.testing.assert_allclose(y_in, np.maximum(want[0] + bias, 0), **tolerance)

        dx, dx_in = buffer(g.x, batch, 5)
        add = Epilogue(operand(0) + operand(1), ("full",))
        expected = want[1] + dx_in
        values = {"a": dy, "b": packed, "c": dx, "e0": dx, "batch": batch}
        run(depthwise.depthwise_backward_data(g, target, add), target, values, threads)
        np.testing.assert_allclose(dx_in, expected, **tolerance)
        dx_in[...] = 0
        assert not dx.any()

        partial = np.full(depthwise.depthwise_partial_size(g, target, threads), np.nan, np.float32)
        values = {"a": x, "b": dy, "c": partial, "batch": batch}
        run(depthwise.depthwise_weight_gradient(g, target), target, values, threads)
        again = partial.copy()
        dw = np.full_like(w, np.nan)
        run(
            depthwise.depthwise_finish_weights(g, target, order),
            target,
            {"c": partial, "dw": dw, "parts": threads},
            2,
        )
        np.testing.assert_allclose(dw, want[2], rtol=1e-5, atol=1e-4)
        other = np.ones((*g.kernel, 1, c), np.float32)
        finish = depthwise.depthwise_finish_weights(g, target, hwio(1, c, g.kernel[1]), accumulate=True)
        run(finish, target, {"c": again, "dw": other, "parts": threads}, 2)
        np.testing.assert_allclose(other, 1 + dw.transpose(2, 3, 1, 0), rtol=1e-6)


def test_an_ordinary_convolution_is_refused(target: Target) -> None:
    g = Convolution(Image(3, 3, 4), Image(3, 3, 4), (1, 1), group=2)
    with pytest.raises(ShapeError, match="not depthwise"):
        depthwise.depthwise_forward(g, target)
