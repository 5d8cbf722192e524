from __future__ import annotations

from onward.graph import Array, op
from onward.ops._random import Normal, kind_of


@op("RandomNormalLike", since=(1, 22))
class RandomNormalLike(Normal):
    """Normally distributed numbers, of input's shape: the same for the same seed."""

    dtype: int | None = None

    def kernel(self, input: Array) -> Array:
        return self.draw(input.shape, kind_of(self.dtype, input))
