from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, attributes_of, op
from onward.ops._convolution import Convolving
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._activation import activated


@op("FusedConv", domain=DOMAIN, since=1)
class FusedConv(Convolving):
    """activation(Conv(X, W, B) + Z)."""

    weight_operands = ("W", "B")

    activation: str = ""
    activation_params: tuple[float, ...] = ()

    def canonical(
        self,
        g: Builder,
        X: ir.Value,
        W: ir.Value,
        B: ir.Value | None = None,
        Z: ir.Value | None = None,
    ) -> ir.Value:
        y = g.Conv(
            X,
            W,
            B,
            **attributes_of(self, Convolving),
        )
        y = y if Z is None else g.Add(y, Z)
        return activated(g, y, self.activation, self.activation_params)
