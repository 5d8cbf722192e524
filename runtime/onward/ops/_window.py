"""Geometry of sliding windows: what convolution and pooling share.

Output extent of one axis with input extent i, kernel k, stride s, dilation d, pads a (begin) and b (end), and
the window's span w = d·(k − 1) + 1:

    floor((i + a + b − w) / s) + 1,   with ceil for floor under `ceil_mode`,

where under `ceil_mode` a last window that would start behind the input and its begin padding is dropped.
Under auto_pad SAME_UPPER and SAME_LOWER the extent is ceil(i / s), and the pads that this takes are split
evenly, an odd one going to the end or the beginning. `ceil_mode` does not change SAME.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, ShapeError
from onward.graph import Array, Dim, Extents, Geometry

__all__ = [
    "Extents",
    "Geometry",
    "Window",
    "everything",
    "inner",
    "padded",
    "resolve",
    "shaped_like",
    "tap_slices",
]


@final
@dataclass(frozen=True, slots=True)
class Window:
    """The window attributes of a node with the defaults of its rank filled in.

    Attributes:
        kernel: taps an axis.
        strides: steps of the window.
        dilations: steps between taps.
        pads: pads of all beginnings, then of all ends; None where `auto_pad` finds them.
        auto_pad: `NOTSET`, `VALID`, `SAME_UPPER` or `SAME_LOWER`.
        ceil_mode: whether output extents are rounded up.
    """

    kernel: Extents
    strides: Extents
    dilations: Extents
    pads: Extents | None
    auto_pad: str
    ceil_mode: bool

    def over(self, spatial: Sequence[int]) -> Geometry:
        """The geometry over axes of these extents.

        Raises:
            ShapeError: the window does not fit into the padded input.
        """
        begin, end, out = [], [], []
        for axis, (i, k, s, d) in enumerate(
            zip(spatial, self.kernel, self.strides, self.dilations, strict=True)
        ):
            width = d * (k - 1) + 1
            if self.pads is None:
                extent = -(-i // s)
                need = max(0, (extent - 1) * s + width - i)
                small = need // 2
                a, b = (need - small, small) if self.auto_pad == "SAME_LOWER" else (small, need - small)
            else:
                a, b = self.pads[axis], self.pads[len(self.kernel) + axis]
                room = i + a + b - width
                extent = room // s + 1
                if self.ceil_mode:
                    extent = -(-room // s) + 1
                    if (extent - 1) * s >= i + a:
                        extent -= 1
            if extent < 0:
                raise ShapeError(
                    f"a window of {width} positions does not fit into extent {i} with pads {a} and {b}"
                )
            begin.append(a)
            end.append(b)
            out.append(extent)
        return Geometry(
            tuple(spatial),
            tuple(out),
            self.kernel,
            self.strides,
            self.dilations,
            tuple(begin),
            tuple(end),
        )

    def pooled_dims(self, dims: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
        """The output dimensions [N, C, *out] over input dimensions [N, C, *spatial].

        Inference by `onnx` keeps, before opset 22, the last window that `ceil_mode` drops.
        """
        if dims is None:
            return None
        geometry = self.over_dims(dims[2:])
        return (*dims[:2], *(geometry.out if geometry is not None else (None,) * (len(dims) - 2)))

    def over_dims(self, dims: Sequence[Dim]) -> Geometry | None:
        """The geometry over dimensions of a graph value; None where one is not static."""
        static = [d for d in dims if isinstance(d, int)]
        return self.over(static) if len(static) == len(dims) else None


def resolve(
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None,
    pads: Sequence[int] | None,
    dilations: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Window:
    """Fill in the defaults of window attributes and check them.

    Raises:
        InvalidModelError: an attribute has the wrong length or an impossible value.
    """
    rank = len(kernel)
    filled = {
        "kernel_shape": tuple(kernel),
        "strides": (1,) * rank if strides is None else tuple(strides),
        "dilations": (1,) * rank if dilations is None else tuple(dilations),
    }
    for name, values in filled.items():
        if len(values) != rank or any(v < 1 for v in values):
            raise InvalidModelError(
                f"attribute {name!r} is {list(values)}; it takes {rank} extents of 1 or more"
            )
    explicit: Extents | None
    if auto_pad == "NOTSET":
        explicit = (0,) * (2 * rank) if pads is None else tuple(pads)
        if len(explicit) != 2 * rank or any(p < 0 for p in explicit):
            raise InvalidModelError(
                f"attribute 'pads' is {list(explicit)}; it takes {2 * rank} extents of 0 or more"
            )
    elif auto_pad == "VALID":
        if any(pads or ()):
            raise InvalidModelError(
                f"attributes 'auto_pad' and 'pads' contradict each other: VALID and {list(pads or ())}"
            )
        explicit = (0,) * (2 * rank)
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        explicit = None
    else:
        raise InvalidModelError(
            f"attribute 'auto_pad' is {auto_pad!r}; it is NOTSET, VALID, SAME_UPPER or SAME_LOWER"
        )
    return Window(
        filled["kernel_shape"],
        filled["strides"],
        filled["dilations"],
        explicit,
        auto_pad,
        bool(ceil_mode),
    )


def everything(spatial: Sequence[int]) -> Geometry:
    """The geometry of one window over axes of these extents."""
    return resolve(spatial, strides=None, pads=None).over(spatial)


def padded(x: Array, geometry: Geometry, fill: float | int = 0) -> Array:
    """x [N, C, *spatial] with its begin pads and as much end padding as the last windows reach.

    Positions that no window reaches may be cut or kept. x itself where nothing has to be added.
    """
    after = [
        max(0, span - i - a)
        for span, i, a in zip(geometry.span, geometry.spatial, geometry.begin, strict=True)
    ]
    if not any(geometry.begin) and not any(after):
        return x
    extents = [a + i + e for a, i, e in zip(geometry.begin, geometry.spatial, after, strict=True)]
    y = (
        np.full((*x.shape[:2], *extents), fill, x.dtype)
        if fill
        else np.zeros((*x.shape[:2], *extents), x.dtype)
    )
    y[inner(geometry)] = x
    return y


def inner(geometry: Geometry) -> tuple[slice, ...]:
    """Where x lies within `padded(x)`."""
    cut = (slice(a, a + i) for a, i in zip(geometry.begin, geometry.spatial, strict=True))
    return (slice(None), slice(None), *cut)


def tap_slices(geometry: Geometry) -> Iterator[tuple[Extents, tuple[slice, ...]]]:
    """Each tap of the kernel in row-major order, with the slices of `padded(x)` that it meets.

    The slices select an array of shape [N, C, *out]: the tap's operand of every window.
    """
    for tap in np.ndindex(geometry.kernel):
        yield (
            tap,
            (
                slice(None),
                slice(None),
                *(
                    slice(t * d, t * d + (o - 1) * s + 1 if o else t * d, s)
                    for t, d, o, s in zip(
                        tap, geometry.dilations, geometry.out, geometry.strides, strict=True
                    )
                ),
            ),
        )


def shaped_like(value: ir.Value, like: ir.Value) -> ir.Value:
    """The value, known to have the shape of another: inference cannot follow extents that are not static."""
    value.shape = like.shape.copy() if like.shape is not None else None
    return value
