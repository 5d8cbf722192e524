from __future__ import annotations

import onnx_ir as ir

from onward.graph import Array, op
from onward.ops._random import Normal


@op("RandomNormal", since=(1, 22))
class RandomNormal(Normal):
    """Normally distributed numbers: the same for the same seed."""

    shape: tuple[int, ...]
    dtype: int = int(ir.DataType.FLOAT)

    def kernel(self) -> Array:
        return self.draw(self.shape, ir.DataType(self.dtype))
