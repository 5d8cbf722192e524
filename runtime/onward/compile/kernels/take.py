"""Elements at places that indices say: gathers along any axes, of elements of any width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write
from onward.compile.kernels.walk import flat, nested

__all__ = ["Take", "take"]


@dataclass(frozen=True)
class Take:
    """y over [batch, *shape], without gaps, from data and indices with strides along the same axes.

    Attributes:
        shape: the extents after the first.
        data: strides of data, 0 along axes that indices stand for.
        indices: strides of the indices.
        picked: of each index that an element has: how far on in indices it is, the stride of data's axis and
            its extent.
        bytes: of an element.
        wide: whether indices are int64, else int32.
    """

    shape: tuple[int, ...]
    data: tuple[int, ...]
    indices: tuple[int, ...]
    picked: tuple[tuple[int, int, int], ...]
    bytes: int
    wide: bool


def take(spec: Take, target: Target) -> Kernel:
    """Slots: data, indices, y, batch. Positions are in [-extent, extent)."""
    module = Module(target)
    f = module.entry()
    parameters = (*read("data", "indices"), *write("y"), *integer("batch"))
    values = slot_values(f, parameters)
    sink = [1]
    for extent in reversed(spec.shape):
        sink.insert(0, sink[0] * extent)
    body = _Lines(f, spec, values["data"], values["indices"], values["y"])
    walks = [sink, list(spec.data), list(spec.indices)]
    if spec.shape:
        nested(f, values["batch"], list(spec.shape), walks, body)
    else:
        flat(f, values["batch"], body, [w[0] for w in walks])
    f.ret()
    elements = sink[0]
    moved = elements * (2 * spec.bytes + len(spec.picked) * (8 if spec.wide else 4))
    return Kernel(
        "take", module.text(), parameters, bytes=Affine(0, moved), units=Affine(0, max(1, elements // 64))
    )


@final
class _Lines:
    def __init__(self, f: Function, spec: Take, data: Value, indices: Value, y: Value) -> None:
        self.f = f
        self.spec = spec
        self.data = data
        self.indices = indices
        self.y = y

    def run(self, starts: Sequence[Value], steps: Sequence[int], low: Value, high: Value) -> None:
        f, spec = self.f, self.spec
        element = f"i{8 * spec.bytes}"
        with f.range(low, high) as i:
            place = starts[1] + i * steps[1]
            at = starts[2] + i * steps[2]
            for offset, stride, extent in spec.picked:
                index = f.load(self.indices, "i64" if spec.wide else "i32", at + offset)
                wide = index if spec.wide else f.cast("sext", index, "i64")
                wide = f.select(f.compare("slt", wide, 0), wide + extent, wide)
                place = place + wide * stride
            f.store(f.load(self.data, element, place), self.y, starts[0] + i * steps[0])
