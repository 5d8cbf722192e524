from __future__ import annotations

import onnx_ir as ir

from onward.graph import Builder, Op, op
from onward.ops.microsoft import DOMAIN
from onward.ops.microsoft._activation import activated


@op("FusedConv", domain=DOMAIN, since=1)
class FusedConv(Op):
    """activation(Conv(X, W, B) + Z)."""

    activation: str = ""
    activation_params: tuple[float, ...] = ()
    auto_pad: str = "NOTSET"
    dilations: tuple[int, ...] | None = None
    group: int = 1
    kernel_shape: tuple[int, ...] | None = None
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

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
            auto_pad=self.auto_pad,
            dilations=self.dilations,
            group=self.group,
            kernel_shape=self.kernel_shape,
            pads=self.pads,
            strides=self.strides,
        )
        y = y if Z is None else g.Add(y, Z)
        return activated(g, y, self.activation, self.activation_params)
