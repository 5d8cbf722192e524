"""How Winograd's products are cut: chunks of squares, blocks of channels along vectors, tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.tile import Tile, define, rows_for, split, vectors_for
from onward.compile.kernels.winograd.problem import Chunk

__all__ = ["Tiles", "WinogradBlocking", "blocks_of", "tiles_of", "winograd_blocking"]

Tiles = list[dict[bool, Function]]
"""The functions of tiles by size: for whole blocks of channels and for the last one where it is narrower."""


@dataclass(frozen=True)
class WinogradBlocking:
    """The products at one position: `inputs` channels by `outputs` channels over a chunk of squares.

    Attributes:
        chunk: squares that are transformed together.
        vectors: of output channels in a block.
        pieces: rows by tiles: (size, first row, count). Rows are squares, or input channels for a weight
            gradient.
    """

    chunk: Chunk
    inputs: int
    outputs: int
    vectors: int
    pieces: tuple[tuple[int, int, int], ...]
    target: Target

    @property
    def lanes(self) -> int:
        """Elements of a vector."""
        return self.target.lanes

    @property
    def width(self) -> int:
        """Elements of a whole block."""
        return self.vectors * self.lanes

    @property
    def padded(self) -> int:
        """Output channels up to a whole vector."""
        return -(-self.outputs // self.lanes) * self.lanes

    @property
    def blocks(self) -> int:
        """Blocks of output channels, the narrower last one included."""
        return -(-self.padded // self.width)

    @property
    def whole(self) -> int:
        """Blocks that are not narrower."""
        return self.padded // self.width

    @property
    def rest(self) -> int:
        """Vectors of the narrower one, or 0."""
        return self.padded % self.width // self.lanes

    @property
    def tiles(self) -> int:
        """Tiles of a block."""
        return sum(count for _, _, count in self.pieces)


def winograd_blocking(chunk: Chunk, inputs: int, outputs: int, target: Target, rows: int) -> WinogradBlocking:
    """The blocking of products with so many rows."""
    vectors = vectors_for(target, outputs)
    pieces = tuple(split(rows, rows_for(target, vectors)))
    return WinogradBlocking(chunk, inputs, outputs, vectors, pieces, target)


def tiles_of(module: Module, blocking: WinogradBlocking, tile: Callable[[int, int], Tile]) -> Tiles:
    """Define the tiles; `tile` gives one for so many rows and vectors."""
    widths = {True: blocking.vectors if blocking.whole else 0, False: blocking.rest}
    return [
        {
            whole: define(module, f"tile_{n}_{'whole' if whole else 'rest'}", tile(size, vectors))
            for whole, vectors in widths.items()
            if vectors
        }
        for n, (size, _, _) in enumerate(blocking.pieces)
    ]


def blocks_of(f: Function, blocking: WinogradBlocking) -> Iterator[tuple[bool, Value]]:
    """Loops over the blocks of output channels: whether they are whole, and the number of one."""
    for whole, count in ((True, blocking.whole), (False, blocking.blocks - blocking.whole)):
        if count:
            with f.range(0, count) as number:
                yield whole, number if whole else f.value(blocking.whole)
