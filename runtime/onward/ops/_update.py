"""What the optimizers' update operators share: types of outputs."""

from __future__ import annotations

import onnx_ir as ir

from onward.graph import Dim, dims_of, dtype_of

__all__ = ["Types", "like"]

Types = list[tuple[ir.DataType, tuple[Dim, ...] | None]]


def like(*values: ir.Value) -> Types:
    """Outputs of the same types and shapes as these values."""
    return [(dtype_of(v), dims_of(v)) for v in values]
