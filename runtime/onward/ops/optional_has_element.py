from __future__ import annotations

from typing import Any

import numpy as np

from onward.graph import Array, Op, op


@op("OptionalHasElement", since=(15, 18, 28))
class OptionalHasElement(Op):
    """Whether an optional holds something."""

    def kernel(self, input: Any = None) -> Array:
        return np.array(input is not None)
