from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, numpy_dtype, op
from onward.ops._random import Random, uniforms


@op("Multinomial", since=(7, 22))
class Multinomial(Random):
    """sample_size classes for each row of unnormalised log-probabilities: the same for the same seed."""

    dtype: int = int(ir.DataType.INT32)
    sample_size: int = 1

    def kernel(self, input: Array) -> Array:
        if self.sample_size < 1 or input.ndim != 2 or not input.shape[1]:
            raise ShapeError(
                f"{self.sample_size} samples of input {list(input.shape)}: give at least 1, of [batch_size, "
                "class_size] with a class"
            )
        wide = input.astype(np.float64)
        weights = np.exp(wide - wide.max(axis=1, keepdims=True, initial=-np.inf))
        bounds = np.cumsum(weights, axis=1)
        u = uniforms(self.seed, (input.shape[0], self.sample_size), ir.DataType.DOUBLE, 0, 1)
        drawn = np.empty(u.shape, numpy_dtype(ir.DataType(self.dtype)))
        for row, bound, numbers in zip(drawn, bounds, u, strict=True):
            row[:] = np.searchsorted(bound, numbers * bound[-1], side="right")
        return drawn
