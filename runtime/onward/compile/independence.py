"""Whether a model treats each sample by itself: a proof over its graph, declined where anything is unknown.

Samples lie along one axis of each value, the first one of inputs and outputs. The graph is specialised for
two numbers of samples, and followed from inputs to outputs: the proof knows of each value along which axis
the samples lie, or that it does not depend on them. An operator keeps samples apart where element i of that
axis of its result follows from element i of its operands alone.

What holds for two numbers holds for all: a number that follows from the number of samples may only be moved,
added, or multiplied by one that does not, so that it is an affine function of it, which two points determine;
and it may only be used as an extent of a result. Cuts along the samples' axis must take all of it whatever
its extent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import onnx_ir as ir

from onward.compile.program import NotStaticError, Operation, Program, specialize
from onward.errors import OnwardError
from onward.graph import Array, Dim, TensorSpec, is_tensor, spec_of
from onward.graph import requests as r

__all__ = ["Independence", "independence", "not_independent"]

_SIZES = 5, 7
"""Numbers of samples that the graph is looked at with: any two above 1, past which nothing is broadcast."""

_UNBOUNDED = 2**31 - 1
"""Ends of cuts from here on mean an axis' end."""

_MOVES = frozenset(
    {"Cast", "Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
)
_SUMS = frozenset({"Add", "Sub"})

_ON_SAMPLES = "on_samples"
"""In place of an axis: integers that depend on the number of samples."""

_Where: TypeAlias = "int | str | None"
"""A value's axis of samples; None where it does not depend on them."""

_Rule: TypeAlias = "Callable[[_Proof, Any], Mapping[ir.Value, _Where]]"


class _UnprovenError(Exception):
    """Why an operation may mix samples."""

    mixed = False


class _MixedError(_UnprovenError):
    """How an operation mixes samples."""

    mixed = True


@final
@dataclass(frozen=True)
class Independence:
    """What is known of a model's samples.

    Attributes:
        reason: why it is not proven that a sample's results follow from that sample alone; None where it is.
        mixed: whether the reason is that samples meet in an operation, and not that the proof does not reach.
        misfit: whether shapes do not fit together.
    """

    reason: str | None
    mixed: bool = False
    misfit: bool = False


def not_independent(
    model: ir.Model, shapes: Mapping[str, tuple[int, ...]], swapped: Collection[str] = ()
) -> str | None:
    """Why it is not proven that each sample's results follow from that sample alone; None where it is.

    Args:
        model: one without state; it is not changed.
        shapes: of its inputs; the first extent of each counts for nothing.
        swapped: weights whose contents may change.
    """
    return independence(model, shapes, swapped).reason


def independence(
    model: ir.Model, shapes: Mapping[str, tuple[int, ...]], swapped: Collection[str] = ()
) -> Independence:
    """As `not_independent`, with the kind of the reason: behind what it does not know the proof looks on."""
    if (reason := _names(model.graph)) is not None:
        return Independence(reason)
    programs: list[Program] = []
    for size in _SIZES:
        try:
            sized = {name: (size, *shape[1:]) for name, shape in shapes.items()}
            programs.append(specialize(model, sized, swapped))
        except NotStaticError as error:
            return Independence(str(error))
        except OnwardError as error:
            return Independence(f"{size} samples do not fit: {error}", misfit=True)
    proof = _Proof(*programs)
    try:
        proof.walk()
    except _UnprovenError as found:
        return Independence(str(found), mixed=found.mixed)
    return Independence(proof.unknown)


def _names(graph: ir.Graph) -> str | None:
    """Why a model's surface has no samples: one symbol has to name the first axis of all its tensors."""
    inputs = [v for v in graph.inputs if v.name not in graph.initializers]
    specs: list[TensorSpec] = []
    for value in (*inputs, *graph.outputs):
        if not is_tensor(value):
            return f"{value.name!r} is no tensor"
        specs.append(spec_of(value))
    firsts: set[Dim] = {spec.shape[0] if spec.shape else None for spec in specs}
    if not inputs or len(firsts) != 1 or not isinstance(next(iter(firsts)), str):
        listed = ", ".join(str(spec) for spec in specs)
        return f"no symbol names the first axis of all inputs and outputs: {listed}"
    return None


class _Proof:
    """Where the samples lie in each value of a program; one for another number of them confirms it.

    `unknown` names the first operation of which nothing is known; what follows it is looked at as if it kept
    samples apart.
    """

    def __init__(self, first: Program, second: Program) -> None:
        self._first, self._second = first, second
        self.unknown: str | None = None
        self._where: dict[ir.Value, _Where] = {}
        self._twin: dict[ir.Value, ir.Value] = {}

    def walk(self) -> None:
        """Raises:
        _UnprovenError: an operation that may mix samples.
        """
        one, two = self._first, self._second
        if len(one.trace) != len(two.trace):
            raise _UnprovenError("what is computed depends on the number of samples")
        for name, value in one.inputs.items():
            self._twin[value] = two.inputs[name]
            self._where[value] = 0
        kept = [{o.node: o for o in program.operations} for program in (one, two)]
        for mine, theirs in zip(one.trace, two.trace, strict=True):
            folded = mine.node not in kept[0], theirs.node not in kept[1]
            if (mine.node.name, mine.node.op_type) != (theirs.node.name, theirs.node.op_type) or len(
                set(folded)
            ) == 2:
                raise _UnprovenError("what is computed depends on the number of samples")
            self._twin.update(zip(mine.outputs, theirs.outputs, strict=True))
            try:
                if not folded[0]:
                    self._operation(kept[0][mine.node])
                elif mine.outputs[0].const_value is not None:
                    self._constant(mine)
            except _UnprovenError as error:
                raise type(error)(_told(mine, str(error))) from None
        for name, value in one.outputs.items():
            if self._where.get(value) != 0:
                raise _UnprovenError(f"the samples do not lie along the first axis of output {name!r}")

    def where(self, value: ir.Value | None) -> _Where:
        """The axis of samples in an operand; None: it does not depend on them."""
        if value is None or value not in self._twin:  # a weight, or a constant of the graph
            return None
        if value not in self._where:
            raise _UnprovenError("an extent of a value that nobody computes")
        return self._where[value]

    def axis(self, value: ir.Value | None) -> int | None:
        """As `where`, for operands whose contents count."""
        found = self.where(value)
        if isinstance(found, str):
            raise _UnprovenError("an operand is a number that depends on the number of samples")
        return found

    def free(self, *values: ir.Value | None) -> None:
        """Raises:
        _UnprovenError: one of the operands has samples.
        """
        if any(self.axis(v) is not None for v in values):
            raise _UnprovenError("an operand other than the data depends on the samples")

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """An operand's shape with the first number of samples."""
        return self._first.shapes[value]

    def varying(self, value: ir.Value) -> int | None:
        """The one axis whose extent is the number of samples; None where no extent depends on it."""
        return _varying(self._first.shapes[value], self._second.shapes[self._twin.get(value, value)])

    def known(self, value: ir.Value | None) -> Array | None:
        """The contents of a constant that does not depend on the number of samples."""
        return None if value is None or self.where(value) is not None else self._first.known(value)

    def _operation(self, mine: Operation) -> None:
        operands, request = [v for v in mine.inputs if v is not None], mine.request
        data = 0 if isinstance(request, r.Fill) else 1 if isinstance(request, r.View | r.Broadcast) else None
        places = [self.axis(v) for v in operands[:data]]
        rule = _RULES.get(type(request))
        if rule is not None:
            found = rule(self, request)
        elif hasattr(mine.operator, "element"):
            found = {v: _aligned(self, v, operands) for v in mine.outputs}
        elif all(place is None for place in places):
            found = dict.fromkeys(mine.outputs)
        else:
            found = {v: self.varying(v) for v in mine.outputs if v.name}
            self.unknown = self.unknown or _told(mine, "nothing is known of how it treats samples")
        for value in mine.outputs:
            if not value.name:
                continue
            if value not in found:
                raise _UnprovenError("nothing is known of how it treats samples")
            place = found[value]
            if self.varying(value) != place:
                raise _UnprovenError("an extent depends on the number of samples in another way")
            self._where[value] = place

    def _constant(self, mine: Operation) -> None:
        """What follows from constants and shapes."""
        operands = [(i, v) for i, v in enumerate(mine.inputs) if v is not None and self.where(v) is not None]
        pairs = [
            (v, _contents(v), _contents(self._twin[v])) for v in mine.outputs if v.const_value is not None
        ]
        kind = mine.node.op_type
        if not operands:
            self._where.update((v, None) for v, *_ in pairs)
            return
        sizes = kind in ("Shape", "Size") or (
            kind in (_MOVES | _SUMS | {"Mul"}) and self._affine(mine, operands)
        )
        for value, a, b in pairs:
            if sizes and a.dtype.kind in "iu" and a.shape == b.shape:
                self._where[value] = None if np.array_equal(a, b) else _ON_SAMPLES
                continue
            of_extents = kind == "ConstantOfShape" or (kind == "Expand" and [i for i, _ in operands] == [1])
            of_elements = hasattr(mine.operator, "element") and all(
                isinstance(self.where(v), int) for _, v in operands
            )
            if not (of_extents or of_elements):
                raise _UnprovenError("what follows from the number of samples is more than an extent")
            place = _varying(a.shape, b.shape)
            rows = [x if place is None else np.moveaxis(x, place, 0) for x in (a, b)]
            first = rows[0] if place is None else rows[0][0]
            if place is not None and not all(
                np.array_equal(x, np.broadcast_to(first, x.shape)) for x in rows
            ):
                raise _UnprovenError("a constant differs between samples")
            if place is None and not np.array_equal(a, b):
                raise _UnprovenError("a constant depends on the number of samples")
            self._where[value] = place

    def _affine(self, mine: Operation, operands: Sequence[tuple[int, ir.Value]]) -> bool:
        """Whether integers stay affine functions of the number of samples."""
        if any(self.where(v) != _ON_SAMPLES for _, v in operands):
            return False
        kind, places = mine.node.op_type, [i for i, _ in operands]
        if kind == "Mul":
            return len(places) == 1
        return kind in ("Concat", *_SUMS) or places == [0]


def _told(mine: Operation, reason: str) -> str:
    return f"node {mine.node.name!r}, operator {mine.node.op_type}: {reason}"


def _contents(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def _varying(one: tuple[int, ...], two: tuple[int, ...]) -> int | None:
    if len(one) != len(two):
        raise _UnprovenError("a number of axes depends on the number of samples")
    places = [i for i, pair in enumerate(zip(one, two, strict=True)) if pair[0] != pair[1]]
    if len(places) > 1 or any((one[i], two[i]) != _SIZES for i in places):
        raise _UnprovenError("an extent depends on the number of samples in another way")
    return places[0] if places else None


def _aligned(p: _Proof, y: ir.Value, operands: Sequence[ir.Value | None]) -> int | None:
    """The axis of a result of operands that are broadcast together."""
    rank, places = len(p.shape(y)), set()
    for value in operands:
        if value is not None and (axis := p.axis(value)) is not None:
            places.add(rank - len(p.shape(value)) + axis)
    if len(places) > 1:
        raise _UnprovenError("the samples of two operands lie along different axes")
    return places.pop() if places else None


_RULES: dict[type[r.Request], _Rule] = {}


def _keeps(*kinds: type[r.Request]) -> Callable[[_Rule], _Rule]:
    """Register how requests keep samples apart: where they lie in the results."""

    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


@_keeps(r.Identity, r.Convert)
def _same(p: _Proof, request: r.Identity | r.Convert) -> Mapping[ir.Value, _Where]:
    return {request.y: p.axis(request.x)}


@_keeps(r.View)
def _view(p: _Proof, request: r.View) -> Mapping[ir.Value, _Where]:
    x, y = p.axis(request.x), p.varying(request.y)
    if x is not None and y is not None:
        before = [int(np.prod(p.shape(v)[:axis])) for v, axis in ((request.x, x), (request.y, y))]
        if before[0] != before[1]:
            raise _UnprovenError("the samples' axis is not an axis of the result")
    elif (x is None) != (y is None):
        raise _UnprovenError("the samples' axis is joined with others")
    return {request.y: y}


@_keeps(r.Transpose)
def _transpose(p: _Proof, request: r.Transpose) -> Mapping[ir.Value, _Where]:
    axis = p.axis(request.x)
    return {request.y: None if axis is None else request.perm.index(axis)}


@_keeps(r.Broadcast)
def _broadcast(p: _Proof, request: r.Broadcast) -> Mapping[ir.Value, _Where]:
    if p.axis(request.x) is None:
        return {request.y: p.varying(request.y)}
    return {request.y: _aligned(p, request.y, (request.x,))}


@_keeps(r.Fill)
def _fill(p: _Proof, request: r.Fill) -> Mapping[ir.Value, _Where]:
    return {request.y: p.varying(request.y)}


@_keeps(r.Tile)
def _tile(p: _Proof, request: r.Tile) -> Mapping[ir.Value, _Where]:
    axis = p.axis(request.x)
    if axis is not None and request.repeats[axis] != 1:
        raise _MixedError("samples are repeated")
    return {request.y: axis}


@_keeps(r.Pad)
def _pad(p: _Proof, request: r.Pad) -> Mapping[ir.Value, _Where]:
    axis = p.axis(request.x)
    if axis is not None and (request.before[axis] or p.shape(request.x)[axis] != p.shape(request.y)[axis]):
        raise _MixedError("samples are added or cut off")
    return {request.y: axis}


@_keeps(r.Concat)
def _concat(p: _Proof, request: r.Concat) -> Mapping[ir.Value, _Where]:
    places = {p.axis(v) for v in request.operands}
    if len(places) != 1 or places == {request.axis % len(p.shape(request.y))}:
        raise _MixedError("operands are put together along the samples' axis")
    return {request.y: places.pop()}


@_keeps(r.Slices)
def _slices(p: _Proof, request: r.Slices) -> Mapping[ir.Value, _Where]:
    axis = p.axis(request.x)
    if axis is not None and _names_axis(p, request.outputs[0].producer(), axis, len(p.shape(request.x))):
        raise _MixedError("samples are cut off")
    return dict.fromkeys(request.outputs, axis)


def _names_axis(p: _Proof, node: ir.Node | None, axis: int, rank: int) -> bool:
    """Whether a node may cut an axis at a place that does not follow its extent."""
    if node is None:
        return True
    if node.op_type != "Slice":
        split = node.attributes.get("axis")
        return (0 if split is None else split.as_int()) % rank == axis
    starts, ends, axes, steps = ([*node.inputs[1:], None, None])[:4]
    first, last = p.known(starts), p.known(ends)
    named, strides = p.known(axes), p.known(steps)
    if first is None or last is None or (axes is not None and named is None):
        return True
    if steps is not None and strides is None:
        return True
    for i, (start, end) in enumerate(zip(first, last, strict=True)):
        along = i if named is None else int(named[i]) % rank
        whole = start == 0 and end >= _UNBOUNDED and (strides is None or strides[i] == 1)
        if along == axis and not whole:
            return True
    return False


@_keeps(r.Product)
def _product(p: _Proof, request: r.Product) -> Mapping[ir.Value, _Where]:
    left, right = p.axis(request.left), p.axis(request.right)
    p.free(request.bias)
    ranks = [len(p.shape(v)) for v in (request.left, request.right)]
    row = ranks[0] - (1 if request.transpose_left else 2)
    if (left is not None and ranks[0] < 2) or (right is not None and right >= ranks[1] - 2):
        raise _MixedError("products are summed over samples")
    if left is not None and not (left < ranks[0] - 2 or (left == row and right is None)):
        raise _MixedError("products are summed over samples")
    if left == row and left is not None:
        return {request.y: len(p.shape(request.y)) - (2 if ranks[1] > 1 else 1)}
    # leading axes are broadcast; a vector's axis is not in the result
    missing = [2 if rank > 1 else 1 for rank in ranks]
    rank = len(p.shape(request.y)) + sum(m == 1 for m in missing)
    places = {rank - ranks[i] + axis for i, axis in enumerate((left, right)) if axis is not None}
    if len(places) > 1:
        raise _UnprovenError("the samples of two operands lie along different axes")
    return {request.y: places.pop() if places else None}


@_keeps(r.WeightProduct, r.RoundedProduct)
def _weight_product(p: _Proof, request: r.WeightProduct | r.RoundedProduct) -> Mapping[ir.Value, _Where]:
    p.free(request.right, request.scale, request.zero_point)
    axis = p.axis(request.left)
    if axis is not None and axis == len(p.shape(request.left)) - 1:
        raise _UnprovenError("products are summed over samples")
    return {request.y: axis}


@_keeps(r.Convolution)
def _convolution(p: _Proof, request: r.Convolution) -> Mapping[ir.Value, _Where]:
    p.free(request.w, request.bias)
    return {request.y: _first(p, request.x)}


@_keeps(r.ConvolutionInput)
def _transposed_convolution(p: _Proof, request: r.ConvolutionInput) -> Mapping[ir.Value, _Where]:
    p.free(request.w, request.bias)
    return {request.dx: _first(p, request.dy)}


@_keeps(r.MaxPool, r.AveragePool, r.LocalResponse)
def _images(p: _Proof, request: r.MaxPool | r.AveragePool | r.LocalResponse) -> Mapping[ir.Value, _Where]:
    return {request.y: _first(p, request.x)}


@_keeps(r.GroupNormalization)
def _group_normalization(p: _Proof, request: r.GroupNormalization) -> Mapping[ir.Value, _Where]:
    p.free(request.scale, request.bias)
    return {request.y: _first(p, request.x)}


@_keeps(r.BatchNormalization)
def _batch_normalization(p: _Proof, request: r.BatchNormalization) -> Mapping[ir.Value, _Where]:
    if request.training:
        raise _MixedError("its statistics are the batch's")
    p.free(request.scale, request.bias, request.mean, request.variance)
    return {request.outputs[0]: _first(p, request.x)}


def _first(p: _Proof, x: ir.Value) -> int | None:
    """The axis of samples, for operators that keep only the first one apart."""
    axis = p.axis(x)
    if axis not in (0, None):
        raise _UnprovenError("the samples do not lie along the first axis")
    return axis


@_keeps(r.LayerNormalization, r.RMSNormalization)
def _normalization(
    p: _Proof, request: r.LayerNormalization | r.RMSNormalization
) -> Mapping[ir.Value, _Where]:
    axis = p.axis(request.x)
    p.free(request.scale, getattr(request, "bias", None))
    if axis is not None and axis >= request.axis % len(p.shape(request.x)):
        raise _MixedError("the mean is taken over samples")
    outputs = (request.y,) if isinstance(request, r.RMSNormalization) else request.outputs
    return dict.fromkeys(outputs, axis)


@_keeps(r.Softmax)
def _softmax(p: _Proof, request: r.Softmax) -> Mapping[ir.Value, _Where]:
    return {request.y: _apart(p, request.x, request.axes)}


@_keeps(r.Reduction)
def _reduction(p: _Proof, request: r.Reduction) -> Mapping[ir.Value, _Where]:
    axes = request.axes or tuple(range(len(p.shape(request.x))))
    return {request.y: None if _apart(p, request.x, axes) is None else p.varying(request.y)}


@_keeps(r.Position)
def _position(p: _Proof, request: r.Position) -> Mapping[ir.Value, _Where]:
    return {request.y: None if _apart(p, request.x, (request.axis,)) is None else p.varying(request.y)}


def _apart(p: _Proof, x: ir.Value, axes: Sequence[int]) -> int | None:
    """The axis of samples, which must not be among those that are reduced."""
    axis, rank = p.axis(x), len(p.shape(x))
    if axis is not None and axis in {a % rank for a in axes}:
        raise _MixedError("samples are reduced")
    return axis


@_keeps(r.Gather)
def _gather(p: _Proof, request: r.Gather) -> Mapping[ir.Value, _Where]:
    data, indices = p.axis(request.data), p.axis(request.indices)
    if data is not None and (indices is not None or data == request.axis % len(p.shape(request.data))):
        raise _MixedError("samples are picked")
    return {request.y: None if data is None and indices is None else p.varying(request.y)}


@_keeps(r.Positions)
def _positions(p: _Proof, request: r.Positions) -> Mapping[ir.Value, _Where]:
    axis = p.axis(request.x)
    if axis is not None and axis == request.axis % len(p.shape(request.x)):
        raise _MixedError("samples are picked")
    return {request.y: None if axis is None else p.varying(request.y)}


@_keeps(r.Recurrent)
def _recurrent(p: _Proof, request: r.Recurrent) -> Mapping[ir.Value, _Where]:
    of = request.of
    p.free(of.w, of.r, of.bias, of.peepholes)
    places = {p.axis(of.x), *(p.axis(v) for v in of.initial if v is not None)}
    wanted = 0 if of.batch_major else 1
    lens = 0 if of.lens is None else p.axis(of.lens)
    if places == {None} and (of.lens is None or lens is None):
        return dict.fromkeys(request.outputs)
    if places != {wanted} or lens != 0:
        raise _UnprovenError("the samples do not lie along the batch's axis")
    return {v: p.varying(v) for v in request.outputs if v.name}
