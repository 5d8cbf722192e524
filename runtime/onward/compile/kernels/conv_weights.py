"""Convolution's weight gradient: register tiles summed over pixels, for all taps of a chunk of the images.

A tile is some channels of one of x and dy in the lanes of vectors by some channels of the other, broadcast
from memory. Chunks of pixels are small enough for the first-level cache; where channels are many, a chunk of
x (with its border) and of dy is first packed into blocks of just the channels that one tile reads.

The sums are panels [group][lane block][row, tap][lanes]. Where all panels fit a cache each thread sums its
own share of the images into panels of its own, and `finish_weights` adds those in thread order; where they do
not, each thread owns a part of the panels and goes through all images. Both are reproducible bit for bit at a
given number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.conv import check_halo, label
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.layout import Convolution
from onward.compile.kernels.weight_blocking import RowTiles, Store, WeightBlocking, weight_blocking
from onward.compile.kernels.weight_tile import Loop, WeightTile, define_weight_tile

__all__ = ["partial_count", "partial_size", "weight_gradient"]


def partial_size(conv: Convolution, target: Target) -> int:
    """Elements of one set of panels."""
    return weight_blocking(conv, target).size


def partial_count(conv: Convolution, target: Target, threads: int) -> int:
    """How many sets of panels `weight_gradient` needs on `threads` threads."""
    return threads if weight_blocking(conv, target).own else 1


def weight_gradient(conv: Convolution, target: Target) -> Kernel:
    """Panels of dw. Slots: a = x, b = dy, c = `partial_count` sets of panels, batch, scratch.

    Raises `ShapeError` when x's border is too small. dy may have any border, or none.
    """
    check_halo("x", conv.x, conv.input_halo())
    blocking = weight_blocking(conv, target)
    target = target.typed(conv.dtype)
    module = Module(target)
    f = module.entry()
    parameters = (
        *read("a", "b"),
        *write("c"),
        *integer("batch"),
        *write(*["scratch"] * bool(blocking.scratch)),
    )
    values = slot_values(f, parameters)
    _Gradient(f, blocking, values).emit()
    f.ret()
    x, y, nbytes = conv.x, conv.y, target.nbytes
    return Kernel(
        name=f"conv_weight_gradient {x.height}x{x.width}x{x.channels} {y.channels}" + label(conv),
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, conv.flops),
        bytes=Affine(nbytes * blocking.size, nbytes * (x.elements + y.elements)),
        units=Affine(0, blocking.chunks.per_image) if blocking.own else Affine(blocking.units),
        scratch=nbytes * _scratch(blocking),
    )


def _scratch(blocking: WeightBlocking) -> int:
    """Elements of a thread's packed chunks, up to a whole cache line."""
    line = blocking.target.line
    return -(-blocking.scratch // line) * line


@dataclass(frozen=True)
class _Chunk:
    """Where a chunk of pixels is: first image, row and column of dy, and how many of each."""

    n: Value
    r: Value
    column: Value
    images: Value
    rows: Value
    columns: Value


@dataclass(frozen=True)
class _Turn:
    """Chunks that are summed together: number `number` of such, `length` chunks, given by `chunk`.

    `ahead` has for x and dy where the next ones start and how many bytes of them a tile's step fetches.
    """

    number: Value
    length: Value
    chunk: Callable[[Value], _Chunk]
    panels: Value
    ahead: list[tuple[Value, Value]]


@dataclass(frozen=True)
class _Unit:
    """A tile place: group, lane block `q`, block `j` of row piece number `p`."""

    p: int
    piece: RowTiles
    whole: bool
    number: Value
    g: Value
    q: Value
    j: Value


class _Gradient:
    def __init__(self, f: Function, blocking: WeightBlocking, values: dict[str, Value]) -> None:
        self.f = f
        self.blocking = blocking
        self.conv = blocking.form.conv
        self.values = values
        # x of the next chunk and its dy, unless most of what lies between their ends is skipped
        self.ahead = [is_x for is_x in (True, False) if not is_x or not blocking.sparse]
        self.tiles = {
            (p, whole): self._tile(p, piece, whole)
            for p, piece in enumerate(blocking.pieces)
            for whole in (True, False)
            if (blocking.form.whole if whole else blocking.form.rest)
        }
        _, self.thread, self.threads = f.arguments

    # -- tiles -------------------------------------------------------------------------------------------

    def _tile(self, p: int, piece: RowTiles, whole: bool) -> Function:
        blocking, form = self.blocking, self.blocking.form
        vectors, tail = form.vectors, form.lanes
        if not whole:
            vectors = -(-form.rest // form.lanes)
            if not blocking.lane_store.packed:
                tail = form.rest - (vectors - 1) * form.lanes
        a = blocking.row_store.output_strides(len(piece.a))
        b = blocking.lane_store.output_strides(vectors * form.lanes)
        columns = blocking.chunks.columns if blocking.chunks.across == 1 else None
        loops = tuple(Loop(n, i, j) for n, i, j in zip((None, None, columns), a, b, strict=True))
        tile = WeightTile(
            a=piece.a,
            c=tuple(row * form.width for row in piece.c),
            vectors=vectors,
            tail=tail,
            loops=(Loop(None, a[2], b[2]),) if blocking.flat else loops,
            ahead=len(self.ahead),
        )
        return define_weight_tile(self.f.module, f"tile_{p}_{'whole' if whole else 'rest'}", tile)

    def _counts(self, chunk: _Chunk) -> list[Value]:
        if self.blocking.flat:
            return [chunk.images * chunk.rows * chunk.columns]
        counts = [chunk.images, chunk.rows]
        return counts if self.blocking.chunks.across == 1 else [*counts, chunk.columns]

    # -- chunks ------------------------------------------------------------------------------------------

    def emit(self) -> None:
        """All chunks of this thread for all its units."""
        f, blocking, chunks = self.f, self.blocking, self.blocking.chunks
        batch = self.values["batch"]
        total = batch * chunks.per_image
        if blocking.own:
            first, last = f.share(total, self.thread, self.threads)
            panels = f.at(self.values["c"], self.thread * blocking.size)
            self.low, self.high = f.value(0), f.value(blocking.units)
        else:
            first, last = f.value(0), total
            panels = self.values["c"]
            self.low, self.high = f.share(blocking.units, self.thread, self.threads)
        steps = [self._ahead_step(blocking.span(is_x)) for is_x in self.ahead]
        step = chunks.images
        count = (last - first + (step - 1)) // step
        rounds = f.smax(1, (count + (blocking.chain - 1)) // blocking.chain)
        with f.range(0, rounds) as turn:
            start = turn * blocking.chain
            length = f.smin(blocking.chain, count - start)

            def chunk(i: Value) -> _Chunk:
                index = first + (start + i) * step
                if chunks.images > 1:
                    images = f.smin(chunks.images, last - index)
                    return _Chunk(
                        index, f.value(0), f.value(0), images, f.value(chunks.rows), f.value(chunks.columns)
                    )
                n, place = index // chunks.per_image, index % chunks.per_image
                r, column = place // chunks.across * chunks.rows, place % chunks.across * chunks.columns
                return _Chunk(
                    n,
                    r,
                    column,
                    f.value(1),
                    f.smin(chunks.rows, chunks.height - r),
                    f.smin(chunks.columns, chunks.width - column),
                )

            if blocking.scratch:
                with f.range(0, length) as i:
                    self._pack(i, chunk(i))
            following = [self._in_image(is_x, chunk(length)) for is_x in self.ahead]
            more = f.compare("sgt", count, start + length)
            ahead = [(at, f.select(more, n, 0)) for at, n in zip(following, steps, strict=True)]
            self._units(_Turn(turn, length, chunk, panels, ahead))

    def _ahead_step(self, span: int) -> Value:
        """Bytes of the next chunk for each step of a tile, so that a chunk's tiles fetch all of it."""
        taps = math.prod(self.blocking.form.taps)
        nbytes = self.blocking.target.nbytes
        steps = (self.high - self.low) * (self.blocking.unit_tiles * taps * self.blocking.chunks.pixels)
        return (steps + (nbytes * span - 1)) // self.f.smax(steps, 1)

    def _ahead(self, turn: _Turn, unit: _Unit, i: Value, tap: Value) -> list[Value]:
        """From where on one tile fetches, and by how many bytes a step."""
        f, blocking = self.f, self.blocking
        number = (unit.number - self.low) * blocking.unit_tiles + (unit.p if blocking.unit_tiles > 1 else 0)
        number = (number * turn.length + i) * math.prod(blocking.form.taps) + tap
        found = []
        for start, step in turn.ahead:
            found += [f.at(start, number * blocking.chunks.pixels * step, "i8"), step]
        return found

    # -- packing -----------------------------------------------------------------------------------------

    def _pack(self, i: Value, chunk: _Chunk) -> None:
        """The channels of this thread's units into the scratch memory of place `i`."""
        f, blocking, form, conv = self.f, self.blocking, self.blocking.form, self.conv
        lanes = [(form.width, form.width, 0, 0, form.whole)]
        if form.rest:
            padded = -(-form.rest // form.lanes) * form.lanes
            lanes.append((form.rest, padded, form.whole, form.whole * form.width, 1))
        rows = [(len(p.a), len(p.a), p.block, p.first, p.count) for p in blocking.pieces]
        first, last = f.value(0), f.value(blocking.row_store.blocks)
        if not blocking.own and conv.group == 1:
            first, last = self.low // form.blocks, (self.high + (form.blocks - 1)) // form.blocks
        if blocking.row_store.packed:
            self._pack_store(blocking.row_store, not form.x_lanes, rows, i, chunk, first, last)
        if blocking.lane_store.packed:
            self._pack_store(
                blocking.lane_store, form.x_lanes, lanes, i, chunk, f.value(0), f.value(form.blocks)
            )

    def _pack_store(
        self,
        store: Store,
        is_x: bool,
        blocks: list[tuple[int, int, int, int, int]],
        i: Value,
        chunk: _Chunk,
        first: Value,
        last: Value,
    ) -> None:
        f, conv = self.f, self.conv
        rows, columns = chunk.rows, chunk.columns
        if is_x and not store.sampled:
            reach = [(k - 1) * d for k, d in zip(conv.kernel, conv.dilations, strict=True)]
            rows = (rows - 1) * conv.strides[0] + (reach[0] + 1)
            columns = (columns - 1) * conv.strides[1] + (reach[1] + 1)
        source = self._in_image(is_x, chunk)
        sink = self._packed(is_x, i)
        for size, padded, block, channel, count in blocks:
            if not count:
                continue
            pack = self._packer(store, is_x, size, padded)
            with f.range(0, conv.group) as g:
                low, high = f.smax(first, block), f.smin(last, block + count)
                at = g * (conv.inputs if is_x else conv.outputs) + (low - block) * size + channel
                f.invoke(
                    pack,
                    [
                        f.at(source, at),
                        f.at(sink, (g * store.blocks + low) * store.block),
                        chunk.images,
                        rows,
                        columns,
                        high - low,
                    ],
                )

    def _packer(self, store: Store, is_x: bool, size: int, padded: int) -> Function:
        """Pack some neighbouring blocks of `size` channels, `padded` elements for each pixel."""
        parameters = [("source", "ptr"), ("sink", "ptr")]
        parameters += [(n, "i64") for n in ("images", "rows", "columns", "blocks")]
        f = self.f.module.function(f"pack_{'x' if is_x else 'dy'}_{size}", parameters)
        source, sink, images, rows, columns, blocks = f.arguments
        image = store.image
        down, right = store.steps if store.sampled else (1, 1)
        far, near, pixel = store.strides(padded)
        lanes = f.lanes
        with (
            f.range(0, images) as n,
            f.range(0, rows) as r,
            f.range(0, blocks) as b,
            f.range(0, columns) as p,
        ):
            a = f.at(source, n * image.size + r * (down * image.row) + b * size)
            c = f.at(sink, n * far + r * near + b * store.block)
            a, c = f.at(a, p * (right * image.pixel)), f.at(c, p * pixel)
            for v in range(0, size, lanes):
                x = f.vload(a, v, f.mask(size - v))
                f.vstore(x, c, v, f.mask(padded - v))
        f.ret()
        return f

    def _in_image(self, is_x: bool, chunk: _Chunk) -> Value:
        """The first pixel that the chunk's first output pixel meets with the first tap."""
        f, conv = self.f, self.conv
        if not is_x:
            y = conv.y
            return f.at(
                self.values["b"], chunk.n * y.size + chunk.r * y.row + chunk.column * y.pixel + y.origin
            )
        x = conv.x
        origin = x.origin - conv.pads[0] * x.row - conv.pads[1] * x.pixel
        at = chunk.n * x.size + chunk.r * (conv.strides[0] * x.row)
        return f.at(self.values["a"], at + chunk.column * (conv.strides[1] * x.pixel) + origin)

    def _packed(self, is_x: bool, i: Value) -> Value:
        blocking, f = self.blocking, self.f
        scratch = f.at(self.values["scratch"], self.thread * _scratch(blocking))
        return f.at(scratch, i * (blocking.x.size + blocking.y.size) + (0 if is_x else blocking.x.size))

    # -- units -------------------------------------------------------------------------------------------

    def _units(self, turn: _Turn) -> None:
        """All tile places of this thread, lane blocks that stay in the second-level cache together."""
        f, blocking, form, conv = self.f, self.blocking, self.blocking.form, self.conv
        near = max(
            1,
            blocking.target.tuning.weights_blocks
            // (blocking.target.nbytes * blocking.chain * blocking.lane_store.block),
        )
        with f.range(0, conv.group) as g, f.range(0, form.blocks, near) as q0:
            q1 = f.smin(q0 + near, form.blocks)
            before = 0
            for p, piece in enumerate(blocking.pieces):
                with f.range(0, piece.count) as j:
                    row_unit = j + before if blocking.row_units > 1 else f.value(0)
                    for whole in (True, False):
                        if (p, whole) not in self.tiles:
                            continue
                        low = q0 if whole else f.smax(q0, form.whole)
                        high = f.smin(q1, form.whole) if whole else q1
                        with f.range(low, high) as q:
                            unit = (g * blocking.row_units + row_unit) * form.blocks + q
                            with self._mine(unit):
                                self._unit(turn, _Unit(p, piece, whole, unit, g, q, j))
                before += piece.count

    @contextmanager
    def _mine(self, unit: Value) -> Iterator[None]:
        f = self.f
        with ExitStack() as stack:
            if not self.blocking.own:
                inside = f.binary("and", f.compare("sge", unit, self.low), f.compare("slt", unit, self.high))
                stack.enter_context(f.when(inside))
            yield

    def _unit(self, turn: _Turn, unit: _Unit) -> None:
        """One tile place with all its taps."""
        f, form, piece = self.f, self.blocking.form, unit.piece
        g, q, j = unit.g, unit.q, unit.j
        t0, t1 = form.taps
        panel = f.at(turn.panels, ((g * form.blocks + q) * form.panel_rows + j * piece.step) * form.width)
        folded_rows = form.fold and not form.x_lanes
        if not folded_rows:
            panel = f.at(panel, piece.first * (t0 * t1 * form.width))
        if not folded_rows or unit.p == 0:
            rows = form.panel_rows if folded_rows else piece.step
            with f.when(f.compare("eq", turn.number, 0)), f.range(0, rows * form.width, form.lanes) as i:
                f.vstore(f.zero(), panel, i)
        row_size = len(piece.a)
        lane_size = form.width if unit.whole else -(-form.rest // form.lanes) * form.lanes
        kw = self.conv.kernel[1]
        tap_rows = (t1, 1) if form.x_lanes else (kw, 1)
        with f.range(0, turn.length) as i:
            place = turn.chunk(i)
            a = self._operand(
                not form.x_lanes, row_size, g, j + piece.block, j * row_size + piece.first, i, place
            )
            b = self._operand(form.x_lanes, lane_size, g, q, q * form.width, i, place)
            counts = self._counts(place)
            with f.range(0, t0) as i0, f.range(0, t1) as i1:
                tap = self._tap(row_size if not form.x_lanes else lane_size, i0, i1)
                f.invoke(
                    self.tiles[unit.p, unit.whole],
                    [
                        a if form.x_lanes else f.at(a, tap),
                        f.at(b, tap) if form.x_lanes else b,
                        f.at(panel, (i0 * tap_rows[0] + i1 * tap_rows[1]) * form.width),
                        *counts,
                        *self._ahead(turn, unit, i, i0 * t1 + i1),
                    ],
                )

    def _tap(self, size: int, i0: Value, i1: Value) -> Value:
        """Elements from the first tap to another in x."""
        _, row, pixel = self.blocking.x.strides(size)
        down, right = self.conv.dilations
        return i0 * (down * row) + i1 * (right * pixel)

    def _operand(
        self, is_x: bool, size: int, g: Value, block: Value, channel: Value, i: Value, chunk: _Chunk
    ) -> Value:
        f, blocking, conv = self.f, self.blocking, self.conv
        store = blocking.x if is_x else blocking.y
        if store.packed:
            return f.at(self._packed(is_x, i), (g * store.blocks + block) * store.block)
        if is_x and blocking.form.fold and not blocking.form.x_lanes:
            channel = f.value(0)
        return f.at(self._in_image(is_x, chunk), g * (conv.inputs if is_x else conv.outputs) + channel)
