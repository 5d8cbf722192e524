"""The compiled engine: plans for the input shapes that come, kept and shared by runs."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import final

import numpy as np
import onnx_ir as ir

from onward.compile.codegen.jit import default_jit
from onward.compile.codegen.target import host_target
from onward.compile.options import DEFAULT_OPTIONS, CompileOptions
from onward.compile.program import NotStaticError
from onward.engine.interpreter import Interpreter
from onward.engine.plan import Plan
from onward.engine.team import Team
from onward.errors import InputError
from onward.graph import Array

__all__ = ["CompiledEngine"]

_TINY = 2_000_000
"""Arithmetic and bytes of a run below which a second thread costs more than it saves."""

_PLANS = 16
"""Plans kept for different input shapes; the least recently used one goes first."""


@final
class CompiledEngine:
    """A model that runs by plans of native kernels.

    Runs from several Python threads queue. For the same threads and inputs the results have the same bits.

    Args:
        model: the model.
        bindings: state inputs, which are initializers too, and the outputs that replace them.
        threads: of the team; None: as many as the process may use. Tiny plans run on one.
        options: what the user chose about kernels.

    Raises:
        UnsupportedError: operators are missing, all of them named.
        InvalidModelError: a node's attributes do not fit its operator.
    """

    def __init__(
        self,
        model: ir.Model,
        bindings: Mapping[str, str] | None = None,
        threads: int | None = None,
        options: CompileOptions = DEFAULT_OPTIONS,
    ) -> None:
        self._interpreter = Interpreter(model.graph)
        self._model = model
        self._bindings = dict(bindings or {})
        self._options = options
        self.threads = threads if threads is not None else _usable_cores()
        self.fixed: dict[str, Array] = {
            name: _aligned(value.const_value.numpy())
            for name, value in model.graph.initializers.items()
            if value.const_value is not None and value.const_value.dtype.is_floating_point()
        }
        self._swapped: set[str] = set()
        self._plans: OrderedDict[tuple[tuple[str, tuple[int, ...]], ...], Plan | None] = OrderedDict()
        self._teams: dict[int, Team] = {}
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Run the model; state advances in place.

        Args:
            inputs: an array for each input that is not an initializer, checked by the caller.
            outputs: names of outputs that are not state; all of them by default.
        """
        with self._lock:
            plan = self._plan({name: a.shape for name, a in inputs.items()})
            if plan is None:
                results = self._interpret(inputs)
            else:
                if plan.threads not in self._teams:
                    self._teams[plan.threads] = Team(plan.threads)
                results = plan.run(inputs, self._teams[plan.threads])
        return results if outputs is None else {name: results[name] for name in outputs}

    def plan(self, shapes: Mapping[str, tuple[int, ...]]) -> Plan | None:
        """The plan for input shapes; None where shapes depend on data and the interpreter runs instead."""
        with self._lock:
            return self._plan(shapes)

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Replace the contents of state and weights; names, shapes and dtypes are checked by the caller."""
        with self._lock:
            if fixed := [name for name in arrays if name not in self.fixed]:
                raise InputError(
                    f"weight {fixed[0]!r} is not of a floating-point type, so it is part of the compiled "
                    "program; make a session of the changed model"
                )
            if fresh := arrays.keys() - self._swapped - self._bindings.keys():
                self._swapped |= fresh
                self._plans.clear()
            for name, array in arrays.items():
                np.copyto(self.fixed[name], array)
            for plan in self._plans.values():
                if plan is not None:
                    plan.weights_changed = True

    def _plan(self, shapes: Mapping[str, tuple[int, ...]]) -> Plan | None:
        key = tuple(sorted(shapes.items()))
        if key not in self._plans:
            try:
                plan = self._new_plan(shapes, self.threads)
                if self.threads > 1 and plan.work < _TINY:
                    plan = self._new_plan(shapes, 1)
                self._plans[key] = plan
            except NotStaticError:
                self._plans[key] = None
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _new_plan(self, shapes: Mapping[str, tuple[int, ...]], threads: int) -> Plan:
        return Plan(
            self._model,
            shapes,
            self.fixed,
            self._bindings,
            default_jit(),
            host_target(),
            threads,
            self._swapped,
            self._options,
        )

    def _interpret(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._interpreter.load(self.fixed)
        results = self._interpreter.run(inputs)
        for name, target in self._bindings.items():
            np.copyto(self.fixed[name], results.pop(target))
        return results


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _aligned(array: Array) -> Array:
    """A copy that begins at a multiple of 64 bytes."""
    store = np.empty(array.nbytes + 64, np.uint8)
    shift = -store.ctypes.data % 64
    copy = store[shift : shift + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy
