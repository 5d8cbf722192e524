from __future__ import annotations

import numpy as np

from onward.graph import Array, op
from onward.ops._extreme import ExtremeOver, extreme
from onward.ops._reduction import AxesAttribute, Compiled

_COMPILED = Compiled("max")


def _reduced(data: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return extreme(np.maximum, data, axes, keepdims)


@op("ReduceMax", since=(18, 20))
class ReduceMax(ExtremeOver):
    """The largest element over axes; NaN wins. Ties share the gradient evenly."""

    compiled = _COMPILED

    def reduce(self, data: Array, axes: tuple[int, ...]) -> Array:
        return _reduced(data, axes, bool(self.keepdims))


@op("ReduceMax", since=(1, 11, 12, 13))
class ReduceMaxAxesAttribute(AxesAttribute):
    """ReduceMax over axes that are an attribute."""
