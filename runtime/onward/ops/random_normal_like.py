from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, Op, op
from onward.ops._random import normals


@op("RandomNormalLike", since=(1, 22))
class RandomNormalLike(Op):
    """Normally distributed numbers, of input's shape: the same for the same seed."""

    dtype: int | None = None
    mean: float = 0.0
    scale: float = 1.0
    seed: float | None = None

    @property
    def varies(self) -> bool:
        return self.seed is None

    def kernel(self, input: Array) -> Array:
        kind = ir.DataType.from_numpy(input.dtype) if self.dtype is None else ir.DataType(self.dtype)
        return normals(self.seed, input.shape, kind, self.mean, self.scale)
