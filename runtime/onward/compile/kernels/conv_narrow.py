"""Direct convolution with few output channels: neighbouring pixels share a vector.

Channels-last, the results of neighbouring pixels follow each other, so that a group of pixels fills a vector
better than one. A source column meets a group through the taps that lead to its pixels: weights are packed as
one vector for each distance of a column from the group. Lanes whose pixel a column does not reach are masked
rather than multiplied by zero, so that an infinity stays where it belongs.

A tile is a stretch of some rows. A column is loaded once for all groups that it meets, so even a group of one
pixel needs fewer loads than `conv` does with one vector, where each multiply-add has its own.

Backward-data meets only real values of dy: tap rows and columns that lie in the border are left out.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from onward.compile.codegen.builder import Function, Module, Value
from onward.compile.codegen.target import Target
from onward.compile.kernels.conv import (
    Grid,
    backward_blocks,
    backward_grids,
    check_halo,
    forward_grids,
    label,
)
from onward.compile.kernels.expression import emit
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.layout import Convolution, Image, Weights
from onward.compile.kernels.tile import IDENTITY, Epilogue, split
from onward.errors import ShapeError

__all__ = [
    "narrow_backward_data",
    "narrow_backward_pack",
    "narrow_forward",
    "narrow_forward_pack",
    "narrow_size",
    "narrow_suits",
]


@dataclass(frozen=True)
class _Piece:
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
class _Plan:
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
    def pieces(self) -> tuple[_Piece, ...]:
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

    def _piece(self, first: int, pixels: int) -> _Piece:
        columns: dict[int, list[tuple[int, int]]] = {}
        for group, before in enumerate(range(0, pixels, self.pixels)):
            for distance in self.distances(min(self.pixels, pixels - before)):
                column = before * self.step + distance
                at = self.start[1] + first * self.step + column
                if not self.trimmed or 0 <= at < self.source.width:
                    columns.setdefault(column, []).append((group, distance))
        return _Piece(pixels, first, 1, tuple((c, tuple(groups)) for c, groups in sorted(columns.items())))

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
def _plan(conv: Convolution, target: Target, backward: bool) -> _Plan | None:
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
    plans = [
        _Plan(grid, source, sink, channels, pixels, start, step, dilation, backward, target)
        for pixels in range(1, min(tuning.narrow_pixels, target.lanes // channels) + 1)
    ]
    plans = [plan for plan in plans if plan.sums >= tuning.narrow_sums]
    return min(plans, key=lambda plan: plan.multiplications, default=None)


def _required(conv: Convolution, target: Target, backward: bool) -> _Plan:
    plan = _plan(conv, target, backward)
    if plan is None:
        raise ShapeError("this convolution has no form in which pixels share a vector")
    return plan


def narrow_suits(conv: Convolution, target: Target, *, backward: bool) -> bool:
    """Whether this form exists for a direction of a convolution and is faster than the plain one."""
    plan = _plan(conv, target, backward)
    if plan is None:
        return False
    tuning = target.tuning
    rows = max(rows for rows, _, _ in plan.bands)
    if rows * max(-(-piece.pixels // plan.pixels) for piece in plan.pieces) < tuning.narrow_sums:
        return False
    columns = sum(piece.count * len(piece.columns) for piece in plan.pieces)
    multiplications = sum(piece.count * piece.multiplications for piece in plan.pieces)
    cost = plan.multiplications * (
        1 if columns <= tuning.narrow_loads * multiplications else tuning.narrow_held_up
    )
    grid = plan.grid
    return cost < tuning.narrow_held_up * grid.height * grid.width * grid.taps[0] * grid.taps[1]


def narrow_size(conv: Convolution, target: Target, *, backward: bool) -> int:
    """Elements of the packed weights."""
    return _required(conv, target, backward).packed


def narrow_forward_pack(conv: Convolution, target: Target, weights: Weights) -> Kernel:
    """Weights from any order to what `narrow_forward` reads. Slots: w, packed."""
    return _pack("conv_forward_pack", _required(conv, target, False), weights)


def narrow_backward_pack(conv: Convolution, target: Target, weights: Weights) -> Kernel:
    """Weights from any order to what `narrow_backward_data` reads. Slots: w, packed."""
    turned = replace(weights, output=weights.input, input=weights.output)
    return _pack("conv_backward_pack", _required(conv, target, True), turned)


def narrow_forward(conv: Convolution, target: Target, epilogue: Epilogue = IDENTITY) -> Kernel:
    """y = epilogue(x * w), as `conv.forward`, with weights from `narrow_forward_pack`.

    Raises `ShapeError` when x's border is too small or `narrow_suits` would deny the form.
    """
    check_halo("x", conv.x, conv.input_halo())
    name = f"conv_forward {conv.x.height}x{conv.x.width}x{conv.x.channels} {conv.y.channels}" + label(conv)
    return _sweep(name, conv.flops, _required(conv, target, False), epilogue)


def narrow_backward_data(conv: Convolution, target: Target, epilogue: Epilogue = IDENTITY) -> Kernel:
    """dx = epilogue(gradient), as `conv.backward_data`, with weights from `narrow_backward_pack`.

    Raises `ShapeError` when dy's border is too small or `narrow_suits` would deny the form.
    """
    check_halo("dy", conv.y, conv.gradient_halo())
    name = f"conv_backward_data {conv.x.height}x{conv.x.width}x{conv.x.channels} {conv.y.channels}"
    return _sweep(name + label(conv), conv.flops, _required(conv, target, True), epilogue)


def _pack(name: str, plan: _Plan, weights: Weights) -> Kernel:
    """[tap row, depth][distance][lane], zero in lanes whose pixel no tap leads to from there."""
    grid, target = plan.grid, plan.target
    module = Module(target)
    f = module.entry()
    parameters = (*read("w"), *write("packed"))
    values = slot_values(f, parameters)
    distances = plan.distances(plan.pixels)
    size = len(distances) * target.lanes
    places = [
        distances.index(p * plan.step + j * plan.dilation) * target.lanes + p * plan.channels
        for j in range(grid.taps[1])
        for p in range(plan.pixels)
    ]
    table = Value(f, module.integers("places", places), "ptr")
    low, high = f.share(grid.taps[0] * grid.depth, *f.arguments[1:])
    with f.range(low, high) as unit:
        i, k = unit // grid.depth, unit % grid.depth
        sink = f.at(values["packed"], unit * size)
        source = i * (grid.tap_step[0] * weights.row) + k * weights.input
        source = source + (grid.tap0[0] * weights.row + grid.tap0[1] * weights.column)
        with f.range(0, size, target.lanes) as place:
            f.vstore(f.zero(), sink, place)
        with f.range(0, grid.taps[1]) as j, f.range(0, plan.channels) as c:
            weight = f.load(
                values["w"],
                None,
                source + c * weights.output + j * (grid.tap_step[1] * weights.column),
            )
            for p in range(plan.pixels):
                f.store(weight, sink, f.load(table, "i64", j * plan.pixels + p) + c)
    f.ret()
    bytes_ = target.nbytes * (grid.reduction * plan.channels + plan.packed)
    return Kernel(
        name, module.text(), parameters, bytes=Affine(bytes_), units=Affine(grid.taps[0] * grid.depth)
    )


def _sweep(name: str, flops: int, plan: _Plan, epilogue: Epilogue) -> Kernel:
    grid, source, sink = plan.grid, plan.source, plan.sink
    module = Module(plan.target)
    f = module.entry()
    extra = tuple(f"e{i}" for i in range(len(epilogue.operands)))
    parameters = (*read("a", "b"), *write("c"), *read(*extra), *integer("batch"))
    values = slot_values(f, parameters)
    tiles = {
        (rows, number): _define(module, f"tile_{rows}_{number}", plan, piece, rows, epilogue)
        for rows, _, _ in plan.bands
        for number, piece in enumerate(plan.pieces)
    }
    taps = [
        plan.taps(first + number * rows, rows) for rows, first, count in plan.bands for number in range(count)
    ]
    firsts, counts = (
        Value(f, module.integers(kind, [pair[i] for pair in taps]), "ptr")
        for i, kind in enumerate(("firsts", "counts"))
    )
    masks = [f.value(sum(1 << n for n in _lanes(plan, mask))) for mask in plan.masks]
    tap_size = grid.depth * len(plan.distances(plan.pixels)) * plan.target.lanes

    def band(n: Value, place: Value, rows: int, first: int, before: int) -> None:
        """All tiles of one band."""
        row = (place - before) * rows + first
        tap, count = f.load(firsts, "i64", place), f.load(counts, "i64", place)
        a = n * source.size + row * grid.a_row + grid.a0 + tap * grid.steps[0]
        c = n * sink.size + row * grid.c_row + grid.c0
        b = f.at(values["b"], tap * tap_size)
        for number, piece in enumerate(plan.pieces):
            with f.range(0, piece.count) as index:
                column = index * piece.pixels + piece.first
                at = c + column * plan.channels
                operands = [
                    values[e] if kind == "channel" else f.at(values[e], at)
                    for e, kind in zip(extra, epilogue.operands, strict=True)
                ]
                start = f.at(values["a"], a + column * grid.a_pixel)
                f.invoke(tiles[rows, number], [start, b, f.at(values["c"], at), *operands, count, *masks])

    low, high = f.share(values["batch"] * len(taps), *f.arguments[1:])
    with f.range(low, high) as unit:
        n, place = unit // len(taps), unit % len(taps)
        before = 0
        for rows, first, number in plan.bands:
            if len(plan.bands) == 1:
                band(n, place, rows, first, before)
            else:
                with f.when(f.compare("sge" if before else "slt", place, before or number)):
                    band(n, place, rows, first, before)
            before += number
    f.ret()
    nbytes = plan.target.nbytes
    bytes_ = nbytes * (source.elements + sink.elements * (1 + epilogue.operands.count("full")))
    return Kernel(
        name=name,
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, flops + sink.elements * epilogue.flops),
        bytes=Affine(nbytes * plan.packed, bytes_),
        units=Affine(0, len(taps)),
    )


def _lanes(plan: _Plan, pixels: Sequence[bool]) -> list[int]:
    """The lanes of some of a group's pixels."""
    count = plan.channels
    return [p * count + c for p, chosen in enumerate(pixels) if chosen for c in range(count)]


def _define(module: Module, name: str, plan: _Plan, piece: _Piece, rows: int, epilogue: Epilogue) -> Function:
    """One tile as a function of (A, B, C, epilogue addresses..., number of tap rows, masks...)."""
    grid, lanes = plan.grid, plan.target.lanes
    extra = len(epilogue.operands)
    parameters = [("a", "ptr"), ("b", "ptr"), ("c", "ptr"), *((f"e{i}", "ptr") for i in range(extra))]
    parameters += [("count", "i64"), *((f"m{i}", "i64") for i in range(len(plan.masks)))]
    f = module.function(name, parameters)
    a, b, c = f.arguments[:3]
    sources, count = f.arguments[3 : 3 + extra], f.arguments[3 + extra]
    distances = plan.distances(plan.pixels)
    groups = -(-piece.pixels // plan.pixels)
    masks = {
        mask: _mask(f, _lanes(plan, mask), argument)
        for mask, argument in zip(plan.masks, f.arguments[4 + extra :], strict=True)
    }

    def innermost(a: Value, b: Value, acc: Sequence[Value]) -> list[Value]:
        out = list(acc)
        for column, meets in piece.columns:
            weights = {d: f.vload(b, distances.index(d) * lanes) for _, d in meets}
            for row in range(rows):
                scalar = f.broadcast(a, row * grid.a_row + column * plan.source.pixel)
                for group, distance in meets:
                    place = row * groups + group
                    total, mask = (
                        f.fma(scalar, weights[distance], out[place]),
                        masks.get(plan.reached(distance)),
                    )
                    out[place] = total if mask is None else f.select(mask, total, out[place])
        return out

    step = len(distances) * lanes

    def tap_row(_: Value, carry: list[Value]) -> list[Value]:
        def depth(_: Value, carry: list[Value]) -> list[Value]:
            return [f.at(carry[0], 1), f.at(carry[1], step), *innermost(carry[0], carry[1], carry[2:])]

        inner = f.loop(0, grid.depth, carry=carry, body=depth, nonempty=True)
        return [f.at(carry[0], grid.steps[0]), *inner[1:]]

    zeros = [f.zero()] * (rows * groups)
    acc = f.loop(0, count, carry=[a, b, *zeros], body=tap_row, nonempty=True)[2:]
    channel = {
        i: _repeated(f, source, plan)
        for i, (source, kind) in enumerate(zip(sources, epilogue.operands, strict=True))
        if kind == "channel"
    }
    for row in range(rows):
        for group in range(groups):
            pixels = min(plan.pixels, piece.pixels - group * plan.pixels)
            mask = f.mask(pixels * plan.channels)
            at = row * grid.c_row + group * plan.pixels * plan.channels
            operands = [acc[row * groups + group]]
            for i, source in enumerate(sources):
                operands.append(channel[i] if i in channel else f.vload(source, at, mask))
            (result,) = emit(f, [epilogue.expression], operands)
            f.vstore(result, c, at, mask)
    f.ret()
    return f


def _mask(f: Function, lanes: Sequence[int], bits: Value) -> Value:
    """A mask of lanes, whose number has these bits.

    Where the machine has mask registers it is made from the number at run time: of a constant mask LLVM makes
    a shuffle beside the multiply-add.
    """
    if f.module.target.memory_broadcast:
        return f.bitcast(f.cast("trunc", bits, f"i{f.lanes}"), f"<{f.lanes} x i1>")
    body = ", ".join(f"i1 {int(lane in lanes)}" for lane in range(f.lanes))
    return Value(f, f"<{body}>", f"<{f.lanes} x i1>")


def _repeated(f: Function, source: Value, plan: _Plan) -> Value:
    """Values of channels, once for each pixel of a group."""
    values = f.vload(source, 0, f.mask(plan.channels))
    lanes = [lane % plan.channels if lane < plan.pixels * plan.channels else -1 for lane in range(f.lanes)]
    return f.shuffle(values, values, lanes)
