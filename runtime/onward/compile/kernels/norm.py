"""Batch normalisation in training, as reductions and element expressions.

Forward: `statistics` are reduced (`reduce_columns`), finished with `forward_finish` into scale and shift,
and y = x * scale + shift is an element expression that fuses with what follows. Backward: `backward_sums`
are reduced, finished with `backward_finish` into a, b and c, and dx = a * dy + b * x + c.

The variance is summed around the batch's first value of each channel, which costs one pass and does not
cancel when the mean is large. It is divided by the number of values, as ONNX's BatchNormalization has it.
"""

from __future__ import annotations

from onward.compile.kernels.element import Operand
from onward.compile.kernels.expression import Expression, constant, operand
from onward.compile.kernels.reduce import Columns, Finish

__all__ = ["backward_finish", "backward_sums", "forward_finish", "statistics"]


def statistics(shape: tuple[int, ...], x: Operand) -> Columns:
    """Operands: x, and as a channel vector its first pixel (the address of x itself)."""
    distance = operand(0) - operand(1)
    operands = (x, Operand((0,) * len(shape) + (1,), x.dtype))
    return Columns(shape, operands, (distance, distance * distance), ("sum", "sum"), dtype=x.dtype)


def forward_finish(epsilon: float, momentum: float) -> Finish:
    """x0..x5: first pixel, number of values (one), scale, bias, running mean, running variance.

    y0..y5: mean, 1 / sqrt(variance + epsilon), then scale and shift of the affine form, then the new running
    mean and variance (in place, if wanted): old * momentum + batch * (1 - momentum).
    """
    total, squares, first, count = (operand(i) for i in range(4))
    gamma, beta, running_mean, running_variance = (operand(i) for i in range(4, 8))
    offset = total / count
    mean = first + offset
    variance = (squares / count - offset * offset).apply("max", constant(0.0))
    rstd = (variance + epsilon).apply("rsqrt")
    scale = gamma * rstd
    return Finish(
        operands=(1, 0, 1, 1, 1, 1),
        results=(1, 1, 1, 1, 1, 1),
        expressions=(
            mean,
            rstd,
            scale,
            beta - mean * scale,
            running_mean * momentum + mean * (1 - momentum),
            running_variance * momentum + variance * (1 - momentum),
        ),
    )


def backward_sums(
    shape: tuple[int, ...], operands: tuple[Operand, ...], dy: Expression, x: Expression
) -> Columns:
    """Σ dy and Σ dy (x − mean): both are expressions of the operands, the last of which is the mean."""
    distance = x - operand(len(operands) - 1)
    return Columns(shape, operands, (dy, dy * distance), ("sum", "sum"), dtype=operands[-1].dtype)


def backward_finish() -> Finish:
    """x0..x3: number of values (one), scale, 1 / sqrt(variance + epsilon), mean.

    y0..y4: gradients of scale and bias, then a, b, c of dx = a * dy + b * x + c.
    """
    total, product, count, gamma, rstd, mean = (operand(i) for i in range(6))
    a = gamma * rstd
    b = -(a * rstd * rstd * product / count)
    return Finish(
        operands=(0, 1, 1, 1),
        results=(1, 1, 1, 1, 1),
        expressions=(product * rstd, total, a, b, -(a * total / count) - b * mean),
    )
