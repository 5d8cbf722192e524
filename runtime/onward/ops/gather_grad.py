from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, numpy_dtype, op, requests
from onward.graph.requests import Static, Values
from onward.ops._indexing import add_rows, progression, wrapped
from onward.ops._shape import constant_of, normalized, rank_of


@op("GatherGrad", since=1, domain=ONWARD_DOMAIN)
class GatherGrad(Op):
    """The gradient of Gather: each slice of dy added to zeros of `shape` where its index points.

    Inputs: dy, of shape[:axis] + indices' shape + shape[axis + 1:]; indices, int32 or int64, negative ones
    counted from the end; shape, int64, that of Gather's data.
    """

    axis: int = 0

    def kernel(self, dy: Array, indices: Array, shape: Array) -> Array:
        target = tuple(int(n) for n in shape)
        axis = normalized(self.axis, len(target))
        before, after = math.prod(target[:axis]), math.prod(target[axis + 1 :])
        positions = wrapped(indices, target[axis]).reshape(-1)
        values = np.moveaxis(dy.reshape(before, positions.size, after), 1, 0)
        rows = np.zeros((target[axis], before * after), np.float32 if dy.dtype.itemsize == 2 else dy.dtype)
        add_rows(
            rows, positions, values.reshape(positions.size, before * after).astype(rows.dtype, copy=False)
        )
        spread = np.moveaxis(rows.reshape(target[axis], before, after), 0, 1)
        return spread.reshape(target).astype(dy.dtype, copy=False)

    def infer(
        self, dy: ir.Value, indices: ir.Value, shape: ir.Value
    ) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        have, spread = dims_of(dy), dims_of(indices)
        known = constant_of(shape)
        if known is not None:
            return [(dtype_of(dy), tuple(int(n) for n in known))]
        if have is None or spread is None:
            return [(dtype_of(dy), None)]
        axis = normalized(self.axis, len(have) - len(spread) + 1)
        return [(dtype_of(dy), (*have[:axis], None, *have[axis + len(spread) :]))]

    def expand(self, g: Builder, dy: ir.Value, indices: ir.Value, shape: ir.Value) -> ir.Value:
        zeros = g.ConstantOfShape(shape, value=ir.tensor(np.zeros(1, numpy_dtype(dtype_of(dy)))))
        depth, have = rank_of(indices), rank_of(dy)
        rank = have - depth + 1
        axis = normalized(self.axis, rank)
        if axis == 0:
            tuples = g.Unsqueeze(g.Cast(indices, to=int(ir.DataType.INT64)), [-1])
            return g.ScatterND(zeros, tuples, dy, reduction="add")
        # one axis of indices, then the same index at every position of the other axes
        flat = g.Reshape(indices, [-1])
        lead, tail = g.Slice(shape, [0], [axis]), g.Slice(shape, [axis + 1], [rank])
        wanted = g.Concat(lead, g.Shape(flat), tail, axis=0)
        along = g.Unsqueeze(flat, [i for i in range(rank) if i != axis])
        values = g.Reshape(dy, wanted, allowzero=1)
        return g.ScatterElements(zeros, g.Expand(along, wanted), values, axis=axis, reduction="add")

    def lower(
        self, static: Static, outputs: Values, dy: ir.Value, indices: ir.Value, shape: ir.Value
    ) -> requests.GatherGradient | requests.PositionsGradient:
        target = static.shape(outputs[0])
        axis = normalized(self.axis, len(target))
        if (positions := progression(static.known(indices), target[axis])) is not None:
            return requests.PositionsGradient(outputs[0], dy, axis, positions, not static.shape(indices))
        return requests.GatherGradient(outputs[0], dy, indices, self.axis)
