from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from tests.compile.kernels.layouts import hwio
from tests.compile.kernels.targets import tuned

from onward.compile.codegen.jit import Jit
from onward.compile.codegen.target import Target
from onward.compile.kernels import winograd
from onward.compile.kernels.expression import operand
from onward.compile.kernels.layout import Convolution, Image, Weights, oihw
from onward.compile.kernels.tile import Epilogue
from onward.errors import ShapeError

Array = npt.NDArray[np.float32]
Run = Callable[..., None]


def make(h: int, w: int, c: int, o: int, pads: tuple[int, int, int, int]) -> Convolution:
    y = Image(h + pads[0] + pads[2] - 2, w + pads[1] + pads[3] - 2, o)
    return bordered(Convolution(Image(h, w, c, pixel=c + 1), y, (3, 3), pads=pads), 2)


def bordered(g: Convolution, size: int) -> Convolution:
    """The convolution with the borders that squares of a size need."""
    x_halo, y_halo = winograd.winograd_input_halo(g, size), winograd.winograd_gradient_halo(g, size)
    return replace(g, x=replace(g.x, **_sides(x_halo)), y=replace(g.y, **_sides(y_halo)))


def _sides(halo: tuple[int, int, int, int]) -> dict[str, int]:
    return dict(zip(("top", "left", "bottom", "right"), halo, strict=True))


CASES = [
    make(8, 8, 16, 32, (1, 1, 1, 1)),
    make(7, 9, 5, 35, (1, 1, 1, 1)),
    make(4, 3, 70, 12, (1, 1, 1, 1)),
    make(13, 40, 19, 20, (0, 0, 0, 0)),
    make(9, 6, 8, 16, (2, 0, 1, 2)),
]


def buffer(image: Image, batch: int, seed: int | None, dtype: str = "float32") -> tuple[Array, Array]:
    shape = (batch, image.top + image.height + image.bottom, image.left + image.width + image.right)
    data = np.full((*shape, image.pixel), 9 if seed is None else 0, dtype)
    view = data[
        :, image.top : image.top + image.height, image.left : image.left + image.width, : image.channels
    ]
    if seed is not None:
        view[...] = np.random.default_rng(seed).standard_normal(view.shape)
    return data, view


def weight_reference(g: Convolution, x: Array, dy: Array) -> npt.NDArray[np.float64]:
    """dw [O, C, 3, 3] in float64, products of padding and infinities included."""
    t, left, b, r = g.pads
    xp = np.pad(x.astype(np.float64), ((0, 0), (t, b), (left, r), (0, 0)))
    dw = np.zeros((g.y.channels, g.x.channels, 3, 3))
    with np.errstate(invalid="ignore"):
        for i in range(3):
            for j in range(3):
                taken = xp[:, i : i + g.y.height, j : j + g.y.width]
                dw[:, :, i, j] = np.einsum("nhwo,nhwc->oc", dy.astype(np.float64), taken)
    return dw


def reference(g: Convolution, x: Array, dy: Array, w: Array) -> tuple[npt.NDArray[np.float64], ...]:
    """y and dx in float64, products with padding included."""
    t, left, _, _ = g.pads
    turned = w.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    return correlation(x, w, t, left, g.y), correlation(dy, turned, 2 - t, 2 - left, g.x)


def correlation(x: Array, w: Array, top: int, left: int, sink: Image) -> npt.NDArray[np.float64]:
    xp = np.pad(x.astype(np.float64), ((0, 0), (top, 4), (left, 4), (0, 0)))
    y = np.zeros((len(x), sink.height, sink.width, sink.channels))
    with np.errstate(invalid="ignore"):
        for i in range(3):
            for j in range(3):
                taken = xp[:, i : i + sink.height, j : j + sink.width]
                y += np.einsum("nhwc,oc->nhwo", taken, w[:, :, i, j].astype(np.float64))
    return y


@pytest.mark.parametrize(("size", "squares"), [(2, 56), (2, 6), (4, 56), (4, 6)])
@pytest.mark.parametrize("g", CASES, ids=range(len(CASES)))
def test_forward_and_backward_data(g: Convolution, size: int, squares: int, target: Target, run: Run) -> None:
    target = tuned(target, winograd_squares=squares)
    g = bordered(g, size)
    error = {2: 1e-5, 4: 4e-5}[size]
    epilogue = Epilogue((operand(0) + operand(1)).apply("relu") + operand(2), ("channel", "full"))
    forward = winograd.winograd_forward(g, target, epilogue, size=size)
    backward = winograd.winograd_backward_data(g, target, size=size)
    w = np.random.default_rng(3).standard_normal((g.y.channels, g.x.channels, 3, 3), np.float32)
    packed = np.full(winograd.winograd_packed_size(g, target, size=size), np.nan, np.float32)
    turned = np.full(winograd.winograd_packed_size(g, target, backward=True, size=size), np.nan, np.float32)
    order = oihw(g.x.channels, 3, 3)
    run(winograd.winograd_pack(g, target, order, size=size), target, {"w": w, "packed": packed}, 3)
    run(winograd.winograd_backward_pack(g, target, order, size=size), target, {"w": w, "packed": turned}, 2)
    bias = np.random.default_rng(4).standard_normal(g.y.channels, np.float32)
    for batch, threads in ((5, 2), (1, 3), (0, 2)):
        x, x_in = buffer(g.x, batch, 1)
        dy, dy_in = buffer(g.y, batch, 2)
        want_y, want_dx = reference(g, x_in, dy_in, w)
        y, y_in = buffer(g.y, batch, None)
        values = {"a": x, "b": packed, "c": y, "e0": bias, "e1": dy, "batch": batch}
        run(forward, target, values, threads)
        tolerance = {"rtol": error, "atol": error * g.x.channels**0.5}
        np.testing.assert_allclose(y_in, np.maximum(want_y + bias, 0) + dy_in, **tolerance)
        dx, dx_in = buffer(g.x, batch, None)
        run(backward, target, {"a": dy, "b": turned, "c": dx, "batch": batch}, threads)
        tolerance["atol"] = error * g.y.channels**0.5
        np.testing.assert_allclose(dx_in, want_dx, **tolerance)
        for data, inside in ((y, y_in), (dx, dx_in)):
            inside[...] = 9
            assert (data == 9).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["image", "weights"])
@pytest.mark.parametrize("size", [2, 4])
def test_special_values(size: int, where: str, value: float, target: Target, run: Run) -> None:
    """They give what the direct sum gives, with its sign, and change nothing that they do not reach."""
    g = bordered(CASES[1], size)
    w = np.random.default_rng(3).standard_normal((35, 5, 3, 3), np.float32)
    x, x_in = buffer(g.x, 3, 1)
    dy, dy_in = buffer(g.y, 3, 2)

    def both() -> list[Array]:
        order, results = oihw(5, 3, 3), []
        for pack, floats, kernel, source, sink in (
            (
                winograd.winograd_pack(g, target, order, size=size),
                winograd.winograd_packed_size(g, target, size=size),
                winograd.winograd_forward(g, target, size=size),
                x,
                g.y,
            ),
            (
                winograd.winograd_backward_pack(g, target, order, size=size),
                winograd.winograd_packed_size(g, target, backward=True, size=size),
                winograd.winograd_backward_data(g, target, size=size),
                dy,
                g.x,
            ),
        ):
            packed = np.zeros(floats, np.float32)
            run(pack, target, {"w": w, "packed": packed})
            data, inside = buffer(sink, 3, None)
            run(kernel, target, {"a": source, "b": packed, "c": data, "batch": 3})
            results.append(inside.copy())
        return results

    before = both()
    if where == "weights":
        w[4, 3, 0, 1] = w[33, 0, 2, 2] = value
    else:
        x_in[1, 3, 4, 2] = x_in[0, 6, 8, 0] = dy_in[2, 0, 0, 34] = value
    wanted = reference(g, x_in, dy_in, w)
    for got, want, old in zip(both(), wanted, before, strict=True):
        finite = np.isfinite(want)
        assert 0 < (~finite).sum() < want.size / 2
        np.testing.assert_array_equal(got[~finite], want[~finite].astype(np.float32))
        np.testing.assert_array_equal(np.isfinite(got), finite)
        largest = float(np.abs(want[finite]).max())
        tolerance = {"rtol": 0, "atol": {2: 2e-6, 4: 2e-5}[size] * largest}
        np.testing.assert_allclose(got[finite], want[finite], **tolerance)
        np.testing.assert_allclose(got[finite], old[finite], **tolerance)


def test_threads_share_a_single_image(target: Target) -> None:
    g = make(14, 14, 8, 16, (1, 1, 1, 1))
    kernel = winograd.winograd_forward(g, target)
    address = Jit(target).address(kernel.ir)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(address)
    packed = np.zeros(winograd.winograd_packed_size(g, target), np.float32)
    x, _ = buffer(g.x, 1, 1)
    y, y_in = buffer(g.y, 1, None)
    scratch = np.zeros(kernel.scratch * 3 // 4 + 16, np.float32)
    arrays = {"a": x, "b": packed, "c": y, "scratch": scratch[-scratch.ctypes.data % 64 // 4 :]}
    block = kernel.block({"batch": 1, **{name: array.ctypes.data for name, array in arrays.items()}})
    rows = []
    for thread in range(3):
        y_in[...] = 9
        call(block.ctypes.data, thread, 3)
        rows.append(np.flatnonzero((y_in[0] == 0).all(axis=(1, 2))).tolist())
    assert [row for part in rows for row in part] == list(range(14))
    assert max(map(len, rows)) == 6


@pytest.mark.parametrize(("size", "error"), [(2, 5e-8), (4, 3e-7)])
def test_errors_are_as_stated(size: int, error: float, target: Target, run: Run) -> None:
    """Root mean squares, for operands of zero mean: they grow with the root of the channels."""
    g = bordered(make(24, 24, 128, 32, (1, 1, 1, 1)), size)
    w = np.random.default_rng(3).standard_normal((32, 128, 3, 3), np.float32)
    packed = np.zeros(winograd.winograd_packed_size(g, target, size=size), np.float32)
    run(winograd.winograd_pack(g, target, oihw(128, 3, 3), size=size), target, {"w": w, "packed": packed})
    x, x_in = buffer(g.x, 1, 1)
    y, y_in = buffer(g.y, 1, None)
    kernel = winograd.winograd_forward(g, target, size=size)
    run(kernel, target, {"a": x, "b": packed, "c": y, "batch": 1})
    want = correlation(x_in, w, 1, 1, g.y)
    assert np.mean((y_in - want) ** 2) <= (error**2 * 128) * np.mean(want**2)


def weight_gradient(
    g: Convolution, target: Target, run: Run, x: Array, dy: Array, threads: int, order: Weights | None = None
) -> Array:
    count = winograd.winograd_partial_count(g, target, threads)
    panels = np.full(count * winograd.winograd_partial_size(g, target), np.nan, g.dtype)
    batch = len(x)
    values = {"a": x, "b": dy, "c": panels, "batch": batch}
    run(winograd.winograd_weight_gradient(g, target), target, values, threads)
    dw = np.full((g.y.channels, g.x.channels, 3, 3), np.nan, g.dtype)
    finish = winograd.winograd_finish_weights(g, target, order or oihw(g.x.channels, 3, 3))
    run(finish, target, {**values, "dw": dw, "parts": count}, threads)
    return dw


@pytest.mark.parametrize(("squares", "own"), [(224, True), (32, False), (4, True)])
@pytest.mark.parametrize("border", [True, False])
@pytest.mark.parametrize("g", CASES, ids=range(len(CASES)))
def test_weight_gradient(
    g: Convolution,
    border: bool,
    squares: int,
    own: bool,
    target: Target,
    run: Run,
) -> None:
    target = tuned(target, winograd_weights_squares=squares, winograd_weights_own=1 << 30 if own else 0)
    if not border:
        g = replace(g, y=Image(g.y.height, g.y.width, g.y.channels, 0, 0, 0, 0, g.y.channels + 3))
    for batch, threads in ((5, 2), (1, 5), (3, 1), (0, 2)):
        x, x_in = buffer(g.x, batch, 1)
        dy, dy_in = buffer(g.y, batch, 2)
        want = weight_reference(g, x_in, dy_in)
        got = weight_gradient(g, target, run, x, dy, threads)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * (batch * g.y.elements) ** 0.5)
        again = weight_gradient(g, target, run, x, dy, threads)
        assert got.tobytes() == again.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "dy"])
def test_weight_gradient_of_special_values(where: str, value: float, target: Target, run: Run) -> None:
    """What they reach is what the direct sum gives, sign included; nothing else changes."""
    g = CASES[1]
    x, x_in = buffer(g.x, 3, 1)
    dy, dy_in = buffer(g.y, 3, 2)
    dy_in[:, :2] = np.maximum(dy_in[:, :2], 0)
    before = weight_gradient(g, target, run, x, dy, 2)
    image, pixel = (x_in, (1, 0, 3, 2)) if where == "x" else (dy_in, (2, 6, 8, 33))
    image[pixel] = value
    want = weight_reference(g, x_in, dy_in)
    got = weight_gradient(g, target, run, x, dy, 2)
    finite = np.isfinite(want)
    assert 0 < (~finite).sum() < want.size / 3
    np.testing.assert_array_equal(got[~finite], want[~finite].astype(np.float32))
    np.testing.assert_array_equal(np.isfinite(got), finite)
    same = finite.all(axis=(2, 3))
    np.testing.assert_array_equal(got[same], before[same])
    np.testing.assert_allclose(got[finite], want[finite], rtol=1e-5, atol=1e-3)


def test_weight_gradient_in_another_order(target: Target, run: Run) -> None:
    g = CASES[1]
    x, _ = buffer(g.x, 2, 1)
    dy, _ = buffer(g.y, 2, 2)
    plain = weight_gradient(g, target, run, x, dy, 2)
    other = weight_gradient(g, target, run, x, dy, 2, hwio(5, 35, 3)).reshape(3, 3, 5, 35)
    np.testing.assert_array_equal(other.transpose(3, 2, 0, 1), plain)


def test_weights_in_another_order(target: Target, run: Run) -> None:
    g = CASES[1]
    w = np.random.default_rng(3).standard_normal((35, 5, 3, 3), np.float32)
    packed = np.zeros((2, winograd.winograd_packed_size(g, target)), np.float32)
    run(winograd.winograd_pack(g, target, oihw(5, 3, 3)), target, {"w": w, "packed": packed[0]})
    other = np.ascontiguousarray(w.transpose(2, 3, 1, 0))
    run(winograd.winograd_pack(g, target, hwio(5, 35, 3)), target, {"w": other, "packed": packed[1]})
    np.testing.assert_array_equal(*packed)


def test_other_convolutions_and_narrow_borders_are_refused(target: Target) -> None:
    strided = Convolution(Image(5, 5, 4), Image(2, 2, 4), (3, 3), (2, 2))
    assert not winograd.winograd_suits(strided)
    with pytest.raises(ShapeError, match="plain 3x3"):
        winograd.winograd_forward(strided, target)
    with pytest.raises(ShapeError, match="border"):
        winograd.winograd_forward(replace(CASES[1], x=Image(7, 9, 5, 1, 1, 1, 1)), target)
