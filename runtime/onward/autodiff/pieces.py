"""Gradients that are summed piece by piece, each by one rank: a reduce-scatter, and an all-gather behind it.

A bucket of gradients is cut into as many equal pieces as there are ranks. Each rank gets its piece from all
others, in the type in which gradients travel, and adds them up in the order of the ranks, in the gradients'
own type. So a sum has the same bits whatever the messages did on their way. What comes of it, the sums or
the parameters that were updated with them, is gathered by all.

With bfloat16 every number is rounded once where it leaves a rank, and sums once more where they are gathered:
|s - Σ_r g_r| ≤ 2⁻⁸ (1 + 2⁻⁸) Σ_r |g_r| + 2⁻⁸ |Σ_r g_r|, beside the rounding of float32 sums (N. J.
Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, 2.2 and 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import numpy as np
import onnx_ir as ir

from onward.autodiff.transforms import buckets_of, static_dims
from onward.errors import ConfigError
from onward.graph import Builder, dtype_of, numpy_dtype

__all__ = ["Bucket", "Own", "Pieces"]


class Own(NamedTuple):
    """Elements of a parameter that are in a rank's piece: from `start` to `stop`, behind `at` others."""

    name: str
    start: int
    stop: int
    at: int


@final
@dataclass(frozen=True)
class Bucket:
    """Gradients side by side, cut into equal pieces, the last ones filled up with zeros.

    Attributes:
        names: of the gradients.
        shapes: theirs.
        dtype: their element type.
        ranks: the number of pieces.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: ir.DataType
    ranks: int

    @property
    def size(self) -> int:
        """Elements, without those that fill up."""
        return sum(map(math.prod, self.shapes))

    @property
    def piece(self) -> int:
        """Elements of a piece."""
        return max(1, -(-self.size // self.ranks))

    def places(self) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
        """Each gradient's name and shape, and where it begins and ends."""
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            yield name, shape, start, start + math.prod(shape)
            start += math.prod(shape)

    def own(self, rank: int) -> list[Own]:
        """What is in a rank's piece, without gaps from its beginning on."""
        low, high = rank * self.piece, (rank + 1) * self.piece
        found = []
        for name, _, start, stop in self.places():
            first, last = max(start, low), min(stop, high)
            if first < last:
                found.append(Own(name, first - start, last - start, first - low))
        return found


@final
@dataclass(frozen=True, slots=True)
class Pieces:
    """Sums gradients over ranks piece by piece. A gradient transform.

    Attributes:
        exchange: the name, at `onward.engine.register_foreign`, of a function on blocks of two halves, each
            of as many equal pieces as there are ranks: piece r of the first goes to rank r, and piece r of
            the second comes from it.
        gather: that of a function on blocks of as many pieces, of which each rank has put its own in its
            place: the others come from theirs.
        rank: this one.
        ranks: how many there are.
        element: the type in which gradients of float32 travel.
        bucket_bytes: see `Collective`.
    """

    exchange: str
    gather: str
    rank: int
    ranks: int
    element: Literal["float32", "bfloat16"] = "float32"
    bucket_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        if self.element not in ("float32", "bfloat16"):
            raise ConfigError(f"gradients travel as float32 or bfloat16, not as {self.element!r}")
        if self.bucket_bytes < 1:
            raise ConfigError(f"bucket_bytes must be at least 1, got {self.bucket_bytes}")

    def __call__(self, g: Builder, gradients: Mapping[str, ir.Value]) -> Mapping[str, ir.Value]:
        found = [(bucket, [self._travels(g, sums)]) for bucket, sums in self.sums(g, gradients)]
        whole = self.gathered(g, found)
        return {
            name: g.Cast(value, to=int(dtype_of(gradients[name])))
            if dtype_of(value) != dtype_of(gradients[name])
            else value
            for name, value in whole.items()
        }

    def sums(self, g: Builder, gradients: Mapping[str, ir.Value]) -> list[tuple[Bucket, ir.Value]]:
        """This rank's piece of each bucket, summed: `piece` elements, in the gradients' type."""
        started = []
        for tag, names in enumerate(buckets_of(g, gradients, self.bucket_bytes)):
            values = [gradients[name] for name in names]
            shapes = tuple(static_dims(name, gradients[name]) for name in names)
            bucket = Bucket(tuple(names), shapes, dtype_of(values[0]), self.ranks)
            operands = _filled(g, [self._travels(g, value) for value in values], bucket.piece * self.ranks)
            block = g.onward.StartCall(
                *operands, function=self.exchange, tag=tag, size=2 * bucket.piece * self.ranks
            )
            started.append((bucket, tag, block))
        found = []
        for bucket, tag, block in started:
            given = g.onward.WaitCall(block, function=self.exchange, tag=tag)
            half = bucket.piece * self.ranks
            rows = g.Reshape(g.Slice(given, [half], [2 * half]), [self.ranks, bucket.piece])
            if dtype_of(rows) != bucket.dtype:
                rows = g.Cast(rows, to=int(bucket.dtype))
            found.append((bucket, g.ReduceSum(rows, [0], keepdims=0)))
        return found

    def gathered(
        self, g: Builder, pieces: Sequence[tuple[Bucket, Sequence[ir.Value]]]
    ) -> dict[str, ir.Value]:
        """Whole tensors by name, from what each rank has of each bucket: vectors, one behind the other."""
        started = []
        for tag, (bucket, parts) in enumerate(pieces):
            block = g.onward.StartCall(
                *_filled(g, parts, bucket.piece, bucket.dtype),
                function=self.gather,
                tag=tag,
                size=bucket.piece * self.ranks,
                offset=bucket.piece * self.rank,
            )
            started.append((bucket, tag, block))
        whole = {}
        for bucket, tag, block in started:
            given = g.onward.WaitCall(block, function=self.gather, tag=tag)
            for name, shape, start, stop in bucket.places():
                whole[name] = g.Reshape(g.Slice(given, [start], [stop]), g.const(np.array(shape, np.int64)))
        return whole

    def _travels(self, g: Builder, value: ir.Value) -> ir.Value:
        if self.element == "float32" or dtype_of(value) != ir.DataType.FLOAT:
            return value
        return g.Cast(value, to=int(ir.DataType.BFLOAT16))


def _filled(
    g: Builder, parts: Sequence[ir.Value], size: int, dtype: ir.DataType | None = None
) -> list[ir.Value]:
    """The parts, and zeros behind them up to so many elements."""
    lacking = size - sum(math.prod(static_dims(part.name or "", part)) for part in parts)
    kind = dtype_of(parts[0]) if parts else dtype
    if not lacking or kind is None:
        return list(parts)
    return [*parts, g.const(np.zeros(lacking, numpy_dtype(kind)))]
