"""Work along some axes, one row at a time: reductions, softmax, layer and group normalization, positions.

The axes may be any: where they are not the innermost ones in memory, the operand is first copied so that they
are, and a result of the operand's shape is a window on the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onward.compile.kernels import rows as kernels
from onward.compile.kernels.element import Operand
from onward.compile.kernels.expression import Expression, operand
from onward.compile.kernels.rows import Rows
from onward.compile.rules.reduction import reduce_to_columns
from onward.compile.tensors import Buffer, Tensor, reshaped, row_major

if TYPE_CHECKING:
    from onward.compile.lowering import Lowering, Slot

__all__ = [
    "arg_extreme",
    "group_normalization",
    "layer_normalization",
    "layer_normalization_gradient",
    "reduction",
    "rms_normalization",
    "softmax",
]

_FLOAT = np.dtype(np.float32)
_rows = functools.lru_cache(512)(kernels.rows_kernel)

Pass = tuple[str, Expression, Expression | None]


def _axes(axes: Sequence[int], rank: int) -> list[int]:
    return sorted({a % rank for a in axes}) if axes else list(range(rank))


def _order(axes: Sequence[int], rank: int) -> list[int]:
    """All other axes, then these."""
    return [a for a in range(rank) if a not in axes] + list(axes)


def _as_rows(b: Lowering, x: Tensor, axes: Sequence[int]) -> Tensor:
    """[rows, columns] with the elements along `axes` next to each other, copied if need be."""
    order = _order(axes, len(x.shape))
    turned = replace(
        x, shape=tuple(x.shape[a] for a in order), strides=tuple(x.strides[a] for a in order), image=None
    )
    columns = prod(x.shape[a] for a in axes)
    shape = (x.size // columns, columns)
    window = reshaped(turned, shape)
    if window is not None and (window.strides[1] == 1 or columns == 1):
        return window
    target = Tensor(Buffer(x.nbytes), turned.shape, row_major(turned.shape), x.dtype)
    b.copy(turned, target)
    return replace(target, shape=shape, strides=row_major(shape))


def _new_rows(b: Lowering, y: ir.Value, axes: Sequence[int]) -> Tensor:
    """Memory for a result as [rows, columns], columns along `axes`."""
    shape = b.shape(y)
    order = _order(axes, len(shape))
    columns = prod(shape[a] for a in axes)
    rows = (prod(shape) // columns, columns)
    if order == list(range(len(shape))) and not b.has_image(y):
        return replace(b.new_plain(y), shape=rows, strides=row_major(rows))
    turned = [shape[a] for a in order]
    strides = [0] * len(shape)
    for axis, step in zip(order, row_major(turned), strict=True):
        strides[axis] = step
    buffer = Buffer(4 * prod(shape))
    b.alias(y, Tensor(buffer, shape, tuple(strides), _FLOAT))
    return Tensor(buffer, rows, row_major(rows), _FLOAT)


def _call(
    b: Lowering,
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
        tuple((Operand((t.strides[0], 1)), e) for t, e in results),
        tuple((t.dtype.name, e) for t, e in row_results),
    )
    slots: dict[str, Slot] = {f"x{i}": t for i, (t, _) in enumerate(operands)}
    slots |= {f"y{i}": t for i, (t, _) in enumerate(results)}
    slots |= {f"r{i}": t for i, (t, _) in enumerate(row_results)} | {"batch": batch}
    reads = [t for t, _ in operands]
    writes = [t for t, _ in (*results, *row_results)]
    b.call(_rows(spec, b.target, name), slots, reads=reads, writes=writes, batch=batch)


def _both(tensor: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """An operand [rows, columns]."""
    return tensor, (tensor.strides[0] if tensor.shape[0] > 1 else tensor.shape[1], 1)


def reduction(
    b: Lowering,
    y: ir.Value,
    x: ir.Value,
    axes: Sequence[int],
    how: str,
    before: Callable[[Expression], Expression] = lambda e: e,
    after: Callable[[Expression, int], Expression] = lambda e, n: e,
) -> None:
    """y = after(`how` of before(x) over axes, their number of elements); no axes are all of them."""
    b.require_float(x)
    b.require_elements(x)
    source = b.present(x)
    rank = len(source.shape)
    named = _axes(axes, rank)
    count = prod(source.shape[a] for a in named)
    final = after(operand(0), count)
    if len(named) == rank:
        if source.image is None or not source.image.contiguous:
            source = b.either(x)
        sizes, strides = _everything(source)
        pair = [(source, strides)]
        target = b.new_plain(y)
        reduce_to_columns(
            b, sizes, pair, [before(operand(0))], [], [target], [final], everything=True, how=how
        )
        return
    if named == list(range(len(named))) or (named == [0, *range(2, rank)] and b.has_image(x)):
        channels = named != list(range(len(named)))
        source = b.image(x) if channels else b.plain(x)
        if channels:
            order = [*named, 1]
            sizes = tuple(source.shape[a] for a in order)
            strides = tuple(source.strides[a] for a in order)
        else:
            columns = source.size // count
            sizes, strides = (count, columns), (columns, 1)
        reduce_to_columns(
            b, sizes, [(source, strides)], [before(operand(0))], [], [b.new_plain(y)], [final], how=how
        )
        return
    rows = _as_rows(b, source, named)
    target = b.new_plain(y)
    passes: list[Pass] = [(how, before(operand(0)), None)]
    _call(
        b,
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


def arg_extreme(b: Lowering, y: ir.Value, x: ir.Value, axis: int, how: str, *, last: bool = False) -> None:
    """The position of the largest ("max") or smallest ("min") element; the first NaN counts as it."""
    b.require_float(x)
    b.require_elements(x)
    source = b.present(x)
    axes = _axes((axis,), len(source.shape))
    columns = source.shape[axes[0]]
    if columns >= 1 << 24:
        b.decline("positions that float32 does not tell apart")
    rows = _as_rows(b, source, axes)
    element, column, extreme = operand(0), operand(1), operand(2)
    here = element.apply("eq", extreme).apply("or", element.apply("ne", element))
    if last:
        chosen: Pass = ("max", here.apply("select", column, -1.0), None)
    else:
        chosen = ("min", here.apply("select", column, float(columns)), None)
    target = b.new_plain(y)
    _call(
        b,
        "position",
        [_both(rows)],
        columns,
        rows.shape[0],
        [(how, element, None), chosen],
        (),
        [(target, operand(3))],
    )


def softmax(b: Lowering, y: ir.Value, x: ir.Value, axes: Sequence[int], *, logarithm: bool = False) -> None:
    """exp(x) / Σ exp(x), or its logarithm, the sum over axes."""
    b.require_float(x)
    b.require_elements(x)
    source = b.present(x)
    axes = _axes(axes, len(source.shape))
    rows = _as_rows(b, source, axes)
    target = _new_rows(b, y, axes)
    element, highest, total = operand(0), operand(2), operand(3)
    shifted = element - highest
    passes: list[Pass] = [
        ("max", element, None),
        ("sum", shifted.apply("exp"), operand(3).apply("log") if logarithm else None),
    ]
    result = shifted - total if logarithm else shifted.apply("exp") / total
    name = "log_softmax" if logarithm else "softmax"
    _call(b, name, [_both(rows)], rows.shape[1], rows.shape[0], passes, [(target, result)])


def _per_column(b: Lowering, value: ir.Value, columns: int) -> tuple[Tensor, tuple[int, int]]:
    """A vector over columns, or one value for all of them."""
    tensor = b.plain(value)
    if tensor.size not in (1, columns):
        b.decline(f"{value.name} has neither one element nor {columns}")
    return tensor, (0, 1 if tensor.size == columns else 0)


def _vector(size: int) -> Tensor:
    return Tensor(Buffer(max(64, 4 * size)), (size,), (1,), _FLOAT)


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


def layer_normalization(
    b: Lowering,
    outputs: Sequence[ir.Value],
    x: ir.Value,
    scale: ir.Value,
    bias: ir.Value | None,
    axis: int,
    epsilon: float,
) -> None:
    """Y, and Mean and InvStdDev where they are named, over the axes from `axis` on."""
    values = [x, scale] if bias is None else [x, scale, bias]
    b.require_float(*values, *outputs)
    b.require_elements(x)
    rank = len(b.shape(x))
    axes = list(range(axis % rank, rank))
    columns = prod(b.shape(x)[a] for a in axes)
    weights = [_per_column(b, v, columns) for v in values[1:]]
    rows = _as_rows(b, b.present(x), axes)
    count = rows.shape[0]
    passes, mean, inverse = _statistics(len(values) + 1, columns, epsilon)
    result = (operand(0) - mean) * inverse * operand(1)
    if bias is not None:
        result = result + operand(2)
    target = _new_rows(b, outputs[0], axes)
    kept = [b.new_plain(v) for v in outputs[1:3]]
    kept += [_vector(count) for _ in range(2 - len(kept))]
    b.row_statistics[x, axes[0], epsilon] = (kept[0], kept[1])
    found = list(zip(kept, (mean, inverse), strict=True))
    operands = [_both(rows), *weights]
    _call(b, "layer_norm", operands, columns, count, passes, [(target, result)], found)


def layer_normalization_gradient(
    b: Lowering,
    outputs: Sequence[ir.Value],
    dy: ir.Value,
    x: ir.Value,
    scale: ir.Value,
    axis: int,
    epsilon: float,
) -> None:
    """dX, dScale and dB, with the forward pass's statistics where the graph has them."""
    b.require_float(dy, x, scale)
    b.require_elements(x)
    rank = len(b.shape(x))
    axes = list(range(axis % rank, rank))
    columns = prod(b.shape(x)[a] for a in axes)
    weight = _per_column(b, scale, columns)
    source, gradient = (_as_rows(b, b.present(v), axes) for v in (x, dy))
    count = source.shape[0]
    if (kept := b.row_statistics.get((x, axes[0], epsilon))) is None:
        passes, mean, inverse = _statistics(2, columns, epsilon)
        kept = (_vector(count), _vector(count))
        found = list(zip(kept, (mean, inverse), strict=True))
        _call(b, "layer_norm_statistics", [_both(source)], columns, count, passes, (), found)
    normalized = (operand(1) - operand(3)) * operand(4)
    scaled = operand(0) * operand(2)
    share = 1.0 / columns
    result = (scaled - operand(6) - normalized * operand(7)) * operand(4)
    target = _new_rows(b, outputs[0], axes)
    operands = [_both(gradient), _both(source), weight, *((t, (1, 0)) for t in kept)]
    means: list[Pass] = [
        ("sum", scaled, operand(6) * share),
        ("sum", scaled * normalized, operand(7) * share),
    ]
    _call(b, "layer_norm_gradient", operands, columns, count, means, [(target, result)])
    if len(outputs) > 1:
        normalized = (operand(1) - operand(2)) * operand(3)
        sums = [operand(0) * normalized, operand(0)][: len(outputs) - 1]
        reduce_to_columns(
            b,
            (count, columns),
            [_both(gradient), _both(source), *((t, (1, 0)) for t in kept)],
            sums,
            [],
            [b.new_plain(v) for v in outputs[1:]],
            [operand(i) for i in range(len(sums))],
        )


def rms_normalization(
    b: Lowering, y: ir.Value, x: ir.Value, scale: ir.Value, axis: int, epsilon: float
) -> None:
    """Y = X / sqrt(mean(X²) + epsilon) · scale."""
    b.require_float(x, scale)
    b.require_elements(x)
    rank = len(b.shape(x))
    axes = list(range(axis % rank, rank))
    columns = prod(b.shape(x)[a] for a in axes)
    weight = _per_column(b, scale, columns)
    rows = _as_rows(b, b.present(x), axes)
    root = (operand(3) * (1.0 / columns) + epsilon).apply("sqrt")
    result = operand(0) / operand(3) * operand(1)
    passes: list[Pass] = [("sum", operand(0) * operand(0), root)]
    target = _new_rows(b, y, axes)
    _call(b, "rms_norm", [_both(rows), weight], columns, rows.shape[0], passes, [(target, result)])


def group_normalization(
    b: Lowering, y: ir.Value, x: ir.Value, scale: ir.Value, bias: ir.Value, groups: int, epsilon: float
) -> None:
    """The statistics of each sample's groups of channels, then scale and bias of each channel."""
    b.require_float(x, scale, bias)
    b.require_elements(x)
    n, channels, *spatial = b.shape(x)
    source = b.plain(x)
    columns = source.size // (n * groups)
    rows = replace(source, shape=(n * groups, columns), strides=(columns, 1))
    mean, inverse = _vector(n * groups), _vector(n * groups)
    passes, *found = _statistics(2, columns, epsilon)
    kept = list(zip((mean, inverse), found, strict=True))
    _call(b, "group_norm_statistics", [_both(rows)], columns, n * groups, passes, (), kept)
    shape = (n, groups, channels // groups, prod(spatial))
    over_groups, over_channels = (n, groups, 1, 1), (1, groups, channels // groups, 1)
    operands = [replace(source, shape=shape, strides=row_major(shape))]
    operands += [replace(t, shape=over_groups, strides=row_major(over_groups)) for t in (mean, inverse)]
    for value in (scale, bias):
        operands.append(replace(b.plain(value), shape=over_channels, strides=row_major(over_channels)))
    target = replace(b.new_plain(y), shape=shape, strides=row_major(shape))
    result = (operand(0) - operand(1)) * operand(2) * operand(3) + operand(4)
    b.elements(shape, operands, [target], [result])
