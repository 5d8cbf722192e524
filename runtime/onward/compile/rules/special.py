"""Dropout, local response normalization, optimisers' factors, integer counters: kernels of their own."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onward.compile.kernels import local_response as responses
from onward.compile.kernels import philox, scalars
from onward.compile.kernels.local_response import Response
from onward.compile.kernels.philox import Dropout
from onward.compile.tensors import Buffer, Tensor, row_major

if TYPE_CHECKING:
    from onward.compile.lowering import Lowering, Slot

__all__ = ["adam_factors", "dropout", "integers", "local_response", "local_response_gradient"]

_dropout = functools.lru_cache(256)(philox.dropout)
_response = functools.lru_cache(64)(responses.response_forward)
_response_gradient = functools.lru_cache(64)(responses.response_backward)
_integers = functools.lru_cache(64)(scalars.integers)
_factors = functools.lru_cache(64)(scalars.adam_factors)


def dropout(
    b: Lowering, y: ir.Value, x: ir.Value, seed: ir.Value, step: ir.Value, ratio: float, salt: int
) -> None:
    """y = x / (1 − ratio) where a number drawn for the element's position is at least ratio, else 0."""
    b.require_float(x)
    b.require_elements(x)
    shape = b.shape(x)
    if max(np.prod(shape, dtype=np.float64), 1) >= 2.0**32:
        b.decline("more than 2**32 elements")
    rank = len(shape)
    source, order = b.either(x), tuple(range(rank))
    target = b.new(y)
    if target.image is not None:
        order = (0, *range(2, rank), 1)
    sizes = tuple(shape[a] for a in order) or (1,)
    x_strides, y_strides, position = (
        tuple(s[a] for a in order) or (1,) for s in (source.strides, target.strides, row_major(shape))
    )
    # One element along the last axis has no stride of its own.
    if sizes[-1] == 1:
        x_strides, y_strides = (*x_strides[:-1], 1), (*y_strides[:-1], 1)
    spec = Dropout(sizes[1:], x_strides, y_strides, position, ratio, salt)
    seeds, steps = b.plain(seed), b.plain(step)
    slots: dict[str, Slot] = {"x": source, "y": target, "seed": seeds, "step": steps, "batch": sizes[0]}
    reads = [source, seeds, steps]
    b.call(_dropout(spec, b.target), slots, reads=reads, writes=[target], batch=sizes[0])


def local_response(
    b: Lowering, y: ir.Value, x: ir.Value, size: int, alpha: float, beta: float, bias: float
) -> None:
    """y = x · (bias + alpha / size · Σ x²)^−beta over neighbouring channels."""
    b.require_float(x)
    b.require_elements(x)
    source, target = b.image(x), b.new_image(y)
    assert source.image is not None
    assert target.image is not None
    spec = Response((source.image, target.image), size, alpha, beta, bias)
    slots: dict[str, Slot] = {"x": source.buffer, "y": target.buffer, "batch": source.shape[0]}
    batch = source.shape[0]
    b.call(_response(spec, b.target), slots, reads=[source], writes=[target], batch=batch)


def local_response_gradient(
    b: Lowering, dx: ir.Value, dy: ir.Value, x: ir.Value, size: int, alpha: float, beta: float, bias: float
) -> None:
    """The gradient of `local_response`."""
    b.require_float(x, dy)
    b.require_elements(x)
    gradient, source, target = b.image(dy), b.image(x), b.new_image(dx)
    images = tuple(t.image for t in (gradient, source, target) if t.image is not None)
    spec = Response(images, size, alpha, beta, bias)
    batch = source.shape[0]
    slots: dict[str, Slot] = {"dy": gradient.buffer, "x": source.buffer, "dx": target.buffer, "batch": batch}
    kernel = _response_gradient(spec, b.target)
    b.call(kernel, slots, reads=[gradient, source], writes=[target], batch=batch)


def adam_factors(
    b: Lowering, learning_rate: ir.Value, t: ir.Value, beta1: float, beta2: float, weight_decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """η / (1 − β1^t), sqrt(1 − β2^t) and 1 − η weight_decay, shared by the parameters that need the same."""
    if b.program.dtypes[t] != np.int64:
        b.decline(f"{t.name} is {b.program.dtypes[t]}")
    b.require_float(learning_rate)
    key = ("adam", learning_rate, t, beta1, beta2, weight_decay)
    if (buffer := b.packed.get(key)) is None:
        buffer = b.packed[key] = Buffer(64)
        rate, time = b.plain(learning_rate), b.plain(t)
        slots: dict[str, Slot] = {"learning_rate": rate, "t": time, "y": buffer}
        kernel = _factors(beta1, beta2, weight_decay, b.target)
        b.call(kernel, slots, reads=[rate, time], writes=[buffer], label="factors of Adam")
    first, second, third = (Tensor(buffer, (), (), np.dtype(np.float32), i) for i in range(3))
    return first, second, third


def integers(b: Lowering, op: str, y: ir.Value, a: ir.Value, c: ir.Value) -> None:
    """y = a op c for int64 operands of y's shape or of one element."""
    if any(b.program.dtypes[v] != np.int64 for v in (a, c)):
        b.decline(f"{b.program.dtypes[a]} and {b.program.dtypes[c]}")
    b.require_elements(y)
    left, right = b.plain(a), b.plain(c)
    size = int(np.prod(b.shape(y)))
    if any(t.size != 1 and t.shape != b.shape(y) for t in (left, right)):
        b.decline("integers that are broadcast")
    if op in ("div", "mod"):
        divisor = b.known(c)
        if divisor is None or np.any((divisor == 0) | (divisor == -1)):
            b.decline("a divisor that is not known, 0 or -1")
    steps = (int(left.size > 1), int(right.size > 1))
    target = b.new_plain(y)
    slots: dict[str, Slot] = {"a": left, "b": right, "y": target}
    b.call(_integers(op, size, steps, b.target), slots, reads=[left, right], writes=[target])
