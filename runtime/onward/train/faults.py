"""Finds where a number that is not finite came from.

A run keeps a copy of its state from some steps ago. Steps are functions of their inputs and state, so from
there they can be done again, to the bit, up to the first whose loss or state is not finite. The interpreter
then runs that one node by node, from the state before it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, final

import numpy as np
import onnx_ir as ir

from onward.autodiff import UpdateCount
from onward.engine import Interpreter
from onward.errors import OnwardError
from onward.graph import Array

if TYPE_CHECKING:
    from onward.data import Batch
    from onward.train.run import Run

__all__ = ["Rewind", "first_fault", "is_finite"]

_STEPS = 64
"""Steps between copies of the state: copying then costs less than a hundredth of any step's own traffic."""


@final
class Rewind:
    """A state that was sound, and the way from there to a fault."""

    def __init__(self) -> None:
        self._state: dict[str, Array] = {}
        self._step = 0
        self._updates = UpdateCount()
        self._taken: list[tuple[int, int, float]] = []

    def keep(self, run: Run, rate: float) -> None:
        """Note a step that is about to be done, and copy the state where the last copy is old."""
        if not self._state or len(self._taken) == _STEPS:
            state = run.session.state
            if not self._state:
                self._state = {name: np.empty_like(array) for name, array in state.items()}
            for name, array in state.items():
                np.copyto(self._state[name], array)
            self._step, self._updates = run.step, replace(run.updates)
            self._taken.clear()
        self._taken.append((run.epoch, run.batch, rate))

    def explain(self, run: Run) -> str:
        """Say which node first made what is not finite, and leave the session in the state before it.

        Empty where the steps, done again, show no fault.
        """
        if not self._state:
            return ""
        run.session.load_state(self._state)
        if not run.loader.repeatable:
            return f"the weights are those after step {self._step}, since a generator cannot be repeated"
        updates = replace(self._updates)
        batches = _nothing()
        reading = 0
        for number, (epoch, position, rate) in enumerate(self._taken, self._step):
            if epoch != reading:
                batches.close()
                batches, reading = run.batches(epoch, position), epoch
            inputs, ends = run.inputs(next(batches), position, number, rate, updates)
            before = {name: array.copy() for name, array in run.session.state.items()}
            results = run.session.run(inputs)
            fault = not np.isfinite(results[run.layout.loss]) or bool(run.faulty(everywhere=True))
            if run.group is not None:  # state of one rank alone may hold the fault, and all have to stop
                fault = run.group.any(fault)
            if not fault:
                updates.add(sum(float(results[w]) for w in run.layout.totals.values()), ends)
                continue
            run.session.load_state(before)
            batches.close()
            try:
                found = first_fault(run.layout.model, {**inputs, **before})
            except (OnwardError, MemoryError):
                return ""
            return f"step {number + 1}: {found}" if found else ""
        batches.close()
        return ""


def _nothing() -> Generator[Batch, None, None]:
    yield from ()


def is_finite(array: Array) -> bool:
    """Whether all of a floating-point array is finite."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def first_fault(model: ir.Model, inputs: Mapping[str, Array]) -> str:
    """The first node on the way to an output that is not finite whose own operands are; empty if none.

    Infinities that a model makes on purpose and selects away, as masks do, reach no output and are not named.
    """
    bad: dict[str, int] = {name: 1 for name, array in inputs.items() if not is_finite(array)}
    sizes: dict[str, int] = {}
    graph = model.graph
    constants = [v for v in graph.initializers.values() if v.name not in inputs and v.const_value is not None]
    bad |= {v.name or "": 1 for v in constants if v.const_value and not is_finite(v.const_value.numpy())}

    def observe(node: ir.Node, outputs: tuple[Array, ...]) -> None:
        for value, array in zip(node.outputs, outputs, strict=False):
            if isinstance(array, np.ndarray) and not is_finite(array):
                bad[value.name or ""] = int(array.size - np.isfinite(array).sum())
                sizes[value.name or ""] = array.size

    Interpreter(graph).run(inputs, observer=observe)
    reached: set[str] = set()
    pending = [v for v in graph.outputs if v.name in bad]
    while pending:
        value = pending.pop()
        if value.name not in bad or value.name in reached:
            continue
        reached.add(value.name)
        if (node := value.producer()) is not None:
            pending += [v for v in node.inputs if v is not None]
    for node in graph:
        made = [v.name or "" for v in node.outputs if v.name in reached]
        if made and not any(v is not None and v.name in bad for v in node.inputs):
            opset = graph.opset_imports.get(node.domain, 0)
            return (
                f"node {node.name!r}, operator {node.op_type}, opset {opset}, is the first whose result is "
                f"not finite for finite operands ({bad[made[0]]} of {sizes[made[0]]} elements)"
            )
    return ""
