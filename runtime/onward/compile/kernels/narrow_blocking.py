"""How pixels share vectors where a convolution has few output channels: groups, tiles, bands, masks."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

from onward.compile.codegen.target import Target
from onward.compile.kernels.conv import Grid, backward_blocks, backward_grids, forward_grids
from onward.compile.kernels.layout import Convolution, Image
from onward.compile.kernels.tile import split
from onward.errors import ShapeError

__all__ = ["NarrowBlocking", "NarrowTiles", "narrow_blocking", "narrow_size", "narrow_suits", "required"]


@dataclass(frozen=True)
class NarrowTiles:
    """`count` neighbouring tiles of a row, `pixels` wide, the first at pixel `first`.

    `columns` are pairs of a source column, counted from the tile's first one, and the groups that it meets:
    (number of the group, distance of the column from the group's first).
    """

    pixels: int
    first: int
    count: int
    columns: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]

    @property
    def multiplications(self) -> int:
        return sum(len(groups) for _, groups in self.columns)


@dataclass(frozen=True)
class NarrowBlocking:
    """One direction of a convolution with `pixels` pixels of `channels` results in a vector.

    `start` is the source's row and column that the first pixel's first tap meets; `step` and `dilation` are
    source columns from pixel to pixel and from tap to tap.
    """

    grid: Grid
    source: Image
    sink: Image
    channels: int
    pixels: int
    start: tuple[int, int]
    step: int
    dilation: int
    trimmed: bool
    target: Target

    def distances(self, pixels: int) -> list[int]:
        """Of all columns that meet a group of so many pixels."""
        taps = range(self.grid.taps[1])
        return sorted({p * self.step + j * self.dilation for p in range(pixels) for j in taps})

    def reached(self, distance: int) -> tuple[bool, ...]:
        """For each pixel of a group, whether a column at that distance meets it."""
        taps = {j * self.dilation for j in range(self.grid.taps[1])}
        return tuple(distance - p * self.step in taps for p in range(self.pixels))

    @functools.cached_property
    def masks(self) -> list[tuple[bool, ...]]:
        """Every proper choice of pixels that some column reaches."""
        found = {self.reached(d) for d in self.distances(self.pixels)}
        return sorted(reached for reached in found if not all(reached))

    @functools.cached_property
    def sums(self) -> int:
        """The most sums that a tile can hold beside its weights."""
        target = self.target
        return target.registers - len(self.distances(self.pixels)) - 2 - (not target.fused)

    @functools.cached_property
    def pieces(self) -> tuple[NarrowTiles, ...]:
        """The row, in tiles of nearly equal numbers of groups."""
        groups = -(-self.grid.width // self.pixels)
        found = []
        for size, before, count in split(groups, max(1, self.sums)):
            for number in range(count):
                first = (before + number * size) * self.pixels
                found.append(self._piece(first, min(size * self.pixels, self.grid.width - first)))
        alike = itertools.groupby(found, key=lambda piece: (piece.pixels, piece.columns))
        runs = [list(run) for _, run in alike]
        return tuple(replace(run[0], count=len(run)) for run in runs)

    def _piece(self, first: int, pixels: int) -> NarrowTiles:
        columns: dict[int, list[tuple[int, int]]] = {}
        for group, before in enumerate(range(0, pixels, self.pixels)):
            for distance in self.distances(min(self.pixels, pixels - before)):
                column = before * self.step + distance
                at = self.start[1] + first * self.step + column
                if not self.trimmed or 0 <= at < self.source.width:
                    columns.setdefault(column, []).append((group, distance))
        return NarrowTiles(
            pixels, first, 1, tuple((c, tuple(groups)) for c, groups in sorted(columns.items()))
        )

    @functools.cached_property
    def bands(self) -> list[tuple[int, int, int]]:
        """Rows in bands of nearly equal size, one tile high: (size, first, count)."""
        groups = max(-(-piece.pixels // self.pixels) for piece in self.pieces)
        most = min(
            self.sums // groups,
            self.target.tuning.narrow_body // max(1, *(p.multiplications for p in self.pieces)),
        )
        return split(self.grid.height, max(1, most))

    def taps(self, first: int, rows: int) -> tuple[int, int]:
        """The first tap row that a band needs, and how many; one at least."""
        if not self.trimmed:
            return 0, self.grid.taps[0]
        step = self.grid.steps[0] // self.source.row
        top = self.start[0] + first
        low = max(0, -((top + rows - 1) // step))
        high = min(self.grid.taps[0] - 1, (self.source.height - 1 - top) // step)
        return (low, high - low + 1) if low <= high else (0, 1)

    @property
    def multiplications(self) -> int:
        """Vectors multiplied for an image and an input channel."""
        row = sum(piece.count * piece.multiplications for piece in self.pieces)
        tap_rows = sum(
            rows * self.taps(first + number * rows, rows)[1]
            for rows, first, count in self.bands
            for number in range(count)
        )
        return row * tap_rows

    @property
    def packed(self) -> int:
        """Elements of the packed weights."""
        grid = self.grid
        return grid.taps[0] * grid.depth * len(self.distances(self.pixels)) * self.target.lanes


@functools.lru_cache(512)
def narrow_blocking(conv: Convolution, target: Target, backward: bool) -> NarrowBlocking | None:
    """The way that multiplies the fewest vectors; None when there is none."""
    target = target.typed(conv.dtype)
    tuning = target.tuning
    source, sink = (conv.y, conv.x) if backward else (conv.x, conv.y)
    channels = sink.channels
    if conv.group > 1 or sink.pixel != channels or channels > target.lanes:
        return None
    if backward and conv.strides != (1, 1):
        return None
    if backward:
        rows, columns = conv.phases(0)[0], conv.phases(1)[0]
        (grid,) = backward_grids(conv, backward_blocks(conv, target))
        start, step, dilation = (rows.first_output, columns.first_output), 1, columns.output_step
    else:
        grid = forward_grids(conv)[0]
        start, step, dilation = (-conv.pads[0], -conv.pads[1]), conv.strides[1], conv.dilations[1]
    if not grid.reduction or not grid.height or not grid.width:
        return None
    blockings = [
        NarrowBlocking(grid, source, sink, channels, pixels, start, step, dilation, backward, target)
        for pixels in range(1, min(tuning.narrow_pixels, target.lanes // channels) + 1)
    ]
    blockings = [blocking for blocking in blockings if blocking.sums >= tuning.narrow_sums]
    return min(blockings, key=lambda blocking: blocking.multiplications, default=None)


def required(conv: Convolution, target: Target, backward: bool) -> NarrowBlocking:
    blocking = narrow_blocking(conv, target, backward)
    if blocking is None:
        raise ShapeError("this convolution has no form in which pixels share a vector")
    return blocking


def narrow_suits(conv: Convolution, target: Target, *, backward: bool) -> bool:
    """Whether this form exists for a direction of a convolution and is faster than the plain one."""
    blocking = narrow_blocking(conv, target, backward)
    if blocking is None:
        return False
    tuning = target.tuning
    rows = max(rows for rows, _, _ in blocking.bands)
    if rows * max(-(-piece.pixels // blocking.pixels) for piece in blocking.pieces) < tuning.narrow_sums:
        return False
    columns = sum(piece.count * len(piece.columns) for piece in blocking.pieces)
    multiplications = sum(piece.count * piece.multiplications for piece in blocking.pieces)
    cost = blocking.multiplications * (
        1 if columns <= tuning.narrow_loads * multiplications else tuning.narrow_held_up
    )
    grid = blocking.grid
    return cost < tuning.narrow_held_up * grid.height * grid.width * grid.taps[0] * grid.taps[1]


def narrow_size(conv: Convolution, target: Target, *, backward: bool) -> int:
    """Elements of the packed weights."""
    return required(conv, target, backward).packed
