from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.compile.kernels.targets import tuned
from tests.compile.kernels.test_conv import (
    Array,
    Run,
    backward_reference,
    buffer,
    close,
    data,
    forward_reference,
    geometry,
    inside,
    untouched,
)

from onward.compile.codegen.target import Target, host_target
from onward.compile.codegen.tuning import Caches, tuning_for
from onward.compile.kernels import conv_narrow
from onward.compile.kernels.expression import operand
from onward.compile.kernels.layout import Convolution, Image, oihw
from onward.compile.kernels.narrow_blocking import narrow_blocking
from onward.compile.kernels.tile import IDENTITY, Epilogue
from onward.errors import ShapeError


def bare(g: Convolution) -> Convolution:
    """The same with channels that follow each other from pixel to pixel."""
    return replace(g, x=replace(g.x, pixel=g.x.channels), y=replace(g.y, pixel=g.y.channels))


CASES = {
    "lenet 1": geometry(28, 28, 1, 6, (5, 5), pads=(2, 2, 2, 2)),
    "lenet 2": geometry(14, 14, 6, 16, (5, 5)),
    "3x3": geometry(9, 11, 5, 7, (3, 3), pads=(1, 1, 1, 1)),
    "as many as lanes": geometry(12, 33, 16, 16, (3, 3), pads=(1, 1, 1, 1)),
    "one channel": geometry(10, 13, 1, 1, (3, 3), pads=(1, 1, 1, 1)),
    "three channels": geometry(8, 17, 3, 3, (3, 5), pads=(1, 2, 1, 2)),
    "strided": geometry(15, 16, 4, 4, (3, 3), (2, 2), (1, 1, 1, 1)),
    "strided rows": geometry(15, 16, 4, 4, (3, 3), (2, 1), (1, 1, 1, 1)),
    "dilated": geometry(14, 15, 4, 2, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    "dilated unevenly": geometry(14, 15, 2, 3, (2, 3), (1, 1), (3, 4, 0, 2), (3, 2)),
    "asymmetric": geometry(8, 9, 4, 3, (2, 4), (1, 1), (0, 1, 1, 2)),
    "larger pads than reach": geometry(6, 7, 2, 2, (2, 2), (1, 1), (3, 3, 2, 3)),
    "1x1": geometry(12, 12, 3, 2, (1, 1)),
    "1-D": geometry(1, 50, 4, 3, (1, 5), (1, 1), (0, 2, 0, 2)),
    "narrow": geometry(9, 1, 3, 4, (3, 1), (1, 1), (1, 0, 1, 0)),
    "spare border": bare(geometry(9, 11, 5, 4, (3, 3), pads=(1, 1, 1, 1), spare=2)),
    "random 1": geometry(7, 19, 2, 5, (4, 3), (1, 1), (2, 0, 1, 2)),
    "random 2": geometry(16, 6, 7, 4, (5, 2), (1, 1), (2, 1, 4, 0)),
}


@pytest.fixture(params=CASES, ids=lambda s: s.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Convolution:
    return CASES[request.param]


@pytest.fixture
def target(target: Target) -> Target:
    """Forms that would be slow must be right as well."""
    return tuned(target, narrow_sums=1, narrow_pixels=4)


def forward(
    g: Convolution, x: Array, w: Array, target: Target, run: Run, threads: int, epilogue: Epilogue = IDENTITY
) -> Array:
    packed = np.full(conv_narrow.narrow_size(g, target, backward=False), np.nan, np.float32)
    pack = conv_narrow.narrow_forward_pack(g, target, oihw(g.inputs, *g.kernel))
    run(pack, target, {"w": w, "packed": packed}, threads)
    y = buffer(g.y, len(x), 9.0)
    kernel = conv_narrow.narrow_forward(g, target, epilogue)
    run(kernel, target, {"a": x, "b": packed, "c": y, "batch": len(x)}, threads)
    assert untouched(g.y, y, 9.0)
    return inside(g.y, y)


def backward(g: Convolution, dy: Array, w: Array, target: Target, run: Run, threads: int) -> Array:
    packed = np.full(conv_narrow.narrow_size(g, target, backward=True), np.nan, np.float32)
    pack = conv_narrow.narrow_backward_pack(g, target, oihw(g.inputs, *g.kernel))
    run(pack, target, {"w": w, "packed": packed}, threads)
    dx = buffer(g.x, len(dy), 9.0)
    kernel = conv_narrow.narrow_backward_data(g, target)
    run(kernel, target, {"a": dy, "b": packed, "c": dx, "batch": len(dy)}, threads)
    assert untouched(g.x, dx, 9.0)
    return inside(g.x, dx)


def exists(g: Convolution, target: Target, *, backward: bool) -> bool:
    return narrow_blocking(g, target, backward) is not None


def test_forward(case: Convolution, target: Target, run: Run) -> None:
    g = case
    if not exists(g, target, backward=False):
        assert g.y.channels > target.lanes
        return
    for batch in (3, 1, 0):
        x, _, w = data(g, batch)
        y = forward(g, x, w, target, run, 1)
        close(y, forward_reference(g, inside(g.x, x), w), g.inputs * w[0, 0].size)
        assert np.array_equal(y, forward(g, x, w, target, run, 3))


def test_backward_data(case: Convolution, target: Target, run: Run) -> None:
    g = case
    if not exists(g, target, backward=True):
        assert g.x.channels > target.lanes or g.strides != (1, 1)
        return
    for batch in (3, 1, 0):
        _, dy, w = data(g, batch)
        dx = backward(g, dy, w, target, run, 1)
        close(dx, backward_reference(g, inside(g.y, dy), w), g.outputs * w[0, 0].size)
        assert np.array_equal(dx, backward(g, dy, w, target, run, 3))


def test_an_infinity_reaches_its_own_pixels_only(case: Convolution, target: Target, run: Run) -> None:
    g = case
    x, dy, w = data(g, 2)
    for image, array in ((g.x, x), (g.y, dy)):
        real = inside(image, array)
        real[0, image.height // 2, image.width // 3, 0] = np.inf
        real[1, 0, image.width - 1, image.channels - 1] = np.nan
    with np.errstate(invalid="ignore"):
        y, dx = forward_reference(g, inside(g.x, x), w), backward_reference(g, inside(g.y, dy), w)
    if exists(g, target, backward=False):
        np.testing.assert_array_equal(np.isfinite(forward(g, x, w, target, run, 2)), np.isfinite(y))
    if exists(g, target, backward=True):
        np.testing.assert_array_equal(np.isfinite(backward(g, dy, w, target, run, 2)), np.isfinite(dx))


@pytest.mark.parametrize("name", ["dilated", "strided", "three channels", "one channel"])
def test_epilogue_of_bias_residual_and_relu(name: str, target: Target, run: Run) -> None:
    g = CASES[name]
    x, residual, w = data(g, 2)
    bias = np.random.default_rng(1).standard_normal(g.y.channels, np.float32)
    epilogue = Epilogue((operand(0) * operand(1) + operand(2)).apply("relu"), ("channel", "full"))
    packed = np.full(conv_narrow.narrow_size(g, target, backward=False), np.nan, np.float32)
    pack = conv_narrow.narrow_forward_pack(g, target, oihw(g.inputs, *g.kernel))
    run(pack, target, {"w": w, "packed": packed})
    y = residual.copy()  # in place: the residual is the output's own buffer
    values = {"a": x, "b": packed, "c": y, "e0": bias, "e1": y, "batch": 2}
    run(conv_narrow.narrow_forward(g, target, epilogue), target, values)
    want = np.maximum(forward_reference(g, inside(g.x, x), w) * bias + inside(g.y, residual), 0)
    close(inside(g.y, y), want, 4 * g.inputs * w[0, 0].size)


def test_it_is_taken_where_it_multiplies_less_and_refused_where_it_does_not_exist() -> None:
    target = replace(host_target(4), tuning=tuning_for(Caches()))
    few = geometry(16, 16, 2, 2, (3, 3), pads=(1, 1, 1, 1))
    assert conv_narrow.narrow_suits(few, target, backward=False)
    assert conv_narrow.narrow_suits(few, target, backward=True)
    for g in (
        geometry(16, 16, 32, 32, (3, 3), pads=(1, 1, 1, 1)),
        geometry(16, 16, 4, 4, (3, 3), pads=(1, 1, 1, 1), group=2),
        geometry(16, 16, 2, 2, (3, 3), pads=(1, 1, 1, 1), spare=1),
    ):
        assert not conv_narrow.narrow_suits(g, target, backward=False)
        with pytest.raises(ShapeError, match="no form"):
            conv_narrow.narrow_forward(g, target)
    with pytest.raises(ShapeError, match="x has a border"):
        conv_narrow.narrow_forward(replace(few, x=Image(16, 16, 2)), target)
    assert not conv_narrow.narrow_suits(geometry(16, 16, 2, 2, (3, 3), (2, 2)), target, backward=True)
