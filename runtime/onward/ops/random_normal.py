from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Op, op
from onward.ops._random import normals


@op("RandomNormal", since=(1, 22))
class RandomNormal(Op):
    """Normally distributed numbers: the same for the same seed."""

    shape: tuple[int, ...]
    dtype: int = int(ir.DataType.FLOAT)
    mean: float = 0.0
    scale: float = 1.0
    seed: float | None = None

    @property
    def varies(self) -> bool:
        return self.seed is None

    def kernel(self) -> Array:
        return normals(self.seed, self.shape, ir.DataType(self.dtype), self.mean, self.scale)
