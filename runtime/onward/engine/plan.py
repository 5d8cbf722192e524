"""A plan in memory: kernel calls with fixed addresses, ready for a thread team."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from onward.compile.spec import (
    Check,
    Memory,
    Move,
    Native,
    NumPy,
    PlanRow,
    PlanSpec,
    Region,
    StepSpec,
    Window,
)
from onward.engine.team import FREE, Step, Steps, Team
from onward.errors import OnwardError, ShapeError
from onward.graph import Array, BodyOp, RunBody

__all__ = ["Plan", "PlanRow"]

_ALIGN = 64

_SMALL = 4096
"""Bytes of inputs that are copied."""


@final
class Plan:
    """Everything needed to run a model at fixed input shapes.

    Args:
        spec: what it does.
        fixed: arrays of state and weights by name, owned by the session; state is updated in place.
        addresses: of the machine code of `spec.kernels`.
        seconds: what making it took, for reports.
        run_body: runs the bodies of operators such as If; NumPy does by default.
    """

    def __init__(
        self,
        spec: PlanSpec,
        fixed: Mapping[str, Array],
        addresses: Sequence[int],
        seconds: Mapping[str, float] | None = None,
        run_body: RunBody | None = None,
    ) -> None:
        self.spec = spec
        self.threads = spec.threads
        self.seconds = dict(seconds or {})
        self.weights_changed = True
        self._addresses = addresses
        self._run_body = run_body
        self._arena, self._kept = _zeros(spec.arena_bytes), _zeros(spec.kept_bytes)
        self._small = {m.name: _zeros(m.nbytes) for m in _small_inputs(spec)}
        self._copies: dict[str, Array] = {}
        self._memories = [self._found(memory, fixed) for memory in spec.buffers]
        starts = [0 if m is None else m.ctypes.data for m in self._memories]
        self._starts = np.array([*starts, 0], np.int64)  # the last one is NONE's
        self._keep: list[Any] = []
        self._patches: dict[str, list[tuple[Array, int, int]]] = {}
        self._arrays: Mapping[str, Array] = {}
        self._steps = self._assemble(spec.steps)
        self._first = self._assemble(spec.prologue)
        self._checks = [(check, self._getter(check.tensor)) for check in spec.checks]
        self._views = {
            name: self._view(window)
            for name, window in spec.outputs.items()
            if spec.buffers[window.buffer].region is not Region.INPUT
        }

    @property
    def arena_bytes(self) -> int:
        """Size of the memory that the plan's values share."""
        return self.spec.arena_bytes

    @property
    def rows(self) -> Sequence[PlanRow]:
        """The plan's calls in order."""
        return self.spec.rows

    def memory(self, buffer: int) -> Array | None:
        """The bytes of a buffer; None for an input's."""
        return self._memories[buffer]

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
        for name, window in self.spec.outputs.items():
            if name not in results:
                results[name] = _cut(held[self.spec.buffers[window.buffer].name], window).copy()
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
        self._arrays = held = {name: np.ascontiguousarray(a) for name, a in inputs.items()}
        for name, store in self._small.items():
            array = held[name]
            if name not in self._copies:
                self._copies[name] = store.view(array.dtype).reshape(array.shape)
            np.copyto(self._copies[name], array)
        for check, get in self._checks:
            check.apply(get())
        for name, places in self._patches.items():
            start = _address(held[name])
            for block, place, offset in places:
                block[place] = start + offset
        if self.weights_changed:
            team.run(self._first)
            self.weights_changed = False
        return held

    def _found(self, memory: Memory, fixed: Mapping[str, Array]) -> Array | None:
        match memory.region:
            case Region.INPUT:
                return self._small.get(memory.name)
            case Region.SESSION:
                return fixed[memory.name].reshape(-1).view(np.uint8)
            case Region.CONSTANT:
                return self.spec.constants[memory.offset].reshape(-1).view(np.uint8)
        block = self._arena if memory.region is Region.ARENA else self._kept
        return block[memory.offset : memory.offset + memory.nbytes]

    def _view(self, window: Window) -> Array:
        """A tensor as a NumPy array."""
        if window.size == 0:
            return np.empty(window.shape, window.dtype)
        memory = self._memories[window.buffer]
        assert memory is not None
        size = window.dtype.itemsize
        return _cut(memory[: memory.nbytes // size * size], window)

    def _getter(self, window: Window) -> Callable[[], Array]:
        """How a NumPy kernel gets at a tensor: inputs are known at each run only."""
        memory = self.spec.buffers[window.buffer]
        if self._memories[window.buffer] is not None:
            view = self._view(window)
            return lambda: view
        return lambda: _cut(self._arrays[memory.name], window)

    def _assemble(self, steps: Sequence[StepSpec]) -> Steps:
        block = self._block([pair for s in steps if isinstance(s, Native) for pair in s.arguments])
        start = block.ctypes.data
        made: list[Step | Callable[[], object]] = []
        for step in steps:
            if isinstance(step, Native):
                made.append(Step(self._addresses[step.kernel], start, FREE if step.free else 0))
                start += 8 * len(step.arguments)
            elif isinstance(step, Move):
                made.append(self._mover(step))
            elif isinstance(step, Check):
                made.append(functools.partial(_check, step, self._getter(step.tensor)))
            else:
                made.append(self._numpy(step))
        return Steps(made)

    def _block(self, pairs: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
        """The argument blocks of all calls, one after the other; inputs' addresses come with each run."""
        buffers, offsets = np.array(pairs, np.int64).reshape(-1, 2).T
        block = self._starts[buffers] + offsets
        self._keep.append(block)
        for number, memory in enumerate(self.spec.buffers):
            if self._memories[number] is None:
                places = [(block, i, int(offsets[i])) for i in np.flatnonzero(buffers == number).tolist()]
                self._patches.setdefault(memory.name, []).extend(places)
        return block

    def _mover(self, step: Move) -> Callable[[], object]:
        source, target = self._getter(step.source), self._view(step.target)
        return lambda: np.copyto(target, source())

    def _numpy(self, step: NumPy) -> Callable[[], object]:
        kernel = step.operator.kernel  # type: ignore[attr-defined]
        if isinstance(step.operator, BodyOp) and self._run_body is not None:
            kernel = functools.partial(step.operator.run, self._run_body)
        getters = [None if t is None else self._getter(t) for t in step.inputs]
        targets = [None if t is None else self._view(t) for t in step.outputs]
        where = f"node {step.node!r}, operator {step.op_type}"

        def run() -> None:
            try:
                with np.errstate(all="ignore"):
                    results = kernel(*[None if get is None else get() for get in getters])
            except (ValueError, IndexError, TypeError, KeyError, ArithmeticError, OnwardError) as error:
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


def _small_inputs(spec: PlanSpec) -> list[Memory]:
    """Inputs that are copied at each run, which takes less time than telling every call their address."""
    windows = [*(check.tensor for check in spec.checks), *spec.outputs.values()]
    for step in (*spec.prologue, *spec.steps):
        if isinstance(step, NumPy):
            windows += [w for w in step.inputs if w is not None]
        elif isinstance(step, Move):
            windows.append(step.source)
    objects = {w.buffer for w in windows if w.dtype.hasobject}
    return [
        memory
        for number, memory in enumerate(spec.buffers)
        if memory.region is Region.INPUT and 0 < memory.nbytes <= _SMALL and number not in objects
    ]


def _address(array: Array) -> int:
    """Of an array's first element, sooner than `ctypes.data` has it."""
    return int(array.__array_interface__["data"][0])


def _check(check: Check, get: Callable[[], Array]) -> None:
    check.apply(get())


def _zeros(nbytes: int) -> Array:
    """Zeroed bytes that begin at a multiple of 64."""
    store = np.zeros(nbytes + _ALIGN, np.uint8)
    shift = -store.ctypes.data % _ALIGN
    return store[shift : shift + nbytes]


def _cut(array: Array, window: Window) -> Array:
    """A tensor's elements in the memory that an array without gaps holds."""
    if window.size == 0:
        return np.empty(window.shape, window.dtype)
    if array.dtype == object:
        return array.reshape(window.shape)
    size = window.dtype.itemsize
    strides = [s * size for s in window.strides]
    memory = array.reshape(-1).view(np.uint8)
    return np.ndarray(window.shape, window.dtype, memory.data, window.offset * size, strides)
