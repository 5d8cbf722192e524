from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Unsupported, Values


@op("Split", since=18, multiple_outputs=True)
class Split(Op):
    """Pieces along an axis: of the lengths in `split`, or `num_outputs` equal ones, the last smaller."""

    static_operands = ("split",)

    axis: int = 0
    num_outputs: int | None = None

    def kernel(self, input: Array, split: Array | None = None) -> tuple[Array, ...]:
        count = self.output_count if self.num_outputs is None else self.num_outputs
        return pieces(input, self.axis, split, count)

    def lower(
        self, static: Static, outputs: Values, input: ir.Value, split: ir.Value | None = None
    ) -> requests.Slices | Unsupported:
        return windows(static, outputs, input, self.axis)

    def gradient(
        self,
        g: Builder,
        dy: tuple[ir.Value | None, ...],
        y: tuple[ir.Value, ...],
        input: ir.Value,
        split: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        return joined(g, dy, y, self.axis), None


@op("Split", since=13)
class Split13(Op):
    """Split that counts its outputs where no lengths are given."""

    axis: int = 0

    def canonical(self, g: Builder, input: ir.Value, split: ir.Value | None = None) -> tuple[ir.Value, ...]:
        return split_in(g, input, split, self.axis, self.output_count)


@op("Split", since=(2, 11))
class Split2(Op):
    """Split whose lengths are an attribute."""

    axis: int = 0
    split: tuple[int, ...] | None = None

    def canonical(self, g: Builder, input: ir.Value) -> tuple[ir.Value, ...]:
        lengths = None if self.split is None else g.const(self.split, np.int64)
        return split_in(g, input, lengths, self.axis, self.output_count)


@op("Split", since=1)
class Split1(Op):
    """Split whose lengths are an attribute or an input of data's type."""

    axis: int | None = None
    split: tuple[int, ...] | None = None

    def canonical(self, g: Builder, input: ir.Value, split: ir.Value | None = None) -> tuple[ir.Value, ...]:
        lengths = None if self.split is None else g.const(self.split, np.int64)
        if split is not None:
            lengths = g.Cast(split, to=int(ir.DataType.INT64))
        return split_in(g, input, lengths, self.axis or 0, self.output_count)


def split_in(
    g: Builder, x: ir.Value, lengths: ir.Value | None, axis: int, count: int
) -> tuple[ir.Value, ...]:
    """Split of the current version, into equal pieces where lengths are not given."""
    equal = count if lengths is None else None
    return g.emit("Split", x, lengths, outputs=count, axis=axis, num_outputs=equal)


def pieces(x: Array, axis: int, lengths: Array | Sequence[int] | None, count: int) -> tuple[Array, ...]:
    """x cut along an axis, into pieces of these lengths or `count` equal ones, the last smaller."""
    extent = x.shape[axis]
    if lengths is None:
        length = -(-extent // count)
        lengths = [max(0, min(length, extent - i * length)) for i in range(count)]
    ends = [int(end) for end in np.cumsum(lengths, dtype=np.int64)]
    if not ends or ends[-1] != extent:
        raise ValueError(f"split {[int(n) for n in lengths]} does not add up to the extent {extent}")
    return tuple(np.split(x, ends[:-1], axis))


def windows(static: Static, outputs: Values, x: ir.Value, axis: int) -> requests.Slices | Unsupported:
    """The pieces as windows on x."""
    rank = len(static.shape(x))
    axis %= rank
    if sum(static.shape(y)[axis] for y in outputs) != static.shape(x)[axis]:
        return Unsupported("pieces that are not named")
    start, picked = 0, []
    for y in outputs:
        cuts = [slice(None)] * rank
        cuts[axis] = slice(start, start + static.shape(y)[axis])
        start += static.shape(y)[axis]
        picked.append(tuple(cuts))
    return requests.Slices(outputs, x, tuple(picked))


def joined(g: Builder, dy: tuple[ir.Value | None, ...], y: tuple[ir.Value, ...], axis: int) -> ir.Value:
    """Gradients of pieces, one behind the other; zeros where there is none."""
    parts = [g.zeros_like(piece) if d is None else d for d, piece in zip(dy, y, strict=True)]
    return g.Concat(*parts, axis=axis)
