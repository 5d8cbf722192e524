"""A plan: kernel calls with fixed addresses, ready for a thread team."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.compile.codegen.jit import Jit
from onward.compile.codegen.target import Target
from onward.compile.lowering import Call, Check, Copy, Fallback, Item, Lowering, Slot
from onward.compile.memory import Lifetime, pack
from onward.compile.options import DEFAULT_OPTIONS, CompileOptions
from onward.compile.program import specialize
from onward.compile.rewrite import split_normalization
from onward.compile.tensors import Buffer, Place, Tensor
from onward.engine.team import FREE, Step, Steps, Team
from onward.errors import OnwardError, ShapeError
from onward.graph import Array
from onward.passes.unroll import unroll_fixed

__all__ = ["Plan", "PlanRow"]


@dataclass(frozen=True)
class PlanRow:
    """One call of a plan, for reports.

    Attributes:
        kernel: the kernel's name; "numpy" for a NumPy kernel inside the plan.
        operators: the nodes that it computes.
        flops, bytes: arithmetic and memory traffic of one step, 0 where they are not known.
        reason: why it is a NumPy kernel; empty otherwise.
    """

    kernel: str
    operators: str
    flops: int
    bytes: int
    reason: str = ""


@final
class Plan:
    """Everything needed to run a model at fixed input shapes.

    Args:
        model: the model.
        shapes: of its inputs.
        fixed: arrays of its state and weights by name, owned by the session; state is updated in place.
        bindings: state inputs and the outputs that replace them.
        jit: compiles kernels for `target`.
        threads: of the teams that will run it.
        swapped: weights whose contents the session may replace.
        options: what the user chose about kernels.

    Raises:
        NotStaticError: a shape depends on data.
        ShapeError: the shapes contradict an operator.
    """

    def __init__(
        self,
        model: ir.Model,
        shapes: Mapping[str, tuple[int, ...]],
        fixed: Mapping[str, Array],
        bindings: Mapping[str, str],
        jit: Jit,
        target: Target,
        threads: int,
        swapped: Collection[str] = (),
        options: CompileOptions = DEFAULT_OPTIONS,
    ) -> None:
        started = time.perf_counter()
        program = specialize(unroll_fixed(model, shapes), shapes, swapped)
        split_normalization(program)
        lowering = Lowering(program, target, threads, fixed, bindings, options)
        lowering.run()
        replaced = set(bindings.values())
        self._outputs = {
            name: lowering.old_state.get(name) or lowering.plain(value)
            for name, value in program.outputs.items()
            if name not in replaced
        }
        self._calls = lowering.calls
        self._prologue = lowering.prologue
        self._checks = lowering.input_checks
        self._place(lowering)
        lowered = time.perf_counter()
        kernels = {c.kernel.ir for c in (*self._calls, *self._prologue) if isinstance(c, Call)}
        texts = list(kernels)
        self._addresses = dict(zip(texts, jit.addresses(texts), strict=True))
        self._keep: list[Any] = []
        self._patches: list[tuple[Array, int, str, int]] = []
        self._arrays: Mapping[str, Array] = {}
        self._steps = self._assemble(self._calls)
        self._first = self._assemble(self._prologue)
        self._views = {
            name: self._view(t) for name, t in self._outputs.items() if t.buffer.place is not Place.INPUT
        }
        self.weights_changed = True
        self.threads = threads
        self.seconds = {"lower": lowered - started, "compile": time.perf_counter() - lowered}

    @property
    def work(self) -> int:
        """Arithmetic operations and bytes of one run, as far as they are known."""
        return sum(row.flops + row.bytes for row in self.rows)

    @property
    def arena_bytes(self) -> int:
        """Size of the memory that the plan's values share."""
        return self._arena.nbytes

    @property
    def rows(self) -> list[PlanRow]:
        """The plan's calls in order."""
        return [_row(item) for item in self._calls]

    def run(self, inputs: Mapping[str, Array], team: Team) -> dict[str, Array]:
        """Run once.

        Args:
            inputs: arrays of exactly the plan's shapes and dtypes.
            team: of the number of threads that the plan was made for.

        Returns:
            The outputs that are not state, as new arrays.
        """
        held = self._bind(inputs, team)
        team.run(self._steps)
        results = {name: view.copy() for name, view in self._views.items()}
        for name, tensor in self._outputs.items():
            if name not in results:
                results[name] = _window(held[tensor.buffer.name], tensor).copy()
        self._arrays = {}
        return results

    def time_calls(
        self,
        inputs: Mapping[str, Array],
        team: Team,
        rounds: int = 5,
        seconds: float = 0.002,
        clock: Callable[[], float] = time.perf_counter,
    ) -> list[float]:
        """Measure every call alone, in the plan's order, so that each finds the data that it has in a run.

        State holds nothing of use afterwards: a short call is repeated, with whatever it then updates.

        Args:
            inputs: arrays of exactly the plan's shapes and dtypes.
            team: of the number of threads that the plan was made for.
            rounds: walks over the plan.
            seconds: a call that takes less is repeated to fill them.
            clock: gives seconds; the caller's processor time suits a team of one on a busy machine.

        Returns:
            For each row the least seconds of one call over the rounds.
        """
        self._bind(inputs, team)
        singles = [Step(*map(int, row)) for row in self._steps.table]
        steps = [Steps([single]) for single in singles]
        counts = [1] * len(steps)
        best = [float("inf")] * len(steps)
        for turn in range(rounds + 1):
            for i, step in enumerate(steps):
                started = clock()
                team.run(step)
                taken = clock() - started
                if turn == 0:
                    counts[i] = max(1, min(1000, int(seconds / max(taken, 1e-7))))
                    steps[i] = Steps([singles[i]] * counts[i])
                else:
                    best[i] = min(best[i], taken / counts[i])
        self._arrays = {}
        return best

    def _bind(self, inputs: Mapping[str, Array], team: Team) -> dict[str, Array]:
        """Point the calls at a run's inputs and bring what depends on weights alone up to date."""
        held = {name: np.ascontiguousarray(a) for name, a in inputs.items()}
        for check in self._checks:
            check.apply(_window(held[check.tensor.buffer.name], check.tensor))
        for block, slot, name, offset in self._patches:
            block[slot] = held[name].ctypes.data + offset
        self._arrays = held
        if self.weights_changed:
            team.run(self._first)
            self.weights_changed = False
        return held

    def _place(self, lowering: Lowering) -> None:
        """Lifetimes of arena buffers, counted in barriers, and their addresses."""
        first: dict[Buffer, int] = {}
        last: dict[Buffer, int] = {}
        epochs = _epochs(self._calls)
        end = len(self._calls)
        for i, item in zip(epochs, self._calls, strict=True):
            for buffer in (*item.reads, *item.writes):
                if buffer.place is Place.ARENA:
                    first.setdefault(buffer, i)
                    last[buffer] = i
        for tensor in self._outputs.values():
            if tensor.buffer in first:
                last[tensor.buffer] = end
        for item in self._prologue:
            for buffer in (*item.reads, *item.writes):
                if buffer.place is Place.ARENA:
                    first[buffer], last[buffer] = 0, end
        packed = pack([Lifetime(b, first[b], last[b]) for b in first])
        store = np.zeros(packed.nbytes + 64, np.uint8)
        shift = -store.ctypes.data % 64
        self._arena = store[shift : shift + packed.nbytes]
        self._offsets = packed.offsets

    def _memory(self, buffer: Buffer) -> Array:
        if buffer.place is Place.FIXED:
            assert buffer.array is not None
            return buffer.array.reshape(-1).view(np.uint8)
        start = self._offsets[buffer]
        return self._arena[start : start + buffer.nbytes]

    def _view(self, tensor: Tensor) -> Array:
        """A tensor as a NumPy array."""
        if tensor.size == 0:
            return np.empty(tensor.shape, tensor.dtype)
        memory = self._memory(tensor.buffer)
        count = memory.nbytes // tensor.dtype.itemsize * tensor.dtype.itemsize
        return _window(memory[:count], tensor)

    def _getter(self, tensor: Tensor) -> Callable[[], Array]:
        """How a NumPy kernel gets at a tensor: inputs are known at each run only."""
        if tensor.buffer.place is not Place.INPUT:
            view = self._view(tensor)
            return lambda: view
        name = tensor.buffer.name
        return lambda: _window(self._arrays[name], tensor)

    def _assemble(self, items: Sequence[Item]) -> Steps:
        steps: list[Step | Callable[[], object]] = []
        free = _without_barrier(items)
        for item, unfenced in zip(items, free, strict=True):
            if isinstance(item, Call):
                block = item.kernel.block({k: self._slot(v) for k, v in item.slots.items()})
                for name, value in item.slots.items():
                    self._note_input(block, item.kernel.slots.index(name), value)
                self._keep.append(block)
                flags = FREE if unfenced else 0
                steps.append(Step(self._addresses[item.kernel.ir], block.ctypes.data, flags))
            elif isinstance(item, Copy):
                steps.append(self._copier(item))
            elif isinstance(item, Check):
                steps.append(functools.partial(self._check, item, self._getter(item.tensor)))
            else:
                steps.append(self._numpy(item))
        return Steps(steps)

    def _slot(self, value: Slot) -> int:
        if isinstance(value, int):
            return value
        buffer = value if isinstance(value, Buffer) else value.buffer
        if buffer.place is Place.INPUT:
            return 0
        offset = 0 if isinstance(value, Buffer) else value.offset * value.dtype.itemsize
        return self._memory(buffer).ctypes.data + offset

    def _note_input(self, block: Array, slot: int, value: Slot) -> None:
        if isinstance(value, int):
            return
        buffer = value if isinstance(value, Buffer) else value.buffer
        if buffer.place is Place.INPUT:
            offset = 0 if isinstance(value, Buffer) else value.offset * value.dtype.itemsize
            self._patches.append((block, slot, buffer.name, offset))

    @staticmethod
    def _check(item: Check, get: Callable[[], Array]) -> None:
        item.apply(get())

    def _copier(self, item: Copy) -> Callable[[], object]:
        source, target = self._getter(item.source), self._view(item.target)
        return lambda: np.copyto(target, source())

    def _numpy(self, item: Fallback) -> Callable[[], object]:
        operation = item.operation
        kernel = operation.operator.kernel  # type: ignore[attr-defined]
        getters = [None if t is None else self._getter(t) for t in item.inputs]
        targets = [self._view(t) for t in item.outputs]

        def run() -> None:
            try:
                with np.errstate(all="ignore"):
                    results = kernel(*[None if get is None else get() for get in getters])
            except (ValueError, IndexError, TypeError, KeyError, ArithmeticError, OnwardError) as error:
                kind = type(error) if isinstance(error, OnwardError) else ShapeError
                node = operation.node
                raise kind(f"node {node.name!r}, operator {node.op_type}: {error}") from error
            for target, result in zip(
                targets, results if isinstance(results, tuple) else (results,), strict=False
            ):
                if np.shape(result) != target.shape:
                    node = operation.node
                    raise ShapeError(
                        f"node {node.name!r}, operator {node.op_type}: the result has shape "
                        f"{list(np.shape(result))}, where inference by onnx says {list(target.shape)}"
                    )
                np.copyto(target, result)

        return run


def _window(array: Array, tensor: Tensor) -> Array:
    """A tensor's elements in the memory that an array without gaps holds."""
    if tensor.size == 0:
        return np.empty(tensor.shape, tensor.dtype)
    if array.dtype == object:
        return array.reshape(tensor.shape)
    size = tensor.dtype.itemsize
    strides = [s * size for s in tensor.strides]
    memory = array.reshape(-1).view(np.uint8)
    return np.ndarray(tensor.shape, tensor.dtype, memory.data, tensor.offset * size, strides)


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
