"""How a weight gradient is computed: what lies in the lanes, tile sizes, chunks of pixels, what is packed."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from onward.compile.codegen.target import Target
from onward.compile.codegen.tuning import Tuning
from onward.compile.kernels.layout import Convolution, Image
from onward.compile.kernels.tile import rows_for, split

__all__ = ["Chunks", "Form", "RowTiles", "Store", "WeightBlocking", "weight_blocking"]


@dataclass(frozen=True)
class Form:
    """Which channels lie along the vectors' lanes and which along a tile's rows.

    `x_lanes`: x lies in the lanes and dy in the rows, otherwise the other way round. `fold`: how many of the
    kernel's axes are treated as channels of x, from the last on; the others are looped over.
    """

    conv: Convolution
    x_lanes: bool
    fold: int
    vectors: int
    lanes: int

    @property
    def taps(self) -> tuple[int, int]:
        """The taps that are looped over."""
        kh, kw = self.conv.kernel
        return ((kh, kw), (kh, 1), (1, 1))[self.fold]

    @property
    def folded(self) -> tuple[int, int]:
        """The taps that are treated as channels."""
        kh, kw = self.conv.kernel
        return ((1, 1), (1, kw), (kh, kw))[self.fold]

    @property
    def depth(self) -> int:
        """x's channels, folded taps included."""
        return self.conv.inputs * math.prod(self.folded)

    @property
    def lane_count(self) -> int:
        return self.depth if self.x_lanes else self.conv.outputs

    @property
    def row_count(self) -> int:
        return self.conv.outputs if self.x_lanes else self.depth

    @property
    def width(self) -> int:
        """Elements of a whole lane block."""
        return self.vectors * self.lanes

    @property
    def whole(self) -> int:
        """Lane blocks that are full."""
        return self.lane_count // self.width

    @property
    def rest(self) -> int:
        """Lanes of the last block when it is not full."""
        return self.lane_count % self.width

    @property
    def blocks(self) -> int:
        """Lane blocks of a group."""
        return self.whole + (self.rest > 0)

    @property
    def panel_rows(self) -> int:
        """Rows of a lane block's panel: its rows and taps."""
        return self.row_count * math.prod(self.taps)

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Folded tap row, tap column and channel of each of x's channels."""
        height, width = self.folded
        for i in range(height):
            for j in range(width):
                for c in range(self.conv.inputs):
                    yield i, j, c


@dataclass(frozen=True)
class RowTiles:
    """`count` row blocks of one size, from block and channel `first` on; rows' offsets in x's or dy's pixel
    (`a`) and row numbers in the panel (`c`, the first block's; `step` rows from block to block)."""

    a: tuple[int, ...]
    c: tuple[int, ...]
    block: int
    first: int
    count: int
    step: int


@dataclass(frozen=True)
class Chunks:
    """Output pixels that are summed in one go: whole images, or rows of one, or columns of one row."""

    height: int
    width: int
    images: int
    rows: int
    columns: int

    @property
    def down(self) -> int:
        return -(-self.height // self.rows)

    @property
    def across(self) -> int:
        return -(-self.width // self.columns)

    @property
    def per_image(self) -> int:
        return self.down * self.across

    @property
    def pixels(self) -> int:
        return self.images * self.rows * self.columns


@dataclass(frozen=True)
class Store:
    """Where tiles find an operand: in its image, or in blocks of channels, packed chunk by chunk.

    Packed: [block][image][row][column][channels of the block]. `rows` and `columns` are the pixels of a chunk
    of one image, `sampled` whether only those that a 1x1 kernel meets are packed; a cache line has `line`
    elements.
    """

    image: Image
    packed: bool
    rows: int
    columns: int
    steps: tuple[int, int]
    sampled: bool
    group: int
    widest: int
    blocks: int
    images: int
    line: int

    def strides(self, size: int) -> tuple[int, int, int]:
        """Elements from image to image, row to row, pixel to pixel of the stored operand."""
        if not self.packed:
            return self.image.size, self.image.row, self.image.pixel
        return self.rows * self.columns * size, self.columns * size, size

    def output_strides(self, size: int) -> tuple[int, int, int]:
        """The same from output image, row and pixel to the next."""
        image, row, pixel = self.strides(size)
        if self.packed and self.sampled:
            return image, row, pixel
        return image, row * self.steps[0], pixel * self.steps[1]

    @property
    def block(self) -> int:
        """Elements of a packed block; an odd number of cache lines, so that blocks fall in different sets."""
        lines = -(-self.images * self.rows * self.columns * self.widest // self.line)
        return (lines | 1) * self.line

    @property
    def size(self) -> int:
        """Elements of a packed chunk."""
        return self.group * self.blocks * self.block if self.packed else 0


@dataclass(frozen=True)
class WeightBlocking:
    """All choices for one convolution. `chain` chunks are packed together."""

    form: Form
    pieces: tuple[RowTiles, ...]
    chunks: Chunks
    x: Store
    y: Store
    chain: int
    target: Target

    @property
    def padded(self) -> int:
        """Elements of all lane blocks of a group's panel row."""
        return self.form.blocks * self.form.width

    @property
    def size(self) -> int:
        """Elements of one set of panels: [group][lane block][row, tap][lanes]."""
        return self.form.conv.group * self.form.panel_rows * self.padded

    @property
    def own(self) -> bool:
        """Whether each thread has panels of its own."""
        return self.target.nbytes * self.size <= self.target.tuning.weights_own

    @property
    def row_units(self) -> int:
        """Pieces of a lane block's panel that threads may share out."""
        return 1 if self.form.fold and not self.form.x_lanes else sum(p.count for p in self.pieces)

    @property
    def unit_tiles(self) -> int:
        """Tile places of such a piece."""
        return sum(p.count for p in self.pieces) // self.row_units

    @property
    def units(self) -> int:
        """Pieces of all panels that threads may share out."""
        return self.form.conv.group * self.form.blocks * self.row_units

    @property
    def lane_store(self) -> Store:
        return self.x if self.form.x_lanes else self.y

    @property
    def row_store(self) -> Store:
        return self.y if self.form.x_lanes else self.x

    @property
    def scratch(self) -> int:
        """Elements of packed chunks for one thread."""
        return self.chain * (self.x.size + self.y.size)

    @property
    def sparse(self) -> bool:
        """Whether most of x is skipped."""
        return math.prod(self.form.conv.strides) > math.prod(self.form.conv.kernel)

    def span(self, is_x: bool) -> int:
        """Elements of a chunk of x or of dy in its image, border included."""
        chunks, image = self.chunks, self.x.image if is_x else self.y.image
        if chunks.images > 1 or chunks.per_image == 1:
            return chunks.images * image.size
        down, right = self.form.conv.strides if is_x else (1, 1)
        return chunks.rows * down * image.row if chunks.across == 1 else chunks.columns * right * image.pixel

    @property
    def flat(self) -> bool:
        """Whether all pixels of a chunk are one equal step apart in both operands."""
        return all(self._flat(store) for store in (self.x, self.y))

    def _flat(self, store: Store) -> bool:
        chunks = self.chunks
        image, row, pixel = store.output_strides(store.widest)
        together = chunks.images == 1 or image == chunks.rows * row
        return chunks.across == 1 and together and row == chunks.columns * pixel


@functools.lru_cache(512)
def weight_blocking(conv: Convolution, target: Target) -> WeightBlocking:
    """The blocking for a convolution; the batch and the number of threads do not enter."""
    target = target.typed(conv.dtype)
    tuning, line = target.tuning, target.line
    form, pieces = min(_forms(conv, target), key=lambda found: _cost(found[0], found[1], tuning))
    lanes_from_x = form.x_lanes
    x, y = conv.x, conv.y
    one_tap = conv.kernel == (1, 1)
    halo = 1.0 if one_tap else 1.25 if conv.strides == (1, 1) else 2.0
    near = int(tuning.weights_near / (target.nbytes * (x.pixel * halo + y.pixel)))
    widest = max(len(p.a) for p in pieces)
    # folded channels are found in the image alone
    x_blocks = (form.blocks if lanes_from_x else sum(p.count for p in pieces)) if form.fold == 0 else 1
    y_blocks = sum(p.count for p in pieces) if lanes_from_x else form.blocks
    x_packed = y_packed = False
    work = math.prod(conv.kernel) * conv.inputs * conv.outputs / (conv.inputs + conv.outputs)
    if near < (tuning.weights_few_busy if work >= tuning.weights_busy else tuning.weights_few):
        x_packed = form.fold == 0 and (x_blocks > 1 or conv.group > 1)
        y_packed = y_blocks > 1 or conv.group > 1
        x_read = (form.width if lanes_from_x else widest) if x_packed else x.pixel
        y_read = (widest if lanes_from_x else form.width) if y_packed else y.pixel
        near = int(tuning.weights_near / (target.nbytes * (x_read * halo + y_read)))
    chunks = _chunks(y, max(1, min(near, tuning.weights_pixels)))
    reach = [(k - 1) * d + 1 for k, d in zip(conv.kernel, conv.dilations, strict=True)]
    sampled = one_tap
    steps = (1, 1) if sampled else conv.strides
    x_store = Store(
        image=x,
        packed=x_packed,
        rows=(chunks.rows - 1) * steps[0] + reach[0],
        columns=(chunks.columns - 1) * steps[1] + reach[1],
        steps=conv.strides,
        sampled=sampled,
        group=conv.group,
        widest=form.width if lanes_from_x else widest,
        blocks=x_blocks,
        images=chunks.images,
        line=line,
    )
    y_store = Store(
        image=y,
        packed=y_packed,
        rows=chunks.rows,
        columns=chunks.columns,
        steps=(1, 1),
        sampled=False,
        group=conv.group,
        widest=widest if lanes_from_x else form.width,
        blocks=y_blocks,
        images=chunks.images,
        line=line,
    )
    blocking = WeightBlocking(form, pieces, chunks, x_store, y_store, 1, target)
    if (x_packed or y_packed) and target.nbytes * blocking.size > tuning.weights_far:
        blocking = replace(blocking, chain=max(1, -(-tuning.weights_far_pixels // chunks.pixels)))
    return blocking


def _chunks(y: Image, pixels: int) -> Chunks:
    """About so many pixels, in nearly equal chunks."""
    if y.height * y.width <= pixels:
        return Chunks(y.height, y.width, pixels // (y.height * y.width), y.height, y.width)
    if y.width <= 2 * pixels:
        count = -(-y.height // max(1, pixels // y.width))
        return Chunks(y.height, y.width, 1, -(-y.height // count), y.width)
    count = -(-y.width // pixels)
    return Chunks(y.height, y.width, 1, 1, -(-y.width // count))


def _forms(conv: Convolution, target: Target) -> Iterator[tuple[Form, tuple[RowTiles, ...]]]:
    """What could be done, what is preferred among equals first."""
    one_tap = conv.kernel == (1, 1)
    run = conv.x.pixel == conv.inputs and conv.dilations[1] == 1
    wide = (2, 3, 4, 1) if target.registers == 32 else (2, 3, 1)
    for x_lanes in (True, False) if one_tap else (False, True):
        for fold in (0, 1, 2):
            taps = ((1, 1), (1, conv.kernel[1]), conv.kernel)[fold]
            if fold and math.prod(taps) == 1:
                continue
            if fold and x_lanes and (fold == 2 or not run or conv.inputs > 2 * target.lanes):
                continue
            for vectors in wide:
                most = rows_for(target, vectors)
                form = Form(conv, x_lanes, fold, vectors, target.lanes)
                if fold and not x_lanes and (conv.inputs * 2 > most or form.depth > 4 * most):
                    continue
                yield form, tuple(_pieces(form, most))


def _pieces(form: Form, most: int) -> Iterator[RowTiles]:
    conv, (t0, t1) = form.conv, form.taps
    if form.x_lanes or form.fold == 0:
        block = 0
        for size, first, count in split(form.row_count, most):
            rows = tuple(m * t0 * t1 for m in range(size))
            yield RowTiles(tuple(range(size)), rows, block, first, count, size * t0 * t1)
            block += count
        return
    kw, taps = conv.kernel[1], math.prod(conv.kernel)
    row, pixel = conv.dilations[0] * conv.x.row, conv.dilations[1] * conv.x.pixel
    places = list(form.places())
    for size, first, count in split(form.depth, most):
        for n in range(count):
            part = places[first + n * size : first + (n + 1) * size]
            yield RowTiles(
                tuple(i * row + j * pixel + c for i, j, c in part),
                tuple(c * taps + i * kw + j for i, j, c in part),
                *(0, 0, 1, 0),
            )


def _cost(form: Form, pieces: tuple[RowTiles, ...], tuning: Tuning) -> float:
    """Time of all tiles for one pixel, in multiply-adds of a vector."""
    rest = -(-form.rest // form.lanes)
    total = 0.0
    for vectors, count in ((form.vectors, form.whole), (rest, int(rest > 0))):
        for piece in pieces:
            work = len(piece.a) * vectors
            taken = max(work * (tuning.weights_narrow if vectors == 1 else 1), tuning.weights_fewest)
            total += count * piece.count * (taken + tuning.weights_load * (len(piece.a) + vectors))
    return total * math.prod(form.taps)
