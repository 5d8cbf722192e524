from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, is_float, op, requests, static_shape
from onward.graph.requests import Static, Values
from onward.ops._contraction import contract, contracted, extents_of, spelled_out
from onward.ops._floats import widened
from onward.ops._shape import like, rank_of


@op("Einsum", since=(12, 28))
class Einsum(Op):
    """The sum of products that the equation writes in Einstein's convention."""

    equation: str

    @widened
    def kernel(self, *Inputs: Array) -> Array:
        return contract(self.equation, Inputs)

    def lower(
        self, static: Static, outputs: Values, *Inputs: ir.Value
    ) -> requests.Body | requests.Unsupported:
        if not all(map(is_float, Inputs)):
            return requests.Unsupported("integers")
        shapes = [static.shape(x) for x in Inputs]
        terms, _ = spelled_out(self.equation, [len(shape) for shape in shapes])
        if extents_of(terms, shapes) is None:
            return requests.Unsupported("extents that NumPy's einsum judges")
        return requests.Body()

    def expand(self, g: Builder, *Inputs: ir.Value) -> ir.Value:
        """Transposes, sums and matrix products, two operands at a time from the left."""
        shapes = [static_shape(x) or () for x in Inputs]
        terms, result = spelled_out(self.equation, [len(shape) for shape in shapes])
        return contracted(g, terms, result, Inputs, shapes)

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
