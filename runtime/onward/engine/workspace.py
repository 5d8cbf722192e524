"""What one run of a plan needs for itself: working memory, and calls that have its addresses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

from onward.compile.spec import (
    PlanBuffer,
    PlanCall,
    PlanCheck,
    PlanCopy,
    PlanFallback,
    PlanSpec,
    PlanStart,
    PlanStep,
    PlanTensor,
    PlanWait,
    Region,
)
from onward.engine.packing import zeros
from onward.engine.team import FOREIGN, NO_BARRIER, Step, Steps, Team
from onward.errors import LimitError, OnwardError, ShapeError
from onward.graph import Array, BodyOp
from onward.graph.foreign import foreign

if TYPE_CHECKING:
    from onward.engine.plan import Plan

__all__ = ["Workspace"]

_SMALL = 4096
"""Bytes of inputs that are copied."""


@final
class Workspace:
    """The memory and the calls of one run at a time.

    Args:
        plan: what is run; only its parts that never change are read.
        arena: working memory that another workspace for the same spec had; None: new.
    """

    def __init__(self, plan: Plan, arena: Array | None = None) -> None:
        self._spec = spec = plan.spec
        self._addresses = plan.addresses
        self._run_body = plan.run_body
        try:
            self.arena = zeros(spec.arena_bytes) if arena is None else arena
        except MemoryError as error:
            raise LimitError(
                f"a run on inputs of these shapes works on {spec.arena_bytes:,} bytes, which the system does "
                "not give: give smaller inputs"
            ) from error
        self.lost = False
        """Whether functions of others may still be working on the memory: a run ended before they did."""
        self._small = {m.name: zeros(m.nbytes) for m in _small_inputs(spec)}
        self._copies: dict[str, Array] = {}
        objects = _of_objects(spec)
        self._memories = [
            self._found(memory, number in objects) if fixed is None else fixed
            for number, (memory, fixed) in enumerate(zip(spec.buffers, plan.memories, strict=True))
        ]
        self._unplaced = [(i, m) for i, m in enumerate(spec.buffers) if self._memories[i] is None]
        starts = [0 if m is None else m.ctypes.data for m in self._memories]
        self._starts = np.array([*starts, 0], np.int64)  # the last one is NONE's
        self._keep: list[Any] = []
        self._patches: dict[str, list[tuple[Array, int, int]]] = {}
        self._arrays: dict[str, Array] = {}
        self.steps = self._assemble(spec.steps)
        self._checks = [(check, self._getter(check.tensor)) for check in spec.checks]
        self._views = {
            name: self._view(tensor)
            for name, tensor in spec.outputs.items()
            if spec.buffers[tensor.buffer].region is not Region.INPUT
        }

    def memory(self, buffer: int) -> Array | None:
        """The bytes of a buffer; None for an input that is read where the caller has it."""
        return self._memories[buffer]

    def some(self, steps: Sequence[PlanStep]) -> Steps:
        """Other calls of the plan, such as those of its prologue, with this workspace's addresses."""
        return self._assemble(steps)

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Point the calls at a run's inputs.

        Raises:
            ShapeError: an index is out of range.
        """
        arrays = self._arrays
        for name, array in inputs.items():
            arrays[name] = np.ascontiguousarray(array)
        for name, store in self._small.items():
            array = arrays[name]
            if name not in self._copies:
                self._copies[name] = store.view(array.dtype).reshape(array.shape)
            np.copyto(self._copies[name], array)
        for check, get in self._checks:
            check.apply(get())
        for name, places in self._patches.items():
            start = _address(arrays[name])
            for block, place, offset in places:
                block[place] = start + offset

    def run(self, team: Team | None) -> dict[str, Array]:
        """Run the calls that `bind` prepared.

        Args:
            team: of the number of threads that the plan was made for; None: the calling thread alone.

        Returns:
            The outputs that are not state, as new arrays.
        """
        try:
            if team is None:
                self.steps.run(self._spec.threads)
            else:
                team.run(self.steps)
        except BaseException:
            self.lost = any(isinstance(step, PlanStart) for step in self._spec.steps)
            raise
        results = {name: view.copy() for name, view in self._views.items()}
        for name, tensor in self._spec.outputs.items():
            if name not in results:
                results[name] = _cut(self._arrays[self._spec.buffers[tensor.buffer].name], tensor).copy()
        return results

    def release(self) -> None:
        """Forget the inputs."""
        self._arrays.clear()

    def _found(self, memory: PlanBuffer, objects: bool) -> Array | None:
        if memory.region is Region.INPUT:
            return self._small.get(memory.name)
        assert memory.region is Region.ARENA
        if objects:  # references are counted: they cannot be in memory that other tensors use at other times
            return np.empty(memory.nbytes // np.dtype(object).itemsize, object)
        return self.arena[memory.offset : memory.offset + memory.nbytes]

    def _view(self, tensor: PlanTensor) -> Array:
        """A tensor as a NumPy array."""
        if tensor.size == 0:
            return np.empty(tensor.shape, tensor.dtype)
        memory = self._memories[tensor.buffer]
        assert memory is not None
        size = tensor.dtype.itemsize
        return _cut(memory[: memory.nbytes // size * size], tensor)

    def _getter(self, tensor: PlanTensor) -> Callable[[], Array]:
        """How a NumPy kernel gets at a tensor: inputs are known at each run only."""
        memory = self._spec.buffers[tensor.buffer]
        if self._memories[tensor.buffer] is not None:
            view = self._view(tensor)
            return lambda: view
        arrays = self._arrays
        return lambda: _cut(arrays[memory.name], tensor)

    def _assemble(self, steps: Sequence[PlanStep]) -> Steps:
        pairs: list[tuple[int, int]] = []
        for step in steps:
            if isinstance(step, PlanStart | PlanWait):
                pairs.append((-1, foreign(step.name).context))
            if isinstance(step, PlanCall | PlanStart | PlanWait):
                pairs += step.arguments
        address = self._block(pairs).ctypes.data
        made: list[Step | Callable[[], object]] = []
        for step in steps:
            match step:
                case PlanCall():
                    made.append(
                        Step(self._addresses[step.kernel], address, NO_BARRIER if step.no_barrier else 0)
                    )
                    address += 8 * len(step.arguments)
                case PlanStart() | PlanWait():
                    found = foreign(step.name)
                    entry, flags = (
                        (found.start, FOREIGN | NO_BARRIER)
                        if isinstance(step, PlanStart)
                        else (found.wait, FOREIGN)
                    )
                    made.append(Step(entry, address, flags, step.name))
                    address += 8 * (len(step.arguments) + 1)
                case PlanCopy():
                    made.append(self._mover(step))
                case PlanCheck():
                    made.append(functools.partial(_check, step, self._getter(step.tensor)))
                case PlanFallback():
                    made.append(self._numpy(step))
        return Steps(made)

    def _block(self, pairs: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
        """The argument blocks of all calls, one after the other; inputs' addresses come with each run."""
        buffers, offsets = np.array(pairs, np.int64).reshape(-1, 2).T
        block = self._starts[buffers] + offsets
        self._keep.append(block)
        for number, memory in self._unplaced:
            places = [(block, i, int(offsets[i])) for i in np.flatnonzero(buffers == number).tolist()]
            if places:
                self._patches.setdefault(memory.name, []).extend(places)
        return block

    def _mover(self, step: PlanCopy) -> Callable[[], object]:
        source, target = self._getter(step.source), self._view(step.target)
        return lambda: np.copyto(target, source())

    def _numpy(self, step: PlanFallback) -> Callable[[], object]:
        kernel = step.operator.kernel  # type: ignore[attr-defined]
        if isinstance(step.operator, BodyOp) and self._run_body is not None:
            kernel = functools.partial(step.operator.run, self._run_body)
        getters = [None if t is None else self._getter(t) for t in step.inputs]
        targets = [None if t is None else self._view(t) for t in step.outputs]
        where = f"node {step.node!r}, operator {step.op_type}, opset {step.opset}"

        def run() -> None:
            try:
                with np.errstate(all="ignore"):
                    results = kernel(*[None if get is None else get() for get in getters])
            except (
                ValueError,
                IndexError,
                TypeError,
                KeyError,
                ArithmeticError,
                MemoryError,
                OnwardError,
            ) as error:
                kind = type(error) if isinstance(error, OnwardError) else ShapeError
                raise kind(f"{where}: {error}") from error
            for target, result in zip(
                targets, results if isinstance(results, tuple) else (results,), strict=False
            ):
                if target is None:
                    continue
                if np.shape(result) != target.shape:
                    raise ShapeError(
                        f"{where}: the result has shape {list(np.shape(result))}, "
                        f"where inference by onnx says {list(target.shape)}"
                    )
                np.copyto(target, result)

        return run


def _of_objects(spec: PlanSpec) -> frozenset[int]:
    """Buffers that hold strings, which are references to objects: only NumPy kernels see them."""
    tensors = [*(check.tensor for check in spec.checks), *spec.outputs.values()]
    for step in (*spec.prologue, *spec.steps):
        if isinstance(step, PlanFallback):
            tensors += [w for w in (*step.inputs, *step.outputs) if w is not None]
        elif isinstance(step, PlanCopy):
            tensors += [step.source, step.target]
    return frozenset(w.buffer for w in tensors if w.dtype.hasobject)


def _small_inputs(spec: PlanSpec) -> list[PlanBuffer]:
    """Inputs that are copied at each run, which takes less time than telling every call their address."""
    objects = _of_objects(spec)
    return [
        memory
        for number, memory in enumerate(spec.buffers)
        if memory.region is Region.INPUT and 0 < memory.nbytes <= _SMALL and number not in objects
    ]


def _address(array: Array) -> int:
    """Of an array's first element, sooner than `ctypes.data` has it."""
    return int(array.__array_interface__["data"][0])


def _check(check: PlanCheck, get: Callable[[], Array]) -> None:
    check.apply(get())


def _cut(array: Array, tensor: PlanTensor) -> Array:
    """A tensor's elements in the memory that an array without gaps holds."""
    if tensor.size == 0:
        return np.empty(tensor.shape, tensor.dtype)
    size = tensor.dtype.itemsize
    strides = [s * size for s in tensor.strides]
    if array.dtype == object:
        return np.lib.stride_tricks.as_strided(array.reshape(-1)[tensor.offset :], tensor.shape, strides)
    memory = array.reshape(-1).view(np.uint8)
    return np.ndarray(tensor.shape, tensor.dtype, memory.data, tensor.offset * size, strides)
