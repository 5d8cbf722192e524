"""The compiled engine: plans for the input shapes that come, kept and shared by runs."""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias, final

import numpy as np
import onnx_ir as ir

from onward.compile.codegen.jit import default_jit
from onward.compile.codegen.target import Target, host_cores, host_target
from onward.compile.model_key import ModelKey
from onward.compile.options import DEFAULT_OPTIONS, CompileOptions
from onward.compile.program import NotStaticError
from onward.engine.background import Background
from onward.engine.interpreter import Interpreter
from onward.engine.plan import Plan
from onward.engine.plan_cache import default_plans
from onward.engine.team import Team
from onward.errors import ConfigError, InputError
from onward.graph import Array

if TYPE_CHECKING:
    from onward.compile.planning import Planned

__all__ = ["CompiledEngine"]

_Shapes: TypeAlias = "tuple[tuple[str, tuple[int, ...]], ...]"

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
        background: while the plan for new input shapes is made, the interpreter runs instead. A run's last
            bits then depend on whether the plan is ready. Only for models without state.

    Raises:
        ConfigError: background planning of a model with state.
        UnsupportedError: operators are missing, all of them named.
        InvalidModelError: a node's attributes do not fit its operator.
    """

    def __init__(
        self,
        model: ir.Model,
        bindings: Mapping[str, str] | None = None,
        threads: int | None = None,
        options: CompileOptions = DEFAULT_OPTIONS,
        *,
        background: bool = False,
    ) -> None:
        if background and bindings:
            raise ConfigError(
                "a model with state cannot be planned in the background: its runs must not differ"
            )
        self._interpreter = Interpreter(model.graph)
        self._model = model
        self._bindings = dict(bindings or {})
        self._options = options
        self.threads = threads if threads is not None else host_cores()
        self.fixed: dict[str, Array] = {
            name: _aligned(value.const_value.numpy())
            for name, value in model.graph.initializers.items()
            if value.const_value is not None and value.const_value.dtype.is_floating_point()
        }
        self._key = ModelKey(model, self._bindings)
        self._swapped: set[str] = set()
        self._plans: OrderedDict[_Shapes, Plan | None] = OrderedDict()
        self._background: Background[Plan | None] | None = Background() if background else None
        self._teams: dict[int, Team] = {}
        self._lock = threading.Lock()
        self._closed = False

    def run(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Run the model; state advances in place.

        Args:
            inputs: an array for each input that is not an initializer, checked by the caller.
            outputs: names of outputs that are not state; all of them by default.

        Raises:
            ConfigError: the engine is closed.
        """
        with self._lock:
            if self._closed:
                raise ConfigError("the session is closed: open a new one")
            plan = self._plan({name: a.shape for name, a in inputs.items()}, wait=self._background is None)
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
            return self._plan(shapes, wait=True)

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
                if self._background is not None:
                    self._background.forget()
            for name, array in arrays.items():
                np.copyto(self.fixed[name], array)
            for plan in self._plans.values():
                if plan is not None:
                    plan.weights_changed = True

    def close(self) -> None:
        """Release threads; a second call does nothing. Background planning that has begun is waited for."""
        if self._background is not None:
            self._background.close()
        with self._lock:
            self._closed = True
            for team in self._teams.values():
                team.close()
            self._teams.clear()

    def _plan(self, shapes: Mapping[str, tuple[int, ...]], *, wait: bool) -> Plan | None:
        """The plan for input shapes; None where there is none, or, unless `wait`, none yet."""
        key = tuple(sorted(shapes.items()))
        if key not in self._plans:
            if self._background is not None and self._background.done(key):
                self._plans[key] = self._background.take(key)
            elif wait:
                self._plans[key] = self._stored(shapes) or self._made(shapes, frozenset(self._swapped))
            elif (plan := self._stored(shapes)) is not None:
                self._plans[key] = plan
            else:
                self._begin(key, shapes)
                return None
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _begin(self, key: _Shapes, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make a plan in the background, unless that has begun or the engine is gone when its turn comes."""
        assert self._background is not None
        engine, swapped = weakref.ref(self), frozenset(self._swapped)

        def make() -> Plan | None:
            found = engine()
            return None if found is None else found._made(shapes, swapped)

        self._background.start(key, make)

    def _stored(self, shapes: Mapping[str, tuple[int, ...]]) -> Plan | None:
        """The plan from the cache."""
        started = time.perf_counter()
        key = self._key.key(shapes, self._swapped, host_target(), self.threads, self._options)
        if key is None or (spec := default_plans().get(key)) is None:
            return None
        loaded = time.perf_counter()
        if (addresses := default_jit().known(spec.kernels)) is None:
            return None
        seconds = {"lower": loaded - started, "compile": time.perf_counter() - loaded}
        return Plan(spec, self.fixed, addresses, seconds)

    def _made(self, shapes: Mapping[str, tuple[int, ...]], swapped: frozenset[str]) -> Plan | None:
        """A new plan, which the cache then has; None where shapes depend on data. Needs no lock."""
        started = time.perf_counter()
        target = host_target()
        try:
            made = self._lowered(shapes, target, self.threads, swapped)
            if self.threads > 1 and made.spec.work < _TINY:
                made = self._lowered(shapes, target, 1, swapped)
        except NotStaticError:
            return None
        lowered = time.perf_counter()
        addresses = default_jit().addresses(made.texts)
        seconds = {"lower": lowered - started, "compile": time.perf_counter() - lowered}
        if (key := self._key.key(shapes, swapped, target, self.threads, self._options)) is not None:
            default_plans().put(key, made.spec)
        return Plan(made.spec, self.fixed, addresses, seconds)

    def _lowered(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        target: Target,
        threads: int,
        swapped: frozenset[str],
    ) -> Planned:
        # lowering is a third of the imports, and not needed where the plan is on disk
        from onward.compile.planning import plan_model

        return plan_model(
            self._model, shapes, self.fixed, self._bindings, target, threads, swapped, self._options
        )

    def _interpret(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._interpreter.load(self.fixed)
        results = self._interpreter.run(inputs)
        for name, target in self._bindings.items():
            np.copyto(self.fixed[name], results.pop(target))
        return results


def _aligned(array: Array) -> Array:
    """A copy that begins at a multiple of 64 bytes."""
    store = np.empty(array.nbytes + 64, np.uint8)
    shift = -store.ctypes.data % 64
    copy = store[shift : shift + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy
