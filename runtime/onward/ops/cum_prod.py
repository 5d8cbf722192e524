from __future__ import annotations

import numpy as np

from onward.graph import Array, Op, op
from onward.ops.cum_sum import running


@op("CumProd", since=26)
class CumProd(Op):
    """The running product along an axis; from the end with reverse, without the element with exclusive."""

    exclusive: int = 0
    reverse: int = 0

    def kernel(self, x: Array, axis: Array) -> Array:
        return running(np.multiply, x, axis, bool(self.exclusive), bool(self.reverse))
