"""Recurrent layers, over sequences [N, T, features]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.graph import Array
from onward.nn.initializers import Fans, Initializer
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

__all__ = ["LSTM"]


@final
@dataclass(frozen=True, eq=False)
class LSTM(UnaryLayer):
    """Long short-term memory (Hochreiter & Schmidhuber 1997): [N, T, in] -> [N, units * directions].

    With `return_sequences` all states: [N, T, units * directions]. Parameters as ONNX lays them out, gates
    in the order i, o, f, c: weight [directions, 4 * units, in], recurrent_weight [directions, 4 * units,
    units], bias [directions, 8 * units], where the forget gates begin with 1 (Jozefowicz et al. 2015).
    """

    units: int
    bidirectional: bool = False
    return_sequences: bool = False
    weight_initializer: str | Initializer = "glorot_uniform"
    recurrent_initializer: str | Initializer = "orthogonal"

    def __post_init__(self) -> None:
        positive_int(self, "units", self.units)
        require_initializers(self, self.weight_initializer, self.recurrent_initializer)

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        require_rank(x, 3)
        features = extent(x, 2, "features")
        count = 2 if self.bidirectional else 1
        gates = 4 * self.units
        weight = site.parameter(
            "weight",
            [count, gates, features],
            self.weight_initializer,
            like=x,
            fans=Fans(features, self.units),
            blocks=4 * count,
        )
        recurrent = site.parameter(
            "recurrent_weight",
            [count, gates, self.units],
            self.recurrent_initializer,
            like=x,
            fans=Fans(self.units, self.units),
            blocks=4 * count,
        )
        bias = site.parameter("bias", [count, 2 * gates], _ForgetBias(), like=x)
        # onnxruntime's CPU kernel has the time-major layout only
        steps = site.g.Transpose(x, perm=[1, 0, 2])
        *_, y = site.g.emit(
            "LSTM",
            steps,
            weight,
            recurrent,
            bias,
            outputs=[None] if self.return_sequences else ["", None],
            hidden_size=self.units,
            direction="bidirectional" if self.bidirectional else None,
        )
        batch, time = dims(x)[:2]
        width = self.units * count
        if self.return_sequences:
            y = site.g.Transpose(y, perm=[2, 0, 1, 3])
            y = site.g.Reshape(y, np.array([0, 0, width], np.int64))
            y.shape = ir.Shape([batch, time, width])
            return y
        y = site.g.Flatten(site.g.Transpose(y, perm=[1, 0, 2]), axis=1)
        y.shape = ir.Shape([batch, width])
        return y


@final
@dataclass(frozen=True)
class _ForgetBias(Initializer):
    """Ones for the input bias of the forget gates, zeros for all others."""

    def draw(self, rng: np.random.Generator, shape: Sequence[int], fans: Fans, dtype: np.dtype[Any]) -> Array:
        bias = np.zeros(shape, dtype)
        units = shape[1] // 8
        bias[:, 2 * units : 3 * units] = 1.0
        return bias
