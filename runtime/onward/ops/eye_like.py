from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Op, numpy_dtype, op


@op("EyeLike", since=(9, 22))
class EyeLike(Op):
    """A matrix of input's shape with ones on the k-th diagonal."""

    follows_from_shapes = True

    dtype: int | None = None
    k: int = 0

    def kernel(self, input: Array) -> Array:
        dtype = input.dtype if self.dtype is None else numpy_dtype(ir.DataType(self.dtype))
        rows, columns = input.shape
        return np.eye(rows, columns, self.k).astype(dtype)
