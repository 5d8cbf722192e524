from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Op, dtype_of, numpy_dtype, op, requests
from onward.graph.requests import Static, Values


@op("BitCast", since=26)
class BitCast(Op):
    """The same bits as an element type of the same width."""

    to: int

    def kernel(self, input: Array) -> Array:
        kind = ir.DataType(self.to)
        if input.dtype.kind == "O" or kind == ir.DataType.STRING:
            raise UnsupportedError("BitCast takes and gives no strings")
        source = ir.DataType.from_numpy(input.dtype)
        if source.bitwidth != kind.bitwidth:
            raise UnsupportedError(
                f"BitCast from {source.name.lower()} to {kind.name.lower()}: their widths differ, "
                f"{source.bitwidth} and {kind.bitwidth} bits"
            )
        return np.ascontiguousarray(input).reshape(input.shape).view(numpy_dtype(kind))

    def lower(
        self, static: Static, outputs: Values, input: ir.Value
    ) -> requests.Reinterpret | requests.Unsupported:
        wanted, given = ir.DataType(self.to), dtype_of(input)
        if given.bitwidth != wanted.bitwidth or given.bitwidth < 8:
            return requests.Unsupported("elements of less than a byte, or of another width")
        return requests.Reinterpret(outputs[0], input)
