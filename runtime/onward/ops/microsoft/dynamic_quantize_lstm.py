from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, Op, dims_of, op
from onward.ops.microsoft import DOMAIN


@op("DynamicQuantizeLSTM", domain=DOMAIN, since=1)
class DynamicQuantizeLSTM(Op):
    """LSTM whose weights are quantised, [directions, inputs, 4 · hidden].

    onnxruntime quantises X and the hidden state at each step as well; here they stay floats, so results
    differ by what that rounds."""

    weight_operands = ("B", "P")

    activation_alpha: tuple[float, ...] | None = None
    activation_beta: tuple[float, ...] | None = None
    activations: tuple[str, ...] | None = None
    clip: float | None = None
    direction: str = "forward"
    hidden_size: int | None = None
    input_forget: int = 0

    def canonical(
        self,
        g: Builder,
        X: ir.Value,
        W: ir.Value,
        R: ir.Value,
        B: ir.Value | None,
        sequence_lens: ir.Value | None,
        initial_h: ir.Value | None,
        initial_c: ir.Value | None,
        P: ir.Value | None,
        W_scale: ir.Value,
        W_zero_point: ir.Value,
        R_scale: ir.Value,
        R_zero_point: ir.Value,
    ) -> tuple[ir.Value | None, ...]:
        weights = _weights(g, W, W_scale, W_zero_point), _weights(g, R, R_scale, R_zero_point)
        return g.emit(
            "LSTM",
            X,
            *weights,
            B,
            sequence_lens,
            initial_h,
            initial_c,
            P,
            outputs=3,
            activation_alpha=self.activation_alpha,
            activation_beta=self.activation_beta,
            activations=self.activations,
            clip=self.clip,
            direction=self.direction,
            hidden_size=self.hidden_size,
            input_forget=self.input_forget,
        )


def _weights(g: Builder, w: ir.Value, scale: ir.Value, zero: ir.Value) -> ir.Value:
    """[directions, 4 · hidden, inputs] in floats; scales are one a direction, or one a column of each."""
    dims = dims_of(scale)
    if dims is None:
        raise UnsupportedError(f"the rank of {scale.name!r} is not known")
    axes = [1, 2] if len(dims) == 1 else [1]
    as_float = int(ir.DataType.FLOAT)
    centred = g.Sub(g.Cast(w, to=as_float), g.Unsqueeze(g.Cast(zero, to=as_float), axes))
    return g.Transpose(g.Mul(centred, g.Unsqueeze(scale, axes)), perm=[0, 2, 1])
