"""Copies between layouts: transposes, NCHW to NHWC with a border and back, slices, joins, fills.

Anything that is one tensor's elements at other strides is a `StridedCopy`: a slice is another start address,
a join is one copy for each part. Vectors run along an axis that is contiguous in the destination if there is
one, else in the source; the other side is gathered or scattered lane by lane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.walk import flat, merge, nested
from onward.errors import ShapeError

__all__ = ["StridedCopy", "clear", "copy"]


@dataclass(frozen=True)
class StridedCopy:
    """Elements [batch, *shape], of 1, 2, 4 or 8 bytes; strides in elements for the batch, then each axis."""

    shape: tuple[int, ...]
    source: tuple[int, ...]
    sink: tuple[int, ...]
    bytes: int = 4

    def __post_init__(self) -> None:
        if len(self.source) != len(self.shape) + 1 or len(self.sink) != len(self.shape) + 1:
            raise ShapeError(f"strides {self.source} and {self.sink} for [batch, {self.shape}]")
        if self.bytes not in _TYPES:
            raise ShapeError(f"elements of {self.bytes} bytes: 1, 2, 4 or 8 can be copied")


_TYPES = {1: "i8", 2: "i16", 4: "float", 8: "i64"}


def copy(spec: StridedCopy, target: Target, name: str = "copy") -> Kernel:
    """Slots: x, y (addresses of the first elements), batch."""
    module = Module(target)
    f = module.entry()
    parameters = (*read("x"), *write("y"), *integer("batch"))
    values = slot_values(f, parameters)
    order = _order(spec)
    shape = [spec.shape[i] for i in order]
    walks = [[s[0], *(s[i + 1] for i in order)] for s in (spec.source, spec.sink)]
    multiple, sizes, merged = merge(shape, walks)
    body = _Lines(f, values["x"], values["y"], _TYPES[spec.bytes])
    total = values["batch"] * multiple
    if sizes:
        nested(f, total, sizes, merged, body)
    else:
        flat(f, total, body, [w[0] for w in merged])
    f.ret()
    elements = math.prod(spec.shape)
    return Kernel(
        name=name,
        ir=module.text(),
        parameters=parameters,
        bytes=Affine(0, 2 * spec.bytes * elements),
        units=Affine(0, max(1, elements // 64)),
    )


def _order(spec: StridedCopy) -> list[int]:
    """Axes with the one that vectors run along last, and before it those with large source strides first."""
    axes = [i for i in range(len(spec.shape)) if spec.shape[i] > 1]
    if not axes:
        return []
    for strides in (spec.sink, spec.source):
        inner = [i for i in axes if strides[i + 1] == 1]
        if inner:
            last = max(inner, key=lambda i: spec.shape[i])
            rest = sorted((i for i in axes if i != last), key=lambda i: -spec.source[i + 1])
            return [*rest, last]
    return axes


@final
class _Lines:
    def __init__(self, f: Function, source: Value, sink: Value, type_: str) -> None:
        self.f = f
        self.source = source
        self.sink = sink
        self.type = type_

    def run(self, starts: Sequence[Value], steps: Sequence[int], low: Value, high: Value) -> None:
        f, lanes = self.f, self.f.lanes
        source = f.at(self.source, starts[0], self.type)
        sink = f.at(self.sink, starts[1], self.type)
        whole = low + (high - low) // lanes * lanes
        with f.range(low, whole, lanes) as i:
            if steps[0] == 0:
                vector = f.splat(f.load(source, self.type))
            elif steps[0] == 1:
                vector = f.vload(source, i, None, self.type)
            else:
                vector = f.zero(f"<{lanes} x {self.type}>")
                for lane in range(lanes):
                    vector = f.insert(vector, f.load(source, self.type, (i + lane) * steps[0]), lane)
            if steps[1] == 1:
                f.vstore(vector, sink, i)
            else:
                for lane in range(lanes):
                    f.store(f.extract(vector, lane), sink, (i + lane) * steps[1])
        with f.range(whole, high) as i:
            f.store(f.load(source, self.type, i * steps[0]), sink, i * steps[1])


def clear(target: Target) -> Kernel:
    """Zeros. Slots: y, batch (the number of elements)."""
    module = Module(target)
    f = module.entry()
    parameters = (*write("y"), *integer("batch"))
    values = slot_values(f, parameters)
    block = target.tuning.element_block * target.lanes
    low, high = f.share((values["batch"] + (block - 1)) // block, *f.arguments[1:])
    last = f.smin(high * block, values["batch"])
    with f.range(low * block, last, target.lanes) as i:
        f.vstore(f.zero(), values["y"], i, f.mask(last - i))
    f.ret()
    return Kernel("clear", module.text(), parameters, bytes=Affine(0, target.nbytes), units=Affine(0, 1))
