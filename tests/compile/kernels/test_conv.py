from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from tests.compile.kernels.layouts import hwio
from tests.compile.kernels.targets import tuned

from onward.compile.codegen.target import Target
from onward.compile.kernels import conv, conv_pack
from onward.compile.kernels.expression import constant, operand
from onward.compile.kernels.layout import Convolution, Image, oihw
from onward.compile.kernels.tile import Epilogue
from onward.errors import ShapeError

Array = npt.NDArray[np.float32]
Run = Callable[..., None]


def geometry(
    h: int,
    w: int,
    c: int,
    o: int,
    kernel: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    group: int = 1,
    spare: int = 0,
) -> Convolution:
    """A convolution whose buffers have just the borders they need, plus `spare` on each side."""
    oh = (h + pads[0] + pads[2] - (kernel[0] - 1) * dilations[0] - 1) // strides[0] + 1
    ow = (w + pads[1] + pads[3] - (kernel[1] - 1) * dilations[1] - 1) // strides[1] + 1
    bare = Convolution(Image(h, w, c), Image(oh, ow, o), kernel, strides, dilations, pads, group)
    xh = [n + spare for n in bare.input_halo()]
    yh = [n + spare for n in bare.gradient_halo()]
    return replace(
        bare,
        x=Image(h, w, c, *xh, pixel=c + 2 * spare),
        y=Image(oh, ow, o, *yh, pixel=o + spare),
    )


def buffer(image: Image, batch: int, fill: float = 0.0, dtype: str = "float32") -> Array:
    shape = (batch, image.top + image.height + image.bottom, image.left + image.width + image.right)
    return np.full((*shape, image.pixel), fill, dtype)


def inside(image: Image, data: Array) -> Array:
    rows, columns = image.top + image.height, image.left + image.width
    return data[:, image.top : rows, image.left : columns, : image.channels]


def untouched(image: Image, data: Array, fill: float) -> bool:
    copy = data.copy()
    inside(image, copy)[...] = fill
    return bool(np.all(copy == fill))


def patches(g: Convolution, x: Array) -> npt.NDArray[np.float64]:
    """[n, oh, ow, kh, kw, c] of padded float64 input."""
    t, left, b, r = g.pads
    xp = np.pad(x.astype(np.float64), ((0, 0), (t, b + 64), (left, r + 64), (0, 0)))
    out = np.empty((len(x), g.y.height, g.y.width, *g.kernel, x.shape[3]))
    for i in range(g.kernel[0]):
        for j in range(g.kernel[1]):
            r0, c0 = i * g.dilations[0], j * g.dilations[1]
            rows = slice(r0, r0 + g.y.height * g.strides[0], g.strides[0])
            columns = slice(c0, c0 + g.y.width * g.strides[1], g.strides[1])
            out[:, :, :, i, j] = xp[:, rows, columns]
    return out


def forward_reference(g: Convolution, x: Array, w: Array) -> npt.NDArray[np.float64]:
    p = patches(g, x)
    c, o = g.inputs, g.outputs
    return np.concatenate(
        [
            np.einsum("nhwijc,ocij->nhwo", p[..., k * c : k * c + c], w[k * o : k * o + o].astype(np.float64))
            for k in range(g.group)
        ],
        axis=3,
    )


def backward_reference(g: Convolution, dy: Array, w: Array) -> npt.NDArray[np.float64]:
    t, left, b, r = g.pads
    dx = np.zeros((len(dy), g.x.height + t + b + 64, g.x.width + left + r + 64, g.x.channels))
    c, o = g.inputs, g.outputs
    for k in range(g.group):
        for i in range(g.kernel[0]):
            for j in range(g.kernel[1]):
                r0, c0 = i * g.dilations[0], j * g.dilations[1]
                rows = slice(r0, r0 + g.y.height * g.strides[0], g.strides[0])
                columns = slice(c0, c0 + g.y.width * g.strides[1], g.strides[1])
                part = dy[..., k * o : k * o + o].astype(np.float64) @ w[k * o : k * o + o, :, i, j]
                dx[:, rows, columns, k * c : k * c + c] += part
    return dx[:, t : t + g.x.height, left : left + g.x.width]


CASES = {
    "3x3": geometry(9, 11, 5, 7, (3, 3), pads=(1, 1, 1, 1)),
    "3x3 wide": geometry(6, 35, 16, 35, (3, 3), pads=(1, 1, 1, 1), spare=1),
    "3x3 small image": geometry(7, 7, 32, 48, (3, 3), pads=(1, 1, 1, 1)),
    "3x3 stride 2": geometry(14, 13, 8, 33, (3, 3), (2, 2), (1, 1, 1, 1)),
    "7x7 stride 2 stem": geometry(23, 24, 3, 20, (7, 7), (2, 2), (3, 3, 3, 3)),
    "11x11 stride 4": geometry(31, 31, 3, 8, (11, 11), (4, 4), (2, 2, 2, 2)),
    "1x1": geometry(7, 9, 33, 65, (1, 1)),
    "1x1 stride 2": geometry(8, 8, 16, 17, (1, 1), (2, 2)),
    "1x1 stride 2 in a border": geometry(9, 9, 16, 17, (1, 1), (2, 2), spare=1),
    "asymmetric": geometry(8, 9, 4, 6, (2, 4), (1, 2), (0, 1, 1, 2)),
    "dilated": geometry(12, 13, 6, 10, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    "dilated strided": geometry(15, 16, 6, 10, (3, 2), (2, 3), (2, 1, 0, 1), (3, 2)),
    "groups": geometry(6, 7, 12, 20, (3, 3), (1, 1), (1, 1, 1, 1), group=4),
    "groups strided": geometry(9, 9, 40, 80, (3, 3), (2, 2), (1, 1, 1, 1), group=2, spare=1),
    "depthwise": geometry(6, 6, 8, 16, (3, 3), (1, 1), (1, 1, 1, 1), group=8),
    "1-D": geometry(1, 50, 12, 30, (1, 5), (1, 1), (0, 2, 0, 2)),
    "1-D text": geometry(1, 47, 24, 10, (1, 4)),
    "kernel as large as the image": geometry(5, 5, 6, 12, (5, 5)),
    "many weights": geometry(5, 6, 72, 160, (3, 3), pads=(1, 1, 1, 1)),
}


@pytest.fixture(params=CASES, ids=lambda s: s.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Convolution:
    return CASES[request.param]


def data(g: Convolution, batch: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(7)
    x, dy = buffer(g.x, batch, 0, g.dtype), buffer(g.y, batch, 0, g.dtype)
    inside(g.x, x)[...] = rng.standard_normal(inside(g.x, x).shape)
    inside(g.y, dy)[...] = rng.standard_normal(inside(g.y, dy).shape)
    w = rng.standard_normal((g.y.channels, g.inputs, *g.kernel), np.dtype(g.dtype))
    return x, dy, w


def close(got: Array, want: npt.NDArray[np.float64], terms: int) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6 * terms**0.5)


def test_forward(case: Convolution, target: Target, run: Run) -> None:
    g = case
    kernel = conv.forward(g, target)
    packed = np.full(conv_pack.packed_forward_size(g, target), np.nan, np.float32)
    for batch in (3, 1):
        x, _, w = data(g, batch)
        run(conv_pack.forward_pack(g, target, oihw(g.inputs, *g.kernel)), target, {"w": w, "packed": packed})
        y = buffer(g.y, batch, 9.0)
        run(kernel, target, {"a": x, "b": packed, "c": y, "batch": batch})
        close(inside(g.y, y), forward_reference(g, inside(g.x, x), w), g.inputs * w[0, 0].size)
        assert untouched(g.y, y, 9.0)
        again = buffer(g.y, batch, 9.0)
        run(kernel, target, {"a": x, "b": packed, "c": again, "batch": batch}, threads=3)
        assert np.array_equal(y, again)
    run(kernel, target, {"a": x, "b": packed, "c": y, "batch": 0})
    assert np.array_equal(y, again)


def test_backward_data(case: Convolution, target: Target, run: Run) -> None:
    g = case
    kernel = conv.backward_data(g, target)
    packed = np.full(conv_pack.packed_backward_size(g, target), np.nan, np.float32)
    for batch in (3, 1):
        _, dy, w = data(g, batch)
        run(
            conv_pack.backward_data_pack(g, target, oihw(g.inputs, *g.kernel)),
            target,
            {"w": w, "packed": packed},
        )
        dx = buffer(g.x, batch, 9.0)
        run(kernel, target, {"a": dy, "b": packed, "c": dx, "batch": batch})
        close(inside(g.x, dx), backward_reference(g, inside(g.y, dy), w), g.outputs * w[0, 0].size)
        assert untouched(g.x, dx, 9.0)


@pytest.mark.parametrize(
    "name", ["1x1", "3x3 wide", "3x3 stride 2", "groups", "groups strided", "1-D", "dilated"]
)
def test_weights_that_do_not_stay_in_the_cache(name: str, target: Target, run: Run) -> None:
    target = tuned(target, conv_weights=0)
    test_forward(CASES[name], target, run)
    test_backward_data(CASES[name], target, run)


def test_weights_in_another_order_pack_the_same(target: Target, run: Run) -> None:
    g = CASES["groups strided"]
    _, _, w = data(g, 1)
    other = np.ascontiguousarray(w.transpose(2, 3, 1, 0))
    for pack, size in (
        (conv_pack.forward_pack, conv_pack.packed_forward_size(g, target)),
        (conv_pack.backward_data_pack, conv_pack.packed_backward_size(g, target)),
    ):
        packed = [np.full(size, np.nan, np.float32) for _ in range(2)]
        run(pack(g, target, oihw(g.inputs, *g.kernel)), target, {"w": w, "packed": packed[0]})
        order = hwio(g.inputs, g.y.channels, g.kernel[1])
        run(pack(g, target, order), target, {"w": other, "packed": packed[1]}, threads=3)
        assert np.array_equal(*packed)


@pytest.mark.parametrize("name", ["3x3", "3x3 wide", "many weights"])
def test_epilogue_of_bias_residual_and_relu(name: str, target: Target, run: Run) -> None:
    g = CASES[name]
    x, residual, w = data(g, 2)
    bias = np.random.default_rng(1).standard_normal(g.y.channels, np.float32)
    total = operand(0) * operand(1) + operand(1) + operand(2)
    relu = Epilogue(total.apply("relu") * constant(2.0), ("channel", "full"))
    packed = np.zeros(conv_pack.packed_forward_size(g, target), np.float32)
    run(conv_pack.forward_pack(g, target, oihw(g.inputs, *g.kernel)), target, {"w": w, "packed": packed})
    y = residual.copy()  # in place: the residual is the output's own buffer
    values = {"a": x, "b": packed, "c": y, "e0": bias, "e1": y, "batch": 2}
    run(conv.forward(g, target, relu), target, values)
    plain = forward_reference(g, inside(g.x, x), w)
    want = 2 * np.maximum(plain * bias + bias + inside(g.y, residual), 0)
    close(inside(g.y, y), want, 4 * g.inputs * w[0, 0].size)


def test_nan_and_inf_travel(target: Target, run: Run) -> None:
    g = CASES["3x3"]
    x, _, w = data(g, 1)
    inside(g.x, x)[0, 4, 5, 2] = np.nan
    inside(g.x, x)[0, 8, 10, 0] = np.inf
    packed = np.zeros(conv_pack.packed_forward_size(g, target), np.float32)
    run(conv_pack.forward_pack(g, target, oihw(g.inputs, *g.kernel)), target, {"w": w, "packed": packed})
    y = buffer(g.y, 1)
    run(
        conv.forward(g, target, Epilogue(operand(0).apply("relu"))),
        target,
        {"a": x, "b": packed, "c": y, "batch": 1},
    )
    got = inside(g.y, y)
    assert np.isnan(got[0, 3:6, 4:7]).all()
    assert np.isinf(got[0, 8, 10]).any()
    assert np.isfinite(got[0, 0:3]).all()


def test_a_border_that_is_too_small_is_refused(target: Target) -> None:
    g = CASES["3x3"]
    with pytest.raises(ShapeError, match="x has a border"):
        conv.forward(replace(g, x=Image(9, 11, 5)), target)
    with pytest.raises(ShapeError, match="dy has a border"):
        conv.backward_data(replace(g, y=Image(9, 11, 7)), target)
    with pytest.raises(ShapeError, match="gives"):
        replace(g, y=Image(8, 11, 7))
