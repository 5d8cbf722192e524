from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from tests.compile.kernels.targets import tuned

from onward.compile.codegen.target import Target
from onward.compile.kernels import conv_weights
from onward.compile.kernels.layout import Convolution, Image
from onward.compile.kernels.weight_finish import finish_weights
from onward.errors import ShapeError
from onward.ops.conv_grad_weight import ConvGradWeight

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
    """A convolution whose x has just the border it needs, plus `spare` on each side, and dy only that."""
    oh = (h + pads[0] + pads[2] - (kernel[0] - 1) * dilations[0] - 1) // strides[0] + 1
    ow = (w + pads[1] + pads[3] - (kernel[1] - 1) * dilations[1] - 1) // strides[1] + 1
    bare = Convolution(Image(h, w, c), Image(oh, ow, o), kernel, strides, dilations, pads, group)
    border = [n + spare for n in bare.input_halo()]
    return replace(
        bare,
        x=Image(h, w, c, *border, pixel=c + 2 * spare),
        y=Image(oh, ow, o, *[spare] * 4, pixel=o + spare),
    )


def outside(image: Image, batch: int, fill: float, dtype: str) -> Array:
    shape = (batch, image.top + image.height + image.bottom, image.left + image.width + image.right)
    return np.full((*shape, image.pixel), fill, dtype)


def inside(image: Image, data: Array) -> Array:
    rows, columns = image.top + image.height, image.left + image.width
    return data[:, image.top : rows, image.left : columns, : image.channels]


def reference(g: Convolution, x: Array, dy: Array) -> npt.NDArray[np.float64]:
    """dw, tap by tap, in float64."""
    top, left, bottom, right = g.pads
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, bottom + 64), (left, right + 64), (0, 0)))
    dw = np.empty((g.y.channels, g.inputs, *g.kernel))
    for i in range(g.kernel[0]):
        for j in range(g.kernel[1]):
            r, c = i * g.dilations[0], j * g.dilations[1]
            seen = padded[
                :,
                r : r + g.y.height * g.strides[0] : g.strides[0],
                c : c + g.y.width * g.strides[1] : g.strides[1],
            ]
            for k in range(g.group):
                outputs = slice(k * g.outputs, (k + 1) * g.outputs)
                inputs = slice(k * g.inputs, (k + 1) * g.inputs)
                flat = dy[..., outputs].reshape(-1, g.outputs).astype(np.float64)
                dw[outputs, :, i, j] = flat.T @ seen[..., inputs].reshape(-1, g.inputs)
    return dw


CASES = {
    "3x3": geometry(9, 11, 5, 7, (3, 3), pads=(1, 1, 1, 1)),
    "3x3 one vector": geometry(9, 10, 16, 16, (3, 3), pads=(1, 1, 1, 1)),
    "3x3 two vectors": geometry(8, 8, 32, 32, (3, 3), pads=(1, 1, 1, 1)),
    "3x3 wide": geometry(6, 35, 16, 35, (3, 3), pads=(1, 1, 1, 1), spare=1),
    "3x3 small image": geometry(7, 7, 32, 48, (3, 3), pads=(1, 1, 1, 1)),
    "3x3 stride 2": geometry(14, 13, 8, 33, (3, 3), (2, 2), (1, 1, 1, 1)),
    "3x3 stride 2 wide": geometry(9, 8, 70, 90, (3, 3), (2, 2), (1, 1, 1, 1)),
    "7x7 stride 2 stem": geometry(23, 24, 3, 20, (7, 7), (2, 2), (3, 3, 3, 3)),
    "11x11 stride 4": geometry(31, 31, 3, 8, (11, 11), (4, 4), (2, 2, 2, 2)),
    "5x5 of one channel": geometry(12, 12, 1, 6, (5, 5), pads=(2, 2, 2, 2)),
    "5x5": geometry(10, 9, 6, 16, (5, 5)),
    "5x5 of many channels": geometry(6, 7, 40, 70, (5, 5), pads=(2, 2, 2, 2)),
    "1x1": geometry(7, 9, 33, 65, (1, 1)),
    "1x1 wide": geometry(7, 9, 90, 150, (1, 1), spare=1),
    "1x1 stride 2": geometry(8, 8, 16, 17, (1, 1), (2, 2)),
    "1x1 stride 2 wide": geometry(9, 9, 96, 64, (1, 1), (2, 2), spare=1),
    "asymmetric": geometry(8, 9, 4, 6, (2, 4), (1, 2), (0, 1, 1, 2)),
    "asymmetric wide": geometry(8, 9, 80, 100, (2, 4), (1, 2), (0, 1, 1, 2)),
    "dilated": geometry(12, 13, 6, 10, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    "dilated wide": geometry(12, 11, 66, 72, (3, 3), (1, 1), (2, 3, 2, 1), (2, 3)),
    "dilated strided": geometry(15, 16, 6, 10, (3, 2), (2, 3), (2, 1, 0, 1), (3, 2)),
    "groups": geometry(6, 7, 12, 20, (3, 3), (1, 1), (1, 1, 1, 1), group=4),
    "groups strided": geometry(9, 9, 40, 80, (3, 3), (2, 2), (1, 1, 1, 1), group=2, spare=1),
    "groups wide": geometry(8, 6, 120, 96, (3, 3), (1, 1), (1, 1, 1, 1), group=2),
    "1-D": geometry(1, 50, 12, 30, (1, 5), (1, 1), (0, 2, 0, 2)),
    "1-D text": geometry(1, 47, 128, 100, (1, 4)),
    "1-D long": geometry(1, 1500, 9, 20, (1, 3), (1, 2), (0, 1, 0, 1)),
    "column": geometry(40, 1, 20, 10, (3, 1), pads=(1, 0, 1, 0)),
    "kernel as large as the image": geometry(5, 5, 6, 12, (5, 5)),
    "many weights": geometry(5, 6, 72, 160, (3, 3), pads=(1, 1, 1, 1)),
}


_ALWAYS_PACK = {"weights_few": 1 << 30, "weights_few_busy": 1 << 30}


@pytest.fixture(params=CASES, ids=lambda s: s.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Convolution:
    return CASES[request.param]


def data(g: Convolution, batch: int) -> tuple[Array, Array]:
    """x in its border of zeros, dy in one of NaN."""
    rng = np.random.default_rng(7)
    x, dy = outside(g.x, batch, 0.0, g.dtype), outside(g.y, batch, np.nan, g.dtype)
    inside(g.x, x)[...] = rng.standard_normal(inside(g.x, x).shape)
    inside(g.y, dy)[...] = rng.standard_normal(inside(g.y, dy).shape)
    return x, dy


def gradient(g: Convolution, target: Target, run: Run, x: Array, dy: Array, threads: int) -> Array:
    parts = conv_weights.partial_count(g, target, threads)
    panels = np.full(parts * conv_weights.partial_size(g, target), np.nan, np.float32)
    values = {"a": x, "b": dy, "c": panels, "batch": len(x)}
    run(conv_weights.weight_gradient(g, target), target, values, threads)
    dw = np.full((g.y.channels, g.inputs, *g.kernel), np.nan, np.float32)
    run(finish_weights(g, target), target, {"c": panels, "dw": dw, "parts": parts}, threads)
    return dw


def check(g: Convolution, target: Target, run: Run, batch: int, threads: int) -> Array:
    x, dy = data(g, batch)
    dw = gradient(g, target, run, x, dy, threads)
    terms = max(1, batch * g.y.height * g.y.width)
    want = reference(g, inside(g.x, x), inside(g.y, dy))
    np.testing.assert_allclose(dw, want, rtol=1e-5, atol=2e-6 * terms**0.5)
    return dw


def test_weight_gradient(case: Convolution, target: Target, run: Run) -> None:
    for batch, threads in ((3, 2), (1, 1), (5, 3), (0, 2)):
        check(case, target, run, batch, threads)


def test_packed_chunks(case: Convolution, target: Target, run: Run) -> None:
    check(case, tuned(target, **_ALWAYS_PACK), run, 3, 2)


@pytest.mark.parametrize("near", [1 << 8, 1 << 12, 1 << 16])
@pytest.mark.parametrize("own", [0, 1 << 30])
def test_any_blocking(own: int, near: int, target: Target, run: Run) -> None:
    far = {"weights_far": 1 << 12, "weights_far_pixels": 70, "weights_blocks": 1 << 12}
    target = tuned(target, weights_own=own, weights_near=near, **far)
    for name in (
        "3x3 stride 2 wide",
        "1x1 wide",
        "groups wide",
        "dilated strided",
        "7x7 stride 2 stem",
    ):
        dw = check(CASES[name], target, run, 3, 2)
        if own == 0:
            assert np.array_equal(dw, check(CASES[name], target, run, 3, 3))


def test_panels_are_shared_out_or_summed(target: Target) -> None:
    target = tuned(target, weights_own=384 << 10)
    small, large = geometry(8, 8, 16, 16, (3, 3)), geometry(8, 8, 256, 256, (3, 3))
    assert conv_weights.partial_count(small, target, 3) == 3
    assert conv_weights.partial_count(large, target, 3) == 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["3x3", "3x3 one vector", "3x3 stride 2", "1x1", "groups", "5x5"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_reach_what_they_reach_in_numpy(
    value: float, name: str, packed: bool, target: Target, run: Run
) -> None:
    if packed:
        target = tuned(target, **_ALWAYS_PACK)
    g = CASES[name]
    operator = ConvGradWeight(
        group=g.group, kernel_shape=g.kernel, pads=g.pads, strides=g.strides, dilations=g.dilations
    )
    for operand, place in ((0, (0, 0, 0, 1)), (0, (1, 3, 4, 0)), (1, (0, 0, 1, 2)), (1, (1, 2, 2, 0))):
        x, dy = data(g, 2)
        (inside(g.x, x), inside(g.y, dy))[operand][place] = value
        dw = gradient(g, target, run, x, dy, 2)
        nchw = [np.ascontiguousarray(np.moveaxis(a, 3, 1)) for a in (inside(g.y, dy), inside(g.x, x))]
        with np.errstate(invalid="ignore"):
            want = operator.kernel(*nchw)
        assert not np.isfinite(want).all()
        np.testing.assert_array_equal(np.isnan(dw), np.isnan(want))
        np.testing.assert_array_equal(np.isinf(dw), np.isinf(want))


def test_a_border_that_is_too_small_is_refused(target: Target) -> None:
    g = CASES["3x3"]
    with pytest.raises(ShapeError, match="x has a border"):
        conv_weights.weight_gradient(replace(g, x=Image(9, 11, 5)), target)
