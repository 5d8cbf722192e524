"""Direct convolution: forward and backward-data.

Both directions are the same sweep: over a grid of output pixels, a register tile of some pixels by some
output channels, reduced over taps and input channels. Backward-data has one grid for each remainder under the
strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.layout import Convolution, Image
from onward.compile.kernels.tile import IDENTITY, Epilogue, Tile, define, rows_for, split, vectors_for
from onward.errors import ShapeError

__all__ = [
    "Blocks",
    "Grid",
    "backward_blocks",
    "backward_data",
    "backward_grids",
    "check_halo",
    "forward",
    "forward_blocks",
    "forward_grids",
    "label",
    "panels_size",
]


@dataclass(frozen=True)
class Grid:
    """Output pixels (i, j) at c0 + i * c_row + j * c_pixel, fed from a0 + i * a_row + j * a_pixel.

    The reduction runs over rows x columns x depth, with steps in A of `steps`; `b0` is where this grid's
    weights start, `tap0` and `tap_step` say which of the kernel's taps they are.
    """

    height: int
    width: int
    a0: int
    a_row: int
    a_pixel: int
    c0: int
    c_row: int
    c_pixel: int
    taps: tuple[int, int]
    steps: tuple[int, int]
    depth: int
    b0: int
    tap0: tuple[int, int] = (0, 0)
    tap_step: tuple[int, int] = (1, 1)

    @property
    def reduction(self) -> int:
        return self.taps[0] * self.taps[1] * self.depth


@dataclass(frozen=True)
class Blocks:
    """`group` groups of `outputs` channels, each in `blocks` blocks of `vectors` vectors."""

    group: int
    outputs: int
    depth: int
    vectors: int
    lanes: int

    @property
    def width(self) -> int:
        return self.vectors * self.lanes

    @property
    def blocks(self) -> int:
        return -(-self.outputs // self.width)

    @property
    def whole(self) -> int:
        return self.outputs // self.width

    @property
    def rest(self) -> int:
        return self.outputs % self.width


def forward_blocks(conv: Convolution, target: Target) -> Blocks:
    """How y's channels are blocked."""
    target = target.typed(conv.dtype)
    vectors = _vectors(conv, target, conv.outputs)
    return Blocks(conv.group, conv.outputs, conv.inputs, vectors, target.lanes)


def backward_blocks(conv: Convolution, target: Target) -> Blocks:
    """How dx's channels are blocked."""
    target = target.typed(conv.dtype)
    vectors = _vectors(conv, target, conv.inputs)
    return Blocks(conv.group, conv.inputs, conv.outputs, vectors, target.lanes)


def _vectors(conv: Convolution, target: Target, channels: int) -> int:
    """How wide tiles are: narrow and high for weights that every tile reads from the second-level cache."""
    far = target.nbytes * conv.weights > target.tuning.conv_weights
    return vectors_for(target, channels, 3 if far else 4)


def forward_grids(conv: Convolution) -> list[Grid]:
    """The one grid of the forward direction."""
    x, y = conv.x, conv.y
    (sh, sw), (dh, dw) = conv.strides, conv.dilations
    return [
        Grid(
            height=y.height,
            width=y.width,
            a0=x.origin - conv.pads[0] * x.row - conv.pads[1] * x.pixel,
            a_row=sh * x.row,
            a_pixel=sw * x.pixel,
            c0=y.origin,
            c_row=y.row,
            c_pixel=y.pixel,
            taps=conv.kernel,
            steps=(dh * x.row, dw * x.pixel),
            depth=conv.inputs,
            b0=0,
        )
    ]


def backward_grids(conv: Convolution, blocks: Blocks) -> list[Grid]:
    """A grid for each pair of remainders under the strides."""
    dx, dy = conv.x, conv.y
    (sh, sw) = conv.strides
    grids = []
    b0 = 0
    for rows in conv.phases(0):
        for columns in conv.phases(1):
            if not rows.count or not columns.count:
                continue
            grid = Grid(
                height=rows.count,
                width=columns.count,
                a0=dy.origin + rows.first_output * dy.row + columns.first_output * dy.pixel,
                a_row=dy.row,
                a_pixel=dy.pixel,
                c0=dx.origin + rows.first * dx.row + columns.first * dx.pixel,
                c_row=sh * dx.row,
                c_pixel=sw * dx.pixel,
                taps=(rows.taps, columns.taps),
                steps=(rows.output_step * dy.row, columns.output_step * dy.pixel),
                depth=conv.outputs,
                b0=b0,
                tap0=(rows.last_tap, columns.last_tap),
                tap_step=(-rows.tap_step, -columns.tap_step),
            )
            grids.append(grid)
            b0 += blocks.group * blocks.blocks * grid.reduction * blocks.width
    return grids


def panels_size(grids: Sequence[Grid], blocks: Blocks) -> int:
    """Elements of all packed panels."""
    return sum(grid.reduction for grid in grids) * blocks.group * blocks.blocks * blocks.width


def forward(conv: Convolution, target: Target, epilogue: Epilogue = IDENTITY) -> Kernel:
    """y = epilogue(x * w). Slots: a = x, b = packed weights, c = y, e0... = epilogue operands, batch.

    "full" epilogue operands have y's layout. Raises `ShapeError` when x's border is too small.
    """
    check_halo("x", conv.x, conv.input_halo())
    name = f"conv_forward {conv.x.height}x{conv.x.width}x{conv.x.channels} {conv.y.channels}" + label(conv)
    return _sweep(
        name, conv, target, forward_grids(conv), forward_blocks(conv, target), conv.x, conv.y, epilogue
    )


def backward_data(conv: Convolution, target: Target, epilogue: Epilogue = IDENTITY) -> Kernel:
    """dx = epilogue(gradient). Slots: a = dy, b = packed weights, c = dx, e0..., batch.

    "full" epilogue operands have dx's layout. Raises `ShapeError` when dy's border is too small.
    """
    check_halo("dy", conv.y, conv.gradient_halo())
    blocks = backward_blocks(conv, target)
    name = f"conv_backward_data {conv.x.height}x{conv.x.width}x{conv.x.channels} {conv.y.channels}"
    return _sweep(
        name + label(conv), conv, target, backward_grids(conv, blocks), blocks, conv.y, conv.x, epilogue
    )


def label(conv: Convolution) -> str:
    """Kernel size and whatever is not the default, for names of kernels."""
    label = f" k{conv.kernel[0]}x{conv.kernel[1]}"
    if conv.strides != (1, 1):
        label += f" s{conv.strides[0]}x{conv.strides[1]}"
    if conv.dilations != (1, 1):
        label += f" d{conv.dilations[0]}x{conv.dilations[1]}"
    return label + (f" g{conv.group}" if conv.group > 1 else "")


def check_halo(name: str, image: Image, need: tuple[int, int, int, int]) -> None:
    """Raise `ShapeError` unless the image's border is at least (top, left, bottom, right)."""
    have = (image.top, image.left, image.bottom, image.right)
    if any(h < n for h, n in zip(have, need, strict=True)):
        raise ShapeError(f"{name} has a border of {have} (top, left, bottom, right); this needs {need}")


@dataclass(frozen=True)
class _Piece:
    """`count` places of one tile shape: the first at (a, c), the next ones a_step, c_step on."""

    a: int
    c: int
    count: int
    a_step: int
    c_step: int


def _pieces(
    grid: Grid, most: int
) -> tuple[list[_Piece], list[_Piece], dict[tuple[int, int], tuple[int, int]]]:
    """Units of work (outer), tile places inside a unit (inner), and each pair's tile size (rows, columns)."""
    strip = grid.a_row == grid.width * grid.a_pixel and grid.c_row == grid.width * grid.c_pixel
    height, width = (1, grid.height * grid.width) if strip else (grid.height, grid.width)
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    if height > 1 and width * 2 <= most:
        outer = []
        for o, (rows, first, count) in enumerate(split(height, most // width)):
            outer.append(
                _Piece(first * grid.a_row, first * grid.c_row, count, rows * grid.a_row, rows * grid.c_row)
            )
            sizes[o, 0] = (rows, width)
        return outer, [_Piece(0, 0, 1, 0, 0)], sizes
    columns = [
        (
            size,
            _Piece(
                first * grid.a_pixel, first * grid.c_pixel, count, size * grid.a_pixel, size * grid.c_pixel
            ),
        )
        for size, first, count in split(width, most)
    ]
    if height == 1:
        for o, (size, _) in enumerate(columns):
            sizes[o, 0] = (1, size)
        return [piece for _, piece in columns], [_Piece(0, 0, 1, 0, 0)], sizes
    for i, (size, _) in enumerate(columns):
        sizes[0, i] = (1, size)
    return [_Piece(0, 0, height, grid.a_row, grid.c_row)], [piece for _, piece in columns], sizes


def _sweep(
    name: str,
    conv: Convolution,
    target: Target,
    grids: list[Grid],
    blocks: Blocks,
    source: Image,
    sink: Image,
    epilogue: Epilogue,
) -> Kernel:
    target = target.typed(conv.dtype)
    module = Module(target)
    f = module.entry()
    extra = tuple(f"e{i}" for i in range(len(epilogue.operands)))
    parameters = (*read("a", "b"), *write("c"), *read(*extra), *integer("batch"))
    values = slot_values(f, parameters)
    units = 0
    for number, grid in enumerate(grids):
        sweep = _Sweep(f, grid, blocks, epilogue, number, target, values, source.size, sink.size)
        units = max(units, sweep.emit())
    f.ret()
    bytes_ = target.nbytes * (source.elements + sink.elements * (1 + epilogue.operands.count("full")))
    return Kernel(
        name=name,
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, conv.flops + sink.elements * epilogue.flops),
        bytes=Affine(target.nbytes * panels_size(grids, blocks), bytes_),
        units=Affine(0, units),
    )


class _Sweep:
    """Writes the loops over one grid."""

    def __init__(
        self,
        f: Function,
        grid: Grid,
        blocks: Blocks,
        epilogue: Epilogue,
        number: int,
        target: Target,
        values: dict[str, Value],
        a_image: int,
        c_image: int,
    ) -> None:
        self.f = f
        self.grid = grid
        self.blocks = blocks
        self.epilogue = epilogue
        self.values = values
        self.images = (a_image, c_image)
        self.outer, self.inner, sizes = _pieces(grid, rows_for(target, blocks.vectors))
        self.panel = grid.reduction * blocks.width
        weights = target.nbytes * self.panel * blocks.group * blocks.blocks
        self.streams = weights > target.tuning.conv_weights
        places = sum(o.count for o in self.outer) * sum(i.count for i in self.inner)
        # All tiles of an image together fetch the next panel while they multiply by this one.
        self.ahead = -(-blocks.width // places) if self.streams else 0
        # Where pixels follow each other and have one tap, each is read and written once, and none of them is
        # in the cache yet: the blocks of a tile together fetch the next tile's, of the wider of the images.
        strip = grid.taps == (1, 1) and blocks.group == 1 and grid.a_pixel == grid.depth
        self.follows = strip and not self.streams
        self.fetch_sink = grid.c_pixel == blocks.outputs and grid.c_pixel > grid.a_pixel
        self.sizes = sizes
        self.tiles: dict[tuple[int, int, bool], Function] = {}
        for (o, i), (rows, columns) in sizes.items():
            whole = self._tile(rows, columns)
            if blocks.whole:
                self.tiles[o, i, True] = define(f.module, f"tile_{number}_{o}_{i}", whole)
            if blocks.rest:
                vectors = -(-blocks.rest // blocks.lanes)
                tail = blocks.rest - (vectors - 1) * blocks.lanes
                self.tiles[o, i, False] = define(
                    f.module, f"rest_{number}_{o}_{i}", replace(whole, vectors=vectors, tail=tail)
                )

    def _tile(self, rows: int, columns: int) -> Tile:
        grid, width = self.grid, self.blocks.width
        prefetch = self._share(columns) if self.follows else self.ahead
        loops = []
        depth = grid.depth
        (taps_h, taps_w), (step_h, step_w) = grid.taps, grid.steps
        if taps_h != 1:
            loops.append((taps_h, step_h, taps_w * depth * width))
        if step_w == depth or taps_w == 1:
            depth *= taps_w
        else:
            loops.append((taps_w, step_w, depth * width))
        return Tile(
            a=tuple(r * grid.a_row + c * grid.a_pixel for r in range(rows) for c in range(columns)),
            c=tuple(r * grid.c_row + c * grid.c_pixel for r in range(rows) for c in range(columns)),
            vectors=self.blocks.vectors,
            tail=self.blocks.lanes,
            k=depth,
            a_step=1,
            b_step=width,
            loops=tuple(loops),
            epilogue=self.epilogue,
            prefetch=prefetch,
        )

    def _share(self, columns: int) -> int:
        """Elements of the next tile's pixels that each step of one block fetches."""
        pixel = self.grid.c_pixel if self.fetch_sink else self.grid.a_pixel
        return -(-columns * pixel // (self.blocks.blocks * self.grid.depth))

    def emit(self) -> int:
        """Write the loops; gives the number of work units for one image."""
        f, blocks, batch = self.f, self.blocks, self.values["batch"]
        _, thread, threads = f.arguments
        panels = blocks.group * blocks.blocks
        if self.streams:
            low, high = f.share(batch * panels, thread, threads)
            # Either an image stays in the cache for all panels, or a panel for all images.
            by_image = self.panel * panels < self.images[0] * (panels - 1)
            with f.range(low, high) as unit:
                after = f.smin(unit + 1, high - 1)
                if by_image:
                    self._block(unit // panels, unit % panels, after % panels)
                else:
                    self._block(unit % batch, unit // batch, after // batch)
            return panels
        places = sum(piece.count for piece in self.outer)
        low, high = f.share(batch * places, thread, threads)
        with f.range(low, high) as unit:
            n, place = unit // places, unit % places
            before = 0
            for o, piece in enumerate(self.outer):
                index: Value = place - before
                if len(self.outer) > 1:
                    test = f.compare("slt" if o == 0 else "sge", place, piece.count if o == 0 else before)
                    with f.when(test):
                        self._place(n, o, piece, index)
                else:
                    self._place(n, o, piece, index)
                before += piece.count
        return places

    def _place(self, n: Value, o: int, piece: _Piece, index: Value) -> None:
        """All channel blocks of one unit, tile by tile."""
        f, blocks = self.f, self.blocks
        a = n * self.images[0] + index * piece.a_step + piece.a
        c = n * self.images[1] + index * piece.c_step + piece.c
        for i, inner in enumerate(self.inner):
            with f.range(0, inner.count) as j, f.range(0, blocks.group) as g:
                for whole in (True, False):
                    count = blocks.whole if whole else int(blocks.rest > 0)
                    if not count:
                        continue
                    with f.range(0, count) as q:
                        block = q if whole else f.value(blocks.whole)
                        self._call(
                            o,
                            i,
                            whole,
                            a + j * inner.a_step + inner.a,
                            c + j * inner.c_step + inner.c,
                            g,
                            block,
                        )

    def _block(self, n: Value, block: Value, following: Value) -> None:
        """All tiles of one image for one channel block; `following` is the block after it."""
        f, blocks = self.f, self.blocks
        g, q = block // blocks.blocks, block % blocks.blocks
        ahead = f.at(self.values["b"], following * self.panel + self.grid.b0)
        for whole in (True, False):
            if not (blocks.whole if whole else blocks.rest):
                continue
            if blocks.whole and blocks.rest:
                with f.when(f.compare("slt" if whole else "sge", q, blocks.whole)):
                    self._tiles_of_block(n, g, q, whole, ahead)
            else:
                self._tiles_of_block(n, g, q, whole, ahead)

    def _tiles_of_block(self, n: Value, g: Value, q: Value, whole: bool, ahead: Value) -> None:
        f = self.f
        before = 0
        across = sum(inner.count for inner in self.inner)
        for o, piece in enumerate(self.outer):
            with f.range(0, piece.count) as index:
                a = n * self.images[0] + index * piece.a_step + piece.a
                c = n * self.images[1] + index * piece.c_step + piece.c
                along = 0
                for i, inner in enumerate(self.inner):
                    with f.range(0, inner.count) as j:
                        place = (index + before) * across + (j + along)
                        part = f.at(ahead, place * (self.grid.reduction * self.ahead))
                        a_tile, c_tile = a + j * inner.a_step + inner.a, c + j * inner.c_step + inner.c
                        self._call(o, i, whole, a_tile, c_tile, g, q, (part,))
                    along += inner.count
            before += piece.count

    def _call(
        self,
        o: int,
        i: int,
        whole: bool,
        a: Value,
        c: Value,
        g: Value,
        q: Value,
        ahead: tuple[Value, ...] = (),
    ) -> None:
        f, blocks, grid, values = self.f, self.blocks, self.grid, self.values
        channel = g * blocks.outputs + q * blocks.width
        pixel, c = c, c + channel + grid.c0
        panel = (g * blocks.blocks + q) * self.panel + grid.b0
        operands = [
            f.at(values[f"e{k}"], channel if kind == "channel" else c)
            for k, kind in enumerate(self.epilogue.operands)
        ]
        start = f.at(values["a"], a + g * blocks.depth + grid.a0)
        if self.follows:
            columns = self.sizes[o, i][1]
            part = q * (grid.depth * self._share(columns))
            if self.fetch_sink:
                ahead = (f.at(values["c"], pixel + grid.c0 + columns * grid.c_pixel + part),)
            else:
                ahead = (f.at(start, part + columns * grid.a_pixel),)
        f.invoke(
            self.tiles[o, i, whole],
            [
                start,
                f.at(values["b"], panel),
                f.at(values["c"], c),
                *operands,
                *ahead,
            ],
        )
