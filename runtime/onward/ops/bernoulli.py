from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Op, numpy_dtype, op
from onward.ops._random import uniforms


@op("Bernoulli", since=(15, 22))
class Bernoulli(Op):
    """1 with the probability that input holds, else 0: the same for the same seed."""

    dtype: int | None = None
    seed: float | None = None

    @property
    def varies(self) -> bool:
        return self.seed is None

    def kernel(self, input: Array) -> Array:
        u = uniforms(self.seed, input.shape, ir.DataType.FLOAT, 0, 1)
        kind = input.dtype if self.dtype is None else numpy_dtype(ir.DataType(self.dtype))
        return (u < input).astype(kind)
