from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Op, dims_of, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops._normalization import batch_statistics, per_channel


@op("BatchNormalization", since=(14, 15), multiple_outputs=True)
class BatchNormalization(Op):
    """Y = scale · (X − mean) / sqrt(var + epsilon) + B, a channel at a time.

    In training mode mean and var are the batch's (var is the population's), and running = momentum · input +
    (1 − momentum) · batch for both. Otherwise they are the inputs.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    training_mode: int = 0

    def kernel(
        self, X: Array, scale: Array, B: Array, input_mean: Array, input_var: Array
    ) -> Array | tuple[Array, Array, Array]:
        if not self.training_mode:
            return _normalized(X, scale, B, input_mean, input_var, self.epsilon)
        mean, var = batch_statistics(X)
        y = _normalized(X, scale, B, mean, var, self.epsilon)
        return y, self._moved(input_mean, mean), self._moved(input_var, var)

    def _moved(self, running: Array, batch: Array) -> Array:
        dtype = np.promote_types(running.dtype, batch.dtype).type
        moved = running * dtype(self.momentum) + batch * dtype(1 - self.momentum)
        return moved.astype(running.dtype, copy=False)

    def lower(
        self,
        static: Static,
        outputs: Values,
        X: ir.Value,
        scale: ir.Value,
        B: ir.Value,
        input_mean: ir.Value,
        input_var: ir.Value,
    ) -> requests.BatchNormalization:
        training = bool(self.training_mode)
        return requests.BatchNormalization(
            outputs, X, scale, B, input_mean, input_var, self.epsilon, self.momentum, training
        )

    def gradient(
        self,
        g: Builder,
        dy: tuple[ir.Value | None, ...],
        y: tuple[ir.Value, ...],
        X: ir.Value,
        scale: ir.Value,
        B: ir.Value,
        input_mean: ir.Value,
        input_var: ir.Value,
    ) -> tuple[ir.Value | None, ...]:
        if not self.training_mode:
            if dy[0] is None:
                return (None,) * 5
            return _frozen_gradient(g, dy[0], X, scale, input_mean, input_var, self.epsilon)
        parts: list[ir.Value] = []
        dscale, dB, dmean, dvar = None, None, None, None
        if dy[0] is not None:
            dX, dscale, dB = g.emit(
                "BatchNormalizationGrad",
                dy[0],
                X,
                scale,
                domain=ONWARD_DOMAIN,
                outputs=3,
                epsilon=self.epsilon,
            )
            parts.append(dX)
        statistics = (*dy, None, None)[1:3]
        if any(d is not None for d in statistics):
            parts.append(self._statistics_gradient(g, X, *statistics))
            dmean, dvar = (None if d is None else g.Mul(d, self.momentum) for d in statistics)
        total = g.Add(*parts) if len(parts) == 2 else parts[0] if parts else None
        return total, dscale, dB, dmean, dvar

    def _statistics_gradient(
        self, g: Builder, X: ir.Value, d_mean: ir.Value | None, d_var: ir.Value | None
    ) -> ir.Value:
        """What the running statistics' gradients say of X, where a loss is built on them."""
        axes, spatial = _axes(X)
        share = g.Div(g.const(1 - self.momentum, dtype_of(X)), g.size(X, axes))
        slopes = g.zeros_like(X)
        if d_mean is not None:
            slopes = g.Add(slopes, g.Unsqueeze(d_mean, spatial) if spatial else d_mean)
        if d_var is not None:
            centred = g.Mul(g.Sub(X, g.ReduceMean(X, axes, keepdims=1)), 2.0)
            slopes = g.Add(slopes, g.Mul(centred, g.Unsqueeze(d_var, spatial) if spatial else d_var))
        return g.Mul(slopes, share)


@op("BatchNormalization", since=9)
class BatchNormalization9(Op):
    """BatchNormalization; the training form, which has further outputs, is refused."""

    epsilon: float = 1e-5
    momentum: float = 0.9

    def canonical(
        self, g: Builder, X: ir.Value, scale: ir.Value, B: ir.Value, mean: ir.Value, var: ir.Value
    ) -> ir.Value:
        return _in_inference(g, self.output_count, X, scale, B, mean, var, self.epsilon)


@op("BatchNormalization", since=7)
class BatchNormalization7(Op):
    """As version 9; with spatial=0 every element of a sample has its own statistics, scale and bias."""

    epsilon: float = 1e-5
    momentum: float = 0.9
    spatial: int = 1

    def canonical(
        self, g: Builder, X: ir.Value, scale: ir.Value, B: ir.Value, mean: ir.Value, var: ir.Value
    ) -> ir.Value:
        operands = (X, scale, B, mean, var)
        return _in_inference(g, self.output_count, *operands, self.epsilon, spatial=bool(self.spatial))


@op("BatchNormalization", since=(1, 6))
class BatchNormalization1(Op):
    """As version 7, in inference form with is_test=1; the training form is refused."""

    epsilon: float = 1e-5
    is_test: int = 0
    momentum: float = 0.9
    spatial: int = 1

    def canonical(
        self, g: Builder, X: ir.Value, scale: ir.Value, B: ir.Value, mean: ir.Value, var: ir.Value
    ) -> ir.Value:
        operands, count = (X, scale, B, mean, var), self.output_count if self.is_test else 5
        return _in_inference(g, count, *operands, self.epsilon, spatial=bool(self.spatial))


def _in_inference(
    g: Builder,
    outputs: int,
    X: ir.Value,
    scale: ir.Value,
    B: ir.Value,
    mean: ir.Value,
    var: ir.Value,
    epsilon: float,
    *,
    spatial: bool = True,
) -> ir.Value:
    """The current version's inference form."""
    if outputs > 1:
        raise UnsupportedError(
            "BatchNormalization before opset 14 has its training form, with statistics of the batch; convert "
            "the model to opset 14 or later, where training_mode=1 says the same, or set is_test=1 before 7"
        )
    if spatial:
        return g.BatchNormalization(X, scale, B, mean, var, epsilon=epsilon)
    deviation = g.Sqrt(g.Add(var, epsilon))
    return g.Add(g.Mul(g.Div(g.Sub(X, mean), deviation), scale), B)


def _normalized(X: Array, scale: Array, B: Array, mean: Array, var: Array, epsilon: float) -> Array:
    work = np.result_type(X.dtype, scale.dtype, mean.dtype)
    factor = (scale / np.sqrt(var + var.dtype.type(epsilon))).astype(work, copy=False)
    shift = (B - mean * factor).astype(work, copy=False)
    y = X * per_channel(factor, X.ndim)
    y += per_channel(shift, X.ndim)
    return y.astype(X.dtype, copy=False)


def _frozen_gradient(
    g: Builder,
    dy: ir.Value,
    X: ir.Value,
    scale: ir.Value,
    mean: ir.Value,
    var: ir.Value,
    epsilon: float,
) -> tuple[ir.Value | None, ...]:
    axes, spatial = _axes(X)
    inverse = g.Reciprocal(g.Sqrt(g.Add(var, epsilon)))
    factor = g.Mul(scale, inverse)
    centred = g.Sub(X, g.Unsqueeze(mean, spatial) if spatial else mean)
    dB = g.ReduceSum(dy, axes, keepdims=0)
    dscale = g.Mul(g.ReduceSum(g.Mul(dy, centred), axes, keepdims=0), inverse)
    dX = g.Mul(dy, g.Unsqueeze(factor, spatial) if spatial else factor)
    dmean = g.Neg(g.Mul(dB, factor))
    dvar = g.Mul(g.Mul(g.Mul(dscale, factor), inverse), -0.5)
    return dX, dscale, dB, dmean, dvar


def _axes(X: ir.Value) -> tuple[list[int], list[int]]:
    """The axes to sum over, and those that a vector over channels lacks to broadcast against X."""
    dims = dims_of(X)
    if dims is None:
        raise UnsupportedError("the gradient of BatchNormalization needs the rank of X")
    return [0, *range(2, len(dims))], list(range(1, len(dims) - 1))
