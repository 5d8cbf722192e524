from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError
from onward.graph import Builder, Op, dtype_of, op
from onward.ops.ml import DOMAIN


@op("OneHotEncoder", domain=DOMAIN, since=1)
class OneHotEncoder(Op):
    """A new last axis in float32, 1 at X's category; numbers are cut to whole ones.

    A category that is not listed gives zeros, or with zeros = 0 ends the run as an index that is out of
    range.
    """

    cats_int64s: tuple[int, ...] | None = None
    cats_strings: tuple[str, ...] | None = None
    zeros: int = 1

    def canonical(self, g: Builder, X: ir.Value) -> ir.Value:
        if dtype_of(X) == ir.DataType.STRING:
            if not self.cats_strings:
                raise InvalidModelError("X holds strings: cats_strings is needed")
            categories = g.initializer(g.unique("categories"), np.asarray(self.cats_strings, object))
        else:
            if not self.cats_int64s:
                raise InvalidModelError("X holds numbers: cats_int64s is needed")
            categories = g.const(self.cats_int64s, np.int64)
            if dtype_of(X) != ir.DataType.INT64:
                X = g.Cast(X, to=int(ir.DataType.INT64))
        hits = g.Cast(g.Equal(g.Unsqueeze(X, [-1]), categories), to=int(ir.DataType.FLOAT))
        if self.zeros:
            return hits
        count = len(self.cats_strings or self.cats_int64s or ())
        known = g.Greater(g.ReduceMax(hits, [-1], keepdims=0), 0.0)
        index = g.Where(known, g.ArgMax(hits, axis=-1, keepdims=0), g.const(count, np.int64))
        return g.Gather(g.const(np.eye(count, dtype=np.float32)), index)
