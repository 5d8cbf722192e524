from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, dims_of, op
from onward.ops.ml import DOMAIN


@op("ArrayFeatureExtractor", domain=DOMAIN, since=1)
class ArrayFeatureExtractor(Op):
    """The elements at Y of X's last axis; of one axis [1, n]."""

    def canonical(self, g: Builder, X: ir.Value, Y: ir.Value) -> ir.Value:
        picked = g.Gather(X, g.Reshape(Y, [-1]), axis=-1)
        dims = dims_of(X)
        return g.Unsqueeze(picked, [0]) if dims is not None and len(dims) == 1 else picked
