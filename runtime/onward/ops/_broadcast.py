"""Broadcasting before opset 7: the second operand lies along the first one's axes from `axis` on."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Builder, Op, dims_of

__all__ = ["AxisBroadcast"]


@dataclass(frozen=True, kw_only=True)
class AxisBroadcast(Op):
    """An older version of a binary operator; without `axis` the last axes are aligned, as in NumPy."""

    axis: int | None = None
    broadcast: int = 0

    def canonical(self, g: Builder, A: ir.Value, B: ir.Value) -> ir.Value:
        """The current version, with B's missing trailing axes put in."""
        return g.emit(self.op_type, A, self._aligned(g, A, B) if self.broadcast else B)[0]

    def _aligned(self, g: Builder, A: ir.Value, B: ir.Value) -> ir.Value:
        if self.axis is None:
            return B
        a, b = dims_of(A), dims_of(B)
        if a is None or b is None:
            raise UnsupportedError("broadcasting from an axis on needs the ranks of A and B")
        axis = self.axis + len(a) if self.axis < 0 else self.axis
        missing = len(a) - axis - len(b)
        if missing < 0 or axis < 0:
            raise ShapeError(f"B of rank {len(b)} does not fit into A of rank {len(a)} at axis {self.axis}")
        return g.Unsqueeze(B, list(range(len(b), len(b) + missing))) if missing else B
