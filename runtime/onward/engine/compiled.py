"""The compiled engine: plans for the input shapes that come, kept and shared by runs."""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import onnx_ir as ir

from onward.compile.codegen.jit import default_jit
from onward.compile.codegen.target import Target, has_byte_dots, host_target
from onward.compile.deciding import DECIDING_SIZE, deciding_inputs
from onward.compile.model_key import ModelKey
from onward.compile.options import DEFAULT_OPTIONS, CompileOptions
from onward.compile.program import NotStaticError, is_integer_weight
from onward.compile.spec import PlanSpec
from onward.engine.background import Background
from onward.engine.batches import Batches, Repeats, cover, powers, rows_of, with_rows
from onward.engine.divided import Divided, Familiar, Segment
from onward.engine.interpreter import Interpreter
from onward.engine.plan import Plan
from onward.engine.plan_cache import default_plans
from onward.engine.teams import default_teams
from onward.engine.weights import Weight, default_weights, private
from onward.errors import ConfigError, InputError, ShapeError
from onward.graph import Array, canonical_model, dtype_of, is_float, is_tensor, numpy_dtype
from onward.passes.fold_shapes import unpack_sequences
from onward.passes.integer_weights import with_integer_weights
from onward.passes.quantization import in_floats
from onward.processors import usable_cores

if TYPE_CHECKING:
    from onward.compile.division import Division, Part
    from onward.compile.planning import Planned

__all__ = ["CompiledEngine"]


_Given: TypeAlias = "tuple[tuple[str, tuple[int, ...] | bytes], ...]"
"""What is known of a run's inputs when it is planned: shapes by name, in the names' order, and behind them
the bytes of those whose contents decide shapes. A plain tuple: it is made and looked up at each run."""


def _of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> _Given:
    return tuple(sorted(shapes.items()))


def _shapes_in(given: _Given) -> dict[str, tuple[int, ...]]:
    return {name: known for name, known in given if not isinstance(known, bytes)}


def _contents_in(given: _Given) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, known) for name, known in given if isinstance(known, bytes))


_TINY = 2_000_000
"""Arithmetic and bytes of a run below which a second thread costs more than it saves."""

_PLANS = 16
"""Plans kept for different input shapes; the least recently used one goes first."""

_SPLIT_PLANS = 48
"""As `_PLANS`, where batches are split: 11 parts and the sizes that repeat, for each shape of a sample."""

_ENOUGH = 4
"""Batches of one size after which it gets a plan of its own, made in the background."""

_AGAIN = 2
"""Runs after which contents that decide shapes get a plan of their own; the first ones do at once."""

_PROOFS = 256
"""Shapes of samples for which it is remembered whether batches may be split."""


@final
@dataclass(frozen=True)
class _Made:
    """A plan before it has weights and memory."""

    spec: PlanSpec
    addresses: Sequence[int]
    seconds: Mapping[str, float]


@final
@dataclass(frozen=True)
class _Parts:
    """A model whose shapes depend on data, for input shapes."""

    divided: Divided
    division: Division


@final
class CompiledEngine:
    """A model that runs by plans of native kernels.

    A model without state may be run from several threads at once; runs of one with state queue. For the same
    threads and inputs the results have the same bits, whatever else goes on.

    Args:
        model: the model.
        bindings: state inputs, which are initializers too, and the outputs that replace them.
        threads: of a run; None: as many as the process may use. Tiny plans run on one.
        options: what the user chose about kernels.
        background: while the plan for new input shapes is made, the interpreter runs instead. A run's last
            bits then depend on whether the plan is ready. Only for models without state.
        workspaces: runs of one plan that go on at once, each with memory of its own; others wait. None: as
            many as the process may use cores.
        batches: "split": where the samples of a batch are proven to be independent, one of a size without
            a plan is run in parts, powers of two; so new sizes cost at most 11 plans. A size that repeats
            gets its own plan, made in the background; a run's last bits then depend on whether it is ready.
            Only for models without state.
        weights: of a model that this one is a part of: read instead of the model's own.

    Raises:
        ConfigError: background planning or split batches of a model with state; fewer than 1 workspace.
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
        workspaces: int | None = None,
        batches: Batches = "exact",
        weights: Mapping[str, Weight] | None = None,
    ) -> None:
        if (background or batches == "split") and bindings:
            raise ConfigError(
                "a model with state cannot be planned in the background: its runs must not differ"
            )
        if batches not in ("exact", "split"):
            raise ConfigError(f"batches={batches!r}: choose exact or split")
        if workspaces is not None and workspaces < 1:
            raise ConfigError(f"workspaces={workspaces}: choose at least 1")
        in_bytes = has_byte_dots(host_target())
        model = in_floats(with_integer_weights(canonical_model(model), bytes_multiply=in_bytes))
        model = unpack_sequences(model, bindings or ())
        self._interpreter = Interpreter(model.graph)
        self._model = model
        self._plannable = all(is_tensor(value) for value in model.graph.inputs)
        """Whether inputs have shapes that plans can be made for: sequences have none."""
        self._bindings = dict(bindings or {})
        self._options = options
        self.threads = threads if threads is not None else usable_cores()
        self._workspaces = 1 if bindings else workspaces or usable_cores()
        self._weights = self._initial(model, weights or {})
        self._interpreter.load(self.fixed)
        self._key = ModelKey(model, self._bindings)
        self._swapped: frozenset[str] = frozenset()
        self._making: dict[_Given, Future[_Made | Division | None]] = {}
        """What is made, or being made, for the weights that are constants now."""
        self._arenas: dict[_Given, list[Array]] = {}
        """Working memory of plans whose weights have been replaced since, for those that follow."""
        self._plans: OrderedDict[_Given, Plan | _Parts | None] = OrderedDict()
        """What has the weights of now; None where the interpreter runs all."""
        self._divided: dict[tuple[Part, ...], Divided] = {}
        """What has the weights of now, for all shapes that are divided in the same way."""
        self._familiar: dict[Part, Familiar] = {}
        self._meanwhile = background
        """Whether the interpreter runs while a plan is made."""
        self._split = batches == "split"
        self._deciding = deciding_inputs(model.graph)
        self._decided = False
        """Whether contents that decide shapes have had a plan."""
        self._contents = Repeats(_AGAIN)
        self._kept = _SPLIT_PLANS if self._split else _PLANS
        self._repeats = Repeats(_ENOUGH)
        self._independent: dict[_Given, bool] = {}
        """Whether batches of samples of given shapes may be split."""
        self._background: Background[_Made | Division | None] | None = (
            Background() if background or self._split else None
        )
        self._teams = default_teams()
        self._bodies: dict[ir.Graph, CompiledEngine] = {}
        self._bodies_lock = threading.Lock()
        self._lock = threading.Lock()
        """Held for the length of a look-up; never while something is planned or run."""
        self._state_lock = threading.Lock() if self._bindings else None
        """Held by whoever reads or changes state."""
        self._closed = False
        self._teams.hold(self.threads)
        self._release = weakref.finalize(self, self._teams.forget, self.threads)

    @property
    def fixed(self) -> dict[str, Array]:
        """State and weights by name. State is updated in place; weights are read-only."""
        return {name: weight.array for name, weight in self._weights.items()}

    def run(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None = None) -> dict[str, Array]:
        """Run the model; state advances in place.

        Args:
            inputs: an array for each input that is not an initializer, checked by the caller.
            outputs: names of outputs that are not state; all of them by default.

        Raises:
            ConfigError: the engine is closed.
        """
        plan = None
        if self._plannable:
            shapes = {name: a.shape for name, a in inputs.items()}
            if self._split and not self._deciding and (parts := self._parts(shapes)) is not None:
                results = self._execute_parts(parts, inputs) if parts else self.interpret(inputs)
                return _chosen(results, outputs)
            if self._deciding:
                given = self._given(shapes, inputs)
                if _contents_in(given) and not self._repeats_contents(given):
                    given = _of_shapes(shapes)
            else:
                given = tuple(sorted(shapes.items()))
            plan = self._plan(given, wait=not self._meanwhile)
        else:
            self._check_open()
        if self._state_lock is None:
            results = self._run_by(plan, inputs)
        else:
            with self._state_lock:
                results = self._run_by(plan, inputs)
        return _chosen(results, outputs)

    def _run_by(self, plan: Plan | _Parts | None, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if isinstance(plan, Plan):
            return self._execute(plan, inputs)
        return self.interpret(inputs) if plan is None else self._advance(plan.divided.run(inputs))

    def interpret(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model by the interpreter, whatever plans there are; state advances in place."""
        state = {name: self._weights[name].array for name in self._bindings}
        return self._advance(self._interpreter.run({**inputs, **state}))

    def plan(
        self, shapes: Mapping[str, tuple[int, ...]], inputs: Mapping[str, Array] | None = None
    ) -> Plan | None:
        """The plan for input shapes; None where shapes depend on data: `segments` has what there is then.

        Args:
            shapes: of the inputs.
            inputs: their contents, of which those count that decide shapes.
        """
        found = self._found(shapes, inputs)
        return found if isinstance(found, Plan) else None

    def segments(
        self, shapes: Mapping[str, tuple[int, ...]], inputs: Mapping[str, Array] | None = None
    ) -> list[Segment]:
        """The parts in which a model without a plan for inputs runs; none where NumPy runs all.

        Arguments are those of `plan`.
        """
        found = self._found(shapes, inputs)
        return found.divided.segments(found.division) if isinstance(found, _Parts) else []

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Do for inputs of these shapes what the first run would do: plan, compile and pack weights."""
        found = self._found(shapes, None)
        if isinstance(found, _Parts):
            found.divided.prepare(found.division)
        elif found is not None:
            with found.workspace() as workspace:
                found.prepare(workspace, None)

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Replace the contents of state and weights; names, shapes and dtypes are checked by the caller.

        Runs in progress end with the weights that they began with. State is copied. A weight is read where
        the caller has it, if it begins at a multiple of 64 bytes and has no gaps: whoever changes such an
        array does so while nothing runs, and loads it again.
        """
        initial = self._model.graph.initializers
        if fixed := [n for n in arrays if n not in self._weights or not is_float(initial[n])]:
            raise InputError(
                f"weight {fixed[0]!r} is not of a floating-point type, so it is part of the compiled "
                "program; make a session of the changed model"
            )
        state = {name: array for name, array in arrays.items() if name in self._bindings}
        if state:
            assert self._state_lock is not None
            with self._state_lock:
                for name, array in state.items():
                    np.copyto(self._weights[name].array, array)
        fresh = {
            name: Weight(array) if _readable(array) else private(array)
            for name, array in arrays.items()
            if name not in state
        }
        if not fresh:
            return
        with self._lock:
            swapped = self._swapped | fresh.keys()
            self._weights = {**self._weights, **fresh}
            self._interpreter.load({name: weight.array for name, weight in fresh.items()})
            for key, plan in self._plans.items():
                if isinstance(plan, Plan):
                    self._arenas[key] = plan.idle_arenas()
            self._plans.clear()
            self._divided = {}  # runs in progress end with what they began with
            if swapped != self._swapped:
                self._swapped = swapped
                self._making, self._arenas, self._independent = {}, {}, {}
                if self._background is not None:
                    self._background.forget()

    def close(self) -> None:
        """Release threads; a second call does nothing. Background planning that has begun is waited for."""
        if self._background is not None:
            self._background.close()
        with self._lock:
            self._closed = True
            self._plans.clear()
            self._arenas.clear()
            divided = list(self._divided.values())
        for parts in divided:
            parts.close()
        with self._bodies_lock:
            for engine in self._bodies.values():
                engine.close()
        if self._release.detach() is not None:
            self._teams.release(self.threads)

    def _given(self, shapes: Mapping[str, tuple[int, ...]], inputs: Mapping[str, Array]) -> _Given:
        """What plans are made for: shapes, and contents that decide more of them."""
        given = _of_shapes(shapes)
        if not self._deciding:
            return given
        held = [(name, inputs[name]) for name in self._deciding if name in inputs]
        few = [(name, x.tobytes()) for name, x in held if x.ndim <= 1 and x.size <= DECIDING_SIZE]
        return (*given, *few)

    def _repeats_contents(self, given: _Given) -> bool:
        """Whether contents are worth a plan: they have one, are the first, or have come before.

        Contents that are others at each run are counters rather than shapes.
        """
        with self._lock:
            if given in self._plans or not self._decided:
                self._decided = True
                return True
            return self._contents.again(given)

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("the session is closed: open a new one")

    def _initial(self, model: ir.Model, given: Mapping[str, Weight]) -> dict[str, Weight]:
        """State in memory of the engine's own, and weights in memory that engines share."""
        known = default_weights()
        return {
            name: given.get(name)
            or (private if name in self._bindings else known.share)(value.const_value.numpy())
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
            and (value.const_value.dtype.is_floating_point() or is_integer_weight(value))
        }

    def _execute(self, plan: Plan, inputs: Mapping[str, Array]) -> dict[str, Array]:
        workspace = plan.take()
        try:
            workspace.bind(inputs)
            pace = workspace.steps.pace
            team = self._teams.take(plan.threads, wanted=pace.team)
            try:
                plan.prepare(workspace, team)
                if plan.threads == 1 or pace.team != (team is not None):
                    return workspace.run(team)
                started = time.perf_counter()
                results = workspace.run(team)
                pace.ran(time.perf_counter() - started)
                return results
            finally:
                self._teams.give(team)
        finally:
            plan.give(workspace)

    def _execute_parts(
        self, parts: Sequence[tuple[int, Plan]], inputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        found: list[dict[str, Array]] = []
        start = 0
        for rows, plan in parts:
            part = {name: array[start : start + rows] for name, array in inputs.items()}
            try:
                found.append(self._execute(plan, part))
            except ShapeError as error:
                raise type(error)(f"samples {start} to {start + rows - 1} of the batch: {error}") from error
            start += rows
        return {name: np.concatenate([results[name] for results in found]) for name in found[0]}

    def _parts(self, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, Plan]] | None:
        """The samples and plans of a batch's parts; none where they are being made in the background.

        None where the batch has a plan, or gets one.
        """
        key, rows = _of_shapes(shapes), rows_of(shapes)
        with self._lock:
            self._check_open()
            if rows is None or key in self._plans:
                return None
            repeated = self._repeats.again(key)
        if not self._may_split(shapes):
            return None
        if repeated and self._plan(key, wait=False) is not None:
            return None
        smaller = {size: with_rows(shapes, size) for size in powers((1 << rows.bit_length()) - 1)}
        keys = {size: _of_shapes(other) for size, other in smaller.items()}
        with self._lock:
            ready = {size: p for size, at in keys.items() if isinstance(p := self._plans.get(at), Plan)}
            for size in ready:
                self._plans.move_to_end(keys[size])
        wanted, chosen = powers(rows), cover(rows, ready)
        for size in dict.fromkeys(wanted):
            if size not in ready:
                plan = self._plan(keys[size], wait=chosen is None and not self._meanwhile)
                if isinstance(plan, Plan):
                    ready[size] = plan
        if all(size in ready for size in wanted):
            chosen = wanted
        return [(size, ready[size]) for size in chosen or ()]

    def _may_split(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a batch's samples are proven to be independent, outside any lock."""
        key = _of_shapes(with_rows(shapes, 1))
        with self._lock:
            known, swapped = self._independent, self._swapped
            if (found := known.get(key)) is not None:
                return found
        # as lowering: not needed where the model is not planned
        from onward.compile.independence import not_independent

        found = not_independent(self._model, shapes, swapped) is None
        with self._lock:
            if len(known) >= _PROOFS:
                known.clear()
            known[key] = found
        return found

    def _found(
        self, shapes: Mapping[str, tuple[int, ...]], inputs: Mapping[str, Array] | None
    ) -> Plan | _Parts | None:
        return self._plan(self._given(shapes, inputs or {}), wait=True) if self._plannable else None

    def _plan(self, key: _Given, *, wait: bool) -> Plan | _Parts | None:
        """The plan for inputs, or several; None where there is none, or, unless `wait`, none yet."""
        while True:
            with self._lock:
                self._check_open()
                if key in self._plans:
                    self._plans.move_to_end(key)
                    return self._plans[key]
                swapped, making = self._swapped, self._making
                divided, weights = self._divided, self._weights
            if wait:
                made = self._once(key, making, swapped)
            else:
                ready = self._ready(key, making, swapped)
                if ready is None:
                    return None
                made = ready.result()
            parts = None
            if made is not None and not isinstance(made, _Made):
                parts = _Parts(self._in_parts(made, divided, weights), made)
            with self._lock:
                current = making is self._making and divided is self._divided
                if current and key not in self._plans:
                    self._plans[key] = self._bound(key, made) if isinstance(made, _Made) else parts
                    if len(self._plans) > self._kept:
                        self._plans.popitem(last=False)
                    for old in [k for k, f in making.items() if k not in self._plans and f.done()]:
                        if len(making) > self._kept:
                            del making[old]
                            self._arenas.pop(old, None)

    def _bound(self, key: _Given, made: _Made) -> Plan:
        return Plan(
            made.spec,
            self._weights,
            made.addresses,
            made.seconds,
            workspaces=self._workspaces,
            run_body=self._run_body,
            arenas=self._arenas.pop(key, ()),
        )

    def _in_parts(
        self, division: Division, known: dict[tuple[Part, ...], Divided], weights: Mapping[str, Weight]
    ) -> Divided:
        """A model in parts, outside any lock: one that is known with these weights, or a new one."""
        if (found := known.get(division.parts)) is not None:
            return found

        def open_engine(model: ir.Model, met: bool, weights: Mapping[str, Weight]) -> CompiledEngine:
            return CompiledEngine(
                model,
                None,
                self.threads,
                self._options,
                background=met or self._meanwhile,  # runs do not wait for plans for shapes that data give
                workspaces=self._workspaces,
                batches="split" if self._split and not met else "exact",
                weights=weights,
            )

        made = Divided(self._model, division, weights, self._bindings, self._familiar, open_engine)
        return known.setdefault(division.parts, made)

    def _once(
        self,
        key: _Given,
        making: dict[_Given, Future[_Made | Division | None]],
        swapped: frozenset[str],
    ) -> _Made | Division | None:
        """What is made for input shapes: by the first thread that asks, for which others wait."""
        with self._lock:
            future = making.get(key)
            mine = future is None
            if future is None:
                future = making[key] = Future()
        if mine:
            try:
                job = None if self._background is None else self._background.claim(key)
                made = self._stored(key, swapped) or self._made(key, swapped) if job is None else job.result()
                future.set_result(made)
            except BaseException as error:
                with self._lock:
                    del making[key]
                future.set_exception(error)
                raise
        return future.result()

    def _ready(
        self,
        key: _Given,
        making: dict[_Given, Future[_Made | Division | None]],
        swapped: frozenset[str],
    ) -> Future[_Made | Division | None] | None:
        """What has been made for input shapes; None where it is being made in the background."""
        assert self._background is not None
        with self._lock:
            if (future := making.get(key)) is not None:
                return future if future.done() else None
            if making is self._making and self._background.done(key):
                return self._keep(making, key, self._background.take(key))
        if (stored := self._stored(key, swapped)) is not None:
            with self._lock:
                return self._keep(making, key, stored)
        with self._lock:
            if making is self._making:  # else the weights that are constants have changed since
                self._begin(key, swapped)
        return None

    @staticmethod
    def _keep(
        making: dict[_Given, Future[_Made | Division | None]], key: _Given, made: _Made | Division | None
    ) -> Future[_Made | Division | None]:
        future: Future[_Made | Division | None] = Future()
        future.set_result(made)
        return making.setdefault(key, future)

    def _begin(self, key: _Given, swapped: frozenset[str]) -> None:
        """Make a plan in the background, unless that has begun or the engine is gone when its turn comes."""
        assert self._background is not None
        engine = weakref.ref(self)

        def make() -> _Made | Division | None:
            found = engine()
            return None if found is None else found._made(key, swapped)

        self._background.start(key, make)

    def _stored(self, given: _Given, swapped: frozenset[str]) -> _Made | None:
        """What the cache has."""
        started = time.perf_counter()
        key = self._stored_under(given, swapped, host_target())
        if key is None or (spec := default_plans().get(key)) is None:
            return None
        loaded = time.perf_counter()
        if (addresses := default_jit().known(spec.kernels)) is None:
            return None
        return _Made(spec, addresses, {"lower": loaded - started, "compile": time.perf_counter() - loaded})

    def _made(self, given: _Given, swapped: frozenset[str]) -> _Made | Division | None:
        """A new plan, which the cache then has; parts, or None, where shapes depend on data."""
        started = time.perf_counter()
        target = host_target()
        try:
            made = self._lowered(given, target, self.threads, swapped)
            if self.threads > 1 and made.spec.work < _TINY:
                made = self._lowered(given, target, 1, swapped)
        except NotStaticError:
            from onward.compile.division import divide

            return divide(self._model, _shapes_in(given), self._bindings, swapped)
        lowered = time.perf_counter()
        addresses = default_jit().addresses(made.texts)
        seconds = {"lower": lowered - started, "compile": time.perf_counter() - lowered}
        if (key := self._stored_under(given, swapped, target)) is not None:
            default_plans().put(key, made.spec)
        return _Made(made.spec, addresses, seconds)

    def _stored_under(self, given: _Given, swapped: frozenset[str], target: Target) -> str | None:
        """Where the cache has a plan; None for a model that it cannot name."""
        return self._key.key(
            _shapes_in(given), swapped, target, self.threads, self._options, _contents_in(given)
        )

    def _lowered(
        self,
        given: _Given,
        target: Target,
        threads: int,
        swapped: frozenset[str],
    ) -> Planned:
        # lowering is a third of the imports, and not needed where the plan is on disk
        from onward.compile.planning import plan_model

        shapes = _shapes_in(given)
        kinds = {v.name: numpy_dtype(dtype_of(v)) for v in self._model.graph.inputs}
        contents = {
            name: np.frombuffer(content, kinds[name]).reshape(shapes[name])
            for name, content in _contents_in(given)
        }
        return plan_model(
            self._model, shapes, self.fixed, self._bindings, target, threads, swapped, self._options, contents
        )

    def _run_body(self, body: ir.Graph, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Run a body that an operator of a plan has by an engine of its own, on one thread."""
        with self._bodies_lock:
            if (engine := self._bodies.get(body)) is None:
                model = ir.Model(body, ir_version=self._model.ir_version)
                engine = self._bodies[body] = CompiledEngine(model, threads=1, options=self._options)
        results = engine.run(dict(zip([v.name or "" for v in body.inputs], inputs, strict=True)))
        return tuple(results[v.name or ""] for v in body.outputs)

    def _advance(self, results: dict[str, Array]) -> dict[str, Array]:
        """Take the new state out of results."""
        for name, target in self._bindings.items():
            np.copyto(self._weights[name].array, results.pop(target))
        return results


def _chosen(results: dict[str, Array], outputs: Iterable[str] | None) -> dict[str, Array]:
    return results if outputs is None else {name: results[name] for name in outputs}


def _readable(array: Array) -> bool:
    """Whether kernels read an array where it is as fast as a copy."""
    return array.flags.c_contiguous and array.ctypes.data % 64 == 0
