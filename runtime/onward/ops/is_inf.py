from __future__ import annotations

import numpy as np

from onward.graph import Array, Op, op


@op("IsInf", since=(10, 20))
class IsInf(Op):
    """Whether each element is an infinity of a sign that is looked for."""

    detect_negative: int = 1
    detect_positive: int = 1

    def kernel(self, X: Array) -> Array:
        if self.detect_negative and self.detect_positive:
            return np.isinf(X)
        sign = X < 0 if self.detect_negative else X > 0
        return np.isinf(X) & sign & bool(self.detect_negative or self.detect_positive)
