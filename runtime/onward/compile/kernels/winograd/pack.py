"""Weights for Winograd: transformed, and as they are for what has to be summed again without transforms.

A packed buffer holds G g Gᵀ as [position][block][source channel][sink channels of the block], and then the
nine taps in the same order.
"""

from __future__ import annotations

from onward.compile.codegen.builder import Module
from onward.compile.codegen.target import Target
from onward.compile.kernels.kernel import Affine, Kernel, read, slot_values, write
from onward.compile.kernels.layout import Convolution, Weights
from onward.compile.kernels.tile import vectors_for
from onward.compile.kernels.winograd.problem import forward_problem
from onward.compile.kernels.winograd.scheme import scheme_of

__all__ = ["block_width", "winograd_backward_pack", "winograd_pack", "winograd_packed_size"]


def block_width(channels: int, target: Target) -> int:
    """Sink channels of a block."""
    return vectors_for(target, channels) * target.lanes


def winograd_packed_size(conv: Convolution, target: Target, *, backward: bool = False, size: int = 2) -> int:
    """Elements of the packed weights of one direction for F(size x size, 3x3)."""
    target = target.typed(conv.dtype)
    inputs, outputs = (conv.outputs, conv.inputs) if backward else (conv.inputs, conv.outputs)
    width = block_width(outputs, target)
    return (scheme_of(size).positions + 9) * inputs * -(-outputs // width) * width


def winograd_pack(conv: Convolution, target: Target, weights: Weights, *, size: int = 2) -> Kernel:
    """Weights for the forward direction. Slots: w, packed."""
    forward_problem(conv)
    return _pack(
        "winograd_pack", conv.inputs, conv.outputs, weights, target.typed(conv.dtype), size, flipped=False
    )


def winograd_backward_pack(conv: Convolution, target: Target, weights: Weights, *, size: int = 2) -> Kernel:
    """Weights for backward-data. Slots: w, packed."""
    forward_problem(conv)
    swapped = Weights(weights.input, weights.output, weights.row, weights.column)
    return _pack(
        "winograd_backward_pack",
        conv.outputs,
        conv.inputs,
        swapped,
        target.typed(conv.dtype),
        size,
        flipped=True,
    )


def _pack(
    name: str, inputs: int, outputs: int, weights: Weights, target: Target, size: int, *, flipped: bool
) -> Kernel:
    scheme = scheme_of(size)
    module = Module(target)
    f = module.entry()
    parameters = (*read("w"), *write("packed"))
    values = slot_values(f, parameters)
    lanes, width = target.lanes, block_width(outputs, target)
    vectors, blocks = width // lanes, -(-outputs // width)
    plane = inputs * blocks * width
    low, high = f.share(blocks * inputs * vectors, *f.arguments[1:])
    with f.range(low, high) as unit:
        v, rest = unit % vectors, unit // vectors
        k, block = rest % inputs, rest // inputs
        first = block * width + v * lanes
        source = f.at(values["w"], first * weights.output + k * weights.input)
        mask = None if outputs % width == 0 else f.mask(outputs - first)
        taps = []
        for t in range(9):
            i, j = divmod(8 - t if flipped else t, 3)
            taps.append(f.gather(f.at(source, i * weights.row + j * weights.column), weights.output, mask))
        columns = [scheme.filter(taps[j], taps[3 + j], taps[6 + j]) for j in range(3)]
        sink = f.at(values["packed"], (block * inputs + k) * width + v * lanes)
        for i in range(scheme.extent):
            for j, value in enumerate(scheme.filter(columns[0][i], columns[1][i], columns[2][i])):
                f.vstore(value, sink, (i * scheme.extent + j) * plane)
        for t, tap in enumerate(taps):
            f.vstore(tap, sink, (scheme.positions + t) * plane)
    f.ret()
    return Kernel(
        name,
        module.text(),
        parameters,
        bytes=Affine(target.nbytes * (9 * inputs * outputs + (scheme.positions + 9) * plane)),
        units=Affine(blocks * inputs),
    )
