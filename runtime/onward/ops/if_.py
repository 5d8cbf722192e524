from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import (
    ONWARD_DOMAIN,
    Array,
    BodyOp,
    Builder,
    Op,
    RunBody,
    around,
    capture,
    infer_body,
    is_float,
    op,
)
from onward.ops._control import Typed, meeting, typed
from onward.ops._control_grad import Differentiate, branch_backward
from onward.ops._shape import constant_of


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

    static_operands = ("cond",)

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
        known = constant_of(cond)
        bodies = [self._chosen(known)] if known is not None else [self.then_branch, self.else_branch]
        found: list[list[Typed]] = []
        problems: list[ShapeError] = []
        for body in bodies:
            try:
                found.append(infer_body(body, operands))
            except ShapeError as error:
                problems.append(error)  # whoever comes there at run time is told
        if not found:
            raise problems[0]
        return [functools.reduce(meeting, results) for results in zip(*found, strict=True)]

    def body_gradient(
        self,
        g: Builder,
        differentiate: Differentiate,
        dy: tuple[ir.Value | None, ...],
        y: tuple[ir.Value, ...],
        cond: ir.Value,
        *captured: ir.Value,
    ) -> tuple[ir.Value | None, ...]:
        then_branch, else_branch = (
            branch_backward(g, differentiate, body, captured, dy)
            for body in (self.then_branch, self.else_branch)
        )
        grads = iter(
            g.emit(
                "If",
                cond,
                *captured,
                *(d for d in dy if d is not None),
                domain=ONWARD_DOMAIN,
                outputs=len(then_branch.outputs),
                then_branch=then_branch,
                else_branch=else_branch,
            )
        )
        return None, *(next(grads) if is_float(v) else None for v in captured)

    def expand(self, g: Builder, cond: ir.Value, *captured: ir.Value) -> tuple[ir.Value, ...]:
        then_branch, else_branch = (around(g, b, captured) for b in (self.then_branch, self.else_branch))
        count = len(then_branch.outputs)
        return g.emit("If", cond, outputs=count, then_branch=then_branch, else_branch=else_branch)
