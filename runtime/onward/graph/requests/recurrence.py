"""Requests for recurrent operators and their gradients."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onward.graph.requests.base import Request, Values

__all__ = [
    "Recurrence",
    "Recurrent",
    "RecurrentGradient",
]


@dataclass(frozen=True)
class Recurrence:
    """What a recurrent operator and its gradient have in common.

    Attributes:
        kind: "LSTM", "GRU" or "RNN".
        x: [T, N, features], or [N, T, features] where `batch_major`.
        w, r, bias, lens, initial, peepholes: the operator's other operands; absent ones are None. `initial`
            has one entry for each state, H first.
        activations: of each direction, in the operator's order, in lower case.
        reverse: for each direction, whether it reads the sequence from its end.
        clip, before_reset, input_forget: the attributes.
    """

    kind: str
    x: ir.Value
    w: ir.Value
    r: ir.Value
    bias: ir.Value | None
    lens: ir.Value | None
    initial: tuple[ir.Value | None, ...]
    peepholes: ir.Value | None
    activations: tuple[tuple[str, ...], ...]
    reverse: tuple[bool, ...]
    batch_major: bool = False
    clip: float | None = None
    before_reset: bool = False
    input_forget: bool = False


@dataclass(frozen=True)
class Recurrent(Request):
    """Y and the last states, those that are named."""

    outputs: Values
    of: Recurrence


@dataclass(frozen=True)
class RecurrentGradient(Request):
    """The gradients of X, W, R, B, the initial states and P, those that are named.

    Attributes:
        dy, d_last: the gradients of Y and of the last states; absent ones are None.
    """

    outputs: Values
    of: Recurrence
    dy: ir.Value | None
    d_last: tuple[ir.Value | None, ...]
