"""One training step in both engines, batch after batch."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np

from onward.autodiff import TrainingStep, UpdateCount
from onward.engine import StepSession
from onward.engine.engines import EngineName, resolve
from onward.graph import Array
from onward.passes.expand import expand_onward
from onward.verify._collect import Collector
from onward.verify.held import Explanation, Run, explain
from onward.verify.locate import engine_difference, exposing, first_difference
from onward.verify.reference import Reference
from onward.verify.report import Difference, Kind, Report
from onward.verify.tolerance import Tolerances
from onward.verify.witness import Witness

__all__ = ["Comparison"]


@final
class Comparison:
    """A training step in Onward and in onnxruntime.

    Args:
        step: the step.
        learning_rate: at every step.
        seed: of dropout.
        tolerance: of every tensor.
        engine: which of our engines is compared.
        accumulate: how many batches one update gathers.
    """

    def __init__(
        self,
        step: TrainingStep,
        learning_rate: float,
        seed: int,
        tolerance: Tolerances,
        engine: EngineName,
        accumulate: int,
    ) -> None:
        self._accumulate = accumulate
        self._step, self._engine, self._tolerance, self._seed = step, engine, tolerance, seed
        self._session = StepSession(step.model, step.bindings, engine=engine)
        self._witness = Witness(step.model)
        self._scalars: dict[str, Array] = {step.learning_rate: np.asarray(learning_rate, np.float32)}
        if step.seed is not None:
            self._scalars[step.seed] = np.asarray(seed, np.int64)
        self._kinds = _kinds(step)
        self._shown = {target: name for name, target in step.bindings.items()}
        self._collector = Collector(tolerance)
        self._difference: Difference | None = None
        self._explained: list[Explanation] = []

    def run(self, batches: Sequence[Mapping[str, Array]], subject: str) -> Report:
        """Run the step over batches, each engine feeding its own state back, and report.

        Where a batch had to be explained, both engines go on from Onward's state: what has moved one of the
        two is known, and shall not be found again in every later step.
        """
        step = self._step
        state = {name: array.copy() for name, array in self._session.state.items()}
        updates = UpdateCount()
        for number, batch in enumerate(batches):
            feeds: dict[str, Array] = {**batch, **self._scalars, step.step: np.asarray(number, np.int64)}
            ends = (number + 1) % self._accumulate == 0 or number + 1 == len(batches)
            if step.update is not None:
                feeds[step.update] = updates.number(ends)
            before = {name: array.copy() for name, array in self._session.state.items()}
            results = self._session.run(feeds)
            updates.add(sum(float(results[weight]) for weight in step.totals.values()), ends)
            results |= {target: self._session.state[name].copy() for name, target in step.bindings.items()}
            ours = Run({**feeds, **before}, results, functools.partial(self._ours, feeds, before))
            given = {**feeds, **state}
            theirs = Run(given, self._witness.run(given), functools.partial(self._theirs, given))
            agreed = self._compare(number, ours, theirs)
            after = theirs.results if agreed else results
            state = {name: after[target] for name, target in step.bindings.items()}
        return Report(
            subject=f"training step of {subject}",
            witness=self._witness.version,
            seed=self._seed,
            runs=len(batches),
            rows=tuple(self._collector.rows.values()),
            first_difference=self._difference,
            near=sum(found.near for found in self._explained),
            kinks=sum(found.kinks for found in self._explained),
            kinked=tuple(dict.fromkeys(node for found in self._explained for node in found.nodes)),
        )

    def _compare(self, number: int, ours: Run, theirs: Run) -> bool:
        """Collect one batch's rows; returns whether the engines agree without an explanation."""
        collector, others = self._collector, theirs.results

        def failing(
            results: Mapping[str, Array], rounding: Mapping[str, float] | None = None, /
        ) -> list[str]:
            moves = rounding or {}
            return [
                name
                for name in self._kinds
                if not collector.agree(results[name], others[name], moves.get(name, 0.0))
            ]

        results: Mapping[str, Array] = ours.results
        rounding: Mapping[str, float] = {}
        difference: Difference | None = None
        differs = failing(results)
        if differs:
            found = explain(self._reference, ours, theirs, failing)
            self._explained.append(found)
            results, rounding = found.results, found.rounding
            beyond = failing(results, rounding)
            known = self._difference is not None and self._difference.is_fault
            if not known and (beyond or failing(results)):
                difference = self._locate(number, ours, theirs, beyond)
            if not beyond and difference is not None and difference.is_fault:
                # what rounding of this size would hide is seen in the node that makes it
                rounding = {}
        faulty = False
        for name, kind in self._kinds.items():
            shown = self._shown.get(name, name)
            row = collector.add(
                kind, shown, number, results[name], others[name], rounding=rounding.get(name, 0.0)
            )
            faulty |= not (row.ok or row.rounding)
        if faulty and difference is not None:
            self._difference = difference
        return not differs

    def _locate(self, number: int, ours: Run, theirs: Run, failing: Sequence[str]) -> Difference:
        """Where the engines part; `failing` are the outputs that are beyond rounding."""
        model = self._step.model
        found = first_difference(model, theirs.feeds, self._tolerance, optimized=theirs.results, step=number)
        if found.cause == "node" or resolve(self._engine) == "interpreter":
            return found
        return engine_difference(
            model, ours.feeds, self._tolerance, observe=ours.observe, failing=failing, step=number
        )

    @functools.cached_property
    def _reference(self) -> Reference:
        return Reference(self._step.model, (self._step.loss, *self._step.outputs))

    def _ours(
        self, feeds: Mapping[str, Array], state: Mapping[str, Array], names: Sequence[str]
    ) -> Mapping[str, Array]:
        step = self._step
        session = StepSession(exposing(step.model, names), step.bindings, engine=self._engine)
        session.load_state(state)
        return session.run(feeds)

    def _theirs(self, feeds: Mapping[str, Array], names: Sequence[str]) -> Mapping[str, Array]:
        return Witness(exposing(expand_onward(self._step.model), names)).run(feeds, names)


def _kinds(step: TrainingStep) -> dict[str, Kind]:
    kinds: dict[str, Kind] = dict.fromkeys((step.loss, *step.totals, *step.totals.values()), "loss")
    kinds.update(dict.fromkeys(step.outputs, "output"))
    kinds.update(dict.fromkeys(step.gradients.values(), "gradient"))
    groups: tuple[tuple[Kind, tuple[str, ...]], ...] = (
        ("parameter", step.parameters),
        ("statistic", step.statistics),
        ("slot", step.slots),
    )
    for kind, names in groups:
        kinds.update((step.bindings[name], kind) for name in names)
    return kinds
