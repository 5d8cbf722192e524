"""Models whose shapes depend on data: parts with plans, and NumPy between them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import onnx_ir as ir

from onward.compile.division import FEW, MANY, Cut, Division, Part, part_model
from onward.engine.batches import Repeats
from onward.engine.interpreter import Interpreter
from onward.engine.weights import Weight

if TYPE_CHECKING:
    from onward.engine.compiled import CompiledEngine
    from onward.engine.plan import Plan

__all__ = ["ENOUGH", "MOST", "Bodies", "Divided", "Familiar", "Segment"]

ENOUGH = 4
"""Runs with the same shapes after which a part whose shapes depend on data gets a plan for them."""

MOST = 16
"""Sets of shapes that depend on data for which a part gets plans."""

_Shapes: TypeAlias = "tuple[tuple[str, tuple[int, ...]], ...]"

OpenEngine: TypeAlias = "Callable[[ir.Model, bool, Mapping[str, Weight]], CompiledEngine]"


@final
class Familiar:
    """Which of the shapes that depend on data come often enough to have plans.

    Those that came four times, up to 16 of them: so a model whose shapes are new with every run is never
    planned for any, and plans are not made again and again for shapes that take turns.
    """

    def __init__(self) -> None:
        self._repeats = Repeats(ENOUGH)
        self._planned: set[_Shapes] = set()
        self._lock = threading.Lock()

    def meet(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether shapes that have come, once more, are among those that have plans from now on."""
        key = tuple(sorted(shapes.items()))
        with self._lock:
            if key not in self._planned and len(self._planned) < MOST and self._repeats.again(key):
                self._planned.add(key)
            return key in self._planned


@final
class Bodies:
    """Runs the bodies of operators that NumPy runs, such as Loop with a count that depends on data.

    One that is large enough gets plans for shapes that come often, as parts do.

    Args:
        ir_version: of the model that they are in.
        open_engine: makes their engines.
    """

    def __init__(self, ir_version: int, open_engine: OpenEngine) -> None:
        self._ir_version = ir_version
        self._open = open_engine
        self._interpreters: dict[ir.Graph, Interpreter] = {}
        self._engines: dict[ir.Graph, tuple[CompiledEngine, Familiar]] = {}
        self._lock = threading.Lock()

    def run(self, body: ir.Graph, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Run a body."""
        inputs = [np.asarray(x) if isinstance(x, np.generic) else x for x in inputs]
        named = dict(zip([v.name or "" for v in body.inputs], inputs, strict=True))
        if all(isinstance(x, np.ndarray) for x in inputs) and _worthwhile(body, inputs):
            with self._lock:
                if body not in self._engines:
                    model = ir.Model(body, ir_version=self._ir_version)
                    self._engines[body] = self._open(model, True, {}), Familiar()
                engine, familiar = self._engines[body]
            results = _by_plan_if_familiar(engine, familiar, named)
        else:
            with self._lock:
                if body not in self._interpreters:
                    self._interpreters[body] = Interpreter(body, self.run)
                interpreter = self._interpreters[body]
            results = interpreter.run(named)
        return tuple(results[v.name or ""] for v in body.outputs)

    def close(self) -> None:
        """Release threads."""
        with self._lock:
            for engine, _ in self._engines.values():
                engine.close()


def _worthwhile(body: ir.Graph, inputs: Sequence[Any]) -> bool:
    """Whether a plan is worth its calls."""
    return len(body) >= FEW or sum(x.size for x in inputs) >= MANY


@final
@dataclass(frozen=True)
class Segment:
    """A part of a divided model, for reports.

    Attributes:
        part: which nodes it has, what it reads and gives.
        cuts: the nodes that NumPy has to do, and why.
        shapes: of its inputs; None where they depend on data.
        engine: what plans it; None where NumPy runs it.
    """

    part: Part
    cuts: Sequence[Cut]
    shapes: Mapping[str, tuple[int, ...]] | None
    engine: CompiledEngine | None

    def plan(self) -> Plan | None:
        """Its plan, where its shapes are known; None where it is divided itself."""
        return None if self.engine is None or self.shapes is None else self.engine.plan(self.shapes)


@final
class Divided:
    """A model in parts with the weights of now; several runs may go on at once.

    Args:
        model: the whole, in canonical form.
        division: of it.
        weights: state and weights by name, as the parts read them.
        state: names of state.
        familiar: of each part, by the part; what is missing is added.
        open_engine: makes an engine for a part's model, or a body's, of weights that are there already; told
            whether its shapes depend on data.
    """

    def __init__(
        self,
        model: ir.Model,
        division: Division,
        weights: Mapping[str, Weight],
        state: Collection[str],
        familiar: dict[Part, Familiar],
        open_engine: OpenEngine,
    ) -> None:
        self._division = division
        self._outputs = [v.name or "" for v in model.graph.outputs]
        initial = model.graph.initializers
        contents = {
            name: ir.Tensor(weight.array, dtype=initial[name].dtype, name=name)
            for name, weight in weights.items()
        }
        self._fixed: dict[str, Any] = {
            name: tensor.numpy()
            for name, value in initial.items()
            if (tensor := contents.get(name, value.const_value)) is not None
            and (name in state or value.is_graph_output())
        }
        """What runs need beside their inputs, unless those replace it."""
        self._runs: list[Callable[[Mapping[str, Any]], dict[str, Any]]] = []
        self._engines: list[CompiledEngine | None] = []
        self._bodies = None if state else Bodies(model.ir_version, open_engine)
        for part in division.parts:
            own = part_model(model, division, part, contents)
            if not part.planned:
                self._engines.append(None)
                run_body = None if self._bodies is None else self._bodies.run
                self._runs.append(Interpreter(own.graph, run_body).run)
                continue
            engine = open_engine(own, part.met, weights)
            self._engines.append(engine)
            if part.met:
                met = familiar.setdefault(part, Familiar())
                self._runs.append(functools.partial(_by_plan_if_familiar, engine, met))
            else:
                self._runs.append(engine.run)
        self._frees = list(_last_uses(division.parts, self._outputs))

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the parts; every output of the model, those that replace state included."""
        known: dict[str, Any] = {**self._fixed, **inputs}
        for part, run, frees in zip(self._division.parts, self._runs, self._frees, strict=True):
            known.update(run({name: known[name] for name in part.inputs}))
            for name in frees:
                known.pop(name, None)
        return {name: known[name] for name in self._outputs}

    def segments(self, division: Division) -> list[Segment]:
        """The parts, for reports.

        Args:
            division: of the same parts, for the shapes that are asked about.
        """
        parts = zip(division.parts, division.cuts, division.shapes, self._engines, strict=True)
        return [Segment(part, cuts, shapes, engine) for part, cuts, shapes, engine in parts]

    def prepare(self, division: Division) -> None:
        """Make the plans of the parts whose shapes are known."""
        for engine, shapes in zip(self._engines, division.shapes, strict=True):
            if engine is not None and shapes is not None:
                engine.prepare(shapes)

    def close(self) -> None:
        """Release threads."""
        for engine in self._engines:
            if engine is not None:
                engine.close()
        if self._bodies is not None:
            self._bodies.close()


def _by_plan_if_familiar(
    engine: CompiledEngine, familiar: Familiar, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    known = familiar.meet({name: array.shape for name, array in inputs.items()})
    return engine.run(inputs) if known else engine.interpret(inputs)


def _last_uses(parts: Sequence[Part], outputs: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """For each part the names of values that nothing reads after it."""
    kept = set(outputs)
    for k, part in enumerate(parts):
        later = {name for other in parts[k + 1 :] for name in other.inputs}
        yield tuple(name for name in (*part.inputs, *part.outputs) if name not in later and name not in kept)
