from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Op, op
from onward.ops._random import uniforms


@op("RandomUniformLike", since=(1, 22))
class RandomUniformLike(Op):
    """Numbers evenly distributed in [low, high), of input's shape: the same for the same seed."""

    dtype: int | None = None
    high: float = 1.0
    low: float = 0.0
    seed: float | None = None

    @property
    def varies(self) -> bool:
        return self.seed is None

    def kernel(self, input: Array) -> Array:
        kind = ir.DataType.from_numpy(input.dtype) if self.dtype is None else ir.DataType(self.dtype)
        return uniforms(self.seed, input.shape, kind, self.low, self.high)
