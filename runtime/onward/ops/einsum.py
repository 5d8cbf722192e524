from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, op
from onward.ops._contraction import contract, spelled_out
from onward.ops._floats import widened
from onward.ops._shape import like, rank_of


@op("Einsum", since=(12, 28))
class Einsum(Op):
    """The sum of products that the equation writes in Einstein's convention."""

    equation: str

    @widened
    def kernel(self, *Inputs: Array) -> Array:
        return contract(self.equation, Inputs)

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
