"""Requests for calls of functions of other libraries."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onward.graph.requests.base import Request, Values

__all__ = ["StartCall", "WaitCall"]


@dataclass(frozen=True)
class StartCall(Request):
    """block = the operands' elements, one operand behind the other; a function is started on it.

    Operands that nobody else reads are computed where they are in the block. The call comes as soon as all
    operands are there.

    Attributes:
        function: the name under which the function is known.
        tag: what tells calls of one function apart.
        offset: elements of the block before the operands; behind them there may be others too.
    """

    starts = True

    block: ir.Value
    operands: Values
    function: str
    tag: int
    offset: int = 0


@dataclass(frozen=True)
class WaitCall(Request):
    """y = the block, in place, once what was started on it has ended."""

    y: ir.Value
    block: ir.Value
    function: str
    tag: int
