from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Dim, Op, dims_of, dtype_of, op
from onward.ops.ml import DOMAIN
from onward.ops.ml._lookup import looked_up


@op("CategoryMapper", domain=DOMAIN, since=1)
class CategoryMapper(Op):
    """The number of a category by its name, or its name by the number; a default for others."""

    cats_int64s: tuple[int, ...] | None = None
    cats_strings: tuple[str, ...] | None = None
    default_int64: int = -1
    default_string: str = "_Unused"

    def kernel(self, X: Array) -> Array:
        numbers = np.asarray(self.cats_int64s or (), np.int64)
        names = np.asarray(self.cats_strings or (), object)
        if X.dtype == object:
            return looked_up(X, names, numbers, self.default_int64)
        return looked_up(X, numbers, names, self.default_string)

    def infer(self, X: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        strings = dtype_of(X) == ir.DataType.STRING
        return [(ir.DataType.INT64 if strings else ir.DataType.STRING, dims_of(X))]
