"""Epilogues: element-wise operations that a producing kernel computes before it writes its result back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onward.compile.kernels.expression import Expression, operand
from onward.compile.kernels.tile import ACCUMULATOR, Epilogue
from onward.compile.tensors import Tensor

__all__ = ["WriteBack"]


@dataclass(frozen=True, eq=False)
class WriteBack:
    """What a producing kernel does with its results.

    Attributes:
        target: where they go.
        expression: what is stored, given the result and the number of the first further operand.
        operands: further operands: "channel", a vector over channels, or "full", in the target's layout.
    """

    target: Tensor
    expression: Callable[[Expression, int], Expression] = lambda result, _: result
    operands: tuple[tuple[str, Tensor], ...] = ()

    def epilogue(self, bias: Tensor | None) -> tuple[Epilogue, tuple[Tensor, ...]]:
        """The kernel's epilogue with a bias over channels added first, and its operands."""
        kinds = tuple(kind for kind, _ in self.operands)
        tensors = tuple(tensor for _, tensor in self.operands)
        if bias is None:
            return Epilogue(self.expression(ACCUMULATOR, 1), kinds), tensors
        return Epilogue(self.expression(ACCUMULATOR + operand(1), 2), ("channel", *kinds)), (bias, *tensors)
