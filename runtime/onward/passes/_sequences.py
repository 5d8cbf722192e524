"""Sequences whose tensors are known one by one become those tensors, which have shapes, plans and gradients.

Exports cut tensors by SplitToSequence and take the pieces by SequenceAt at constant positions, or collect
values in a sequence to join them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Builder, dims_of
from onward.ops._sequence import place_in

__all__ = ["SEQUENCE_OPERATORS", "Sequences"]

_MOST = 1024
"""Pieces that a tensor is cut into."""

_SPLIT_AT_LENGTHS = 18
"""The opset from which Split has the form that runs."""

_AXES_ARE_AN_INPUT = 13
"""Of Squeeze and Unsqueeze, from this opset on."""

SEQUENCE_OPERATORS = frozenset({
    "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceAt", "SequenceLength",
    "SplitToSequence", "ConcatFromSequence",
})  # fmt: skip


@final
class Sequences:
    """What is known of the sequences of a graph."""

    def __init__(self) -> None:
        self._tensors: dict[ir.Value, tuple[ir.Value, ...]] = {}

    def unpack(
        self, g: Builder, node: ir.Node, constants: Mapping[ir.Value, Array]
    ) -> ir.Value | Array | None:
        """What stands for the output of a node; None where it stays, as for a sequence, which is noted.

        Args:
            g: writes before the node.
            node: one of the operators on sequences.
            constants: contents that are known.
        """
        first = node.inputs[0] if node.inputs else None
        tensors = () if first is None else self._tensors.get(first)
        match node.op_type:
            case "SequenceEmpty":
                self._note(node, ())
            case "SequenceConstruct":
                self._note(node, node.inputs)
            case "SplitToSequence":
                self._note(node, _pieces(g, node, constants))
            case "SequenceInsert" if tensors is not None:
                at = _place(node, 2, constants, len(tensors), len(tensors) + 1)
                if at is not None:
                    self._note(node, (*tensors[:at], node.inputs[1], *tensors[at:]))
            case "SequenceErase" if tensors is not None:
                at = _place(node, 1, constants, len(tensors), len(tensors))
                if at is not None:
                    self._note(node, (*tensors[:at], *tensors[at + 1 :]))
            case "SequenceAt" if tensors is not None:
                at = _place(node, 1, constants, len(tensors), len(tensors))
                return None if at is None else tensors[at]
            case "SequenceLength" if tensors is not None:
                return np.asarray(len(tensors), np.int64)
            case "ConcatFromSequence" if tensors:
                axis = node.attributes.get_int("axis", 0)
                if node.attributes.get_int("new_axis", 0):
                    tensors = tuple(_at_axis(g, "Unsqueeze", x, axis) for x in tensors)
                return g.Concat(*tensors, axis=axis)
        return None

    def _note(self, node: ir.Node, tensors: Sequence[ir.Value | None] | None) -> None:
        if tensors is not None and all(x is not None for x in tensors):
            self._tensors[node.outputs[0]] = tuple(x for x in tensors if x is not None)


def _place(
    node: ir.Node, index: int, constants: Mapping[ir.Value, Array], count: int, places: int
) -> int | None:
    """A position; None where it is computed, or is not in the sequence, which whoever runs the node says."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is not None and value not in constants:
        return None
    if value is None:
        return places - 1 if places else None
    try:
        return place_in(constants[value], count, places)
    except ShapeError:
        return None


def _pieces(g: Builder, node: ir.Node, constants: Mapping[ir.Value, Array]) -> Sequence[ir.Value] | None:
    """What a SplitToSequence cuts from its input, where extents and lengths are known."""
    data = node.inputs[0]
    dims = None if data is None else dims_of(data)
    split = node.inputs[1] if len(node.inputs) > 1 else None
    axis = node.attributes.get_int("axis", 0)
    if data is None or not dims or not -len(dims) <= axis < len(dims):
        return None
    extent = dims[axis]
    if not isinstance(extent, int) or extent <= 0 or (split is not None and split not in constants):
        return None
    given = np.asarray(1) if split is None else constants[split]
    if given.ndim == 0:
        step = int(given)
        if step < 1 or extent > step * _MOST:
            return None
        lengths = [min(step, extent - start) for start in range(0, extent, step)]
    else:
        lengths = [int(n) for n in given]
        if not 0 < len(lengths) <= _MOST or min(lengths) < 0 or sum(lengths) != extent:
            return None
    if len(lengths) == 1:
        cut: Sequence[ir.Value] = (data,)
    elif g.graph.opset_imports.get("", 0) >= _SPLIT_AT_LENGTHS:
        cut = g.emit("Split", data, g.const(lengths, np.int64), outputs=len(lengths), axis=axis)
    else:
        ends = [int(n) for n in np.cumsum(lengths)]
        cut = [
            g.Slice(data, *(g.const([n], np.int64) for n in (end - length, end, axis)))
            for end, length in zip(ends, lengths, strict=True)
        ]
    if split is None and not node.attributes.get_int("keepdims", 1):
        return [_at_axis(g, "Squeeze", x, axis) for x in cut]
    return cut


def _at_axis(g: Builder, operator: str, x: ir.Value, axis: int) -> ir.Value:
    """Squeeze or Unsqueeze."""
    if g.graph.opset_imports.get("", 0) >= _AXES_ARE_AN_INPUT:
        return g.emit(operator, x, g.const([axis], np.int64))[0]
    return g.emit(operator, x, axes=[axis])[0]
