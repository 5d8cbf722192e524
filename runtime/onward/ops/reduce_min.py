from __future__ import annotations

import numpy as np

from onward.graph import Array, op
from onward.ops._extreme import ExtremeOver, extreme
from onward.ops._reduction import AxesAttribute, Compiled

_COMPILED = Compiled("min")


def _reduced(data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return extreme(np.minimum, data, axes, keepdims)


@op("ReduceMin", since=(18, 20))
class ReduceMin(ExtremeOver):
    """The smallest element over axes; NaN wins. Ties share the gradient evenly."""

    compiled = _COMPILED

    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        return _reduced(data, axes, bool(self.keepdims))


@op("ReduceMin", since=(1, 11, 12, 13))
class ReduceMinAxesAttribute(AxesAttribute):
    """ReduceMin over axes that are an attribute."""
