from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, numpy_dtype, op
from onward.ops._random import Random, kind_of, uniforms


@op("Bernoulli", since=(15, 22))
class Bernoulli(Random):
    """1 with the probability that input holds, else 0: the same for the same seed."""

    dtype: int | None = None

    def kernel(self, input: Array) -> Array:
        u = uniforms(self.seed, input.shape, ir.DataType.FLOAT, 0, 1)
        return (u < input).astype(numpy_dtype(kind_of(self.dtype, input)))
