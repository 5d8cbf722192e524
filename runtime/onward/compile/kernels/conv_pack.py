"""Packing of weights, once a step, into the panels that direct convolution reads."""

from __future__ import annotations

from dataclasses import replace

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.conv import (
    Blocks,
    Grid,
    backward_blocks,
    backward_grids,
    forward_blocks,
    forward_grids,
    panels_size,
)
from onward.compile.kernels.kernel import Affine, Kernel, read, slot_values, write
from onward.compile.kernels.layout import Convolution, Weights

__all__ = ["backward_data_pack", "forward_pack", "packed_backward_size", "packed_forward_size"]


def packed_forward_size(conv: Convolution, target: Target) -> int:
    """Elements of the weights packed for `forward`."""
    return panels_size(forward_grids(conv), forward_blocks(conv, target))


def packed_backward_size(conv: Convolution, target: Target) -> int:
    """Elements of the weights packed for `backward_data`."""
    blocks = backward_blocks(conv, target)
    return panels_size(backward_grids(conv, blocks), blocks)


def forward_pack(conv: Convolution, target: Target, weights: Weights) -> Kernel:
    """Weights from any order to the panels of `forward`. Slots: w, packed."""
    return _pack(
        "conv_forward_pack", conv, target, weights, forward_grids(conv), forward_blocks(conv, target)
    )


def backward_data_pack(conv: Convolution, target: Target, weights: Weights) -> Kernel:
    """Weights from any order to the panels of `backward_data`. Slots: w, packed."""
    blocks = backward_blocks(conv, target)
    transposed = replace(weights, output=weights.input, input=weights.output)
    return _pack(
        "conv_backward_pack", conv, target, transposed, backward_grids(conv, blocks), blocks, weights
    )


def _pack(
    name: str,
    conv: Convolution,
    target: Target,
    weights: Weights,
    grids: list[Grid],
    blocks: Blocks,
    backward: Weights | None = None,
) -> Kernel:
    """Panels [group, block][tap row, tap column, depth][lane of the block], lanes past the end zero."""
    target = target.typed(conv.dtype)
    module = Module(target)
    f = module.entry()
    _, thread, threads = f.arguments
    parameters = (*read("w"), *write("packed"))
    values = slot_values(f, parameters)
    # The first weight of a group lies along output channels, whichever of the two the panels block over.
    group_step = conv.outputs * (backward.output if backward is not None else weights.output)
    for grid in grids:
        low, high = f.share(blocks.group * blocks.blocks * blocks.depth, thread, threads)
        if not grid.reduction:
            continue
        with f.range(low, high) as unit:
            panel, k = unit // blocks.depth, unit % blocks.depth
            g, q = panel // blocks.blocks, panel % blocks.blocks
            source = g * group_step + q * (blocks.width * weights.output) + k * weights.input
            source = source + (grid.tap0[0] * weights.row + grid.tap0[1] * weights.column)
            sink = panel * (grid.reduction * blocks.width) + k * blocks.width + grid.b0
            left = blocks.outputs - q * blocks.width
            with f.range(0, grid.taps[0]) as i, f.range(0, grid.taps[1]) as j:
                tap = i * (grid.tap_step[0] * weights.row) + j * (grid.tap_step[1] * weights.column)
                start = f.at(values["w"], source + tap)
                target_row = f.at(
                    values["packed"], sink + (i * grid.taps[1] + j) * (grid.depth * blocks.width)
                )
                for v in range(blocks.vectors):
                    _gather(f, start, target_row, v, left, weights.output, bool(blocks.rest))
    f.ret()
    size = target.nbytes * (conv.weights + panels_size(grids, blocks))
    return Kernel(
        name, module.text(), parameters, bytes=Affine(size), units=Affine(blocks.group * blocks.blocks)
    )


def _gather(f: Function, start: Value, sink: Value, v: int, left: Value, stride: int, partial: bool) -> None:
    """One vector of elements `stride` apart, zero from lane `left` on."""
    lanes = f.lanes
    mask = f.mask(left - v * lanes) if partial else None
    if stride == 1:
        f.vstore(f.vload(start, v * lanes, mask), sink, v * lanes)
        return
    if mask is None:
        row = f.zero()
        for lane in range(lanes):
            element = f.load(start, None, (v * lanes + lane) * stride)
            row = f.insert(row, element, lane)
        f.vstore(row, sink, v * lanes)
        return
    f.vstore(f.zero(), sink, v * lanes)
    with f.range(0, f.smin(left - v * lanes, lanes)) as place:
        f.store(f.load(start, None, (place + v * lanes) * stride), f.at(sink, place + v * lanes))
