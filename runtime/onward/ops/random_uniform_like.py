from __future__ import annotations

from onward.graph import Array, op
from onward.ops._random import Uniform, kind_of


@op("RandomUniformLike", since=(1, 22))
class RandomUniformLike(Uniform):
    """Numbers evenly distributed in [low, high), of input's shape: the same for the same seed."""

    dtype: int | None = None

    def kernel(self, input: Array) -> Array:
        return self.draw(input.shape, kind_of(self.dtype, input))
