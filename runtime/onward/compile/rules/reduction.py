"""Sums over axes, batch normalization, softmax cross-entropy: what column and row reductions make."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onward.compile.kernels import norm
from onward.compile.kernels import reduce as kernels
from onward.compile.kernels import rows as row_kernels
from onward.compile.kernels.element import Operand
from onward.compile.kernels.expression import Expression, operand
from onward.compile.kernels.reduce import Columns, Finish
from onward.compile.kernels.rows import Rows
from onward.compile.tensors import Tensor

if TYPE_CHECKING:
    from onward.compile.lowering import Lowering, Slot

__all__ = [
    "batch_coefficients",
    "cross_entropy",
    "cross_entropy_gradient",
    "fixed_coefficients",
    "gradient_coefficients",
    "reduce_to_columns",
]

_columns = functools.lru_cache(512)(kernels.reduce_columns)
_finish = functools.lru_cache(512)(kernels.finish_columns)
_rows = functools.lru_cache(512)(row_kernels.rows_kernel)


def reduce_to_columns(
    b: Lowering,
    sizes: Sequence[int],
    operands: Sequence[tuple[Tensor, tuple[int, ...]]],
    expressions: Sequence[Expression],
    more: Sequence[Tensor],
    results: Sequence[Tensor],
    finals: Sequence[Expression],
    everything: bool = False,
    how: str = "sum",
) -> None:
    """Combine expressions over [batch, *shape] to columns; results are `finals` of those and `more`."""
    spec = Columns(
        tuple(sizes[1:]),
        tuple(Operand(s, t.dtype.name) for t, s in operands),
        tuple(expressions),
        (how,) * len(expressions),
        everything,
    )
    width = 0 if everything else 1
    finish = Finish(
        tuple(0 if t.size == 1 and not (width and spec.shape[-1] == 1) else 1 for t in more),
        (width,) * len(results),
        tuple(finals),
    )
    _reduced(b, sizes, spec, operands, finish, more, results)


def _reduced(
    b: Lowering,
    sizes: Sequence[int],
    spec: Columns,
    operands: Sequence[tuple[Tensor, tuple[int, ...]]],
    finish: Finish,
    more: Sequence[Tensor],
    results: Sequence[Tensor],
) -> None:
    """Each thread's share, then the whole in thread order."""
    partial = b.scratch(kernels.partial_size(spec, b.target, b.threads))
    tensors = [t for t, _ in operands]
    slots: dict[str, Slot] = {f"x{i}": t for i, t in enumerate(tensors)}
    slots |= {"partial": partial, "batch": sizes[0]}
    b.call(_columns(spec, b.target), slots, reads=tensors, writes=[partial], batch=sizes[0])
    slots = {"partial": partial, "parts": b.threads}
    slots |= {f"x{i}": t for i, t in enumerate(more)} | {f"y{i}": t for i, t in enumerate(results)}
    b.call(_finish(spec, finish, b.target), slots, reads=[partial, *more], writes=results)


def _channels_last(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides with the channel axis last."""
    order = (0, *range(2, len(tensor.shape)), 1)
    return tuple(tensor.shape[a] for a in order), tuple(tensor.strides[a] for a in order)


def _vector(b: Lowering, channels: int) -> Tensor:
    return Tensor(b.scratch(channels), (channels,), (1,), np.dtype(np.float32))


def _normalized_layout(b: Lowering, x: ir.Value) -> Tensor:
    b.require_float(x)
    b.require_elements(x)
    if not b.has_image(x) and len(b.shape(x)) != 2:
        b.decline("normalization of a value that is not kept channels-last")
    return b.either(x)


def batch_coefficients(
    b: Lowering, outputs: Sequence[ir.Value], operands: Sequence[ir.Value], epsilon: float, momentum: float
) -> None:
    """Slope, shift, mean, σ⁻¹ and running statistics of batch normalization in training."""
    x, scale, bias, running_mean, running_var = operands
    source = _normalized_layout(b, x)
    sizes, strides = _channels_last(source)
    first = (*(0,) * (len(sizes) - 1), 1)
    shape = sizes[1:]
    columns = norm.statistics(shape, Operand(strides))
    finish = norm.forward_finish(epsilon, momentum)
    start = Tensor(source.buffer, (sizes[-1],), (1,), source.dtype, source.offset)
    count = b.constant(np.array(prod(sizes[:-1]), np.float32))
    more = [start, count, *(b.plain(v) for v in (scale, bias, running_mean, running_var))]
    # the kernel's order: mean, inverse, slope, shift, new running mean and variance
    slope, shift, mean, inverse, *moved = [b.new_plain(v) for v in outputs]
    moved += [_vector(b, sizes[-1]) for _ in range(2 - len(moved))]
    results = [mean, inverse, slope, shift, *moved]
    _reduced(b, sizes, columns, [(source, strides), (source, first)], finish, more, results)


def gradient_coefficients(b: Lowering, outputs: Sequence[ir.Value], operands: Sequence[ir.Value]) -> None:
    """a, b and c of dX = a dY + b X + c, and the gradients of scale and bias."""
    dy, x, mean, inverse, scale = operands
    b.require_float(dy)
    _normalized_layout(b, x)
    read = b.expressed(dy, x)
    sizes = read.sizes
    per_channel = (*(0,) * (len(sizes) - 1), 1)
    pairs = [*zip(read.tensors, read.strides, strict=True), (b.plain(mean), per_channel)]
    columns = norm.backward_sums(
        sizes[1:], tuple(Operand(s, t.dtype.name) for t, s in pairs), *read.expressions
    )
    count = b.constant(np.array(prod(sizes[:-1]), np.float32))
    more = [count, b.plain(scale), b.plain(inverse), b.plain(mean)]
    found = [b.new_plain(v) for v in outputs]
    found += [_vector(b, sizes[-1]) for _ in range(5 - len(found))]
    # the kernel's order: gradients of scale and bias, then the coefficients
    results = [found[3], found[4], *found[:3]]
    _reduced(b, sizes, columns, pairs, norm.backward_finish(), more, results)


def fixed_coefficients(
    b: Lowering, outputs: Sequence[ir.Value], weights: Sequence[ir.Value], epsilon: float
) -> None:
    """Slope and shift of batch normalization by running statistics; once for given weights."""
    b.require_float(*weights)
    tensors = [b.plain(v) for v in weights]
    channels = tensors[0].shape
    slope, shift = (replace(b.new_plain(v), shape=channels, strides=(1,)) for v in outputs)
    found = operand(0) * (operand(3) + epsilon).apply("sqrt").apply("reciprocal")
    b.elements(channels, tensors, [slope, shift], [found, operand(1) - operand(2) * found])


def cross_entropy(
    b: Lowering, outputs: Sequence[ir.Value], scores: ir.Value, labels: ir.Value, smoothing: float, mean: bool
) -> None:
    """Softmax cross-entropy of [N, C] against labels [N], and the logarithms of the probabilities."""
    n, classes = b.shape(scores)
    b.require_float(scores)
    b.require_elements(scores)
    if b.shape(labels) != (n,):
        b.decline(f"{n} rows of scores for labels {b.shape(labels)}")
    source, label = b.plain(scores), b.plain(labels)
    b.check_indices(label, classes, low=0, what="label")
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
    reduce_to_columns(b, (1, n), [(each_loss, (n, 1))], [operand(0)], more, [loss], [final], everything=True)


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
