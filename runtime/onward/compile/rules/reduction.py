"""Sums over axes, batch normalization, softmax cross-entropy: what column and row reductions make."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onward.compile.kernels import reduce as kernels
from onward.compile.kernels import rows as row_kernels
from onward.compile.kernels.element import Operand
from onward.compile.kernels.expression import Expression, constant, operand
from onward.compile.kernels.reduce import Columns, Finish
from onward.compile.kernels.rows import Rows
from onward.compile.tensors import Tensor, row_major

if TYPE_CHECKING:
    from onward.compile.lowering import Lowering, Slot

__all__ = [
    "batch_normalization",
    "batch_normalization_gradient",
    "cross_entropy",
    "cross_entropy_gradient",
    "inference_normalization",
    "reduce_sum",
]

_columns = functools.lru_cache(512)(kernels.reduce_columns)
_finish = functools.lru_cache(512)(kernels.finish_columns)
_rows = functools.lru_cache(512)(row_kernels.rows_kernel)


def _reduce(
    b: Lowering,
    sizes: Sequence[int],
    operands: Sequence[tuple[Tensor, tuple[int, ...]]],
    expressions: Sequence[Expression],
    more: Sequence[Tensor],
    results: Sequence[Tensor],
    finals: Sequence[Expression],
    everything: bool = False,
) -> None:
    """Sum expressions over [batch, *shape] to columns; then results are `finals` of the sums and `more`."""
    spec = Columns(
        tuple(sizes[1:]),
        tuple(Operand(s, t.dtype.name) for t, s in operands),
        tuple(expressions),
        ("sum",) * len(expressions),
        everything,
    )
    partial = b.scratch(kernels.partial_size(spec, b.target, b.threads))
    tensors = [t for t, _ in operands]
    slots: dict[str, Slot] = {f"x{i}": t for i, t in enumerate(tensors)}
    slots |= {"partial": partial, "batch": sizes[0]}
    b.call(_columns(spec, b.target), slots, reads=tensors, writes=[partial], batch=sizes[0])
    width = 0 if everything else 1
    finish = Finish(
        tuple(0 if t.size == 1 and not (width and spec.shape[-1] == 1) else 1 for t in more),
        (width,) * len(results),
        tuple(finals),
    )
    slots = {"partial": partial, "parts": b.threads}
    slots |= {f"x{i}": t for i, t in enumerate(more)} | {f"y{i}": t for i, t in enumerate(results)}
    b.call(_finish(spec, finish, b.target), slots, reads=[partial, *more], writes=results)


def _channels_last(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides with the channel axis last."""
    order = (0, *range(2, len(tensor.shape)), 1)
    return tuple(tensor.shape[a] for a in order), tuple(tensor.strides[a] for a in order)


def reduce_sum(b: Lowering, y: ir.Value, x: ir.Value, axes: Sequence[int], mean: bool = False) -> None:
    """Sum (or mean) over all axes, over all but the channels, or over leading axes."""
    b.require_float(x)
    b.require_elements(x)
    shape = b.shape(x)
    rank = len(shape)
    axes = sorted({a % rank for a in axes}) if axes else list(range(rank))
    count = prod(shape[a] for a in axes)
    final = operand(0) * (1.0 / count) if mean else operand(0)
    if len(axes) == rank:
        source = b.plain(x) if not b.has_image(x) else b.either(x)
        target = b.new_plain(y)
        flat = ((1, source.size), (source.size, 1))
        sizes, strides = flat if source.plain else _channels_last(source)
        _reduce(b, sizes, [(source, strides)], [operand(0)], [], [target], [final], everything=True)
    elif axes == [0, *range(2, rank)] and b.has_image(x):
        source = b.image(x)
        sizes, strides = _channels_last(source)
        _reduce(b, sizes, [(source, strides)], [operand(0)], [], [b.new_plain(y)], [final])
    elif axes == list(range(len(axes))):
        source = b.plain(x)
        lead, rest = count, prod(shape[len(axes) :])
        _reduce(b, (lead, rest), [(source, (rest, 1))], [operand(0)], [], [b.new_plain(y)], [final])
    else:
        b.decline("a sum over these axes")


def _vector(b: Lowering, channels: int) -> Tensor:
    return Tensor(b.scratch(channels), (channels,), (1,), np.dtype(np.float32))


def _normalized_layout(b: Lowering, x: ir.Value) -> Tensor:
    b.require_float(x)
    b.require_elements(x)
    if not b.has_image(x) and len(b.shape(x)) != 2:
        b.decline("normalization of a value that is not kept channels-last")
    return b.either(x)


def _channel_view(tensor: Tensor, rank: int) -> Tensor:
    """A vector over channels as [1, C, 1, ...]."""
    shape = (1, tensor.size, *(1,) * (rank - 2))
    return Tensor(tensor.buffer, shape, row_major(shape), tensor.dtype, tensor.offset)


def batch_normalization(
    b: Lowering, outputs: Sequence[ir.Value], operands: Sequence[ir.Value], epsilon: float, momentum: float
) -> None:
    """Training form: normalise by the batch, move the running statistics.

    Sums are taken of x − x₀ with x₀ a channel's first element, so that a mean far from 0 costs no digits.
    """
    x, scale, bias, running_mean, running_var = operands
    source = _normalized_layout(b, x)
    sizes, strides = _channels_last(source)
    channels = sizes[-1]
    first = (*(0,) * (len(sizes) - 1), 1)
    shifted = operand(0) - operand(1)
    count = prod(sizes[:-1])
    inverse_count = constant(1.0 / count)
    offset = operand(0) * inverse_count
    mean = operand(2) + offset
    var = (operand(1) * inverse_count - offset * offset).apply("max", 0.0)
    inverse = (var + epsilon).apply("sqrt").apply("reciprocal")
    slope = operand(3) * inverse
    keep = [_vector(b, channels) for _ in range(4)]
    start = Tensor(source.buffer, (channels,), (1,), source.dtype, source.offset)
    more = [start, b.plain(scale), b.plain(bias), b.plain(running_mean), b.plain(running_var)]
    results, finals = list(keep), [mean, inverse, slope, operand(4) - mean * slope]
    if len(outputs) > 1:
        results.append(b.new_plain(outputs[1]))
        finals.append(operand(5) * momentum + mean * (1 - momentum))
    if len(outputs) > 2:
        results.append(b.new_plain(outputs[2]))
        finals.append(operand(6) * momentum + var * (1 - momentum))
    pair = [(source, strides), (source, first)]
    _reduce(b, sizes, pair, [shifted, shifted * shifted], more, results, finals)
    b.statistics[x, epsilon] = (keep[0], keep[1])
    rank = len(source.shape)
    views = [_channel_view(t, rank) for t in (keep[2], keep[3])]
    target = b.new(outputs[0])
    expression = operand(0) * operand(1) + operand(2)
    b.elements(source.shape, [source, *views], [target], [expression])


def batch_normalization_gradient(
    b: Lowering, outputs: Sequence[ir.Value], dy: ir.Value, x: ir.Value, scale: ir.Value, epsilon: float
) -> None:
    """dX = scale σ⁻¹ (dY − dB / m − x̂ dscale / m), with the statistics of the forward pass."""
    if (x, epsilon) not in b.statistics:
        b.decline("the graph has no BatchNormalization of the same operand")
    source, gradient = _normalized_layout(b, x), _normalized_layout(b, dy)
    mean, inverse = b.statistics[x, epsilon]
    sizes, strides = _channels_last(source)
    _, gradient_strides = _channels_last(gradient)
    per_channel = (*(0,) * (len(sizes) - 1), 1)
    channels = sizes[-1]
    share = 1.0 / prod(sizes[:-1])
    dscale = operand(1) * operand(3)
    slope = operand(4) * operand(3)
    by_x = -(slope * operand(3) * dscale * share)
    shift = -(slope * operand(0) * share) - by_x * operand(2)
    coefficients = [_vector(b, channels) for _ in range(3)]
    results, finals = list(coefficients), [slope, by_x, shift]
    for value, expression in zip(outputs[1:], (dscale, operand(0)), strict=False):
        results.append(b.new_plain(value))
        finals.append(expression)
    _reduce(
        b,
        sizes,
        [(gradient, gradient_strides), (source, strides), (mean, per_channel)],
        [operand(0), operand(0) * (operand(1) - operand(2))],
        [mean, inverse, b.plain(scale)],
        results,
        finals,
    )
    rank = len(source.shape)
    views = [_channel_view(t, rank) for t in coefficients]
    expression = operand(0) * operand(2) + (operand(1) * operand(3) + operand(4))
    b.elements(source.shape, [gradient, source, *views], [b.new(outputs[0])], [expression])


def inference_normalization(b: Lowering, y: ir.Value, operands: Sequence[ir.Value], epsilon: float) -> None:
    """y = a x + c per channel; a and c follow from the weights once."""
    x, scale, bias, mean, var = operands
    source = _normalized_layout(b, x)
    channels = b.shape(scale)[0]
    slope, shift = _vector(b, channels), _vector(b, channels)
    inverse = (operand(3) + epsilon).apply("sqrt").apply("reciprocal")
    weights = [b.plain(v) for v in (scale, bias, mean, var)]
    found = operand(0) * inverse
    b.elements((channels,), weights, [slope, shift], [found, operand(1) - operand(2) * found])
    views = [_channel_view(t, len(source.shape)) for t in (slope, shift)]
    b.elements(source.shape, [source, *views], [b.new(y)], [operand(0) * operand(1) + operand(2)])


def cross_entropy(
    b: Lowering, outputs: Sequence[ir.Value], scores: ir.Value, labels: ir.Value, smoothing: float, mean: bool
) -> None:
    """Softmax cross-entropy of [N, C] against labels [N], and the logarithms of the probabilities."""
    n, classes = b.shape(scores)
    b.require_float(scores)
    b.require_elements(scores)
    source, label = b.plain(scores), b.plain(labels)
    x, wanted, column = operand(0), operand(1), operand(2)
    highest, log_sum, at_label = operand(3), operand(4), operand(5)
    passes = [
        ("max", x, None),
        ("sum", (x - highest).apply("exp"), operand(4).apply("log")),
        ("sum", column.apply("eq", wanted).apply("select", x - highest, 0.0), None),
    ]
    each = log_sum - at_label
    if smoothing:
        passes.append(("sum", x - highest, None))
        each = each * (1 - smoothing) + (log_sum - operand(6) * (1.0 / classes)) * smoothing
    each_loss = Tensor(b.scratch(n), (n,), (1,), source.dtype)
    target = b.new_plain(outputs[1]) if len(outputs) > 1 else None
    spec = Rows(
        classes,
        (Operand((classes, 1)), Operand((1, 0), label.dtype.name)),
        tuple(passes),
        () if target is None else ((Operand((classes, 1)), x - highest - log_sum),),
        (("float32", each),),
    )
    slots: dict[str, Slot] = {"x0": source, "x1": label, "r0": each_loss, "batch": n}
    writes = [each_loss]
    if target is not None:
        slots["y0"] = target
        writes.append(target)
    b.call(_rows(spec, b.target, "cross_entropy"), slots, reads=[source, label], writes=writes, batch=n)
    final = operand(0) * operand(1) if mean else operand(0)
    more = [b.constant(np.array(1.0 / n, np.float32))] if mean else []
    loss = b.new_plain(outputs[0])
    _reduce(b, (1, n), [(each_loss, (n, 1))], [operand(0)], more, [loss], [final], everything=True)


def cross_entropy_gradient(
    b: Lowering,
    y: ir.Value,
    dloss: ir.Value,
    log_prob: ir.Value,
    labels: ir.Value,
    smoothing: float,
    mean: bool,
) -> None:
    """(p − target) dloss / N."""
    n, classes = b.shape(log_prob)
    b.require_float(log_prob, dloss)
    b.require_elements(log_prob)
    tensors = [b.plain(log_prob), b.plain(labels), b.plain(dloss)]
    tensors.append(b.constant(np.array(1.0 / n if mean else 1.0, np.float32)))
    column = operand(4)
    hot = column.apply("eq", operand(1)).apply("select", 1.0 - smoothing, 0.0)
    expression = (operand(0).apply("exp") - hot - smoothing / classes) * (operand(2) * operand(3))
    spec = Rows(
        classes,
        (Operand((classes, 1)), Operand((1, 0), tensors[1].dtype.name), Operand((0, 0)), Operand((0, 0))),
        (),
        ((Operand((classes, 1)), expression),),
    )
    target = b.new_plain(y)
    slots: dict[str, Slot] = {f"x{i}": t for i, t in enumerate(tensors)}
    slots |= {"y0": target, "batch": n}
    b.call(_rows(spec, b.target, "cross_entropy_gradient"), slots, reads=tensors, writes=[target], batch=n)
