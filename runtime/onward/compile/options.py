"""What a user may choose about compiled kernels where speed and accuracy part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from onward.errors import ConfigError

__all__ = ["DEFAULT_OPTIONS", "CompileOptions"]


@final
@dataclass(frozen=True)
class CompileOptions:
    """Choices that change results within stated bounds; they are part of a plan's identity.

    Args:
        winograd: the side of the squares of outputs that a wide 3x3 convolution makes at a time, forward and
            backward to its data. 2: F(2x2, 3x3), which is as accurate as direct sums are: over C channels its
            error is below 5e-8 √C of the result, both as root mean squares. 4: F(4x4, 3x3), with 1.8 times
            fewer multiplications again; its coefficients enlarge that error to 3e-7 √C, and single elements
            are off by up to 1e-6 √C of the largest.
        accuracy_level: of products with quantised weights (DequantizeLinear of constants and MatMul or Gemm,
            MatMulNBits), as the attribute of MatMulNBits counts it. 1: float32. 4: where the processor
            multiplies bytes (AVX512-VNNI), each row of the left side is rounded to 8 bits by its own largest
            magnitude, and sums are in int32; a product of depth K is then off by at most 0.0023 √K of the
            largest |a| · |w| of its row and column, as a root mean square. Asymmetric weights stay at 1.

    Raises:
        ConfigError: another size than 2 or 4, or another level than 1 or 4.
    """

    winograd: int = 2
    accuracy_level: int = 1

    def __post_init__(self) -> None:
        if self.accuracy_level not in (1, 4):
            raise ConfigError(f"accuracy_level {self.accuracy_level}: choose 1 (float32) or 4 (int8)")
        if self.winograd not in (2, 4):
            raise ConfigError(f"winograd {self.winograd}: choose 2 or 4")


DEFAULT_OPTIONS = CompileOptions()
