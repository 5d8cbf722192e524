"""Depthwise convolution, one channel a group: channels in the lanes, pixels in registers.

Weights are packed as [tap][channel] (`depthwise_pack`). Forward and backward-data are one sweep over output
pixels; backward-data has a grid for each pair of remainders under the strides.
"""

from __future__ import annotations

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.types import element_type
from onward.compile.codegen.values import Int, Value
from onward.compile.kernels.conv import (
    Grid,
    backward_blocks,
    backward_grids,
    check_halo,
    forward_grids,
    label,
)
from onward.compile.kernels.copy import StridedCopy, copy
from onward.compile.kernels.expression import emit
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, update, write
from onward.compile.kernels.layout import Convolution, Image, Weights
from onward.compile.kernels.tile import IDENTITY, Epilogue
from onward.errors import ShapeError

__all__ = [
    "depthwise_backward_data",
    "depthwise_finish_weights",
    "depthwise_forward",
    "depthwise_pack",
    "depthwise_partial_size",
    "depthwise_weight_gradient",
]


def _check(conv: Convolution) -> None:
    if conv.inputs != 1 or conv.outputs != 1:
        raise ShapeError(f"{conv.inputs} input and {conv.outputs} output channels a group: not depthwise")


def depthwise_pack(conv: Convolution, target: Target, weights: Weights) -> Kernel:
    """Slots: x = weights, y = packed ([tap][channel]), batch = 1."""
    _check(conv)
    kh, kw = conv.kernel
    c = conv.x.channels
    source = (0, weights.row, weights.column, weights.output)
    order = StridedCopy((kh, kw, c), source, (0, kw * c, c, 1), element_type(conv.dtype).nbytes)
    return copy(order, target, "depthwise_pack")


def depthwise_forward(conv: Convolution, target: Target, epilogue: Epilogue = IDENTITY) -> Kernel:
    """y = epilogue(x * w). Slots: a = x, b = packed weights, c = y, e0, ..., batch."""
    _check(conv)
    check_halo("x", conv.x, conv.input_halo())
    return _sweep("depthwise_forward", conv, target, forward_grids(conv), conv.x, conv.y, epilogue)


def depthwise_backward_data(conv: Convolution, target: Target, epilogue: Epilogue = IDENTITY) -> Kernel:
    """dx = epilogue(gradient). Slots: a = dy, b = packed weights, c = dx, e0, ..., batch."""
    _check(conv)
    check_halo("dy", conv.y, conv.gradient_halo())
    grids = backward_grids(conv, backward_blocks(conv, target))
    return _sweep("depthwise_backward_data", conv, target, grids, conv.y, conv.x, epilogue)


def _taps(conv: Convolution, grid: Grid) -> list[tuple[int, int]]:
    """Each tap's offset in A and its number among the weights."""
    (down, across), (first_row, first_column), (row_step, column_step) = grid.steps, grid.tap0, grid.tap_step
    return [
        (i * down + j * across, (first_row + i * row_step) * conv.kernel[1] + first_column + j * column_step)
        for i in range(grid.taps[0])
        for j in range(grid.taps[1])
    ]


def _sweep(
    name: str,
    conv: Convolution,
    target: Target,
    grids: list[Grid],
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
    several = min(target.tuning.depthwise_pixels, target.registers // 4)
    for grid in grids:
        low, high = f.share(values["batch"] * grid.height, *f.arguments[1:])
        with f.range(low, high) as unit:
            n, i = unit // grid.height, unit % grid.height
            a = n * source.size + i * grid.a_row + grid.a0
            c = n * sink.size + i * grid.c_row + grid.c0
            whole = grid.width // several * several
            if whole:
                with f.range(0, whole, several) as j:
                    _pixels(
                        f, conv, grid, epilogue, values, a + j * grid.a_pixel, c + j * grid.c_pixel, several
                    )
            if grid.width > whole:
                a, c = a + whole * grid.a_pixel, c + whole * grid.c_pixel
                _pixels(f, conv, grid, epilogue, values, a, c, grid.width - whole)
    f.ret()
    tensors = 1 + epilogue.operands.count("full")
    return Kernel(
        name=f"{name} {conv.x.height}x{conv.x.width}x{conv.x.channels}" + label(conv),
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, conv.flops + sink.elements * epilogue.flops),
        bytes=Affine(
            target.nbytes * conv.weights, target.nbytes * (source.elements + tensors * sink.elements)
        ),
        units=Affine(0, sink.height),
    )


def _pixels(
    f: Function,
    conv: Convolution,
    grid: Grid,
    epilogue: Epilogue,
    values: dict[str, Value],
    a: Value,
    c: Value,
    count: int,
) -> None:
    """`count` neighbouring output pixels, all channels."""
    channels, lanes = conv.x.channels, f.lanes
    source, weights, sink = f.at(values["a"], a), values["b"], f.at(values["c"], c)

    def block(first: Int, mask: Value | None) -> None:
        first = f.value(first)
        loaded: dict[int, Value] = {}
        acc: list[Value | None] = [None] * count
        for offset, number in _taps(conv, grid):
            weight = f.vload(weights, first + number * channels, mask)
            for p in range(count):
                at = offset + p * grid.a_pixel
                if at not in loaded:
                    loaded[at] = f.vload(source, first + at, mask)
                before = acc[p]
                acc[p] = loaded[at] * weight if before is None else f.fma(loaded[at], weight, before)
        for p, total in enumerate(acc):
            at_c = first + p * grid.c_pixel
            operands = [f.zero() if total is None else total]
            for e, kind in enumerate(epilogue.operands):
                base = f.at(values[f"e{e}"], c) if kind == "full" else values[f"e{e}"]
                operands.append(f.vload(base, at_c if kind == "full" else first, mask))
            (result,) = emit(f, [epilogue.expression], operands)
            f.vstore(result, sink, at_c, mask)

    whole = channels // lanes * lanes
    if whole:
        with f.range(0, whole, lanes) as first:
            block(first, None)
    if channels > whole:
        block(whole, f.mask(channels - whole))


def _padded(conv: Convolution, target: Target) -> int:
    target = target.typed(conv.dtype)
    return -(-conv.x.channels // target.lanes) * target.lanes


def depthwise_partial_size(conv: Convolution, target: Target, threads: int) -> int:
    """Elements of the partial sums of `depthwise_weight_gradient` on `threads` threads."""
    return threads * conv.kernel[0] * conv.kernel[1] * _padded(conv, target)


def depthwise_weight_gradient(conv: Convolution, target: Target) -> Kernel:
    """Partial sums [thread][tap][channel]. Slots: a = x, b = dy, c = partial sums, batch."""
    _check(conv)
    check_halo("x", conv.x, conv.input_halo())
    target = target.typed(conv.dtype)
    module = Module(target)
    f = module.entry()
    parameters = (*read("a", "b"), *write("c"), *integer("batch"))
    values = slot_values(f, parameters)
    x, y = conv.x, conv.y
    taps, padded = conv.kernel[0] * conv.kernel[1], _padded(conv, target)
    partial = f.at(values["c"], f.arguments[1] * (taps * padded))
    with f.range(0, taps * padded, f.lanes) as i:
        f.vstore(f.zero(), partial, i)
    low, high = f.share(values["batch"] * y.height, *f.arguments[1:])
    with f.range(low, high) as unit:
        n, i = unit // y.height, unit % y.height
        at = n * x.size + i * (conv.strides[0] * x.row) + x.origin
        source = f.at(values["a"], at - (conv.pads[0] * x.row + conv.pads[1] * x.pixel))
        gradient = f.at(values["b"], n * y.size + i * y.row + y.origin)
        channels, lanes = x.channels, f.lanes
        whole = channels // lanes * lanes
        # x's rows after those that this row of dy meets, and the next row of dy
        ahead = f.at(source, ((conv.kernel[0] - 1) * conv.dilations[0] + 1) * x.row), f.at(gradient, y.row)
        if whole:
            with f.range(0, whole, lanes) as first:
                _row_gradient(f, conv, source, gradient, partial, ahead, first, None, padded)
        if channels > whole:
            mask = f.mask(channels - whole)
            _row_gradient(f, conv, source, gradient, partial, ahead, f.value(whole), mask, padded)
    f.ret()
    return Kernel(
        name=f"depthwise_weight_gradient {x.height}x{x.width}x{x.channels}" + label(conv),
        ir=module.text(),
        parameters=parameters,
        flops=Affine(0, conv.flops),
        bytes=Affine(0, target.nbytes * (x.elements + y.elements)),
        units=Affine(0, y.height),
    )


def _row_gradient(
    f: Function,
    conv: Convolution,
    source: Value,
    gradient: Value,
    partial: Value,
    ahead: tuple[Value, Value],
    first: Value,
    mask: Value | None,
    padded: int,
) -> None:
    """One row of output pixels for one vector of channels: few taps in registers, more in groups of rows.

    Meanwhile its share of the lines ahead is fetched: one vector's channels alone are no stream that the
    processor would follow.
    """
    x, y = conv.x, conv.y
    kh, kw = conv.kernel
    target = f.module.target
    most, line = target.tuning.depthwise_taps, target.line
    most = most if target.registers == 32 else most * 2 // 5
    rows = max(1, min(kh, most // kw))
    steps = y.width // 2
    fetched = [
        (start, -(-elements // (line * padded // f.lanes * max(1, steps))))
        for start, elements in zip(ahead, (conv.strides[0] * x.row, y.row), strict=True)
    ]

    def fetch(p: Value) -> None:
        step = first // f.lanes * steps + p // 2
        for start, lines in fetched:
            for n in range(lines):
                f.prefetch(start, (step * lines + n) * line)

    for top in range(0, kh, rows):
        taps = [(i, j) for i in range(top, min(kh, top + rows)) for j in range(kw)]

        def pixels(p: Value, acc: list[Value], count: int, taps: list[tuple[int, int]] = taps) -> list[Value]:
            loaded: dict[int, Value] = {}
            base = first + p * (conv.strides[1] * x.pixel)
            acc = list(acc)
            if taps[0] == (0, 0) and count == 2:
                fetch(p)
            for q in range(count):
                dy = f.vload(gradient, first + (p + q) * y.pixel, mask)
                for t, (i, j) in enumerate(taps):
                    at = i * conv.dilations[0] * x.row + j * conv.dilations[1] * x.pixel
                    at += q * conv.strides[1] * x.pixel
                    if at not in loaded:
                        loaded[at] = f.vload(source, base + at, mask)
                    acc[t] = f.fma(loaded[at], dy, acc[t])
            return acc

        start = [f.vload(partial, first + (i * kw + j) * padded) for i, j in taps]
        pairs = y.width // 2 * 2
        acc = f.loop(0, pairs, 2, start, body=lambda p, acc, run=pixels: run(p, acc, 2))  # type: ignore[misc]
        if y.width > pairs:
            acc = pixels(f.value(pairs), acc, 1)
        for (i, j), total in zip(taps, acc, strict=True):
            f.vstore(total, partial, first + (i * kw + j) * padded)


def depthwise_finish_weights(
    conv: Convolution, target: Target, weights: Weights, *, accumulate: bool = False
) -> Kernel:
    """dw from partial sums, in thread order. Slots: c = partial sums, dw, parts = number of threads."""
    _check(conv)
    target = target.typed(conv.dtype)
    module = Module(target)
    f = module.entry()
    gradient = update("dw") if accumulate else write("dw")
    parameters = (*update("c"), *gradient, *integer("parts"))
    values = slot_values(f, parameters)
    kh, kw = conv.kernel
    padded, channels, lanes = _padded(conv, target), conv.x.channels, target.lanes
    size = kh * kw * padded
    low, high = f.share(padded // lanes, *f.arguments[1:])
    with f.range(low, high) as block, f.range(0, kh) as i, f.range(0, kw) as j:
        first = block * lanes
        source = f.at(values["c"], (i * kw + j) * padded + first)
        (total,) = f.loop(
            1,
            values["parts"],
            carry=[f.vload(source)],
            body=lambda p, c: [c[0] + f.vload(source, p * size)],
        )
        f.vstore(total, source)
        sink = f.at(values["dw"], i * weights.row + j * weights.column + first * weights.output)
        with f.range(0, f.smin(lanes, channels - first)) as lane:
            element = f.load(source, None, lane)
            target_at = lane * weights.output
            if accumulate:
                element = element + f.load(sink, None, target_at)
            f.store(element, sink, target_at)
    f.ret()
    return Kernel(
        name="depthwise_weight_gradient_finish" + label(conv),
        ir=module.text(),
        parameters=parameters,
        bytes=Affine(target.nbytes * (size + conv.weights)),
        units=Affine(padded // lanes),
    )
