"""Convolution in its three directions, pooling."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import onnx_ir as ir

from onward.compile.kernels import pool as pool_kernels
from onward.compile.kernels.layout import Convolution, Image
from onward.compile.kernels.pool import Pool
from onward.compile.rules.techniques import Technique, technique, weight_technique
from onward.compile.tensors import Buffer, Tensor
from onward.ops._window import Geometry

if TYPE_CHECKING:
    from onward.compile.finish import Finish
    from onward.compile.lowering import Lowering, Slot

__all__ = [
    "as_convolution",
    "average_pool",
    "average_pool_gradient",
    "backward_data",
    "backward_weights",
    "forward",
    "max_pool",
    "max_pool_gradient",
]

_pool = functools.lru_cache(512)(pool_kernels.pool_forward)
_pool_gradient = functools.lru_cache(512)(pool_kernels.pool_backward)


def as_convolution(geometry: Geometry, x: Image, y: Image, group: int) -> Convolution:
    """The kernels' form of a geometry over one or two axes; raises `ShapeError` if they do not agree."""
    return Convolution(
        x,
        y,
        _pair(geometry.kernel),
        _pair(geometry.strides),
        _pair(geometry.dilations),
        _pads(geometry),
        group,
    )


def _pair(values: tuple[int, ...], absent: int = 1) -> tuple[int, int]:
    return (absent, values[0]) if len(values) == 1 else (values[0], values[1])


def _pads(geometry: Geometry) -> tuple[int, int, int, int]:
    return (*_pair(geometry.begin, 0), *_pair(geometry.end, 0))


def _image(tensor: Tensor) -> Image:
    assert tensor.image is not None
    return tensor.image


def _packed(b: Lowering, how: Technique, w: ir.Value, conv: Convolution) -> Buffer:
    """Packed weights, shared by the convolutions that read the same weights alike."""
    key = (how.name, w, conv.kernel, conv.strides, conv.dilations, conv.pads, conv.group, conv.x, conv.y)
    if (found := b.packed.get(key)) is None:
        found = b.packed[key] = b.scratch(how.packed_size(conv, b.target))
        kernel, source = how.pack(conv, b.target), b.plain(w)
        slots: dict[str, Slot] = {how.source: source, how.packed: found}
        if "batch" in kernel.slots:
            slots["batch"] = 1
        b.call(kernel, slots, reads=[source], writes=[found], label="pack weights")
    return found


def forward(
    b: Lowering, y: ir.Value, x: ir.Value, w: ir.Value, bias: ir.Value | None, geometry: Geometry, group: int
) -> None:
    """y = x ∗ w + bias."""
    b.require_float(x, w)
    b.require_elements(x, y)
    finish = b.finish(y, image=True)
    source, target = b.image(x), finish.target
    conv = as_convolution(geometry, _image(source), _image(target), group)
    how = technique(conv, b.options, backward=False)
    _convolve(b, how, conv, source, w, finish, None if bias is None else b.plain(bias))


def _convolve(
    b: Lowering,
    how: Technique,
    conv: Convolution,
    source: Tensor,
    w: ir.Value,
    finish: Finish,
    bias: Tensor | None,
) -> None:
    """One direction of a convolution, and what its epilogue computes."""
    target = finish.target
    epilogue, operands = finish.epilogue(bias)
    packed = _packed(b, how, w, conv)
    batch = source.shape[0]
    slots: dict[str, Slot] = {"a": source.buffer, "b": packed, "c": target.buffer, "batch": batch}
    # "full" operands start where the target's border does, like the target
    slots |= {f"e{i}": t.buffer if t.image else t for i, t in enumerate(operands)}
    reads: list[Tensor | Buffer] = [source, packed, *operands]
    b.call(how.kernel(conv, b.target, epilogue), slots, reads=reads, writes=[target], batch=batch)


def backward_data(
    b: Lowering, dx: ir.Value, dy: ir.Value, w: ir.Value, geometry: Geometry, group: int
) -> None:
    """dx = the gradient of x ∗ w by x."""
    b.require_float(dy, w)
    b.require_elements(dx, dy)
    finish = b.finish(dx, image=True)
    source, target = b.image(dy), finish.target
    conv = as_convolution(geometry, _image(target), _image(source), group)
    how = technique(conv, b.options, backward=True)
    _convolve(b, how, conv, source, w, finish, None)


def backward_weights(
    b: Lowering, dw: ir.Value, dy: ir.Value, x: ir.Value, geometry: Geometry, group: int
) -> None:
    """dw = the gradient of x ∗ w by w."""
    b.require_float(dy, x)
    b.require_elements(x, dy)
    source, gradient = b.image(x), b.image(dy)
    conv = as_convolution(geometry, _image(source), _image(gradient), group)
    how = weight_technique(conv)
    parts = how.parts(conv, b.target, b.threads)
    sums = b.scratch(parts * how.size(conv, b.target))
    batch = source.shape[0]
    images: dict[str, Slot] = {"a": source.buffer, "b": gradient.buffer, "c": sums, "batch": batch}
    reads = [source, gradient]
    b.call(how.gradient(conv, b.target), images, reads=reads, writes=[sums], batch=batch)
    target = b.new_plain(dw)
    finish = how.finish(conv, b.target)
    slots = {name: slot for name, slot in images.items() if name in finish.slots}
    read = [tensor for name, tensor in zip("ab", reads, strict=True) if name in slots]
    slots |= {"dw": target, "parts": parts}
    b.call(finish, slots, reads=[*read, sums], writes=[target])


def _pool_of(kind: str, geometry: Geometry, x: Tensor, y: Tensor, count_include_pad: bool = False) -> Pool:
    return Pool(
        kind,
        _image(x),
        _image(y),
        _pair(geometry.kernel),
        _pair(geometry.strides),
        _pads(geometry),
        _pair(geometry.dilations),
        count_include_pad,
    )


def _pool_forward(
    b: Lowering, kind: str, y: ir.Value, x: ir.Value, geometry: Geometry, count_include_pad: bool
) -> None:
    b.require_float(x)
    b.require_elements(x, y)
    source = b.image(x)
    target = b.new_image(y)
    pool = _pool_of(kind, geometry, source, target, count_include_pad)
    batch = source.shape[0]
    slots: dict[str, Slot] = {"x": source.buffer, "y": target.buffer, "batch": batch}
    b.call(_pool(pool, b.target), slots, reads=[source], writes=[target], batch=batch)


def max_pool(b: Lowering, y: ir.Value, x: ir.Value, geometry: Geometry) -> None:
    """Maxima of windows."""
    _pool_forward(b, "max", y, x, geometry, False)
    b.pooled[x, geometry] = y


def _require_counts(b: Lowering, geometry: Geometry, count_include_pad: bool) -> None:
    """Decline windows that lie in the padding alone, or reach past the pads that are counted."""
    for axis, (size, out, kernel) in enumerate(
        zip(geometry.spatial, geometry.out, geometry.kernel, strict=True)
    ):
        begin, step, dilation = geometry.begin[axis], geometry.strides[axis], geometry.dilations[axis]
        firsts = range(-begin, out * step - begin, step)
        reach = (kernel - 1) * dilation
        if count_include_pad:
            if firsts and firsts[-1] + reach >= size + geometry.end[axis]:
                b.decline("windows past the padding")
        elif any(not any(0 <= f + k < size for k in range(0, reach + 1, dilation)) for f in firsts):
            b.decline("windows in the padding alone")


def average_pool(b: Lowering, y: ir.Value, x: ir.Value, geometry: Geometry, count_include_pad: bool) -> None:
    """Means of windows."""
    _require_counts(b, geometry, count_include_pad)
    _pool_forward(b, "average", y, x, geometry, count_include_pad)


def max_pool_gradient(b: Lowering, dx: ir.Value, dy: ir.Value, x: ir.Value, geometry: Geometry) -> None:
    """The gradient goes to each window's first maximum, found again from x and y."""
    if (y := b.pooled.get((x, geometry))) is None:
        b.decline("the graph has no MaxPool of the same operand and window")
    b.require_float(dy, x)
    b.require_elements(dx, dy)
    gradient, source, maxima = b.image(dy), b.image(x), b.image(y)
    target = b.new_image(dx)
    pool = _pool_of("max", geometry, source, maxima)
    batch = source.shape[0]
    b.call(
        _pool_gradient(pool, b.target),
        {"dy": gradient.buffer, "dx": target.buffer, "x": source.buffer, "y": maxima.buffer, "batch": batch},
        reads=[gradient, source, maxima],
        writes=[target],
        batch=batch,
    )


def average_pool_gradient(
    b: Lowering, dx: ir.Value, dy: ir.Value, geometry: Geometry, count_include_pad: bool
) -> None:
    """Each window's gradient in equal shares."""
    _require_counts(b, geometry, count_include_pad)
    b.require_float(dy)
    b.require_elements(dx, dy)
    gradient = b.image(dy)
    target = b.new_image(dx)
    pool = _pool_of("average", geometry, target, gradient, count_include_pad)
    batch = gradient.shape[0]
    slots: dict[str, Slot] = {"dy": gradient.buffer, "dx": target.buffer, "batch": batch}
    b.call(_pool_gradient(pool, b.target), slots, reads=[gradient], writes=[target], batch=batch)
