"""Takes apart what two runs differ by: sides of kinks, states, rounding; the rest is a fault.

Each run is seen on the inputs and state that it had itself. The sides that it took are read from the engine,
which repeats the run with the tensors near kinks as outputs besides; keeping more tensors can change an
engine's rounding, so what is read is a guess, and holds only if the results of the run itself bear it out:
the float64 difference between both runs' sides and states must account for the tensors to their tolerance.
Where it does not, sides are sought whose effects on the gradients do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, final

import numpy as np

from onward.graph import Array
from onward.verify.reference import WRONG, Near, Reference, Sides

__all__ = ["Explanation", "Failing", "Run", "explain", "settle"]

_SOUGHT = 64
"""The most elements whose sides are sought one by one: each costs a float64 run."""
_SAMPLED = 4096
_SEEDS = range(1, 9)
_SPREAD = 4.0
"""How many times the largest move of the perturbed runs two engines may differ by: both round, and where a
network divides by what is near 0, few elements make the move, differently in each run."""

Observe: TypeAlias = Callable[[Sequence[str]], Mapping[str, Array]]


@final
@dataclass(frozen=True, slots=True)
class Run:
    """One engine's run.

    Attributes:
        feeds: every input, state included, as this engine had them.
        results: every output.
        observe: gives named tensors of the graph as this engine makes them.
    """

    feeds: Mapping[str, Array]
    results: Mapping[str, Array]
    observe: Observe


@final
@dataclass(frozen=True, slots=True)
class Explanation:
    """What two runs differ by.

    Attributes:
        results: our results as they would be with their sides and their state.
        near: elements within their forward error of a kink.
        kinks: elements that the engines took on different sides.
        nodes: whose operands those are.
        rounding: by output, how far rounding alone moves it; empty where nothing was left to explain.
    """

    results: Mapping[str, Array]
    near: int
    kinks: int
    nodes: tuple[str, ...]
    rounding: Mapping[str, float]


class Failing(Protocol):
    """Names the outputs that do not agree."""

    def __call__(
        self, results: Mapping[str, Array], rounding: Mapping[str, float] | None = None, /
    ) -> list[str]:
        """Those that, with `results` in the place of ours and `rounding` allowed, are not theirs."""


def explain(reference: Reference, ours: Run, theirs: Run, failing: Failing) -> Explanation:
    """Why two runs of one graph differ.

    Args:
        reference: of the graph.
        ours, theirs: the runs.
        failing: compares results with theirs.
    """
    same = all(np.array_equal(x, theirs.feeds[name], equal_nan=_float(x)) for name, x in ours.feeds.items())
    near = reference.near(theirs.feeds)
    our_near = near if same else reference.near(ours.feeds)
    sides, seen = _observed(near, theirs), _observed(our_near, ours)
    sides = _known(sides, near.own)
    # an element that is wrong in ours is not held: there ours has to be theirs as it is
    our_sides = _known(seen, sides if same else our_near.own)
    exact = reference.run(theirs.feeds, near, sides)

    def held(our_sides: Sides) -> dict[str, Array]:
        """Our results moved to the other run's sides and state."""
        if same and _equal(our_sides, sides):
            return dict(ours.results)
        return _moved(ours.results, reference.run(ours.feeds, our_near, our_sides), exact)

    def unexplained(results: Mapping[str, Array]) -> list[str]:
        """What is beyond rounding too."""
        left = failing(results, rounding)
        while left and (seed := next(seeds, None)) is not None:
            run = reference.perturbed(theirs.feeds, near, sides, seed)
            for name in exact:
                move = np.abs(_flat(run[name]) - _flat(exact[name])).max(initial=0)
                rounding[name] = max(
                    rounding.get(name, 0.0), _SPREAD * float(np.nan_to_num(move, posinf=0.0))
                )
            left = failing(results, rounding)
        return left

    seeds = iter(_SEEDS)
    rounding: dict[str, float] = {}
    results = held(our_sides)
    left = unexplained(results)
    if left and 0 < len(our_near) <= _SOUGHT:
        parts = {name: _flat(results[name]) - _flat(theirs.results[name]) for name in left}
        found = settle(reference, ours.feeds, our_near, our_sides, parts, wrong=[s == WRONG for s in seen])
        sought = held(found)
        if len(unexplained(sought)) < len(left):
            results, our_sides = sought, found
    compared = (
        [(near, our_sides, sides)]
        if same
        else [(n, s, n.own) for n, s in ((our_near, our_sides), (near, sides))]
    )
    parted = [(n, [a != b for a, b in zip(first, second, strict=True)]) for n, first, second in compared]
    nodes = {n.nodes[i]: None for n, flags in parted for i, flag in enumerate(flags) if flag.any()}
    return Explanation(
        results=results,
        near=len(near),
        kinks=sum(int(flag.sum()) for _, flags in parted for flag in flags),
        nodes=tuple(nodes),
        rounding=rounding,
    )


def settle(
    reference: Reference,
    feeds: Mapping[str, Array],
    near: Near,
    sides: Sides,
    parts: Mapping[str, Array],
    *,
    wrong: Sequence[Array],
) -> Sides:
    """Sides whose effects on the outputs account best for what a run differs by.

    Each element's effect is what putting it on the other side changes; effects are taken one after another
    as long as they bring the rest nearer to nothing.

    Args:
        reference: of the graph.
        feeds: every input, state included.
        near: the elements near kinks.
        sides: where they are taken to be.
        parts: for the outputs that differ, the run minus what it should be on those sides, flat.
        wrong: elements that stay, as rounding cannot have put them where they were seen.
    """
    names = list(parts)
    scales = [1.0 / max(float(np.abs(parts[name]).max(initial=0)), 1e-300) for name in names]

    def vector(results: Mapping[str, Array]) -> Array:
        flats = zip(scales, (_flat(results[name]) for name in names), strict=True)
        return np.nan_to_num(np.concatenate([s * _sampled(x) for s, x in flats]))

    start = vector(reference.run(feeds, near, sides))
    rest = vector(parts)
    flips = [(n, i) for n, flags in enumerate(wrong) for i in np.flatnonzero(~flags).tolist()]
    effects = {flip: vector(reference.run(feeds, near, _flipped(sides, [flip]))) - start for flip in flips}
    chosen: list[tuple[int, int]] = []
    while effects:
        best = min(effects, key=lambda flip: float(np.linalg.norm(rest - effects[flip])))
        if np.linalg.norm(rest - effects[best]) > 0.99 * np.linalg.norm(rest):
            break
        rest = rest - effects.pop(best)
        chosen.append(best)
    return _flipped(sides, chosen)


def _flipped(sides: Sides, flips: Sequence[tuple[int, int]]) -> Sides:
    changed = [side.copy() for side in sides]
    for n, i in flips:
        changed[n][i] = -changed[n][i] or 1
    return tuple(changed)


def _observed(near: Near, run: Run) -> Sides:
    return near.sides(run.observe(near.values)) if len(near) else near.own


def _known(sides: Sides, otherwise: Sides) -> Sides:
    return tuple(np.where(a == WRONG, b, a) for a, b in zip(sides, otherwise, strict=True))


def _moved(
    results: Mapping[str, Array], here: Mapping[str, Array], there: Mapping[str, Array]
) -> dict[str, Array]:
    """Results with the difference of two exact runs added; what is no float must be equal as it is."""
    return {
        name: (x + (there[name] - here[name])).astype(x.dtype) if name in here and _float(x) else x
        for name, x in results.items()
    }


def _float(x: Array) -> bool:
    return isinstance(x, np.ndarray | np.generic) and x.dtype.kind == "f"


def _flat(x: Array) -> Array:
    return np.asarray(x).astype(np.float64).reshape(-1)


def _sampled(x: Array) -> Array:
    return x[:: max(1, x.size // _SAMPLED)]


def _equal(a: Sides, b: Sides) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
