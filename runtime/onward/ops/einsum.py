from __future__ import annotations

import numpy as np
import onnx_ir as ir

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
        terms, result = spelled_out(self.equation, [len(shape) for shape in shapes])
        extents = extents_of(terms, shapes)
        if extents is None or tuple(extents[c] for c in result) != static.shape(outputs[0]):
            return requests.Unsupported("extents that do not agree")
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
            others = [(v, t) for j, (v, t) in enumerate(zip(Inputs, terms, strict=True)) if j != i]
            present = set(result).union(*(t for _, t in others))
            found = "".join(c for c in dict.fromkeys(term) if c in present)
            operands = ",".join([result, *(t for _, t in others)])
            dx = g.Einsum(dy, *(v for v, _ in others), equation=f"{operands}->{found}")
            again = [(term.index(c), axis) for axis, c in enumerate(term) if c in term[:axis]]
            if found != term:
                # an index of this operand alone is summed: its gradient is the same all along it
                lone = [axis for axis, c in enumerate(term) if c not in present or c in term[:axis]]
                dx = like(g.Expand(g.Unsqueeze(dx, sorted(lone)), g.shape(x)), x)
            for first, second in again:  # an index that is repeated walks along a diagonal
                dx = g.Where(g.Equal(_along(g, x, first), _along(g, x, second)), dx, 0.0)
            gradients.append(dx)
        return tuple(gradients)


def _along(g: Builder, x: ir.Value, axis: int) -> ir.Value:
    """The positions along an axis of x, shaped to broadcast against it."""
    places = g.Range(g.const(0, np.int64), g.Squeeze(g.dim(x, axis), [0]), g.const(1, np.int64))
    return g.Unsqueeze(places, [i for i in range(rank_of(x)) if i != axis])
