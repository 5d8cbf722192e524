"""Numbers in the units of the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir

from onward.errors import ConfigError, ShapeError
from onward.nn.layer import UnaryLayer
from onward.nn.layers._checks import dims, require_float
from onward.nn.trace import Site

__all__ = ["Rescale"]


@final
@dataclass(frozen=True, eq=False)
class Rescale(UnaryLayer):
    """y = x * scale + offset over the last axis: [N, ..., K] -> [N, ..., K].

    Scale and offset are constants, which are not trained: a network that predicts prices so learns numbers
    near 0, and its loss, metrics and outputs are prices.

    Args:
        scale: K numbers, or one; not 0.
        offset: K numbers, or one.
    """

    scale: Sequence[float] = (1.0,)
    offset: Sequence[float] = (0.0,)

    def __post_init__(self) -> None:
        for field in ("scale", "offset"):
            values = np.asarray(getattr(self, field), dtype=np.float64)
            if values.ndim != 1 or not values.size or not np.isfinite(values).all():
                raise ConfigError(
                    f"{self.label}: {field} must be finite numbers, got {getattr(self, field)!r}"
                )
        if not np.all(self.scale):
            raise ConfigError(f"{self.label}: scale must not be 0, got {self.scale!r}")

    def apply(self, site: Site, x: ir.Value) -> ir.Value:
        require_float(x)
        last = dims(x)[-1]
        for field in ("scale", "offset"):
            if len(getattr(self, field)) not in (1, last):
                raise ShapeError(f"{field} has {len(getattr(self, field))} numbers, the last axis {last}")
        dtype = x.dtype.numpy() if x.dtype is not None else np.dtype(np.float32)
        # constants of Div and Sub are statistics, which no optimizer changes
        y = site.g.Div(x, (1 / np.asarray(self.scale, np.float64)).astype(dtype))
        return site.g.Sub(y, (-np.asarray(self.offset, np.float64)).astype(dtype))
