"""Sliding windows: what convolutions and poolings have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

from onward.errors import ConfigError, ShapeError
from onward.graph import Dim
from onward.nn.layer import Layer

__all__ = ["Ints", "Padding", "Window", "per_axis"]

Ints: TypeAlias = int | Sequence[int]
"""One int for all spatial axes, or one an axis."""

Padding: TypeAlias = Literal["same", "valid"] | int | Sequence[int] | Sequence[tuple[int, int]]
"""`same`: output extent is ceil(input / stride), the odd cell at the end (TensorFlow's convention);
`valid`: none; an int: this much on all sides; ints: one an axis; pairs: (begin, end) an axis."""


def per_axis(layer: Layer, field: str, value: Any, rank: int, *, least: int = 1) -> tuple[int, ...]:
    """One int a spatial axis.

    Raises:
        ConfigError: not an int or `rank` ints, or one is below `least`.
    """
    items = (value,) * rank if isinstance(value, int) else value
    if (
        not isinstance(items, Sequence)
        or len(items) != rank
        or any(isinstance(i, bool) or not isinstance(i, int) or i < least for i in items)
    ):
        raise ConfigError(
            f"{layer.label}: {field} must be an int or {rank} of them, each at least {least}; got {value!r}"
        )
    return tuple(items)


@final
@dataclass(frozen=True)
class Window:
    """A window's extents, steps and padding over the spatial axes."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, layer: Layer, rank: int, kernel: Ints, strides: Ints, dilation: Ints, padding: Any) -> Window:
        """The window of a layer's hyperparameters.

        Raises:
            ConfigError: one of them is malformed.
        """
        return cls(
            per_axis(layer, "kernel_size", kernel, rank),
            per_axis(layer, "strides", strides, rank),
            per_axis(layer, "dilation", dilation, rank),
            _padding(layer, padding, rank),
        )

    @property
    def reach(self) -> tuple[int, ...]:
        """The extent that the dilated kernel covers."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def attributes(self, extents: Sequence[Dim]) -> dict[str, Any]:
        """ONNX attributes for inputs of these spatial extents.

        Raises:
            ShapeError: the window does not fit into an extent.
        """
        found: dict[str, Any] = {"kernel_shape": self.kernel, "strides": self.strides}
        if any(d != 1 for d in self.dilations):
            found["dilations"] = self.dilations
        pairs = self._pairs(extents)
        if pairs is None:
            found["auto_pad"] = "SAME_UPPER"
            return found
        for i, (size, reach, (begin, end)) in enumerate(zip(extents, self.reach, pairs, strict=True)):
            if isinstance(size, int) and size + begin + end < reach:
                raise ShapeError(
                    f"the kernel covers {reach} cells of spatial axis {i}, but the input has {size} there "
                    f"and {begin + end} of padding; expected at least {reach} together"
                )
        if any(pair != (0, 0) for pair in pairs):
            found["pads"] = [begin for begin, _ in pairs] + [end for _, end in pairs]
        return found

    def _pairs(self, extents: Sequence[Dim]) -> tuple[tuple[int, int], ...] | None:
        """Explicit pads; None where they depend on an extent that is not known."""
        if not isinstance(self.padding, str):
            return self.padding
        if self.padding == "valid":
            return tuple((0, 0) for _ in self.kernel)
        pairs: list[tuple[int, int]] = []
        for size, reach, stride in zip(extents, self.reach, self.strides, strict=True):
            if isinstance(size, int):
                total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            elif stride == 1:
                total = reach - 1
            else:
                return None
            pairs.append((total // 2, total - total // 2))
        return tuple(pairs)


def _padding(layer: Layer, padding: Any, rank: int) -> str | tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        if padding in ("same", "valid"):
            return padding
    elif isinstance(padding, int) and not isinstance(padding, bool) and padding >= 0:
        return ((padding, padding),) * rank
    elif isinstance(padding, Sequence) and len(padding) == rank:
        pairs = [
            (p, p) if isinstance(p, int) else tuple(p) if isinstance(p, Sequence) else () for p in padding
        ]
        if all(len(pair) == 2 and all(isinstance(p, int) and p >= 0 for p in pair) for pair in pairs):
            return tuple((begin, end) for begin, end in pairs)
    raise ConfigError(
        f"{layer.label}: padding is 'same', 'valid', an int, {rank} int{'s' if rank > 1 else ''} "
        f"or {rank} (begin, end) pair{'s' if rank > 1 else ''}; got {padding!r}"
    )
