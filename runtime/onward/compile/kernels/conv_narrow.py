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

from collections.abc import Sequence
from dataclasses import replace

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.conv import check_halo, label
from onward.compile.kernels.expression import emit
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.layout import Convolution, Weights
from onward.compile.kernels.narrow_blocking import (
    NarrowBlocking,
    NarrowTiles,
    narrow_size,
    narrow_suits,
    required,
)
from onward.compile.kernels.tile import IDENTITY, Epilogue

__all__ = [
    "narrow_backward_data",
    "narrow_backward_pack",
    "narrow_forward",
    "narrow_forward_pack",
    "narrow_size",
    "narrow_suits",
]


def narrow_forward_pack(conv: Convolution, target: Target, weights: Weights) -> Kernel:
    """Weights from any order to what `narrow_forward` reads. Slots: w, packed."""
    return _pack("conv_forward_pack", required(conv, target, False), weights)


def narrow_backward_pack(conv: Convolution, target: Target, weights: Weights) -> Kernel:
    """Weights from any order to what `narrow_backward_data` reads. Slots: w, packed."""
    swapped = replace(weights, output=weights.input, input=weights.output)
    return _pack("conv_backward_pack", required(conv, target, True), swapped)


def narrow_forward(conv: Convolution, target: Target, epilogue: Epilogue = IDENTITY) -> Kernel:
    """y = epilogue(x * w), as `conv.forward`, with weights from `narrow_forward_pack`.

    Raises `ShapeError` when x's border is too small or `narrow_suits` would deny the form.
    """
    check_halo("x", conv.x, conv.input_halo())
    name = f"conv_forward {conv.x.height}x{conv.x.width}x{conv.x.channels} {conv.y.channels}" + label(conv)
    return _sweep(name, conv.flops, required(conv, target, False), epilogue)


def narrow_backward_data(conv: Convolution, target: Target, epilogue: Epilogue = IDENTITY) -> Kernel:
    """dx = epilogue(gradient), as `conv.backward_data`, with weights from `narrow_backward_pack`.

    Raises `ShapeError` when dy's border is too small or `narrow_suits` would deny the form.
    """
    check_halo("dy", conv.y, conv.gradient_halo())
    name = f"conv_backward_data {conv.x.height}x{conv.x.width}x{conv.x.channels} {conv.y.channels}"
    return _sweep(name + label(conv), conv.flops, required(conv, target, True), epilogue)


def _pack(name: str, blocking: NarrowBlocking, weights: Weights) -> Kernel:
    """[tap row, depth][distance][lane], zero in lanes whose pixel no tap leads to from there."""
    grid, target = blocking.grid, blocking.target
    module = Module(target)
    f = module.entry()
    parameters = (*read("w"), *write("packed"))
    values = slot_values(f, parameters)
    distances = blocking.distances(blocking.pixels)
    size = len(distances) * target.lanes
    places = [
        distances.index(p * blocking.step + j * blocking.dilation) * target.lanes + p * blocking.channels
        for j in range(grid.taps[1])
        for p in range(blocking.pixels)
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
        with f.range(0, grid.taps[1]) as j, f.range(0, blocking.channels) as c:
            weight = f.load(
                values["w"],
                None,
                source + c * weights.output + j * (grid.tap_step[1] * weights.column),
            )
            for p in range(blocking.pixels):
                f.store(weight, sink, f.load(table, "i64", j * blocking.pixels + p) + c)
    f.ret()
    bytes_ = target.nbytes * (grid.reduction * blocking.channels + blocking.packed)
    return Kernel(
        name, module.text(), parameters, bytes=Affine(bytes_), units=Affine(grid.taps[0] * grid.depth)
    )


def _sweep(name: str, flops: int, blocking: NarrowBlocking, epilogue: Epilogue) -> Kernel:
    grid, source, sink = blocking.grid, blocking.source, blocking.sink
    module = Module(blocking.target)
    f = module.entry()
    extra = tuple(f"e{i}" for i in range(len(epilogue.operands)))
    parameters = (*read("a", "b"), *write("c"), *read(*extra), *integer("batch"))
    values = slot_values(f, parameters)
    tiles = {
        (rows, number): _define(module, f"tile_{rows}_{number}", blocking, piece, rows, epilogue)
        for rows, _, _ in blocking.bands
        for number, piece in enumerate(blocking.pieces)
    }
    taps = [
        blocking.taps(first + number * rows, rows)
        for rows, first, count in blocking.bands
        for number in range(count)
    ]
    firsts, counts = (
        Value(f, module.integers(kind, [pair[i] for pair in taps]), "ptr")
        for i, kind in enumerate(("firsts", "counts"))
    )
    masks = [f.value(sum(1 << n for n in _lanes(blocking, mask))) for mask in blocking.masks]
    tap_size = grid.depth * len(blocking.distances(blocking.pixels)) * blocking.target.lanes

    def band(n: Value, place: Value, rows: int, first: int, before: int) -> None:
        """All tiles of one band."""
        row = (place - before) * rows + first
        tap, count = f.load(firsts, "i64", place), f.load(counts, "i64", place)
        a = n * source.size + row * grid.a_row + grid.a0 + tap * grid.steps[0]
        c = n * sink.size + row * grid.c_row + grid.c0
        b = f.at(values["b"], tap * tap_size)
        for number, piece in enumerate(blocking.pieces):
            with f.range(0, piece.count) as index:
                column = index * piece.pixels + piece.first
                at = c + column * blocking.channels
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
        for rows, first, number in blocking.bands:
            if len(blocking.bands) == 1:
                band(n, place, rows, first, before)
            else:
                with f.when(f.compare("sge" if before else "slt", place, before or number)):
                    band(n, place, rows, first, before)
            before += number
    f.ret()
    nbytes = blocking.target.nbytes
    bytes_ = nbytes * (source.elements + sink.elements * (1 + epilogue.operands.count("full")))
    return Kernel(
        name=name,
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, flops + sink.elements * epilogue.flops),
        bytes=Affine(nbytes * blocking.packed, bytes_),
        units=Affine(0, len(taps)),
    )


def _lanes(blocking: NarrowBlocking, pixels: Sequence[bool]) -> list[int]:
    """The lanes of some of a group's pixels."""
    count = blocking.channels
    return [p * count + c for p, chosen in enumerate(pixels) if chosen for c in range(count)]


def _define(
    module: Module, name: str, blocking: NarrowBlocking, piece: NarrowTiles, rows: int, epilogue: Epilogue
) -> Function:
    """One tile as a function of (A, B, C, epilogue addresses..., number of tap rows, masks...)."""
    grid, lanes = blocking.grid, blocking.target.lanes
    extra = len(epilogue.operands)
    parameters = [("a", "ptr"), ("b", "ptr"), ("c", "ptr"), *((f"e{i}", "ptr") for i in range(extra))]
    parameters += [("count", "i64"), *((f"m{i}", "i64") for i in range(len(blocking.masks)))]
    f = module.function(name, parameters)
    a, b, c = f.arguments[:3]
    sources, count = f.arguments[3 : 3 + extra], f.arguments[3 + extra]
    distances = blocking.distances(blocking.pixels)
    groups = -(-piece.pixels // blocking.pixels)
    masks = {
        mask: _mask(f, _lanes(blocking, mask), argument)
        for mask, argument in zip(blocking.masks, f.arguments[4 + extra :], strict=True)
    }

    def innermost(a: Value, b: Value, acc: Sequence[Value]) -> list[Value]:
        out = list(acc)
        for column, meets in piece.columns:
            weights = {d: f.vload(b, distances.index(d) * lanes) for _, d in meets}
            for row in range(rows):
                scalar = f.broadcast(a, row * grid.a_row + column * blocking.source.pixel)
                for group, distance in meets:
                    place = row * groups + group
                    total, mask = (
                        f.fma(scalar, weights[distance], out[place]),
                        masks.get(blocking.reached(distance)),
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
        i: _repeated(f, source, blocking)
        for i, (source, kind) in enumerate(zip(sources, epilogue.operands, strict=True))
        if kind == "channel"
    }
    for row in range(rows):
        for group in range(groups):
            pixels = min(blocking.pixels, piece.pixels - group * blocking.pixels)
            mask = f.mask(pixels * blocking.channels)
            at = row * grid.c_row + group * blocking.pixels * blocking.channels
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


def _repeated(f: Function, source: Value, blocking: NarrowBlocking) -> Value:
    """Values of channels, once for each pixel of a group."""
    values = f.vload(source, 0, f.mask(blocking.channels))
    lanes = [
        lane % blocking.channels if lane < blocking.pixels * blocking.channels else -1
        for lane in range(f.lanes)
    ]
    return f.shuffle(values, values, lanes)
