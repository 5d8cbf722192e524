from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Op, op
from onward.ops._random import uniforms


@op("RandomUniform", since=(1, 22))
class RandomUniform(Op):
    """Numbers evenly distributed in [low, high): the same for the same seed."""

    shape: tuple[int, ...]
    dtype: int = int(ir.DataType.FLOAT)
    high: float = 1.0
    low: float = 0.0
    seed: float | None = None

    @property
    def varies(self) -> bool:
        return self.seed is None

    def kernel(self) -> Array:
        return uniforms(self.seed, self.shape, ir.DataType(self.dtype), self.low, self.high)
