"""Which convolutions Winograd serves, what borders it needs, and how its work is cut up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from onward.compile.codegen.builder import Function
from onward.compile.codegen.values import Value
from onward.compile.kernels.layout import Convolution, Image
from onward.errors import ShapeError

__all__ = [
    "Chunk",
    "ChunkPlace",
    "Problem",
    "backward_problem",
    "chunk_of",
    "forward_problem",
    "winograd_gradient_halo",
    "winograd_input_halo",
    "winograd_suits",
]


def winograd_suits(conv: Convolution) -> bool:
    """Whether the convolution is 3x3 with strides and dilations of 1, no groups and pads of at most 2."""
    return (
        conv.kernel == (3, 3)
        and conv.strides == (1, 1)
        and conv.dilations == (1, 1)
        and conv.group == 1
        and max(conv.pads) <= 2
    )


@dataclass(frozen=True)
class Problem:
    """sink pixel (i, j) reads source pixels (i - top .. i - top + 2, j - left .. j - left + 2).

    `size` is the side of the squares of sink pixels that are made together.
    """

    source: Image
    sink: Image
    top: int
    left: int
    size: int

    @property
    def squares(self) -> tuple[int, int]:
        """Squares of sink pixels: rows and columns."""
        return -(-self.sink.height // self.size), -(-self.sink.width // self.size)

    def halo(self) -> tuple[int, int, int, int]:
        """The border that the source needs: (top, left, bottom, right)."""
        rows, columns = self.squares
        bottom = self.size * rows + 2 - self.top - self.source.height
        right = self.size * columns + 2 - self.left - self.source.width
        return self.top, self.left, max(0, bottom), max(0, right)


def forward_problem(conv: Convolution, size: int = 2) -> Problem:
    """y from x. Raises `ShapeError` where Winograd does not suit."""
    if not winograd_suits(conv):
        raise ShapeError(
            f"a {conv.kernel} convolution, strides {conv.strides}: Winograd is for plain 3x3 ones"
        )
    return Problem(conv.x, conv.y, conv.pads[0], conv.pads[1], size)


def backward_problem(conv: Convolution, size: int = 2) -> Problem:
    """dx from dy. Raises `ShapeError` where Winograd does not suit."""
    forward_problem(conv)
    return Problem(conv.y, conv.x, 2 - conv.pads[0], 2 - conv.pads[1], size)


def winograd_input_halo(conv: Convolution, size: int = 2) -> tuple[int, int, int, int]:
    """The border that x needs: (top, left, bottom, right)."""
    return forward_problem(conv, size).halo()


def winograd_gradient_halo(conv: Convolution, size: int = 2) -> tuple[int, int, int, int]:
    """The border that dy needs for backward-data: (top, left, bottom, right)."""
    return backward_problem(conv, size).halo()


@dataclass(frozen=True)
class Chunk:
    """Squares transformed together: `images` whole images, or `rows` rows of squares of one."""

    images: int
    rows: int
    height: int
    columns: int

    @property
    def squares(self) -> int:
        return self.images * self.rows * self.columns

    @property
    def total(self) -> int:
        """Squares of an image."""
        return self.height * self.columns

    @property
    def count(self) -> int:
        """Chunks of an image."""
        return -(-self.height // self.rows)

    @contextlib.contextmanager
    def share(self, f: Function, batch: Value, thread: Value, threads: Value) -> Iterator[ChunkPlace]:
        """A loop over this thread's chunks; smaller ones where there are fewer images than threads."""
        parts = f.smax(self.count, (threads + (batch - 1)) // f.smax(batch, 1))
        most = (parts + (self.height - 1)) // parts
        step = f.select(f.compare("eq", parts, 1), f.value(self.images), 1)
        low, high = f.share(batch * parts, thread, threads)
        with f.range(low, high, step) as number:
            first = number % parts * most
            rows = f.smin(most, self.height - first)
            with f.when(f.compare("sgt", rows, 0)):
                yield ChunkPlace(number // parts, f.smin(step, high - number), first, rows)


@dataclass(frozen=True)
class ChunkPlace:
    """A chunk of a batch: images n .. n + images, rows first .. first + rows of squares."""

    n: Value
    images: Value
    first: Value
    rows: Value

    def line(self, line: Value) -> tuple[Value, Value]:
        """The image and the row of squares of one of its lines."""
        return self.n + line // self.rows, self.first + line % self.rows

    def following(self, image: Image, size: int) -> Value:
        """About where the squares after its last start in a batch of images."""
        return (self.n + self.images - 1) * image.size + (self.first + self.rows) * (size * image.row)


def chunk_of(problem: Problem, most: int) -> Chunk:
    """Chunks of about `most` squares, at least a row of them."""
    height, columns = problem.squares
    images = max(1, most // (height * columns))
    rows = height
    if images == 1:
        wanted = max(1, most // columns)
        rows = -(-height // -(-height // wanted))
    return Chunk(images, rows, height, columns)
