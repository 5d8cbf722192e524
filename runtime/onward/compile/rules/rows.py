"""Work along some axes, one row at a time: reductions, softmax, layer and group normalization, positions.

The axes may be any: where they are not the innermost ones in memory, the operand is first copied so that they
are, and a result of the operand's shape is a view on the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod

import onnx_ir as ir

from onward.compile.context import Context, Queries
from onward.compile.items import Slot
from onward.compile.kernels import rows as kernels
from onward.compile.kernels.element import Operand
from onward.compile.kernels.expression import Expression, operand
from onward.compile.kernels.rows import Rows
from onward.compile.registry import lowers
from onward.compile.rules.element import elements
from onward.compile.rules.reduction import reduce_to_columns
from onward.compile.tensors import Buffer, Tensor, gapless, permuted, reshaped, row_major
from onward.graph import requests

__all__ = ["rows_call"]

_rows = functools.lru_cache(512)(kernels.rows_kernel)

Pass = tuple[str, Expression, Expression | None]


def _axes(axes: Sequence[int], rank: int) -> list[int]:
    return sorted({a % rank for a in axes}) if axes else list(range(rank))


def _order(axes: Sequence[int], rank: int) -> list[int]:
    """All other axes, then these."""
    return [a for a in range(rank) if a not in axes] + list(axes)


def _as_rows(c: Context, x: Tensor, axes: Sequence[int]) -> Tensor:
    """[rows, columns] with the elements along `axes` next to each other, copied if need be."""
    order = _order(axes, len(x.shape))
    transposed = permuted(x, order)
    columns = prod(x.shape[a] for a in axes)
    shape = (x.size // columns, columns)
    view = reshaped(transposed, shape)
    if view is not None and (view.strides[1] == 1 or columns == 1):
        return view
    target = Tensor(Buffer(x.nbytes), transposed.shape, row_major(transposed.shape), x.dtype)
    c.copy(transposed, target)
    return gapless(target, shape)


def _new_rows(c: Context, y: ir.Value, axes: Sequence[int]) -> Tensor:
    """Memory for a result as [rows, columns], columns along `axes`."""
    shape = c.shape(y)
    order = _order(axes, len(shape))
    columns = prod(shape[a] for a in axes)
    rows = (prod(shape) // columns, columns)
    if order == list(range(len(shape))) and not c.has_image(y):
        return gapless(c.new_plain(y), rows)
    transposed = [shape[a] for a in order]
    strides = [0] * len(shape)
    for axis, step in zip(order, row_major(transposed), strict=True):
        strides[axis] = step
    buffer = Buffer(c.dtype(y).itemsize * prod(shape))
    c.alias(y, Tensor(buffer, shape, tuple(strides), c.dtype(y)))
    return Tensor(buffer, rows, row_major(rows), c.dtype(y))


def rows_call(
    c: Context,
    name: str,
    operands: Sequence[tuple[Tensor, tuple[int, int]]],
    columns: int,
    batch: int,
    passes: Sequence[Pass],
    results: Sequence[tuple[Tensor, Expression]] = (),
    row_results: Sequence[tuple[Tensor, Expression]] = (),
) -> None:
    spec = Rows(
        columns,
        tuple(Operand(s, t.dtype.name) for t, s in operands),
        tuple(passes),
        tuple((Operand((t.strides[0], 1), t.dtype.name), e) for t, e in results),
        tuple((t.dtype.name, e) for t, e in row_results),
        operands[0][0].dtype.name,
    )
    slots: dict[str, Slot] = {f"x{i}": t for i, (t, _) in enumerate(operands)}
    slots |= {f"y{i}": t for i, (t, _) in enumerate(results)}
    slots |= {f"r{i}": t for i, (t, _) in enumerate(row_results)} | {"batch": batch}
    c.call(_rows(spec, c.target, name), slots, batch=batch)


def _both(tensor: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """An operand [rows, columns]."""
    return tensor, (tensor.strides[0] if tensor.shape[0] > 1 else tensor.shape[1], 1)


def _reduction_unsuited(q: Queries, request: requests.Reduction) -> str | None:
    return q.not_floats(request.x) or q.empty(request.x)


@lowers(requests.Reduction, suits=_reduction_unsuited)
def reduction(c: Context, request: requests.Reduction) -> None:
    """To columns where the axes are the outer ones in memory, or all; else along rows."""
    x, y, how, before, after = request.x, request.y, request.how, request.before, request.after
    source = c.present(x)
    rank = len(source.shape)
    named = _axes(request.axes, rank)
    count = prod(source.shape[a] for a in named)
    final = after(operand(0), count)
    if len(named) == rank:
        if source.image is None or not source.image.contiguous:
            source = c.either(x)
        sizes, strides = _everything(source)
        pair = [(source, strides)]
        target = c.new_plain(y)
        reduce_to_columns(
            c, sizes, pair, [before(operand(0))], [], [target], [final], everything=True, how=how
        )
        return
    if named == list(range(len(named))) or (named == [0, *range(2, rank)] and c.has_image(x)):
        channels = named != list(range(len(named)))
        source = c.image(x) if channels else c.plain(x)
        if channels:
            order = [*named, 1]
            sizes = tuple(source.shape[a] for a in order)
            strides = tuple(source.strides[a] for a in order)
        else:
            columns = source.size // count
            sizes, strides = (count, columns), (columns, 1)
        reduce_to_columns(
            c, sizes, [(source, strides)], [before(operand(0))], [], [c.new_plain(y)], [final], how=how
        )
        return
    rows = _as_rows(c, source, named)
    target = c.new_plain(y)
    passes: list[Pass] = [(how, before(operand(0)), None)]
    rows_call(
        c,
        "reduce_rows",
        [_both(rows)],
        count,
        rows.shape[0],
        passes,
        (),
        [(target, after(operand(2), count))],
    )


def _everything(source: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides of all elements, the last axis without gaps."""
    if source.plain:
        return (1, source.size), (source.size, 1)
    order = (0, *range(2, len(source.shape)), 1)
    return tuple(source.shape[a] for a in order), tuple(source.strides[a] for a in order)


def _position_unsuited(q: Queries, request: requests.Position) -> str | None:
    if reason := q.not_floats(request.x) or q.empty(request.x):
        return reason
    shape = q.shape(request.x)
    if shape[request.axis % len(shape)] >= 1 << 24:
        return "positions that float32 does not tell apart"
    return None


@lowers(requests.Position, suits=_position_unsuited)
def position(c: Context, request: requests.Position) -> None:
    """The extreme of each row, then the least or greatest position that has it."""
    source = c.present(request.x)
    axes = _axes((request.axis,), len(source.shape))
    columns = source.shape[axes[0]]
    rows = _as_rows(c, source, axes)
    element, column, extreme = operand(0), operand(1), operand(2)
    here = element.apply("eq", extreme).apply("or", element.apply("ne", element))
    if request.last:
        chosen: Pass = ("max", here.apply("select", column, -1.0), None)
    else:
        chosen = ("min", here.apply("select", column, float(columns)), None)
    target = c.new_plain(request.y)
    passes: list[Pass] = [(request.how, element, None), chosen]
    results = [(target, operand(3))]
    rows_call(c, "position", [_both(rows)], columns, rows.shape[0], passes, (), results)


def _softmax_unsuited(q: Queries, request: requests.Softmax) -> str | None:
    return q.not_floats(request.x) or q.empty(request.x)


@lowers(requests.Softmax, suits=_softmax_unsuited)
def softmax(c: Context, request: requests.Softmax) -> None:
    """The largest element of each row, the sum, the quotients."""
    source, y, logarithm = c.present(request.x), request.y, request.logarithm
    axes = _axes(request.axes, len(source.shape))
    rows = _as_rows(c, source, axes)
    target = _new_rows(c, y, axes)
    element, highest, total = operand(0), operand(2), operand(3)
    shifted = element - highest
    passes: list[Pass] = [
        ("max", element, None),
        ("sum", shifted.apply("exp"), operand(3).apply("log") if logarithm else None),
    ]
    result = shifted - total if logarithm else shifted.apply("exp") / total
    name = "log_softmax" if logarithm else "softmax"
    rows_call(c, name, [_both(rows)], rows.shape[1], rows.shape[0], passes, [(target, result)])


def _per_column_unsuited(q: Queries, columns: int, *values: ir.Value | None) -> str | None:
    for value in values:
        if value is not None and prod(q.shape(value)) not in (1, columns):
            return f"{value.name} has neither one element nor {columns}"
    return None


def _per_column(c: Context, value: ir.Value, columns: int) -> tuple[Tensor, tuple[int, int]]:
    """A vector over columns, or one value for all of them."""
    tensor = c.plain(value)
    return tensor, (0, 1 if tensor.size == columns else 0)


def _last_axes(q: Queries, x: ir.Value, axis: int) -> tuple[list[int], int]:
    """The axes from `axis` on, and how many elements they have."""
    shape = q.shape(x)
    axes = list(range(axis % len(shape), len(shape)))
    return axes, prod(shape[a] for a in axes)


def _statistics(first: int, columns: int, epsilon: float) -> tuple[list[Pass], Expression, Expression]:
    """Passes that give the mean and inverse deviation of operand 0 as operands `first` and `first` + 1."""
    mean, inverse = operand(first), operand(first + 1)
    distance = operand(0) - mean
    share = 1.0 / columns
    passes: list[Pass] = [
        ("sum", operand(0), mean * share),
        ("sum", distance * distance, (inverse * share + epsilon).apply("sqrt").apply("reciprocal")),
    ]
    return passes, mean, inverse


def _layer_unsuited(q: Queries, request: requests.LayerNormalization) -> str | None:
    x, scale, bias = request.x, request.scale, request.bias
    if reason := q.not_floats(x, scale, bias, *request.outputs) or q.empty(x):
        return reason
    _, columns = _last_axes(q, x, request.axis)
    return _per_column_unsuited(q, columns, scale, bias)


@lowers(requests.LayerNormalization, suits=_layer_unsuited)
def layer_normalization(c: Context, request: requests.LayerNormalization) -> None:
    """The statistics stay for the gradient."""
    x, bias, outputs, epsilon = request.x, request.bias, request.outputs, request.epsilon
    values = [x, request.scale] if bias is None else [x, request.scale, bias]
    axes, columns = _last_axes(c, x, request.axis)
    weights = [_per_column(c, v, columns) for v in values[1:]]
    rows = _as_rows(c, c.present(x), axes)
    count = rows.shape[0]
    passes, mean, inverse = _statistics(len(values) + 1, columns, epsilon)
    result = (operand(0) - mean) * inverse * operand(1)
    if bias is not None:
        result = result + operand(2)
    target = _new_rows(c, outputs[0], axes)
    kept = [c.new_plain(v) for v in outputs[1:3]]
    kept += [c.vector(count, c.dtype(x)) for _ in range(2 - len(kept))]
    c.keep(("row statistics", x, axes[0], epsilon), (kept[0], kept[1]))
    found = list(zip(kept, (mean, inverse), strict=True))
    operands = [_both(rows), *weights]
    rows_call(c, "layer_norm", operands, columns, count, passes, [(target, result)], found)


def _layer_gradient_unsuited(q: Queries, request: requests.LayerNormalizationGradient) -> str | None:
    dy, x, scale = request.dy, request.x, request.scale
    if reason := q.not_floats(dy, x, scale) or q.empty(x):
        return reason
    _, columns = _last_axes(q, x, request.axis)
    return _per_column_unsuited(q, columns, scale)


@lowers(requests.LayerNormalizationGradient, suits=_layer_gradient_unsuited)
def layer_normalization_gradient(c: Context, request: requests.LayerNormalizationGradient) -> None:
    """With the forward pass's statistics where the graph has them."""
    dy, x, scale = request.dy, request.x, request.scale
    outputs, epsilon = request.outputs, request.epsilon
    axes, columns = _last_axes(c, x, request.axis)
    weight = _per_column(c, scale, columns)
    source, gradient = (_as_rows(c, c.present(v), axes) for v in (x, dy))
    count = source.shape[0]
    kept: tuple[Tensor, Tensor] | None = c.kept(("row statistics", x, axes[0], epsilon))
    if kept is None:
        passes, mean, inverse = _statistics(2, columns, epsilon)
        kept = (c.vector(count, c.dtype(x)), c.vector(count, c.dtype(x)))
        found = list(zip(kept, (mean, inverse), strict=True))
        rows_call(c, "layer_norm_statistics", [_both(source)], columns, count, passes, (), found)
    normalized = (operand(1) - operand(3)) * operand(4)
    scaled = operand(0) * operand(2)
    share = 1.0 / columns
    result = (scaled - operand(6) - normalized * operand(7)) * operand(4)
    target = _new_rows(c, outputs[0], axes)
    operands = [_both(gradient), _both(source), weight, *((t, (1, 0)) for t in kept)]
    means: list[Pass] = [
        ("sum", scaled, operand(6) * share),
        ("sum", scaled * normalized, operand(7) * share),
    ]
    rows_call(c, "layer_norm_gradient", operands, columns, count, means, [(target, result)])
    if len(outputs) > 1:
        normalized = (operand(1) - operand(2)) * operand(3)
        sums = [operand(0) * normalized, operand(0)][: len(outputs) - 1]
        reduce_to_columns(
            c,
            (count, columns),
            [_both(gradient), _both(source), *((t, (1, 0)) for t in kept)],
            sums,
            [],
            [c.new_plain(v) for v in outputs[1:]],
            [operand(i) for i in range(len(sums))],
        )


def _rms_unsuited(q: Queries, request: requests.RMSNormalization) -> str | None:
    if reason := q.not_floats(request.x, request.scale) or q.empty(request.x):
        return reason
    _, columns = _last_axes(q, request.x, request.axis)
    return _per_column_unsuited(q, columns, request.scale)


@lowers(requests.RMSNormalization, suits=_rms_unsuited)
def rms_normalization(c: Context, request: requests.RMSNormalization) -> None:
    """The mean of the squares of each row, then the quotients."""
    x, y, scale, epsilon = request.x, request.y, request.scale, request.epsilon
    axes, columns = _last_axes(c, x, request.axis)
    weight = _per_column(c, scale, columns)
    rows = _as_rows(c, c.present(x), axes)
    root = (operand(3) * (1.0 / columns) + epsilon).apply("sqrt")
    result = operand(0) / operand(3) * operand(1)
    passes: list[Pass] = [("sum", operand(0) * operand(0), root)]
    target = _new_rows(c, y, axes)
    rows_call(c, "rms_norm", [_both(rows), weight], columns, rows.shape[0], passes, [(target, result)])


def _group_unsuited(q: Queries, request: requests.GroupNormalization) -> str | None:
    return q.not_floats(request.x, request.scale, request.bias) or q.empty(request.x)


@lowers(requests.GroupNormalization, suits=_group_unsuited)
def group_normalization(c: Context, request: requests.GroupNormalization) -> None:
    """The statistics of rows, then an element-wise pass."""
    x, y, scale, bias = request.x, request.y, request.scale, request.bias
    groups, epsilon = request.groups, request.epsilon
    n, channels, *spatial = c.shape(x)
    source = c.plain(x)
    columns = source.size // (n * groups)
    rows = gapless(source, (n * groups, columns))
    mean, inverse = c.vector(n * groups, source.dtype), c.vector(n * groups, source.dtype)
    passes, *found = _statistics(2, columns, epsilon)
    kept = list(zip((mean, inverse), found, strict=True))
    rows_call(c, "group_norm_statistics", [_both(rows)], columns, n * groups, passes, (), kept)
    shape = (n, groups, channels // groups, prod(spatial))
    over_groups, over_channels = (n, groups, 1, 1), (1, groups, channels // groups, 1)
    operands = [gapless(source, shape)]
    operands += [gapless(t, over_groups) for t in (mean, inverse)]
    for value in (scale, bias):
        operands.append(gapless(c.plain(value), over_channels))
    target = gapless(c.new_plain(y), shape)
    result = (operand(0) - operand(1)) * operand(2) * operand(3) + operand(4)
    elements(c, shape, operands, [target], [result])
