"""Local response normalization."""

from __future__ import annotations

import functools

from onward.compile.context import Context, Queries
from onward.compile.items import Slot
from onward.compile.kernels import local_response as kernels
from onward.compile.kernels.local_response import Response
from onward.compile.registry import lowers
from onward.graph.requests import LocalResponse, LocalResponseGradient

__all__: list[str] = []

_response = functools.lru_cache(64)(kernels.response_forward)
_response_gradient = functools.lru_cache(64)(kernels.response_backward)


def _unsuited(q: Queries, request: LocalResponse) -> str | None:
    x, y = request.x, request.y
    return q.not_floats(x) or q.empty(x) or q.not_images(x, y)


@lowers(LocalResponse, suits=_unsuited)
def local_response(c: Context, request: LocalResponse) -> None:
    """One pass over pixels."""
    source, target = c.image(request.x), c.new_image(request.y)
    images = tuple(t.image for t in (source, target) if t.image is not None)
    spec = Response(images, request.size, request.alpha, request.beta, request.bias, source.dtype.name)
    batch = source.shape[0]
    slots: dict[str, Slot] = {"x": source.buffer, "y": target.buffer, "batch": batch}
    c.call(_response(spec, c.target), slots, batch=batch)


def _gradient_unsuited(q: Queries, request: LocalResponseGradient) -> str | None:
    dx, dy, x = request.dx, request.dy, request.x
    return q.not_floats(x, dy) or q.empty(x) or q.not_images(dy, x, dx)


@lowers(LocalResponseGradient, suits=_gradient_unsuited)
def local_response_gradient(c: Context, request: LocalResponseGradient) -> None:
    """One pass over pixels, the sums of squares computed again."""
    gradient, source, target = c.image(request.dy), c.image(request.x), c.new_image(request.dx)
    images = tuple(t.image for t in (gradient, source, target) if t.image is not None)
    spec = Response(images, request.size, request.alpha, request.beta, request.bias, source.dtype.name)
    batch = source.shape[0]
    slots: dict[str, Slot] = {"dy": gradient.buffer, "x": source.buffer, "dx": target.buffer, "batch": batch}
    c.call(_response_gradient(spec, c.target), slots, batch=batch)
