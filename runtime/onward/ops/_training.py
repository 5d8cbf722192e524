"""Optimizers of `ai.onnx.preview.training`: operands come in groups, one tensor of each group a parameter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Builder

__all__ = ["later", "scalar", "update_all", "update_each"]


def update_all(
    rule: Callable[..., tuple[Array, ...]], groups: int, operands: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Apply a rule to each parameter's tensors; its results are grouped as the operands are."""
    if len(operands) % groups:
        raise ShapeError(f"{len(operands)} tensors given; there must be {groups} for each parameter")
    count = len(operands) // groups
    results = [rule(*operands[i::count]) for i in range(count)]
    types = operands[:count]
    return tuple(
        tensor.astype(like.dtype, copy=False)
        for tensors in zip(*results, strict=True)
        for tensor, like in zip(tensors, types, strict=True)
    )


def update_each(
    rule: Callable[..., tuple[ir.Value, ...]], groups: int, operands: tuple[ir.Value, ...]
) -> tuple[ir.Value, ...]:
    """`update_all` of graph values."""
    if len(operands) % groups:
        raise ShapeError(f"{len(operands)} tensors given; there must be {groups} for each parameter")
    count = len(operands) // groups
    results = [rule(*operands[i::count]) for i in range(count)]
    return tuple(value for values in zip(*results, strict=True) for value in values)


def scalar(g: Builder, x: ir.Value) -> ir.Value:
    """A tensor of one element without axes."""
    return g.Reshape(x, g.const([], np.int64))


def later(g: Builder, T: ir.Value) -> ir.Value:
    """Whether it is not the first step."""
    return g.Greater(scalar(g, T), g.const(0, T.dtype))
