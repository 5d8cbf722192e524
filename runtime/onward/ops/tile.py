from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Unsupported, Values
from onward.ops._shape import like, rank_of


@op("Tile", since=(6, 13))
class Tile(Op):
    """input repeated along each axis."""

    static_operands = ("repeats",)

    def kernel(self, input: Array, repeats: Array) -> Array:
        return np.tile(input, tuple(int(n) for n in repeats))

    def lower(
        self, static: Static, outputs: Values, input: ir.Value, repeats: ir.Value
    ) -> requests.Tile | Unsupported:
        times = static.known(repeats)
        if times is None:
            return Unsupported("repeats that are not constant")
        return requests.Tile(outputs[0], input, tuple(int(n) for n in times))

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value, repeats: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        pairs = g.Concat(g.Unsqueeze(repeats, [1]), g.Unsqueeze(g.shape(input), [1]), axis=1)
        apart = g.Reshape(dy, g.Reshape(pairs, [-1]), allowzero=1)
        folded = g.ReduceSum(apart, [2 * i for i in range(rank_of(input))], keepdims=0)
        return like(folded, input), None


@op("Tile", since=1)
class Tile1(Op):
    """input repeated along one axis."""

    def canonical(self, g: Builder, input: ir.Value, tiles: ir.Value, axis: ir.Value) -> ir.Value:
        rank = g.Shape(g.Shape(input))
        one, to = g.const([1], np.int64), int(ir.DataType.INT64)
        where = g.Reshape(g.Cast(axis, to=to), [1])
        where = g.Where(g.Less(where, [0]), g.Add(where, rank), where)
        times = g.Reshape(g.Cast(tiles, to=to), [1])
        return g.Tile(input, g.ScatterElements(g.Expand(one, rank), where, times))
