"""Which convolutions Winograd serves, what borders it needs, and how its work is cut up."""

from __future__ import annotations

from dataclasses import dataclass

from onward.compile.codegen.builder import Function, Value
from onward.compile.kernels.layout import Convolution, Image
from onward.errors import ShapeError

__all__ = [
    "Chunk",
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

    def chunks(self, f: Function, batch: Value) -> Value:
        """How many chunks a batch has."""
        if self.images > 1:
            return (batch + (self.images - 1)) // self.images
        return batch * self.count

    def place(self, f: Function, number: Value, batch: Value) -> tuple[Value, Value, Value, Value]:
        """A chunk's first image, images, first row and rows."""
        if self.images > 1:
            n = number * self.images
            return n, f.smin(self.images, batch - n), f.value(0), f.value(self.rows)
        first = number % self.count * self.rows
        return number // self.count, f.value(1), first, f.smin(self.rows, self.height - first)


def chunk_of(problem: Problem, most: int) -> Chunk:
    """Chunks of about `most` squares, at least a row of them."""
    height, columns = problem.squares
    images = max(1, most // (height * columns))
    rows = height
    if images == 1:
        wanted = max(1, most // columns)
        rows = -(-height // -(-height // wanted))
    return Chunk(images, rows, height, columns)
