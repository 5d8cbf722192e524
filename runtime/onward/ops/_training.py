"""Optimizers of `ai.onnx.preview.training`: operands come in groups, one tensor of each group a parameter."""

from __future__ import annotations

from collections.abc import Callable

from onward.errors import ShapeError
from onward.graph import Array

__all__ = ["update_all"]


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
