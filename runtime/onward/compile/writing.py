"""Writes a plan down as plain data: buffers and kernels numbered, and the calls that refer to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onward.compile import spec
from onward.compile.barriers import no_barriers
from onward.compile.codegen.jit import kernel_key
from onward.compile.items import Call, Check, Copy, ForeignCall, Item, Slot
from onward.compile.lowering import Lowered
from onward.compile.memory import Arena
from onward.compile.spec import PlanRow, PlanSpec, PlanTensor, Region
from onward.compile.tensors import Buffer, Place, Tensor
from onward.compile.unit import Unit
from onward.graph import Array
from onward.graph.origin import opset_of

__all__ = ["Planned", "write"]

_ALIGN = 64

_LARGEST = 1 << 40
"""Numbers in argument blocks are sizes: they are smaller than this, and addresses are not."""


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan, and what it was made from.

    Attributes:
        spec: the plan.
        texts: the IR of its kernels, in the order of `spec.kernels`.
        items: what the steps were lowered to.
        index: the number of each buffer in `spec.buffers`.
    """

    spec: PlanSpec
    texts: tuple[str, ...]
    items: Sequence[Item]
    index: Mapping[Buffer, int]


def write(unit: Unit, lowered: Lowered, arena: Arena) -> Planned:
    """Write a plan down.

    Args:
        unit: what was planned.
        lowered: its calls.
        arena: the places of the buffers that share memory.
    """
    writer = _Writer(arena, lowered.prologue)
    prologue = writer.steps(lowered.prologue)
    steps = writer.steps(lowered.calls)
    checks = tuple(writer.check(check) for check in lowered.input_checks)
    outputs = {name: writer.tensor(tensor) for name, tensor in lowered.outputs.items()}
    made = PlanSpec(
        threads=unit.threads,
        arena_bytes=arena.nbytes,
        kept_bytes=writer.kept_bytes,
        buffers=tuple(writer.buffers),
        constants=tuple(writer.constants),
        kernels=tuple(kernel_key(unit.target, text) for text in writer.texts),
        checks=checks,
        prologue=prologue,
        steps=steps,
        outputs=outputs,
        rows=tuple(_row(item) for item in lowered.calls),
    )
    return Planned(made, tuple(writer.texts), lowered.calls, writer.index)


class _Writer:
    """Numbers the buffers and kernels of a plan as its calls are written down."""

    def __init__(self, arena: Arena, prologue: Sequence[Item]) -> None:
        self.arena = arena
        self.kept_bytes = 0
        self.buffers: list[spec.PlanBuffer] = []
        self.constants: list[Array] = []
        self.index: dict[Buffer, int] = {}
        self.texts: dict[str, int] = {}
        self._filled = {b for item in prologue for b in item.writes}

    def steps(self, items: Sequence[Item]) -> tuple[spec.PlanStep, ...]:
        """The calls of items in order."""
        flags = no_barriers(items)
        return tuple(self._step(item, no_barrier) for item, no_barrier in zip(items, flags, strict=True))

    def check(self, item: Check) -> spec.PlanCheck:
        """A check of indices."""
        node = item.operation.node
        tensor = self.tensor(item.tensor)
        return spec.PlanCheck(
            node.name or "", node.op_type, _opset(node), tensor, item.low, item.extent, item.what
        )

    def tensor(self, tensor: Tensor) -> PlanTensor:
        """A tensor in a numbered buffer."""
        number = self._number(tensor.buffer)
        return PlanTensor(number, tensor.shape, tensor.strides, tensor.dtype, tensor.offset)

    def _step(self, item: Item, no_barrier: bool) -> spec.PlanStep:
        if isinstance(item, Call):
            kernel = self.texts.setdefault(item.kernel.ir, len(self.texts))
            slots = item.kernel.arguments(item.slots)
            return spec.PlanCall(kernel, tuple(self._argument(slot) for slot in slots), no_barrier)
        if isinstance(item, Copy):
            return spec.PlanCopy(self.tensor(item.source), self.tensor(item.target))
        if isinstance(item, Check):
            return self.check(item)
        if isinstance(item, ForeignCall):
            kind = int(ir.DataType.from_numpy(item.block.dtype))
            block = self._argument(item.block)
            numbers = ((spec.NONE, n) for n in (item.block.size, kind, item.tag))
            return (spec.PlanWait if item.waits else spec.PlanStart)(item.name, (block, *numbers))
        node = item.operation.node
        inputs = tuple(None if t is None else self.tensor(t) for t in item.inputs)
        outputs = tuple(None if t is None else self.tensor(t) for t in item.outputs)
        return spec.PlanFallback(
            node.name or "", node.op_type, _opset(node), item.operation.operator, inputs, outputs
        )

    def _argument(self, slot: Slot) -> tuple[int, int]:
        if isinstance(slot, Tensor):
            return self._number(slot.buffer), slot.offset * slot.dtype.itemsize
        if isinstance(slot, Buffer):
            return self._number(slot), 0
        if abs(slot) >= _LARGEST:
            raise AssertionError("an address would be another one in the next process")
        return spec.NONE, int(slot)

    def _number(self, buffer: Buffer) -> int:
        if buffer not in self.index:
            self.index[buffer] = len(self.buffers)
            self.buffers.append(self._memory(buffer))
        return self.index[buffer]

    def _memory(self, buffer: Buffer) -> spec.PlanBuffer:
        if buffer.place is Place.INPUT:
            return spec.PlanBuffer(Region.INPUT, buffer.nbytes, name=buffer.name)
        if buffer.place is Place.ARENA:
            if buffer not in self.arena.offsets:  # of a tensor without elements
                return spec.PlanBuffer(Region.ARENA, 0)
            return spec.PlanBuffer(Region.ARENA, buffer.nbytes, self.arena.offsets[buffer])
        if buffer.name:
            return spec.PlanBuffer(Region.SESSION, buffer.nbytes, name=buffer.name)
        if buffer in self._filled:
            start = self.kept_bytes
            self.kept_bytes += -(-buffer.nbytes // _ALIGN) * _ALIGN
            return spec.PlanBuffer(Region.KEPT, buffer.nbytes, start)
        assert buffer.array is not None
        self.constants.append(buffer.array)
        return spec.PlanBuffer(Region.CONSTANT, buffer.array.nbytes, len(self.constants) - 1)


def _row(item: Item) -> PlanRow:
    if isinstance(item, Call):
        kernel = item.kernel
        return PlanRow(kernel.name, item.label, kernel.flops(item.batch), kernel.bytes(item.batch))
    if isinstance(item, Check):
        return PlanRow("check", item.label, 0, item.tensor.nbytes)
    if isinstance(item, Copy):
        return PlanRow("numpy copy", item.label, 0, 2 * item.target.nbytes, "no compiled kernel")
    if isinstance(item, ForeignCall):
        return PlanRow("wait" if item.waits else "start", item.label, 0, item.block.nbytes)
    moved = sum(t.nbytes for t in (*item.inputs, *item.outputs) if t is not None)
    return PlanRow("numpy", item.label, 0, moved, item.reason)


def _opset(node: ir.Node) -> int:
    """What messages call the opset of a node."""
    return opset_of(node, 0 if node.graph is None else node.graph.opset_imports.get(node.domain, 0))
