"""Attention, and learned positions, over sequences [N, T, features]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import dims_of
from onward.nn.initializers import Fans, Initializer, Normal
from onward.nn.layer import UnaryLayer
from onward.nn.layers._checks import (
    dims,
    extent,
    positive_int,
    require_float,
    require_initializers,
    require_rank,
)
from onward.nn.trace import Site

__all__ = ["PositionEmbedding", "SelfAttention"]

_SMALL = Normal(0.02)


@final
@dataclass(frozen=True, eq=False)
class SelfAttention(UnaryLayer):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762): [N, T, D] -> [N, T, D].

    Per head softmax(Q K^T / sqrt(D / heads)) V, without a mask. Parameters: query, key, value and output,
    each with `_weight` [D, D] and `_bias` [D].
    """

    heads: int
    weight_initializer: str | Initializer = "glorot_uniform"

    def __post_init__(self) -> None:
        positive_int(self, "heads", self.heads)
        require_initializers(self, self.weight_initializer)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        require_rank(x, 3)
        size = extent(x, 2, "features")
        if size % self.heads:
            raise ShapeError(f"expected features that divide into {self.heads} heads, got {size}")
        g = site.g
        query = self._split(site, self._project(site, x, "query", size), (0, 2, 1, 3))
        key = self._split(site, self._project(site, x, "key", size), (0, 2, 3, 1))
        value = self._split(site, self._project(site, x, "value", size), (0, 2, 1, 3))
        scores = g.Mul(g.MatMul(query, key), 1.0 / math.sqrt(size / self.heads))
        mixed = g.Transpose(g.MatMul(g.Softmax(scores, axis=-1), value), perm=[0, 2, 1, 3])
        joined = g.Reshape(mixed, np.array([0, 0, size], np.int64))
        joined.shape = ir.Shape(dims(x))
        return self._project(site, joined, "output", size)

    def _project(self, site: Site, x: ir.Value, role: str, size: int) -> ir.Value:
        fans = Fans(size, size)
        weight = site.parameter(f"{role}_weight", [size, size], self.weight_initializer, like=x, fans=fans)
        return site.g.Add(site.g.MatMul(x, weight), site.parameter(f"{role}_bias", [size], "zeros", like=x))

    def _split(self, site: Site, x: ir.Value, perm: tuple[int, ...]) -> ir.Value:
        """[N, T, D] -> [N, T, heads, D / heads], its axes then in the order given."""
        batch, time, _ = dims(x)
        size = extent(x, 2, "features") // self.heads
        y = site.g.Reshape(x, np.array([0, 0, self.heads, size], np.int64))
        y.shape = ir.Shape([batch, time, self.heads, size])
        return site.g.Transpose(y, perm=perm)


@final
@dataclass(frozen=True, eq=False)
class PositionEmbedding(UnaryLayer):
    """Adds a learned vector to every position: [N, T, D] -> [N, T, D]. Parameters: weight [T, D]."""

    weight_initializer: str | Initializer = _SMALL

    def __post_init__(self) -> None:
        require_initializers(self, self.weight_initializer)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        require_rank(x, 3)
        shape = [extent(x, 1, "positions"), extent(x, 2, "features")]
        weight = site.parameter("weight", shape, self.weight_initializer, like=x, fans=Fans(1, shape[1]))
        y = site.g.Add(x, weight)
        assert dims_of(y) == dims_of(x)
        return y
