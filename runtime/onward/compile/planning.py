"""From a model and input shapes to a plan: lowered, its memory packed, its calls written down."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onward.compile import spec
from onward.compile.codegen.jit import kernel_key
from onward.compile.codegen.target import Target
from onward.compile.items import Call, Check, Copy, Item, Slot
from onward.compile.lowering import Lowering
from onward.compile.memory import Arena, Lifetime, pack
from onward.compile.options import DEFAULT_OPTIONS, CompileOptions
from onward.compile.program import specialize
from onward.compile.rewrite import split_normalization
from onward.compile.spec import PlanRow, PlanSpec, Region, Window
from onward.compile.tensors import Buffer, Place, Tensor
from onward.graph import Array

__all__ = ["Planned", "plan_model"]

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


def plan_model(
    model: ir.Model,
    shapes: Mapping[str, tuple[int, ...]],
    fixed: Mapping[str, Array],
    bindings: Mapping[str, str],
    target: Target,
    threads: int,
    swapped: Collection[str] = (),
    options: CompileOptions = DEFAULT_OPTIONS,
) -> Planned:
    """Plan a model at fixed input shapes.

    Args:
        model: it is not changed.
        shapes: of its inputs.
        fixed: arrays of its state and weights by name, of which only the sizes count.
        bindings: state inputs and the outputs that replace them.
        target: the processor.
        threads: of the teams that will run the plan.
        swapped: weights whose contents the session may replace.
        options: what the user chose about kernels.

    Raises:
        NotStaticError: a shape depends on data.
        ShapeError: the shapes contradict an operator.
    """
    program = specialize(model, shapes, swapped)
    split_normalization(program)
    lowering = Lowering(program, target, threads, fixed, bindings, options)
    lowering.run()
    replaced = set(bindings.values())
    outputs = {
        name: lowering.old_state.get(name) or lowering.plain(value)
        for name, value in program.outputs.items()
        if name not in replaced
    }
    writer = _Writer(target, _arena(lowering, outputs.values()), lowering.prologue)
    prologue = writer.steps(lowering.prologue)
    steps = writer.steps(lowering.calls)
    checks = tuple(writer.check(check) for check in lowering.input_checks)
    windows = {name: writer.window(tensor) for name, tensor in outputs.items()}
    made = PlanSpec(
        threads=threads,
        arena_bytes=writer.arena.nbytes,
        kept_bytes=writer.kept_bytes,
        buffers=tuple(writer.buffers),
        constants=tuple(writer.constants),
        kernels=tuple(kernel_key(target, text) for text in writer.texts),
        checks=checks,
        prologue=prologue,
        steps=steps,
        outputs=windows,
        rows=tuple(_row(item) for item in lowering.calls),
    )
    return Planned(made, tuple(writer.texts), lowering.calls, writer.index)


class _Writer:
    """Numbers the buffers and kernels of a plan as its calls are written down."""

    def __init__(self, target: Target, arena: Arena, prologue: Sequence[Item]) -> None:
        self.target = target
        self.arena = arena
        self.kept_bytes = 0
        self.buffers: list[spec.Memory] = []
        self.constants: list[Array] = []
        self.index: dict[Buffer, int] = {}
        self.texts: dict[str, int] = {}
        self._filled = {b for item in prologue for b in item.writes}

    def steps(self, items: Sequence[Item]) -> tuple[spec.StepSpec, ...]:
        """The calls of items in order."""
        free = _without_barrier(items)
        return tuple(self._step(item, unfenced) for item, unfenced in zip(items, free, strict=True))

    def check(self, item: Check) -> spec.Check:
        """A check of indices."""
        node = item.operation.node
        tensor = self.window(item.tensor)
        return spec.Check(node.name or "", node.op_type, tensor, item.low, item.extent, item.what)

    def window(self, tensor: Tensor) -> Window:
        """A tensor in a numbered buffer."""
        number = self._number(tensor.buffer)
        return Window(number, tensor.shape, tensor.strides, tensor.dtype, tensor.offset)

    def _step(self, item: Item, free: bool) -> spec.StepSpec:
        if isinstance(item, Call):
            kernel = self.texts.setdefault(item.kernel.ir, len(self.texts))
            slots = item.kernel.arguments(item.slots)
            return spec.Native(kernel, tuple(self._argument(slot) for slot in slots), free)
        if isinstance(item, Copy):
            return spec.Move(self.window(item.source), self.window(item.target))
        if isinstance(item, Check):
            return self.check(item)
        node = item.operation.node
        inputs = tuple(None if t is None else self.window(t) for t in item.inputs)
        outputs = tuple(None if t is None else self.window(t) for t in item.outputs)
        return spec.NumPy(node.name or "", node.op_type, item.operation.operator, inputs, outputs)

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

    def _memory(self, buffer: Buffer) -> spec.Memory:
        if buffer.place is Place.INPUT:
            return spec.Memory(Region.INPUT, buffer.nbytes, name=buffer.name)
        if buffer.place is Place.ARENA:
            if buffer not in self.arena.offsets:  # of a tensor without elements
                return spec.Memory(Region.ARENA, 0)
            return spec.Memory(Region.ARENA, buffer.nbytes, self.arena.offsets[buffer])
        if buffer.name:
            return spec.Memory(Region.SESSION, buffer.nbytes, name=buffer.name)
        if buffer in self._filled:
            start = self.kept_bytes
            self.kept_bytes += -(-buffer.nbytes // _ALIGN) * _ALIGN
            return spec.Memory(Region.KEPT, buffer.nbytes, start)
        assert buffer.array is not None
        self.constants.append(buffer.array)
        return spec.Memory(Region.CONSTANT, buffer.array.nbytes, len(self.constants) - 1)


def _arena(lowering: Lowering, outputs: Collection[Tensor]) -> Arena:
    """Lifetimes of arena buffers, counted in barriers, and their places."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    end = len(lowering.calls)
    for i, item in zip(_epochs(lowering.calls), lowering.calls, strict=True):
        for buffer in (*item.reads, *item.writes):
            if buffer.place is Place.ARENA:
                first.setdefault(buffer, i)
                last[buffer] = i
    for tensor in outputs:
        if tensor.buffer in first:
            last[tensor.buffer] = end
    for item in lowering.prologue:
        for buffer in (*item.reads, *item.writes):
            if buffer.place is Place.ARENA:
                first[buffer], last[buffer] = 0, end
    return pack([Lifetime(b, first[b], last[b]) for b in first])


def _without_barrier(items: Sequence[Item]) -> list[bool]:
    """For each item whether the next one may start before all threads are done with it."""
    free = [False] * len(items)
    read: set[Buffer] = set()
    written: set[Buffer] = set()
    for i, item in enumerate(items):
        native = isinstance(item, Call)
        clash = any(b in written for b in (*item.reads, *item.writes)) or any(b in read for b in item.writes)
        if i and native and not clash and isinstance(items[i - 1], Call):
            free[i - 1] = True
        else:
            read, written = set(), set()
        read.update(item.reads)
        written.update(item.writes)
    return free


def _epochs(items: Sequence[Item]) -> list[int]:
    """How many barriers stand before each item: threads may be anywhere between two of them."""
    epochs, epoch = [], 0
    for unfenced in _without_barrier(items):
        epochs.append(epoch)
        epoch += not unfenced
    return epochs


def _row(item: Item) -> PlanRow:
    if isinstance(item, Call):
        kernel = item.kernel
        return PlanRow(kernel.name, item.label, kernel.flops(item.batch), kernel.bytes(item.batch))
    if isinstance(item, Check):
        return PlanRow("check", item.label, 0, item.tensor.nbytes)
    if isinstance(item, Copy):
        return PlanRow("numpy copy", item.label, 0, 2 * item.target.nbytes, "no compiled kernel")
    moved = sum(t.nbytes for t in (*item.inputs, *item.outputs) if t is not None)
    return PlanRow("numpy", item.label, 0, moved, item.reason)
