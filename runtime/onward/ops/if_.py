from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import ONWARD_DOMAIN, Array, BodyOp, Builder, Op, RunBody, around, capture, infer_body, op
from onward.ops._control import Typed, meeting, typed


@op("If", since=(1, 11, 13, 16, 19, 21, 23, 24, 25))
class If(Op):
    """What one of two bodies gives, as a condition chooses."""

    else_branch: ir.Graph
    then_branch: ir.Graph

    def explicit(self, g: Builder, cond: ir.Value) -> tuple[ir.Value, ...]:
        captured = capture(self.then_branch, self.else_branch)
        return g.emit(
            "If",
            cond,
            *captured,
            domain=ONWARD_DOMAIN,
            outputs=len(self.then_branch.outputs),
            then_branch=self.then_branch,
            else_branch=self.else_branch,
        )


@op("If", since=1, domain=ONWARD_DOMAIN, multiple_outputs=True)
class ExplicitIf(BodyOp):
    """If whose bodies both take the operands behind the condition."""

    else_branch: ir.Graph
    then_branch: ir.Graph

    def run(self, run_body: RunBody, cond: Array, *captured: Any) -> tuple[Any, ...]:
        return run_body(self._chosen(cond), captured)

    def _chosen(self, cond: Array) -> ir.Graph:
        if np.size(cond) != 1:
            raise ShapeError(f"the condition has {np.size(cond)} elements; it must have one")
        return self.then_branch if np.all(cond) else self.else_branch

    def taken(self, operands: Sequence[Array | None]) -> tuple[ir.Graph, int] | None:
        return None if operands[0] is None else (self._chosen(operands[0]), 1)

    def infer(self, cond: ir.Value, *captured: ir.Value) -> list[Typed]:
        operands = [typed(value) for value in captured]
        branches = (infer_body(body, operands) for body in (self.then_branch, self.else_branch))
        return [meeting(a, b) for a, b in zip(*branches, strict=True)]

    def expand(self, g: Builder, cond: ir.Value, *captured: ir.Value) -> tuple[ir.Value, ...]:
        then_branch, else_branch = (around(g, b, captured) for b in (self.then_branch, self.else_branch))
        count = len(then_branch.outputs)
        return g.emit("If", cond, outputs=count, then_branch=then_branch, else_branch=else_branch)
