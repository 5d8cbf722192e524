"""Which initialisers of a model are weights."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import is_weight_operand
from onward.graph.op import NO_WEIGHT

__all__ = ["PREPARATION", "trainable_initializers"]

PREPARATION = "preparation"
"""The scope of names of what prepares a model's inputs."""

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "LSTM": (1, 2, 3, 7),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
}
_ELEMENTWISE = frozenset({"Add", "Mul", "Einsum"})
"""Operands with more than one element count; a lone number is a constant of the formula, not a weight."""
_TABLES = frozenset({"Gather", "GatherElements", "GatherND"})
_HIDDEN = -100.0
"""What is added to attention scores that are not to count is this or less."""
_CARRIERS = frozenset(
    {"Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Flatten"}
)
"""Operators that pass their first input's elements on."""
_SPLITTERS = frozenset({"Split", "Slice", "Concat"})


def trainable_initializers(model: ir.Model, patterns: Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of the float initialisers of the main graph that are weights, in graph order.

    Without patterns: those used as a weight, bias or scale of Conv, ConvTranspose, Gemm, MatMul,
    a normalisation, PRelu, Gather, GatherND or GatherElements (an embedding, rank 2 or more), LSTM, GRU or
    RNN, or as an operand of more than one element of Add, Mul or Einsum; directly, or through operators that
    only move, reshape, split or join them. Operators outside the standard say themselves which operands are.

    Running means and variances are not, nor numbers that Clip, Pad, Resize and the like take, masks that are
    added to scores (0, and one number of at most -100), factors of which only sine and cosine are taken, as
    for rotary positions, and what prepares inputs, whose names begin with `preparation/`.

    Args:
        model: a model whose constants are initialisers, as `load` leaves it.
        patterns: shell patterns (`*`, `?`, `[…]`); any float initialiser that one of them matches is
            chosen, and nothing else.

    Raises:
        ConfigError: a pattern matches no float initialiser.
    """
    floats = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype in _FLOATS and value.const_value.size > 0
    ]
    if patterns is None:
        return tuple(
            value.name or ""
            for value in floats
            if not (value.name or "").startswith(f"{PREPARATION}/")
            and NO_WEIGHT not in value.meta
            and any(_is_weight(*use, value) for use in _uses(value))
        )
    names = [value.name or "" for value in floats]
    chosen: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern) if pattern not in names else [pattern]
        if not matches:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
            hint = (
                f"; near: {', '.join(near)}" if near else f"; the model has {len(names)} float initialisers"
            )
            raise ConfigError(f"pattern {pattern!r} matches no float initialiser{hint}")
        chosen.update(matches)
    return tuple(name for name in names if name in chosen)


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Uses of a value's elements, followed through the operators that only move them."""
    pending, seen = [value], {value}
    while pending:
        for node, index in pending.pop().uses():
            moves = node.op_type == "FakeQuantize" and index == 0
            if node.domain == "":
                moves = (node.op_type in _CARRIERS and index == 0) or (
                    node.op_type in _SPLITTERS and (index == 0 or node.op_type == "Concat")
                )
            if not moves:
                yield node, index
                continue
            for output in node.outputs:
                if output not in seen:
                    seen.add(output)
                    pending.append(output)


def _is_weight(node: ir.Node, index: int, value: ir.Value) -> bool:
    tensor = value.const_value
    assert tensor is not None
    if node.domain != "":
        return is_weight_operand(node, index)
    if node.op_type in ("MatMul", "Mul", "Einsum") and _is_angle(node.outputs[0]):
        return False
    if node.op_type in _ELEMENTWISE:
        return tensor.size > 1 and not (node.op_type == "Add" and _is_mask(tensor))
    if node.op_type in _TABLES and len(tensor.shape) < 2:
        return False
    return index in _WEIGHT_INPUTS.get(node.op_type, ())


def _is_angle(value: ir.Value) -> bool:
    """Whether both sine and cosine are taken of a value, and nothing else."""
    return {node.op_type for node, _ in _uses(value)} == {"Sin", "Cos"} and not value.is_graph_output()


def _is_mask(tensor: ir.TensorProtocol) -> bool:
    """Whether elements are 0 and one number so low that scores with it do not count."""
    elements = tensor.numpy()
    lowest = elements.min()
    return bool(lowest <= _HIDDEN and elements.max() == 0 and np.all((elements == 0) | (elements == lowest)))
