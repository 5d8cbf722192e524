"""Windows over three spatial axes, as operations over two.

A convolution: the planes that meet the taps of the depth axis lie beside one another as channels, so that
[N, C, D, H, W] become N · out images of C · taps channels. Pooling: first each plane, then along the depth;
the first maximum of the first plane that has one is the first in row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.compile.program import Operation, Program
from onward.compile.registry import splits
from onward.compile.rules.pooling import uncounted
from onward.graph import Geometry, Op, requests
from onward.graph.requests import Request

__all__: list[str] = []

_FLOATS = tuple(map(np.dtype, (np.float32, np.float64)))


@dataclass(frozen=True, kw_only=True)
class Part(Op):
    """A piece of an operation: its request says all."""


@final
@dataclass(frozen=True, eq=False)
class _Parts:
    """The operations in the place of one."""

    program: Program
    whole: Operation
    like: ir.Value
    made: list[Operation] = field(default_factory=list)

    def new(self, shape: Sequence[int]) -> ir.Value:
        """A value between the parts."""
        name = f"{self.whole.outputs[0].name}/part{len(self.made)}"
        value = ir.Value(name=name, shape=ir.Shape(shape), type=self.like.type)
        self.program.shapes[value], self.program.dtypes[value] = tuple(shape), self.program.dtypes[self.like]
        return value

    def add(self, request: Request, inputs: Sequence[ir.Value | None], y: ir.Value) -> ir.Value:
        """One operation, and its result."""
        self.made.append(Operation(self.whole.node, Part(), tuple(inputs), (y,), request))
        return y

    def shape(self, x: ir.Value) -> tuple[int, ...]:
        return self.program.shapes[x]

    def view(self, x: ir.Value, shape: Sequence[int], y: ir.Value | None = None) -> ir.Value:
        """The same elements in the same order."""
        y = self.new(shape) if y is None else y
        return self.add(requests.View(y, x), [x], y)

    def transposed(self, x: ir.Value, perm: tuple[int, ...], y: ir.Value | None = None) -> ir.Value:
        y = self.new([self.shape(x)[i] for i in perm]) if y is None else y
        return self.add(requests.Transpose(y, x, perm), [x], y)

    def cut(self, x: ir.Value, axis: int, places: range) -> ir.Value:
        """These positions of an axis; they may run backwards."""
        shape = list(self.shape(x))
        last = places.stop if places.stop >= 0 else None
        picked = tuple(
            slice(places.start, last, places.step) if i == axis else slice(None) for i in range(len(shape))
        )
        shape[axis] = len(places)
        y = self.new(shape)
        return self.add(requests.Slices((y,), x, (picked,)), [x], y)

    def padded(self, x: ir.Value, axis: int, front: int, back: int) -> ir.Value:
        """Zeros around an axis."""
        if not front and not back:
            return x
        shape = list(self.shape(x))
        before = tuple(front if i == axis else 0 for i in range(len(shape)))
        shape[axis] += front + back
        y = self.new(shape)
        return self.add(requests.Pad(y, x, before, 0.0), [x], y)

    def joined(self, operands: Sequence[ir.Value], axis: int) -> ir.Value:
        if len(operands) == 1:
            return operands[0]
        shape = list(self.shape(operands[0]))
        shape[axis] = sum(self.shape(v)[axis] for v in operands)
        y = self.new(shape)
        return self.add(requests.Concat(y, tuple(operands), axis), operands, y)


def _parts(program: Program, operation: Operation, geometry: Geometry) -> _Parts | None:
    """Where to put the parts of an operation that can be split; None where it cannot."""
    values = [v for v in (*operation.inputs, *operation.outputs) if v is not None and v.name]
    floats = [v for v in values if program.dtypes[v].kind == "f"]
    dtypes = {program.dtypes[v] for v in floats}
    if len(geometry.out) != 3 or len(dtypes) != 1 or not dtypes <= set(_FLOATS):
        return None
    if any(0 in program.shapes[v] for v in values):
        return None
    return _Parts(program, operation, floats[0])


def _axes(geometry: Geometry, first: int, last: int) -> Geometry:
    """The windows along some of the axes."""
    return Geometry(*(getattr(geometry, name)[first:last] for name in Geometry.__slots__))


# -- convolution ---------------------------------------------------------------------------------------------


def _planes(p: _Parts, x: ir.Value, starts: Sequence[int], count: int, step: int) -> ir.Value:
    """x [N, C, D, H, W] as images [N · count, C · taps, H, W].

    Tap k of image i is plane starts[k] + i · step; planes outside x are zeros.
    """
    n, c, depth, height, width = p.shape(x)
    x = p.transposed(x, (0, 2, 1, 3, 4))
    low, high = min(0, *starts), max(depth, *(s + (count - 1) * step + 1 for s in starts))
    x = p.padded(x, 1, -low, high - depth)
    taps = []
    for start in starts:
        cut = p.cut(x, 1, range(start - low, start - low + (count - 1) * step + 1, step))
        taps.append(p.view(cut, (n, count, c, 1, height, width)))
    return p.view(p.joined(taps, 3), (n * count, c * len(starts), height, width))


def _volume(p: _Parts, images: ir.Value, n: int, y: ir.Value | None = None) -> ir.Value:
    """Images [N · D, C, H, W] as [N, C, D, H, W]."""
    count, c, height, width = p.shape(images)
    found = p.view(images, (n, count // n, c, height, width))
    return p.transposed(found, (0, 2, 1, 3, 4), y)


def _starts(g: Geometry) -> list[int]:
    """The planes that the taps of the first window along the depth meet."""
    return [k * g.dilations[0] - g.begin[0] for k in range(g.kernel[0])]


def _is_flat(g: Geometry) -> bool:
    """Whether depth and height can be one axis: neither has a window."""
    return _axes(g, 0, 2).is_pointwise


def _flat(g: Geometry) -> Geometry:
    """The windows with depth and height as one axis."""
    image = _axes(g, 1, 3)
    height, out = prod(g.spatial[:2]), prod(g.out[:2])
    return replace(image, spatial=(height, g.spatial[2]), out=(out, g.out[2]))


def _joint(p: _Parts, x: ir.Value) -> ir.Value:
    """x with its third and fourth axis as one."""
    shape = p.shape(x)
    return p.view(x, (*shape[:2], shape[2] * shape[3], shape[4]))


@splits(requests.Convolution)
def convolution(
    program: Program, operation: Operation, request: requests.Convolution, shared: dict[object, Any]
) -> Sequence[Operation] | None:
    """The taps of the depth are channels; W has them beside one another already."""
    g = request.geometry
    if (p := _parts(program, operation, g)) is None:
        return None
    outputs, bias = p.shape(request.w)[0], request.bias
    if _is_flat(g):
        x, w = _joint(p, request.x), _joint(p, request.w)
        y = p.new((p.shape(x)[0], outputs, *_flat(g).out))
        p.add(requests.Convolution(y, x, w, bias, _flat(g), request.group), [x, w, bias], y)
        p.view(y, p.shape(request.y), request.y)
        return p.made
    x = _planes(p, request.x, _starts(g), g.out[0], g.strides[0])
    w = _taps_as_inputs(p, request.w)
    y = p.new((p.shape(x)[0], outputs, *g.out[1:]))
    p.add(requests.Convolution(y, x, w, bias, _axes(g, 1, 3), request.group), [x, w, bias], y)
    _volume(p, y, p.shape(request.x)[0], request.y)
    return p.made


def _taps_as_inputs(p: _Parts, w: ir.Value) -> ir.Value:
    """W [O, C/group, taps, *kernel] as [O, C/group · taps, *kernel]."""
    outputs, inputs, taps, *kernel = p.shape(w)
    return p.view(w, (outputs, inputs * taps, *kernel))


@splits(requests.ConvolutionInput)
def convolution_input(
    program: Program, operation: Operation, request: requests.ConvolutionInput, shared: dict[object, Any]
) -> Sequence[Operation] | None:
    """Planes of dx by their remainder under the stride: each meets its own taps, which are channels of dy."""
    g = request.geometry
    if (p := _parts(program, operation, g)) is None:
        return None
    n, channels = p.shape(request.dx)[:2]
    if _is_flat(g):
        dy, w = _joint(p, request.dy), _joint(p, request.w)
        dx = p.new((n, channels, *_flat(g).spatial))
        asked = requests.ConvolutionInput(dx, dy, w, _flat(g), request.group, request.bias)
        p.add(asked, [dy, w, request.bias], dx)
        p.view(dx, p.shape(request.dx), request.dx)
        return p.made
    depth, stride, dilation, begin = g.spatial[0], g.strides[0], g.dilations[0], g.begin[0]
    count = -(-depth // stride)
    phases = []
    for remainder in range(min(stride, depth)):
        taps = [k for k in range(g.kernel[0]) if (remainder + begin - k * dilation) % stride == 0]
        # a tap too many, which meets zeros alone, where none meets these planes
        starts = [(remainder + begin - k * dilation) // stride for k in taps] or [-count]
        dy = _planes(p, request.dy, starts, count, 1)
        w = _taps_as_outputs(p, request.w, taps or [0])
        dx = p.new((n * count, channels, *g.spatial[1:]))
        asked = requests.ConvolutionInput(dx, dy, w, _axes(g, 1, 3), request.group, request.bias)
        p.add(asked, [dy, w, request.bias], dx)
        phases.append(p.view(dx, (n, count, 1, channels, *g.spatial[1:])))
    found = p.view(p.joined(phases, 2), (n, count * len(phases), channels, *g.spatial[1:]))
    if count * len(phases) > depth:
        found = p.cut(found, 1, range(depth))
    p.transposed(found, (0, 2, 1, 3, 4), request.dx)
    return p.made


def _taps_as_outputs(p: _Parts, w: ir.Value, taps: Sequence[int]) -> ir.Value:
    """Some taps of W [O, C/group, taps, *kernel] as [O · taps, C/group, *kernel]."""
    outputs, inputs, depth, *kernel = p.shape(w)
    if list(taps) != list(range(depth)):
        w = p.joined([p.cut(w, 2, range(k, k + 1)) for k in taps], 2)
    return p.view(p.transposed(w, (0, 2, 1, 3, 4)), (outputs * len(taps), inputs, *kernel))


@splits(requests.ConvolutionWeight)
def convolution_weight(
    program: Program, operation: Operation, request: requests.ConvolutionWeight, shared: dict[object, Any]
) -> Sequence[Operation] | None:
    """The taps of the depth are channels of x."""
    g = request.geometry
    if (p := _parts(program, operation, g)) is None:
        return None
    outputs, inputs, taps, *kernel = p.shape(request.dw)
    if _is_flat(g):
        x, dy, over = _joint(p, request.x), _joint(p, request.dy), _flat(g)
        dw = p.new((outputs, inputs, 1, g.kernel[2]))
    else:
        x = _planes(p, request.x, _starts(g), g.out[0], g.strides[0])
        dy, over = _planes(p, request.dy, [0], g.out[0], 1), _axes(g, 1, 3)
        dw = p.new((outputs, inputs * taps, *kernel))
    p.add(requests.ConvolutionWeight(dw, dy, x, over, request.group), [dy, x], dw)
    p.view(dw, p.shape(request.dw), request.dw)
    return p.made


# -- pooling -------------------------------------------------------------------------------------------------


def _in_plane(p: _Parts, x: ir.Value) -> ir.Value:
    """[N, C, D, H, W] as planes: [N, C · D, H, W]."""
    n, c, depth, *image = p.shape(x)
    return p.view(x, (n, c * depth, *image))


def _along_depth(p: _Parts, x: ir.Value, depth: int, channels: int) -> ir.Value:
    """Planes as lines along the depth: [N, C, D, H · W]."""
    shape = p.shape(x)
    return p.view(x, (shape[0], channels, depth, prod(shape) // (shape[0] * channels * depth)))


def _depth(g: Geometry) -> Geometry:
    """The windows along the depth of [N, C, D, H · W], where H · W are pooled already."""
    pixels = prod(g.out[1:])
    one = Geometry((pixels,), (pixels,), (1,), (1,), (1,), (0,), (0,))
    along = _axes(g, 0, 1)
    return Geometry(*(getattr(along, name) + getattr(one, name) for name in Geometry.__slots__))


@final
@dataclass(frozen=True, eq=False)
class _Maxima:
    """A max pooling's values on the way: x as planes, their maxima, these as lines, and their maxima."""

    x: ir.Value
    planes: ir.Value
    lines: ir.Value
    y: ir.Value


def _maxima(p: _Parts, x: ir.Value, g: Geometry) -> _Maxima:
    n, c = p.shape(x)[:2]
    image = _in_plane(p, x)
    planes = p.new((n, c * g.spatial[0], *g.out[1:]))
    p.add(requests.MaxPool(planes, image, _axes(g, 1, 3)), [image], planes)
    lines = _along_depth(p, planes, g.spatial[0], c)
    y = p.new((n, c, *_depth(g).out))
    p.add(requests.MaxPool(y, lines, _depth(g)), [lines], y)
    return _Maxima(image, planes, lines, y)


@splits(requests.MaxPool)
def max_pool(
    program: Program, operation: Operation, request: requests.MaxPool, shared: dict[object, Any]
) -> Sequence[Operation] | None:
    """Maxima of planes, then of lines along the depth."""
    if (p := _parts(program, operation, request.geometry)) is None:
        return None
    found = _maxima(p, request.x, request.geometry)
    shared["max pool", request.x, request.geometry] = found
    p.view(found.y, p.shape(request.y), request.y)
    return p.made


@splits(requests.MaxPoolGradient)
def max_pool_gradient(
    program: Program, operation: Operation, request: requests.MaxPoolGradient, shared: dict[object, Any]
) -> Sequence[Operation] | None:
    """To the first plane with the maximum, then to the first maximum there."""
    g = request.geometry
    if (p := _parts(program, operation, g)) is None:
        return None
    found: _Maxima = shared.get(("max pool", request.x, g)) or _maxima(p, request.x, g)
    dy, dlines = p.view(request.dy, p.shape(found.y)), p.new(p.shape(found.lines))
    p.add(requests.MaxPoolGradient(dlines, dy, found.lines, _depth(g)), [dy, found.lines], dlines)
    dplanes, dx = p.view(dlines, p.shape(found.planes)), p.new(p.shape(found.x))
    p.add(requests.MaxPoolGradient(dx, dplanes, found.x, _axes(g, 1, 3)), [dplanes, found.x], dx)
    p.view(dx, p.shape(request.dx), request.dx)
    return p.made


@splits(requests.AveragePool)
def average_pool(
    program: Program, operation: Operation, request: requests.AveragePool, shared: dict[object, Any]
) -> Sequence[Operation] | None:
    """Means of planes, then of lines along the depth: a window's count is the product over its axes."""
    g, counted = request.geometry, request.count_include_pad
    if (p := _parts(program, operation, g)) is None or uncounted(g, counted):
        return None
    n, c = p.shape(request.x)[:2]
    image, planes = _in_plane(p, request.x), p.new((n, c * g.spatial[0], *g.out[1:]))
    p.add(requests.AveragePool(planes, image, _axes(g, 1, 3), counted), [image], planes)
    lines, y = _along_depth(p, planes, g.spatial[0], c), p.new((n, c, *_depth(g).out))
    p.add(requests.AveragePool(y, lines, _depth(g), counted), [lines], y)
    p.view(y, p.shape(request.y), request.y)
    return p.made


@splits(requests.AveragePoolGradient)
def average_pool_gradient(
    program: Program, operation: Operation, request: requests.AveragePoolGradient, shared: dict[object, Any]
) -> Sequence[Operation] | None:
    """Along the depth, then in each plane."""
    g, counted = request.geometry, request.count_include_pad
    if (p := _parts(program, operation, g)) is None or uncounted(g, counted):
        return None
    n, c = p.shape(request.dx)[:2]
    dy, dlines = p.view(request.dy, (n, c, *_depth(g).out)), p.new((n, c, *_depth(g).spatial))
    p.add(requests.AveragePoolGradient(dlines, dy, _depth(g), counted), [dy], dlines)
    dplanes, dx = (
        p.view(dlines, (n, c * g.spatial[0], *g.out[1:])),
        p.new((n, c * g.spatial[0], *g.spatial[1:])),
    )
    p.add(requests.AveragePoolGradient(dx, dplanes, _axes(g, 1, 3), counted), [dplanes], dx)
    p.view(dx, p.shape(request.dx), request.dx)
    return p.made
