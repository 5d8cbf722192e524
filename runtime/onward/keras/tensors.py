"""Handles in Keras's layout, channels last, over handles of `onward.nn`, which are channels first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from onward import nn
from onward.graph import dims_of
from onward.nn.trace import Tensor

__all__ = ["Input", "KerasTensor"]


@final
@dataclass(frozen=True, eq=False)
class KerasTensor:
    """A value of a network that is being defined.

    Attributes:
        handle: the value in `onward.nn`.
        channels_first: whether `handle` has its channels on axis 1; to the user they are last either way.
    """

    handle: Tensor
    channels_first: bool = False

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The extents, batch first and channels last; None where they vary."""
        dims = [d if isinstance(d, int) else None for d in dims_of(self.handle.value) or ()]
        return tuple([dims[0], *dims[2:], dims[1]] if self.channels_first else dims)

    def last(self) -> Tensor:
        """The handle with channels on the last axis."""
        if not self.channels_first:
            return self.handle
        rank = len(self.shape)
        return nn.Transpose((0, *range(2, rank), 1))(self.handle)

    def first(self) -> Tensor:
        """The handle with channels on axis 1."""
        if self.channels_first or len(self.shape) < 3:
            return self.handle
        rank = len(self.shape)
        return nn.Transpose((0, rank - 1, *range(1, rank - 1)))(self.handle)


def Input(  # noqa: N802 - Keras's name
    shape: Sequence[int | None], dtype: str | np.dtype[Any] | type = "float32", name: str | None = None
) -> KerasTensor:
    """An input of a network.

    Args:
        shape: of one sample, channels last; None for an extent that varies.
        dtype: "int64" or "int32" for token numbers.
        name: its name in the ONNX model.
    """
    extents: list[int | str] = [f"axis_{i + 1}" if n is None else int(n) for i, n in enumerate(shape)]
    return KerasTensor(nn.Input(extents, dtype, name=name))
