from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, op
from onward.ops._floats import widened
from onward.ops._shape import like, rank_of


@op("Einsum", since=(12, 28))
class Einsum(Op):
    """The sum of products that the equation writes in Einstein's convention."""

    equation: str

    @widened
    def kernel(self, *Inputs: Array) -> Array:
        return np.einsum(self.equation.replace(" ", ""), *Inputs, optimize=len(Inputs) > 1).astype(
            Inputs[0].dtype, copy=False
        )

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, *Inputs: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        terms, result = spelled_out(self.equation, [rank_of(x) for x in Inputs])
        gradients: list[ir.Value | None] = []
        for i, (x, term) in enumerate(zip(Inputs, terms, strict=True)):
            if len(set(term)) != len(term):
                raise UnsupportedError(f"{self.equation!r} takes a diagonal, which has no gradient rule")
            others = [(v, t) for j, (v, t) in enumerate(zip(Inputs, terms, strict=True)) if j != i]
            present = set(result).union(*(t for _, t in others))
            found = "".join(c for c in term if c in present)
            operands = ",".join([result, *(t for _, t in others)])
            dx = g.Einsum(dy, *(v for v, _ in others), equation=f"{operands}->{found}")
            if found != term:
                # an index of this operand alone is summed: its gradient is the same all along it
                lone = [axis for axis, c in enumerate(term) if c not in present]
                dx = like(g.Expand(g.Unsqueeze(dx, lone), g.shape(x)), x)
            gradients.append(dx)
        return tuple(gradients)


def spelled_out(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The terms and the result of an equation, with letters in place of each ellipsis."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    widest = max(rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True))
    free = [c for c in string.ascii_letters if c not in equation][:widest]
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = "..." * ("..." in left) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    filled = [
        t.replace("...", "".join(free[widest - (rank - len(t) + 3) :])) if "..." in t else t
        for t, rank in zip(terms, ranks, strict=True)
    ]
    return filled, right.replace("...", "".join(free))
