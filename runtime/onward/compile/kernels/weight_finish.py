"""The panels of a weight gradient, summed and brought into ONNX's order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.transpose import transposed
from onward.compile.codegen.values import Int, Value
from onward.compile.kernels.conv import label
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.layout import Convolution
from onward.compile.kernels.weight_blocking import WeightBlocking, weight_blocking

__all__ = ["finish_weights"]


def finish_weights(conv: Convolution, target: Target) -> Kernel:
    """dw [output, input, row, column] from the panels of `weight_gradient`.

    Slots: c = panels, dw, parts = number of sets of panels, added in their order.
    """
    blocking = weight_blocking(conv, target)
    form = blocking.form
    target = target.typed(conv.dtype)
    module = Module(target)
    f = module.entry()
    parameters = (*read("c"), *write("dw"), *integer("parts"))
    values = slot_values(f, parameters)
    # One matrix [rows][lanes] for each lane block; for each output channel of it where x is in the lanes.
    matrices = conv.outputs if form.x_lanes else 1
    vectors = -(-form.lane_count // target.lanes)
    units = conv.group * matrices * vectors
    low, high = f.share(units, *f.arguments[1:])
    with f.range(low, high) as unit:
        rest, v = unit // vectors, unit % vectors
        g, o = rest // matrices, rest % matrices
        block, inside = v // form.vectors, v % form.vectors
        row = (g * form.blocks + block) * form.panel_rows + o * (form.panel_rows // matrices)
        source = f.at(values["c"], row * form.width + inside * target.lanes)
        group = g * conv.outputs + o
        _matrix(f, blocking, source, values["dw"], values["parts"], group, v)
    f.ret()
    return Kernel(
        name="conv_weight_gradient_finish" + label(conv),
        ir=module.text(),
        parameters=parameters,
        bytes=Affine(target.nbytes * (blocking.size + conv.weights)),
        units=Affine(units),
    )


def _matrix(
    f: Function, blocking: WeightBlocking, source: Value, dw: Value, parts: Value, output: Value, v: Value
) -> None:
    """Vector `v` of the lanes, all rows: lane l, row e go to dw + l * stride + e."""
    form, conv = blocking.form, blocking.form.conv
    lanes, width = f.lanes, form.width
    weights = conv.inputs * math.prod(conv.kernel)

    def load(rows: Sequence[Int]) -> list[Value]:
        """These rows, added over all sets of panels."""
        places = [f.at(source, f.value(row) * width) for row in rows]
        return f.loop(
            1,
            parts,
            carry=[f.vload(at) for at in places],
            body=lambda i, sums: [
                total + f.vload(at, i * blocking.size) for total, at in zip(sums, places, strict=True)
            ],
        )

    first = v * lanes
    left = f.value(form.lane_count) - first
    if form.x_lanes and form.fold:
        _unfold(f, blocking, load, f.at(dw, output * weights), first)
        return
    rows = form.panel_rows // conv.outputs if form.x_lanes else form.panel_rows
    stride = math.prod(conv.kernel) if form.x_lanes else weights
    start = output * weights + first * stride if form.x_lanes else (output + first) * weights
    sink = f.at(dw, start)
    if rows == stride == 1:
        f.vstore(load([0])[0], sink, 0, f.mask(left))
        return
    with f.range(0, rows, lanes) as e:
        count = f.value(rows) - e
        columns = transposed(f, load([f.smin(e + i, rows - 1) for i in range(min(lanes, rows))]))
        mask = f.mask(count) if rows % lanes else None
        for lane, column in enumerate(columns):
            with f.when(f.compare("sgt", left, lane)) if form.lane_count % lanes else nullcontext():
                f.vstore(column, sink, e + lane * stride, mask)


def _unfold(
    f: Function,
    blocking: WeightBlocking,
    load: Callable[[Sequence[Int]], list[Value]],
    sink: Value,
    first: Value,
) -> None:
    """Lanes are taps by channels: each lane goes where its tap and channel belong."""
    form, conv = blocking.form, blocking.form.conv
    kh, kw = conv.kernel
    with f.range(0, kh) as i:
        (total,) = load([i])
        for lane in range(f.lanes):
            place = first + lane
            with f.when(f.compare("slt", place, form.depth)):
                j, c = place // conv.inputs, place % conv.inputs
                f.store(f.extract(total, lane), f.at(sink, c * (kh * kw) + i * kw + j))
