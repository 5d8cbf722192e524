"""Pooling and its gradients."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import onnx_ir as ir

from onward.compile import geometry
from onward.compile.codegen.target import Target
from onward.compile.context import Context, Queries
from onward.compile.items import Slot
from onward.compile.kernels import pool as kernels
from onward.compile.kernels.pool import Pool
from onward.compile.options import CompileOptions
from onward.compile.program import Program
from onward.compile.registry import Borders, lowers
from onward.compile.tensors import Tensor
from onward.graph import Geometry, requests
from onward.graph.requests import Request

__all__ = ["uncounted"]

_pool = functools.lru_cache(512)(kernels.pool_forward)
_pool_gradient = functools.lru_cache(512)(kernels.pool_backward)


def _geometry(kind: str, over: Geometry, x: Tensor, y: Tensor, *, count_include_pad: bool = False) -> Pool:
    assert x.image is not None
    assert y.image is not None
    return geometry.pool(kind, over, x.image, y.image, x.dtype, count_include_pad=count_include_pad)


def _forward(c: Context, kind: str, request: requests.MaxPool | requests.AveragePool) -> None:
    source, target = c.image(request.x), c.new_image(request.y)
    counted = isinstance(request, requests.AveragePool) and request.count_include_pad
    pool = _geometry(kind, request.geometry, source, target, count_include_pad=counted)
    batch = source.shape[0]
    slots: dict[str, Slot] = {"x": source.buffer, "y": target.buffer, "batch": batch}
    c.call(_pool(pool, c.target), slots, batch=batch)


def _max_unsuited(q: Queries, request: requests.MaxPool) -> str | None:
    x, y = request.x, request.y
    return q.not_floats(x) or q.empty(x, y) or q.not_images(x, y)


@lowers(requests.MaxPool, suits=_max_unsuited)
def max_pool(c: Context, request: requests.MaxPool) -> None:
    """Maxima of windows."""
    _forward(c, "max", request)


def _maxima(program: Sequence[Request], request: requests.MaxPoolGradient) -> ir.Value | None:
    """The result of the first max pooling of the same operand and windows."""
    found = (r for r in program if isinstance(r, requests.MaxPool))
    return next((r.y for r in found if r.x is request.x and r.geometry == request.geometry), None)


def _max_gradient_unsuited(q: Queries, request: requests.MaxPoolGradient) -> str | None:
    y = _maxima(q.requests, request)
    if y is None or not q.is_placed(y):
        return "the graph has no MaxPool of the same operand and window"
    dx, dy, x = request.dx, request.dy, request.x
    return q.not_floats(dy, x) or q.empty(dx, dy) or q.not_images(dy, x, y, dx)


def _max_gradient_borders(
    program: Program, request: requests.MaxPoolGradient, options: CompileOptions, target: Target
) -> Borders:
    """The kernel walks dX as X and dY as Y."""
    y = _maxima(program.requests, request)
    return Borders(alike=[(request.dx, request.x), *([] if y is None else [(request.dy, y)])])


@lowers(requests.MaxPoolGradient, suits=_max_gradient_unsuited, borders=_max_gradient_borders)
def max_pool_gradient(c: Context, request: requests.MaxPoolGradient) -> None:
    """The gradient goes to each window's first maximum, found again from x and y."""
    y = _maxima(c.requests, request)
    assert y is not None
    gradient, source, maxima = c.image(request.dy), c.image(request.x), c.image(y)
    target = c.new_image(request.dx)
    pool = _geometry("max", request.geometry, source, maxima)
    batch = source.shape[0]
    slots: dict[str, Slot] = {"dy": gradient.buffer, "dx": target.buffer}
    slots |= {"x": source.buffer, "y": maxima.buffer, "batch": batch}
    c.call(_pool_gradient(pool, c.target), slots, batch=batch)


def uncounted(over: Geometry, count_include_pad: bool) -> str | None:
    """Windows that lie in the padding alone, or reach past the pads that are counted."""
    for axis, (size, out, kernel) in enumerate(zip(over.spatial, over.out, over.kernel, strict=True)):
        begin, step, dilation = over.begin[axis], over.strides[axis], over.dilations[axis]
        firsts = range(-begin, out * step - begin, step)
        reach = (kernel - 1) * dilation
        if count_include_pad:
            if firsts and firsts[-1] + reach >= size + over.end[axis]:
                return "windows past the padding"
        elif any(not any(0 <= f + k < size for k in range(0, reach + 1, dilation)) for f in firsts):
            return "windows in the padding alone"
    return None


def _average_unsuited(q: Queries, request: requests.AveragePool) -> str | None:
    if reason := uncounted(request.geometry, request.count_include_pad):
        return reason
    x, y = request.x, request.y
    return q.not_floats(x) or q.empty(x, y) or q.not_images(x, y)


@lowers(requests.AveragePool, suits=_average_unsuited)
def average_pool(c: Context, request: requests.AveragePool) -> None:
    """Means of windows."""
    _forward(c, "average", request)


def _average_gradient_unsuited(q: Queries, request: requests.AveragePoolGradient) -> str | None:
    if reason := uncounted(request.geometry, request.count_include_pad):
        return reason
    dx, dy = request.dx, request.dy
    return q.not_floats(dy) or q.empty(dx, dy) or q.not_images(dy, dx)


@lowers(requests.AveragePoolGradient, suits=_average_gradient_unsuited)
def average_pool_gradient(c: Context, request: requests.AveragePoolGradient) -> None:
    """Each window's gradient in equal shares."""
    gradient, target = c.image(request.dy), c.new_image(request.dx)
    counted = request.count_include_pad
    pool = _geometry("average", request.geometry, target, gradient, count_include_pad=counted)
    batch = gradient.shape[0]
    slots: dict[str, Slot] = {"dy": gradient.buffer, "dx": target.buffer, "batch": batch}
    c.call(_pool_gradient(pool, c.target), slots, batch=batch)
