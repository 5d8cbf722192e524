"""Gradients of If, Loop and Scan: bodies that compute the forward pass again and differentiate it.

A loop of T iterations x[t+1], y[t] = f(x[t], u[t], c) is run again to keep x[0] … x[T−1]; then a Scan goes
through t = T−1 … 0 with dx[t] = df/dxᵀ · (dx[t+1], dy[t]), du[t] likewise, and dc the sum over t.
Source: reverse-mode differentiation of recurrences, e.g. Griewank and Walther, Evaluating Derivatives, ch. 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Builder, Dim, inline, is_float, is_tensor
from onward.ops._control import per_iteration, typed

__all__ = ["Differentiate", "Stacked", "branch_backward", "keeping", "new_body", "scan_backward"]

Differentiate: TypeAlias = (
    "Callable[[Builder, Mapping[ir.Value, ir.Value], Sequence[ir.Value]], list[ir.Value | None]]"
)
"""Writes gradients with respect to values of a graph, given those of others: `onward.autodiff.gradients`."""


@dataclass(frozen=True, slots=True)
class Stacked:
    """A tensor with a slice for each iteration along an axis, the last one first with direction 1."""

    value: ir.Value
    axis: int = 0
    direction: int = 0


def new_body(g: Builder, name: str) -> Builder:
    """A builder on an empty body that is going to stand in the graph."""
    return g.inside(
        ir.Graph([], [], nodes=[], opset_imports=dict(g.graph.opset_imports), name=g.unique(name))
    )


def input_like(b: Builder, of: tuple[ir.TypeProtocol | None, tuple[Dim, ...] | None], name: str) -> ir.Value:
    """A new input of a body."""
    kind, dims = of
    shape = None if dims is None else ir.Shape(dims)
    value = ir.Value(name=b.unique(name), type=kind, shape=shape)
    b.graph.inputs.append(value)
    return value


def branch_backward(
    g: Builder,
    differentiate: Differentiate,
    body: ir.Graph,
    captured: Sequence[ir.Value],
    dy: Sequence[ir.Value | None],
) -> ir.Graph:
    """A body from a branch's operands and gradients of its results to gradients of its float operands."""
    b = new_body(g, "backward")
    operands = [input_like(b, typed(v), f"{v.name}/in") for v in captured]
    arriving = [None if d is None else input_like(b, typed(d), f"{d.name}/in") for d in dy]
    _differentiated(b, differentiate, inline(b, body, operands), arriving, operands, [None] * len(operands))
    return b.graph


def _differentiated(
    b: Builder,
    differentiate: Differentiate,
    outputs: Sequence[ir.Value],
    arriving: Sequence[ir.Value | None],
    operands: Sequence[ir.Value],
    totals: Sequence[ir.Value | None],
) -> None:
    """Make the gradients of all float operands outputs of a body, added to totals where there are any."""
    seeds: dict[ir.Value, ir.Value] = {}
    for value, d in zip(outputs, arriving, strict=True):
        if d is not None and is_float(value):
            seeds[value] = b.Add(seeds[value], d) if value in seeds else d
    wanted = [(v, total) for v, total in zip(operands, totals, strict=True) if is_float(v)]
    found = differentiate(b, seeds, [v for v, _ in wanted])
    for (operand, total), d in zip(wanted, found, strict=True):
        if total is not None:
            d = total if d is None else b.Add(total, d)
        b.graph.outputs.append(b.Identity(b.zeros_like(operand) if d is None else d))


def keeping(g: Builder, body: ir.Graph, outputs: int, states: Sequence[int]) -> ir.Graph:
    """A loop's body that also gives what each iteration begins with, to be collected.

    Args:
        g: where the loop is going to stand.
        body: the loop's.
        outputs: how many of its outputs stay.
        states: which of its inputs it gives besides.
    """
    b = new_body(g, "again")
    inner = [input_like(b, typed(v), v.name or "in") for v in body.inputs]
    results = inline(b, body, inner)
    b.graph.outputs.extend(b.Identity(value) for value in results[:outputs])
    for state in (inner[i] for i in states):
        if not is_tensor(state):
            raise UnsupportedError(
                f"the state {state.name!r} is no tensor, so it cannot be kept for the gradient"
            )
        b.graph.outputs.append(b.Identity(state))
    return b.graph


def scan_backward(
    g: Builder,
    differentiate: Differentiate,
    step: Callable[[Builder, Sequence[ir.Value], Sequence[ir.Value], Sequence[ir.Value]], list[ir.Value]],
    d_states: Sequence[tuple[ir.Value, ir.Value | None]],
    states: Sequence[Stacked],
    scanned: Sequence[Stacked],
    captured: Sequence[ir.Value],
    d_collected: Sequence[Stacked | None],
) -> tuple[list[ir.Value | None], list[ir.Value | None], list[ir.Value | None]]:
    """The gradients of a loop, by a Scan that goes through its iterations backwards.

    Args:
        g: where to write.
        differentiate: the engine.
        step: writes one iteration on states, slices and captured values; gives states and collected outputs.
        d_states: each initial state, and the gradient of the last one.
        states: those that each iteration began with, in the order of iterations.
        scanned: what is read slice by slice.
        captured: what every iteration reads.
        d_collected: gradients of the collected outputs.

    Returns:
        Gradients of initial states, of what is scanned, of captured values; None where not floating point.
    """
    b = new_body(g, "backward")
    floating = [is_float(s) for s, _ in d_states]
    d_last = [input_like(b, typed(s), f"{s.name}/d") if is_float(s) else None for s, _ in d_states]
    sums = [input_like(b, typed(v), f"{v.name}/sum") if is_float(v) else None for v in captured]
    stacked = [*states, *scanned, *(d for d in d_collected if d is not None)]
    slices = [input_like(b, per_iteration(s.value, s.axis)[0], f"{s.value.name}/slice") for s in stacked]
    inner = [input_like(b, typed(v), f"{v.name}/in") for v in captured]
    before, read = slices[: len(states)], slices[len(states) : len(states) + len(scanned)]
    arriving = iter(slices[len(states) + len(scanned) :])
    d_outputs = [*d_last, *(None if d is None else next(arriving) for d in d_collected)]
    outputs = step(b, before, read, inner)
    # states, sums, then what is collected: the order of a Scan's outputs
    operands, totals = [*before, *inner, *read], [*(None for _ in before), *sums, *(None for _ in read)]
    _differentiated(b, differentiate, outputs, d_outputs, operands, totals)
    moving = [s for s in scanned if is_float(s.value)]
    grads = iter(
        g.emit(
            "Scan",
            *(g.zeros_like(s) if d is None else d for s, d in d_states if is_float(s)),
            *(g.zeros_like(v) for v in captured if is_float(v)),
            *(s.value for s in stacked),
            *captured,
            domain=ONWARD_DOMAIN,
            outputs=len(b.graph.outputs),
            body=b.graph,
            num_captured=len(captured),
            num_scan_inputs=len(stacked),
            scan_input_axes=[s.axis for s in stacked],
            scan_input_directions=[1 - s.direction for s in stacked],
            scan_output_axes=[s.axis for s in moving] or None,
            scan_output_directions=[1 - s.direction for s in moving] or None,
        )
    )
    to_states = [next(grads) if is_one else None for is_one in floating]
    to_captured = [next(grads) if is_float(v) else None for v in captured]
    to_scanned = [next(grads) if is_float(s.value) else None for s in scanned]
    return to_states, to_scanned, to_captured
