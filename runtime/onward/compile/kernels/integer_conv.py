"""Convolution of 8-bit integers summed in int32, on channels-last floats that hold integers times a scale.

It is the product of `integer_gemm` whose rows of bytes are the windows of some lines of results, with taps
outermost and channels innermost. Zeros of the border are the integer 0, as padding is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.integer_gemm import IntegerGemm, define_tile, line_bytes, packed_bytes, to_bytes
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.layout import Convolution
from onward.compile.kernels.tile import IDENTITY, Epilogue

__all__ = ["IntegerConvolution", "integer_convolution", "suits_bytes"]

_PIXELS = 48
"""Windows that are turned into bytes at a time, as far as whole lines of results allow."""

_ROWS, _VECTORS = 6, 4


@dataclass(frozen=True)
class IntegerConvolution:
    """A convolution of `conv`'s images.

    Attributes:
        conv: its geometry; x's border is at least its pads.
        scale: of x.
        low: the smallest of x's integers; the largest is at most 255 above.
        epilogue: what happens to results before they are stored.
    """

    conv: Convolution
    scale: float
    low: int
    epilogue: Epilogue = IDENTITY

    @property
    def product(self) -> IntegerGemm:
        """The product of one line of results."""
        conv = self.conv
        return IntegerGemm(
            conv.y.channels,
            conv.x.channels * prod(conv.kernel),
            0,
            conv.y.pixel,
            self.scale,
            self.low,
            self.epilogue,
        )


def suits_bytes(conv: Convolution) -> bool:
    """Whether all windows lie inside the border that x has, and its channels have no gaps."""
    x = conv.x
    border = (x.top, x.left, x.bottom, x.right)
    enough = all(have >= need for have, need in zip(border, conv.input_halo(), strict=True))
    return conv.group == 1 and x.pixel == x.channels and enough


def integer_convolution(spec: IntegerConvolution, target: Target) -> Kernel:
    """The convolution. Slots: a, packed, sums, factors, c, e0, ... (epilogue operands), scratch, batch.

    Images' addresses, and those of "full" operands, are those of their borders.
    """
    conv, product = spec.conv, spec.product
    module = Module(target)
    f = module.entry()
    extra = tuple(f"e{i}" for i in range(len(spec.epilogue.operands)))
    reads = read("a", "packed", "sums", "factors")
    parameters = (*reads, *write("c"), *read(*extra), *write("scratch"), *integer("batch"))
    values = slot_values(f, parameters)
    line = line_bytes(product.k)
    width, height = conv.y.width, conv.y.height
    together = max(1, _PIXELS // width)
    held = together * width * line + 64  # the last run's vector may end behind it
    _, thread, threads = f.arguments
    windows = f.at(values["scratch"], thread * held, "i8")
    lines = values["batch"] * height
    step = f.smax(1, f.smin(together, (lines + (threads - 1)) // threads))
    low, high = f.share((lines + (step - 1)) // step, thread, threads)
    turn = _windows(module, spec)
    vectors, tail = -(-product.n // f.lanes), product.n % f.lanes
    whole, rest = divmod(vectors - (tail > 0), _VECTORS)
    parts = [(_VECTORS, 0, whole, 0)] if whole else []
    if rest or tail:
        parts.append((rest + (tail > 0), whole, whole + 1, tail))
    heights = _heights(width)
    tiles = {
        (rows, wide, cut): define_tile(module, product, rows, wide, cut)
        for wide, _, _, cut in parts
        for rows in set(heights)
    }
    with f.range(low, high) as block:
        first = block * step
        count = f.smin(step, lines - first)
        with f.range(0, count) as i:
            at = first + i
            source = f.at(values["a"], at // height * conv.x.size + at % height * _line_step(conv))
            f.invoke(turn, [source, f.at(windows, i * (width * line), "i8")])
        for wide, begin, end, cut in parts:
            with f.range(begin, end) as part:
                column = part * (_VECTORS * f.lanes)
                panel = f.at(values["packed"], column * line, "i8")
                with f.range(0, count) as i:
                    at = first + i
                    place = at // height * conv.y.size + at % height * conv.y.row + conv.y.origin + column
                    done = 0
                    for rows in heights:
                        start = place + done * conv.y.pixel
                        operands = [
                            f.at(values[f"e{j}"], column if kind == "channel" else start)
                            for j, kind in enumerate(spec.epilogue.operands)
                        ]
                        f.invoke(
                            tiles[rows, wide, cut],
                            [
                                f.at(windows, i * (width * line) + done * line, "i8"),
                                panel,
                                f.at(values["sums"], column),
                                f.at(values["factors"], column),
                                f.at(values["c"], start),
                                *operands,
                            ],
                        )
                        done += rows
    f.ret()
    moved = 4 * (conv.x.elements + conv.y.elements)
    return Kernel(
        f"integer_convolution {conv.kernel} {conv.x.channels}->{conv.y.channels} {height}x{width}",
        module.text(),
        parameters,
        flops=Affine(0, conv.flops),
        bytes=Affine(packed_bytes(product.n, product.k, target), moved),
        units=Affine(0, height),
        scratch=held,
    )


def _heights(width: int) -> list[int]:
    """Rows of the tiles of a line, nearly equal."""
    count = -(-width // _ROWS)
    return [width // count + (i < width % count) for i in range(count)]


def _line_step(conv: Convolution) -> int:
    return conv.strides[0] * conv.x.row


def _windows(module: Module, spec: IntegerConvolution) -> Function:
    """Write a function of (line of x, bytes): the windows of a line of results."""
    conv = spec.conv
    f = module.function("windows", [("line", "ptr"), ("bytes", "ptr")])
    source, out = f.arguments
    x, channels = conv.x, conv.x.channels
    (top, left, _, _), line = conv.pads, line_bytes(spec.product.k)
    corner = (x.top - top) * x.row + (x.left - left) * x.pixel
    # Taps of a row whose pixels are neighbours are one run.
    taps, run = (1, conv.kernel[1] * channels) if conv.dilations[1] == 1 else (conv.kernel[1], channels)
    turned = to_bytes(f, spec.product)

    tail = run % f.lanes

    def copy(at: Value, sink: Value) -> None:
        with f.range(0, run - tail, f.lanes) as k:
            f.vstore(turned(f.vload(at, k)), sink, k)
        if tail:  # what its vector has too many, the next run writes over, or zeros of the weights meet
            last = run - tail
            f.vstore(turned(f.vload(at, last, f.mask(tail))), sink, last)

    with f.range(0, conv.y.width) as column:
        window = f.at(source, column * (conv.strides[1] * x.pixel) + corner)
        row = f.at(out, column * line, "i8")
        for i in range(conv.kernel[0]):
            for j in range(taps):
                at = i * conv.dilations[0] * x.row + j * conv.dilations[1] * x.pixel
                copy(f.at(window, at), f.at(row, (i * taps + j) * run, "i8"))
    f.ret()
    return f
