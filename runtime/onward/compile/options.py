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

    Raises:
        ConfigError: another size than 2 or 4.
    """

    winograd: int = 2

    def __post_init__(self) -> None:
        if self.winograd not in (2, 4):
            raise ConfigError(f"winograd {self.winograd}: choose 2 or 4")


DEFAULT_OPTIONS = CompileOptions()
