from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.graph import (
    ONWARD_DOMAIN,
    Array,
    BodyOp,
    Builder,
    Dim,
    Op,
    RunBody,
    around,
    capture,
    dims_of,
    infer_body,
    inline,
    op,
)
from onward.graph.run_limits import Budget, budget
from onward.ops._control import (
    Typed,
    collected,
    of_elements,
    settled,
    size_of,
    typed,
)
from onward.ops._control_grad import (
    Differentiate,
    Stacked,
    keeping,
    scan_backward,
)
from onward.ops._shape import constant_of


@op("Loop", since=(1, 11, 13, 16, 19, 21, 23, 24, 25))
class Loop(Op):
    """A body, again and again: M times at most, and as long as its first output is true."""

    body: ir.Graph

    def explicit(
        self, g: Builder, M: ir.Value | None = None, cond: ir.Value | None = None, *v_initial: ir.Value
    ) -> tuple[ir.Value, ...]:
        captured = capture(self.body)
        return g.emit(
            "Loop",
            M,
            cond,
            *v_initial,
            *captured,
            domain=ONWARD_DOMAIN,
            outputs=len(self.body.outputs) - 1,
            body=self.body,
            num_captured=len(captured),
        )


@op("Loop", since=1, domain=ONWARD_DOMAIN, multiple_outputs=True)
class ExplicitLoop(BodyOp):
    """Loop whose body takes the last `num_captured` operands anew in each iteration.

    A loop that runs 2^20 times, or 2^17 times or 10 seconds where only its condition ends it, or whose states
    and collected outputs hold 4 GiB, is refused: before it begins, or after one iteration, where that follows
    already; and one that goes on for 2 minutes, as soon as its pace says so. `run_limits` gives other bounds.
    """

    body: ir.Graph
    num_captured: int = 0

    def run(
        self, run_body: RunBody, M: Array | None = None, cond: Array | None = None, *operands: Any
    ) -> tuple[Any, ...]:
        count = len(operands) - self.num_captured
        states, captured = operands[:count], operands[count:]
        trips = None if M is None else int(np.reshape(M, ()))
        goes_on = True if cond is None else bool(np.all(cond))
        with budget() as allowed:
            if goes_on and trips is not None and self._goes_on_for_sure():
                allowed.admit(trips)
            return self._repeat(run_body, allowed, trips, goes_on, states, captured)

    def _repeat(
        self,
        run_body: RunBody,
        allowed: Budget,
        trips: int | None,
        goes_on: bool,
        states: tuple[Any, ...],
        captured: tuple[Any, ...],
    ) -> tuple[Any, ...]:
        count = len(states)
        parts: list[list[Array]] = [[] for _ in self.body.outputs[1 + count :]]
        sure = trips is not None and self._goes_on_for_sure()
        bounded = trips is not None and trips <= allowed.limits.max_iterations
        began = time.monotonic()
        done = kept = 0
        while goes_on and (trips is None or done < trips):
            if not bounded:
                allowed.go_on(done, began)
            allowed.keep_pace(done, trips if sure else None, began)
            allowed.iterate()
            allowed.hold(kept + sum(map(size_of, states)), f"before iteration {done + 1}")
            number = self._as_declared(0, np.int64(done))
            results = run_body(self.body, (number, self._as_declared(1, np.bool_(True)), *states, *captured))
            goes_on, states = bool(np.all(results[0])), results[1 : 1 + count]
            for part, result in zip(parts, results[1 + count :], strict=True):
                part.append(result)
                kept += size_of(result)
            done += 1
            if sure and trips is not None and done == 1:
                allowed.hold(kept * trips, f"after its {trips:,} iterations")
        outputs = self.body.outputs[1 + count :]
        return (*states, *(collected(p, v, 0) for p, v in zip(parts, outputs, strict=True)))

    def _as_declared(self, index: int, content: Any) -> Array:
        """The iteration's number or condition, as a vector where the body says so."""
        dims = dims_of(self.body.inputs[index])
        return np.reshape(content, (1,) if dims is not None and len(dims) == 1 else ())

    def infer(
        self, M: ir.Value | None = None, cond: ir.Value | None = None, *operands: ir.Value
    ) -> list[Typed]:
        count = len(operands) - self.num_captured
        states, captured = [typed(v) for v in operands[:count]], [typed(v) for v in operands[count:]]
        first: list[Typed] = []
        for value, dtype in zip(self.body.inputs, (ir.DataType.INT64, ir.DataType.BOOL), strict=False):
            dims = dims_of(value)
            first.append((ir.TensorType(dtype), dims if dims is not None and len(dims) == 1 else ()))
        states, results = settled(states, lambda types: infer_body(self.body, [*first, *types, *captured]), 1)
        extent = self._trips(M, cond)
        return [*states, *(of_elements(of, 0, extent) for of in results[1 + count :])]

    def _trips(self, M: ir.Value | None, cond: ir.Value | None) -> Dim:
        """How often the body runs, where that is known."""
        known = constant_of(M)
        if known is None or not (cond is None or _is_true(cond)):
            return None
        return max(0, int(known.reshape(()))) if self._goes_on_for_sure() else None

    def _goes_on_for_sure(self) -> bool:
        """Whether no iteration makes the condition false."""
        last = self.body.outputs[0]
        while (producer := last.producer()) is not None and producer.op_type == "Identity":
            last = producer.inputs[0] or last
        return last is self.body.inputs[1] or _is_true(last)

    def body_gradient(
        self,
        g: Builder,
        differentiate: Differentiate,
        dy: tuple[ir.Value | None, ...],
        y: tuple[ir.Value, ...],
        M: ir.Value | None,
        cond: ir.Value | None,
        *operands: ir.Value,
    ) -> tuple[ir.Value | None, ...]:
        count = len(operands) - self.num_captured
        states, captured = operands[:count], operands[count:]
        again_body = keeping(g, self.body, 1 + count, [0, *range(2, 2 + count)])
        again = g.emit(
            "Loop",
            M,
            cond,
            *operands,
            domain=ONWARD_DOMAIN,
            outputs=len(again_body.outputs) - 1,
            body=again_body,
            num_captured=len(captured),
        )

        def step(
            b: Builder, states: Sequence[ir.Value], slices: Sequence[ir.Value], captured: Sequence[ir.Value]
        ) -> list[ir.Value]:
            goes_on = b.const(self._as_declared(1, np.bool_(True)))
            return inline(b, self.body, [slices[0], goes_on, *states, *captured])[1:]

        to_states, _, to_captured = scan_backward(
            g,
            differentiate,
            step,
            list(zip(states, dy[:count], strict=True)),
            [Stacked(value) for value in again[count + 1 :]],
            [Stacked(again[count])],
            captured,
            [None if d is None else Stacked(d) for d in dy[count:]],
        )
        return (None, None, *to_states, *to_captured)

    def expand(
        self, g: Builder, M: ir.Value | None = None, cond: ir.Value | None = None, *operands: ir.Value
    ) -> tuple[ir.Value, ...]:
        count = len(operands) - self.num_captured
        body = around(g, self.body, operands[count:])
        return g.emit("Loop", M, cond, *operands[:count], outputs=len(body.outputs) - 1, body=body)


def _is_true(value: ir.Value) -> bool:
    content = constant_of(value)
    return content is not None and bool(np.all(content))
