"""What all requests share, and what is known of a graph when they are made."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import onnx_ir as ir

from onward.graph.types import Array

__all__ = [
    "NO_KERNEL",
    "Body",
    "Request",
    "Static",
    "Unsupported",
    "Values",
    "Wanted",
    "first_misfit",
    "misfit_of",
]

Values: TypeAlias = tuple[ir.Value, ...]


class Static(Protocol):
    """What is known of a graph's values before it runs."""

    @abstractmethod
    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """A value's shape."""

    @abstractmethod
    def known(self, value: ir.Value) -> Array | None:
        """The contents of a constant."""


@dataclass(frozen=True)
class Request:
    """Base of all requests; what the passes before lowering read."""

    fuses_elements: ClassVar[bool] = False
    """Whether a kernel can compute element-wise operations on the result before it writes it back."""

    starts: ClassVar[bool] = False
    """Whether it is to come as soon as its operands are there: what it starts goes on beside other calls."""

    def misfit(self, static: Static) -> str | None:
        """Why operands and results of these shapes do not belong together; None where they do.

        Kernels address memory by the shapes of some of them and rely on the others to fit, and inference need
        not know that a file's shapes contradict each other: whatever a kernel takes for granted is told here.
        """
        return None

    @property
    def channels_last(self) -> Values:
        """Operands and results that kernels take and give channels-last."""
        return ()

    @property
    def same_layout(self) -> Values:
        """Operands and results that kernels take and give in any layout that they share."""
        return ()

    @property
    def expressions(self) -> Values:
        """Operands, of one shape, that kernels take as expressions of other tensors."""
        return ()


@dataclass(frozen=True)
class Unsupported(Request):
    """No kernel computes the node, for a reason: its NumPy kernel runs inside the plan."""

    reason: str


@dataclass(frozen=True)
class Body(Request):
    """What the operator's body in standard operators computes (`expand`): each of these asks for itself.

    Attributes:
        rounds: whether 2-byte floats are rounded to between its operators; otherwise all are in float32.
    """

    rounds: bool = False


Wanted: TypeAlias = tuple[str, ir.Value | None, tuple[int | None, ...]]
"""An operand's name in messages, the operand, and the shape that it has to have, None for any extent."""


def first_misfit(static: Static, *operands: Wanted) -> str | None:
    """What `Request.misfit` says of the first operand of another shape; absent ones fit."""
    for name, value, wanted in operands:
        if value is not None and (reason := misfit_of(name, static.shape(value), wanted)) is not None:
            return reason
    return None


def misfit_of(name: str, shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> str | None:
    """What is wrong with a shape, if anything is."""
    if len(shape) == len(wanted) and all(w is None or w == n for n, w in zip(shape, wanted, strict=True)):
        return None
    told = ", ".join("any" if w is None else str(w) for w in wanted)
    return f"{name} is {list(shape)}; it has to be [{told}]"


NO_KERNEL = Unsupported("no compiled kernel")
