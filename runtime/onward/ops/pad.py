from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Builder, Op, dtype_of, op, requests, static_shape
from onward.graph.requests import Static, Unsupported, Values
from onward.ops._shape import constant_of, like, normalized, rank_of


@op("Pad", since=(11, 13, 18, 19, 21, 23, 24, 25))
class Pad(Op):
    """data with elements added before and after each axis, or taken away where a pad is negative.

    The modes are those of `numpy.pad`: constant, reflect, edge and wrap.
    """

    static_operands = ("pads", "axes")

    mode: str = "constant"

    def kernel(
        self, data: Array, pads: Array, constant_value: Array | None = None, axes: Array | None = None
    ) -> Array:
        named = range(data.ndim) if axes is None else [normalized(int(a), data.ndim) for a in axes]
        return padded(data, [int(n) for n in pads], named, self.mode, constant_value)

    def lower(
        self,
        static: Static,
        outputs: Values,
        data: ir.Value,
        pads: ir.Value,
        constant_value: ir.Value | None = None,
        axes: ir.Value | None = None,
    ) -> requests.Pad | requests.Body | Unsupported:
        amounts, named = static.known(pads), None if axes is None else static.known(axes)
        if amounts is None or (axes is not None and named is None):
            return Unsupported("pads that are not constant")
        rank = len(static.shape(data))
        order = range(rank) if named is None else [normalized(int(a), rank) for a in named]
        return padded_by(static, outputs[0], data, amounts, order, self.mode, constant_value)

    def expand(
        self,
        g: Builder,
        data: ir.Value,
        pads: ir.Value,
        constant_value: ir.Value | None = None,
        axes: ir.Value | None = None,
    ) -> ir.Value:
        """In modes other than constant: the positions that each axis reads."""
        amounts, named = constant_of(pads), constant_of(axes)
        shape = static_shape(data)
        assert amounts is not None
        assert shape is not None
        order = list(range(len(shape))) if named is None else [normalized(int(a), len(shape)) for a in named]
        for i, axis in enumerate(order):
            around = [int(amounts[i]), int(amounts[i + len(order)])]
            if any(around):
                source = padded(np.arange(shape[axis]), around, [0], self.mode, None)
                data = g.Gather(data, g.const(source, np.int64), axis=axis)
        return data

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        data: ir.Value,
        pads: ir.Value,
        constant_value: ir.Value | None = None,
        axes: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        if self.mode == "constant":
            known = constant_of(pads)
            back = g.Neg(pads) if known is None else g.const(-known)
            return (like(g.Pad(dy, back, None, axes), data),)
        rank, named = rank_of(data), constant_of(axes)
        if axes is not None and named is None:
            raise UnsupportedError("the gradient of Pad needs axes that are constant")
        order = list(range(rank)) if named is None else [normalized(int(a), rank) for a in named]
        amounts = constant_of(pads)
        out = dy
        for i, axis in enumerate(order):
            before, after = i, i + len(order)
            if amounts is not None and amounts[before] == 0 == amounts[after]:
                continue
            # the positions that the padded axis reads: a gather, whose gradient adds them up
            everywhere = g.Range(0, g.Squeeze(g.dim(data, axis), [0]), 1)
            source = g.Pad(everywhere, g.Gather(pads, [before, after]), mode=self.mode)
            done = order[:i]
            shape = g.Concat(*[g.dim(data if j == axis or j in done else dy, j) for j in range(rank)], axis=0)
            out = g.onward.GatherGrad(out, source, shape, axis=axis)
        return (dy if out is dy else like(out, data),)


@op("Pad", since=2)
class Pad2(Op):
    """Pad whose amounts and value are attributes."""

    mode: str = "constant"
    pads: tuple[int, ...]
    value: float = 0.0

    def canonical(self, g: Builder, data: ir.Value) -> ir.Value:
        return padded_by_attributes(g, data, self.pads, self.value, self.mode)


@op("Pad", since=1)
class Pad1(Op):
    """Pad whose amounts, called paddings, and value are attributes."""

    mode: str = "constant"
    paddings: tuple[int, ...]
    value: float = 0.0

    def canonical(self, g: Builder, data: ir.Value) -> ir.Value:
        return padded_by_attributes(g, data, self.paddings, self.value, self.mode)


def padded_by_attributes(
    g: Builder, data: ir.Value, pads: Sequence[int], value: float, mode: str
) -> ir.Value:
    """Pad of the current version."""
    fill = g.const(value, dtype_of(data)) if mode == "constant" and value else None
    return g.Pad(data, g.const(pads, np.int64), fill, mode=mode)


def padded(data: Array, pads: Sequence[int], axes: Sequence[int], mode: str, value: Array | None) -> Array:
    """data padded along axes; `pads` holds all amounts before, then all amounts after."""
    widths = [(0, 0)] * data.ndim
    crop = [slice(None)] * data.ndim
    for i, axis in enumerate(axes):
        before, after = pads[i], pads[i + len(axes)]
        extent = data.shape[axis]
        require_left(extent, before, after, axis)
        crop[axis] = slice(max(0, -before), extent - max(0, -after))
        widths[axis] = (max(0, before), max(0, after))
    data = data[tuple(crop)]
    if mode != "constant":
        return np.pad(data, widths, mode=mode)  # type: ignore[call-overload]
    if not any(map(any, widths)):
        return data
    shape = tuple(n + b + a for n, (b, a) in zip(data.shape, widths, strict=True))
    fill = (data.dtype.type(0) if data.dtype != object else "") if value is None else value.reshape(())
    y = np.full(shape, fill, data.dtype)
    y[tuple(slice(b, b + n) for n, (b, _) in zip(data.shape, widths, strict=True))] = data
    return y


def require_left(extent: int, before: int, after: int, axis: int) -> None:
    """Refuse pads that take away more than there is.

    Raises:
        ShapeError: with the axis.
    """
    if max(0, -before) + max(0, -after) > extent:
        raise ShapeError(f"pads of {before} and {after} take more than the {extent} elements of axis {axis}")


def padded_by(
    static: Static,
    y: ir.Value,
    data: ir.Value,
    amounts: Array,
    axes: Sequence[int],
    mode: str,
    value: ir.Value | None,
) -> requests.Pad | requests.Body:
    """Padding by a number, or the operator's body; `amounts` holds all that come before, then those after."""
    if mode != "constant":
        return requests.Body()
    fill = None if value is None else static.known(value)
    shape = static.shape(data)
    before = [0] * len(shape)
    for i, axis in enumerate(axes):
        require_left(shape[axis], int(amounts[i]), int(amounts[i + len(axes)]), axis)
        before[axis] = int(amounts[i])
    if value is not None and fill is None:
        return requests.Pad(y, data, tuple(before), value)
    return requests.Pad(y, data, tuple(before), 0.0 if fill is None else fill.reshape(()).item())
