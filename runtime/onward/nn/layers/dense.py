"""Fully connected layers and embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.errors import ConfigError, ShapeError
from onward.nn.initializers import Fans, Initializer, Normal
from onward.nn.layer import UnaryLayer
from onward.nn.layers._checks import (
    dims,
    extent,
    positive_int,
    require_float,
    require_initializers,
    require_integer,
)
from onward.nn.layers.activation import activate, require_activation
from onward.nn.trace import Site

__all__ = ["Dense", "Embedding"]

_UNIT = Normal(1.0)


@final
@dataclass(frozen=True, eq=False)
class Dense(UnaryLayer):
    """y = x W + b over the last axis: [N, ..., in] -> [N, ..., units].

    Parameters: weight, bias [units]. For inputs of rank 2 the layer is Gemm with weight [units, in]; for
    higher ranks it is MatMul with weight [in, units] and Add.

    Args:
        units: the output's last extent.
        activation: the name of an activation that follows.
        bias: whether there is a bias.
    """

    units: int
    activation: str | None = None
    bias: bool = True
    weight_initializer: str | Initializer = "glorot_uniform"
    bias_initializer: str | Initializer = "zeros"

    def __post_init__(self) -> None:
        positive_int(self, "units", self.units)
        require_activation(self, self.activation)
        require_initializers(self, self.weight_initializer, self.bias_initializer)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        rank = len(dims(x))
        if rank < 2:
            raise ShapeError(f"expected rank 2 [N, in] or more, got rank {rank}")
        features = extent(x, -1, "features")
        shape = [self.units, features] if rank == 2 else [features, self.units]
        fans = Fans(features, self.units)
        weight = site.parameter("weight", shape, self.weight_initializer, like=x, fans=fans)
        bias = (
            site.parameter("bias", [self.units], self.bias_initializer, like=x, fans=fans)
            if self.bias
            else None
        )
        if rank == 2:
            y = site.g.Gemm(x, weight, bias, transB=1)
        else:
            y = site.g.MatMul(x, weight)
            if bias is not None:
                y = site.g.Add(y, bias)
        return activate(site, self.activation, y)


@final
@dataclass(frozen=True, eq=False)
class Embedding(UnaryLayer):
    """Rows of a table by integer id: int64 or int32 [N, ...] -> [N, ..., size].

    Parameters: weight [count, size]. An output is one row, so fan_in is 1 and fan_out is `size`. Ids must
    be in [0, count).

    Args:
        count: how many ids there are.
        size: the length of a row.
        dtype: the table's element type.
    """

    count: int
    size: int
    weight_initializer: str | Initializer = _UNIT
    dtype: str = "float32"

    def __post_init__(self) -> None:
        positive_int(self, "count", self.count)
        positive_int(self, "size", self.size)
        require_initializers(self, self.weight_initializer)
        if self._element() is None:
            raise ConfigError(f"{self.label}: dtype must name a floating-point type, got {self.dtype!r}")

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_integer(x)
        element = self._element()
        assert element is not None
        weight = site.parameter(
            "weight",
            [self.count, self.size],
            self.weight_initializer,
            like=element,
            fans=Fans(1, self.size),
        )
        return site.g.Gather(weight, x, axis=0)

    def _element(self) -> ir.DataType | None:
        try:
            found: np.dtype[Any] = np.dtype(self.dtype)
        except TypeError:
            return None
        element = ir.DataType.from_numpy(found)
        return element if element.is_floating_point() else None
