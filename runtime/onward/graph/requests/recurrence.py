"""Requests for recurrent operators and their gradients."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onward.graph.requests.base import Request, Static, Values, first_misfit

__all__ = [
    "Recurrence",
    "Recurrent",
    "RecurrentGradient",
    "recurrent_shapes",
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

    def misfit(self, static: Static) -> str | None:
        """As `Request.misfit`, of the operands that the operator and its gradient share."""
        x, r = static.shape(self.x), static.shape(self.r)
        if len(x) != 3 or len(r) != 3:
            return f"X {list(x)} and R {list(r)} are not of three axes"
        named = {"X": self.x, "W": self.w, "R": self.r, "B": self.bias, "sequence_lens": self.lens}
        named |= dict(zip(("initial_h", "initial_c"), self.initial, strict=False)) | {"P": self.peepholes}
        wanted = recurrent_shapes(GATES[self.kind], x, r, len(self.reverse), batch_major=self.batch_major)
        return first_misfit(static, *((name, value, wanted[name]) for name, value in named.items()))


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""How many a cell of a kind has."""


def recurrent_shapes(
    gates: int, x: tuple[int, ...], r: tuple[int, ...], directions: int, *, batch_major: bool
) -> dict[str, tuple[int, ...]]:
    """The shapes that operands and results have by the standard, given those of X and R."""
    size, features = r[2], x[2]
    time, batch = (x[1], x[0]) if batch_major else (x[0], x[1])
    state = (batch, directions, size) if batch_major else (directions, batch, size)
    return {
        "X": x,
        "W": (directions, gates * size, features),
        "R": (directions, gates * size, size),
        "B": (directions, 2 * gates * size),
        "sequence_lens": (batch,),
        "initial_h": state,
        "initial_c": state,
        "P": (directions, 3 * size),
        "Y": (batch, time, directions, size) if batch_major else (time, directions, batch, size),
    }


@dataclass(frozen=True)
class Recurrent(Request):
    """Y and the last states, those that are named."""

    outputs: Values
    of: Recurrence

    def misfit(self, static: Static) -> str | None:
        return self.of.misfit(static)


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

    def misfit(self, static: Static) -> str | None:
        if (reason := self.of.misfit(static)) is not None:
            return reason
        of = self.of
        wanted = recurrent_shapes(
            GATES[of.kind],
            static.shape(of.x),
            static.shape(of.r),
            len(of.reverse),
            batch_major=of.batch_major,
        )
        last = [("the gradient of a last state", value, wanted["initial_h"]) for value in self.d_last]
        return first_misfit(static, ("dY", self.dy, wanted["Y"]), *last)
