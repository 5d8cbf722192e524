"""Which elements of an operator's operands lie so near a kink that rounding decides the side they are on.

At a kink an operator's slope, or its value, jumps: 0 for Relu, a limit for Clip, the largest rival for a
maximum. Gradient rules turn the side into a mask, so two sound runs whose roundings differ can part there by
far more than rounding. A `Units` lists such elements as pairs: an element of one operand, and what it is
compared with, which is a number or an element of an operand.

The rules stand here by operator name; they read operands that are float64 and a slack for each, the forward
error that an element may carry (0 where it is exact). An operator that has kinks and no rule here is compared
as if it were smooth: its flips count as faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np

from onward.graph import Array, Op
from onward.ops._window import Geometry, padded, tap_slices

__all__ = ["KINKED", "Units", "near_kinks"]


@final
@dataclass(frozen=True, slots=True)
class Units:
    """Elements of an operand near a kink.

    Attributes:
        operand: which operand.
        index: flat positions in it [n].
        at: what each is compared with [n].
        rival: the operand that `at` is an element of; None where it is a number.
        rival_index: flat positions in it [n].
    """

    operand: int
    index: Array
    at: Array
    rival: int | None = None
    rival_index: Array | None = None


_Rule: TypeAlias = Callable[[Any, Sequence[Any], Sequence[Array]], Iterable[Units]]


def near_kinks(operator: Op, operands: Sequence[Array | None], slack: Sequence[Array | None]) -> list[Units]:
    """The elements of an operator's operands whose side of a kink is within rounding.

    Args:
        operator: bound to its node's attributes.
        operands: float64 where they are floats; None where absent.
        slack: for each float operand the forward error of each element, of its shape.
    """
    rule = KINKED.get(operator.op_type) if operator.domain == "" else None
    if rule is None:
        return []
    slacks = [np.zeros(()) if s is None else s for s in slack]
    with np.errstate(all="ignore"):
        return [units for units in rule(operator, operands, slacks) if units.index.size]


def _thresholds(x: Array, slack: Array, *at: float | Array) -> Iterator[Units]:
    for limit in at:
        limits = np.broadcast_to(np.asarray(limit, np.float64), x.shape).reshape(-1)
        near = (np.abs(x.reshape(-1) - limits) <= slack.reshape(-1)) & (slack.reshape(-1) > 0)
        index = np.flatnonzero(near)
        yield Units(0, index, limits[index])


def _pairs(operands: Sequence[Array], slack: Sequence[Array], first: int, second: int) -> Iterator[Units]:
    """Two operands element by element, broadcast."""
    a, b = operands[first], operands[second]
    if np.asarray(a).dtype.kind != "f":
        return
    shape = np.broadcast_shapes(a.shape, b.shape)
    error = np.broadcast_to(slack[first], shape) + np.broadcast_to(slack[second], shape)
    where = np.flatnonzero((np.abs(a - b).reshape(-1) <= error.reshape(-1)) & (error.reshape(-1) > 0))
    positions = [
        np.broadcast_to(np.arange(x.size).reshape(x.shape), shape).reshape(-1)[where] for x in (a, b)
    ]
    yield Units(first, positions[0], b.reshape(-1)[positions[1]], second, positions[1])


def _rivals(x: Array, slack: Array, index: Array) -> Iterator[Units]:
    """Elements that may be the largest of their group; index [groups, n] is flat in x, −1 for nothing."""
    if not index.size:
        return
    values = np.where(index >= 0, x.reshape(-1)[index], -np.inf)
    errors = np.where(index >= 0, slack.reshape(-1)[index], 0.0)
    best = values.argmax(axis=1)[:, None]
    top, top_error = np.take_along_axis(values, best, 1), np.take_along_axis(errors, best, 1)
    error = errors + top_error
    near = (top - values <= error) & (error > 0) & (index >= 0)
    np.put_along_axis(near, best, False, 1)
    group, place = np.nonzero(near)
    rivals = np.take_along_axis(index, best, 1)[group, 0]
    yield Units(0, index[group, place], x.reshape(-1)[rivals], 0, rivals)


def _groups(shape: tuple[int, ...], axes: Iterable[int]) -> Array:
    """Flat positions of an array with the elements along some axes in one row."""
    axes = sorted({axis % len(shape) for axis in axes})
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    positions = np.arange(int(np.prod(shape))).reshape(shape).transpose(*kept, *axes)
    return positions.reshape(int(np.prod([shape[axis] for axis in kept], dtype=np.int64)), -1)


def _windows(shape: tuple[int, ...], geometry: Geometry) -> Array:
    """Flat positions of an image's elements with each window in one row; −1 is padding."""
    positions = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    around = padded(positions + 1, geometry) - 1
    return np.stack([around[where].reshape(-1) for _, where in tap_slices(geometry)], axis=1)


def _at(*numbers: float) -> _Rule:
    return lambda op, x, slack: _thresholds(x[0], slack[0], *numbers)


def _clip(op: Any, x: Sequence[Any], slack: Sequence[Array]) -> Iterable[Units]:
    for limit in range(1, len(x)):
        if x[limit] is not None:
            yield from _pairs(x, slack, 0, limit)


def _prelu(op: Any, x: Sequence[Any], slack: Sequence[Array]) -> Iterable[Units]:
    return _thresholds(x[0], slack[0], 0.0)


def _compared(op: Any, x: Sequence[Any], slack: Sequence[Array]) -> Iterable[Units]:
    return _pairs(x, slack, 0, 1)


def _extremum(op: Any, x: Sequence[Any], slack: Sequence[Array]) -> Iterable[Units]:
    for i in range(len(x)):
        for j in range(i):
            yield from _pairs(x, slack, j, i)


def _signed(sign: int) -> Callable[[_Rule], _Rule]:
    """The rule for the largest, for the largest of −x where sign is −1."""

    def wrap(rule: _Rule) -> _Rule:
        def run(op: Any, x: Sequence[Any], slack: Sequence[Array]) -> Iterator[Units]:
            for units in rule(op, [sign * x[0], *x[1:]], slack):
                yield Units(units.operand, units.index, sign * units.at, units.rival, units.rival_index)

        return run

    return wrap


def _over_axes(op: Any, x: Sequence[Any], slack: Sequence[Array]) -> Iterator[Units]:
    data = x[0]
    axes = getattr(op, "axes", None) if len(x) < 2 or x[1] is None else x[1].reshape(-1).tolist()
    if not axes and getattr(op, "noop_with_empty_axes", False):
        return
    yield from _rivals(data, slack[0], _groups(data.shape, axes or range(data.ndim)))


def _over_axis(op: Any, x: Sequence[Any], slack: Sequence[Array]) -> Iterator[Units]:
    yield from _rivals(x[0], slack[0], _groups(x[0].shape, [op.axis]))


def _top_k(op: Any, x: Sequence[Any], slack: Sequence[Array]) -> Iterator[Units]:
    """Neighbours in order, down to the first that is left out."""
    data = x[0]
    index = _groups(data.shape, [op.axis])
    values = data.reshape(-1)[index]
    descending = bool(getattr(op, "largest", True))
    order = np.argsort(-values if descending else values, axis=1, kind="stable")
    index = np.take_along_axis(index, order, 1)[:, : int(np.reshape(x[1], -1)[0]) + 1]
    low, high = index[:, 1:].reshape(-1), index[:, :-1].reshape(-1)
    flat, errors = data.reshape(-1), slack[0].reshape(-1)
    error = errors[low] + errors[high]
    near = (np.abs(flat[low] - flat[high]) <= error) & (error > 0)
    yield Units(0, low[near], flat[high[near]], 0, high[near])


def _pool(op: Any, x: Sequence[Any], slack: Sequence[Array]) -> Iterator[Units]:
    yield from _rivals(x[0], slack[0], _windows(x[0].shape, op.pooling(x[0].shape[2:])))


def _steps(offset: float) -> _Rule:
    """Jumps at every whole number plus an offset."""
    return lambda op, x, slack: _thresholds(x[0], slack[0], np.rint(x[0] - offset) + offset)


def _cast(op: Any, x: Sequence[Any], slack: Sequence[Array]) -> Iterator[Units]:
    import onnx_ir as ir

    to = ir.DataType(op.to)
    if x[0].dtype.kind == "f" and not to.is_floating_point():
        yield from _thresholds(x[0], slack[0], 0.0 if to == ir.DataType.BOOL else np.rint(x[0]))


def _hard_sigmoid(op: Any, x: Sequence[Any], slack: Sequence[Array]) -> Iterator[Units]:
    if op.alpha:
        yield from _thresholds(x[0], slack[0], -op.beta / op.alpha, (1 - op.beta) / op.alpha)


def _absolute(op: Any, x: Sequence[Any], slack: Sequence[Array]) -> Iterator[Units]:
    if getattr(op, "p", 1) == 1:
        yield from _thresholds(x[0], slack[0], 0.0)


KINKED: dict[str, _Rule] = {
    **dict.fromkeys(("Abs", "Celu", "Elu", "LeakyRelu", "Relu", "Selu", "Sign"), _at(0.0)),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), _compared),
    **dict.fromkeys(("Max", "Min"), _extremum),
    **dict.fromkeys(("Floor", "Ceil"), _steps(0.0)),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), _pool),
    **dict.fromkeys(("GlobalLpPool", "LpNormalization", "LpPool", "ReduceL1"), _absolute),
    **dict.fromkeys(("ArgMax", "Hardmax"), _over_axis),
    "ArgMin": _signed(-1)(_over_axis),
    "Cast": _cast,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _at(-3.0, 3.0),
    "PRelu": _prelu,
    "ReduceMax": _over_axes,
    "ReduceMin": _signed(-1)(_over_axes),
    "Round": _steps(0.5),
    "Shrink": lambda op, x, slack: _thresholds(x[0], slack[0], -op.lambd, op.lambd),
    "ThresholdedRelu": lambda op, x, slack: _thresholds(x[0], slack[0], op.alpha),
    "TopK": _top_k,
}
"""Rules by operator of the standard domain."""
