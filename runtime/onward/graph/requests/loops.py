"""What is written as a loop in Python, and compiled by Numba."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onward.graph.requests.base import Request, Static, Values, first_misfit

__all__ = ["Loop"]


@dataclass(frozen=True)
class Loop(Request):
    """function(thread, threads, *outputs, *operands, *scratch, *constants), called by every thread of a team.

    The function fills its share of the outputs, which hold anything before. It gets arrays in ONNX's order,
    and None for an absent output or operand. It may call other Python functions and `math`, and cannot make
    arrays. Where it may raise, a run looks after each call whether it has: better that it cannot.

    Attributes:
        function: a function of a module, not of another function.
        constants: numbers, or tuples of them, that are part of the code.
        scratch: extents and element type of arrays that hold anything before and nothing after.
        flops: arithmetic of one call, for reports.
        indices: operands that must be in [0, n), each with its n: a run refuses others before the call.
        shapes: what the function relies on beyond shapes that inference checks: operands with the shape that
            each must have, None for any extent.
    """

    outputs: Values
    operands: tuple[ir.Value | None, ...]
    function: Callable[..., Any]
    constants: tuple[Any, ...] = ()
    scratch: tuple[tuple[tuple[int, ...], str], ...] = ()
    flops: int = 0
    indices: tuple[tuple[ir.Value, int], ...] = ()
    shapes: tuple[tuple[ir.Value, tuple[int | None, ...]], ...] = ()

    def misfit(self, static: Static) -> str | None:
        return first_misfit(static, *((repr(value.name), value, wanted) for value, wanted in self.shapes))
