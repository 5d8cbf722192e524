from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests, static_shape
from onward.graph.requests import Static, Values
from onward.ops._shape import constant_of, normalized


@op("OneHot", since=(9, 11, 28))
class OneHot(Op):
    """values[1] where the position along a new axis is the index, values[0] elsewhere."""

    static_operands = ("depth",)

    axis: int = -1

    def kernel(self, indices: Array, depth: Array, values: Array) -> Array:
        extent = int(depth.reshape(-1)[0])
        axis = normalized(self.axis, indices.ndim + 1)
        wanted = indices.astype(np.int64, copy=False)
        wanted = np.expand_dims(np.where(wanted < 0, wanted + extent, wanted), axis)
        shape = [1] * (indices.ndim + 1)
        shape[axis] = extent
        return np.where(wanted == np.arange(extent).reshape(shape), values[1], values[0])

    def lower(
        self, static: Static, outputs: Values, indices: ir.Value, depth: ir.Value, values: ir.Value
    ) -> requests.Body | requests.Unsupported:
        return (
            requests.Unsupported("a depth that is not constant")
            if static.known(depth) is None
            else requests.Body()
        )

    def expand(self, g: Builder, indices: ir.Value, depth: ir.Value, values: ir.Value) -> ir.Value:
        known, shape = constant_of(depth), static_shape(indices)
        assert known is not None
        assert shape is not None
        extent = int(known.reshape(-1)[0])
        axis = normalized(self.axis, len(shape) + 1)
        wanted = g.Unsqueeze(g.Cast(indices, to=int(ir.DataType.INT64)), [axis])
        places = np.arange(extent).reshape(-1, *(1,) * (len(shape) - axis))
        here, counted = (g.Equal(wanted, g.const(p, np.int64)) for p in (places, places - extent))
        off, on = (g.Gather(values, g.const(i, np.int64), axis=0) for i in (0, 1))
        return g.Where(g.Or(here, counted), on, off)
