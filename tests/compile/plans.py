"""What the tests of plans share: plans on chosen threads and vector widths, beside the interpreter."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from tests.compile.accesses import check_declared
from tests.compile.kernels.targets import tuned

from onward.compile.codegen.jit import Jit, default_jit
from onward.compile.codegen.target import host_target
from onward.compile.items import Call, Item
from onward.compile.planning import plan_model
from onward.compile.program import is_integer_weight
from onward.compile.tensors import Buffer
from onward.engine.interpreter import Interpreter
from onward.engine.plan import Plan
from onward.engine.team import Team
from onward.engine.weights import Weight
from onward.graph import Array
from onward.verify.held import settle
from onward.verify.reference import WRONG, Reference

THREADS = int(os.environ.get("ONWARD_THREADS", "2"))
"""Of plans that are not about a number of threads."""

ROUNDING = 2e-6
"""Of the largest element: what two float32 sums in different orders may differ by, in nets of this size."""

NOISE = 1e-7
"""Of the largest element of its kind: below it, a tensor that would be 0 without rounding is compared."""


@functools.cache
def team(threads: int) -> Team:
    """One team for all tests that run on so many threads."""
    return Team(threads)


@functools.cache
def jit(lanes: int | None) -> Jit:
    """One JIT for each vector width."""
    return default_jit(lanes)


@dataclass
class Planned:
    """A plan with the arrays of its state and weights, and what it was made from."""

    plan: Plan
    fixed: dict[str, Array]
    threads: int
    items: Sequence[Item]
    index: Mapping[Buffer, int]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; state advances."""
        return self.plan.run(inputs, team(self.threads))

    @property
    def fallbacks(self) -> dict[str, str]:
        """The calls that are NumPy's, with their reasons."""
        return {r.operators: r.reason for r in self.plan.rows if r.kernel.startswith("numpy")}


def planned(
    model: ir.Model,
    inputs: Mapping[str, Array],
    bindings: Mapping[str, str] | None = None,
    *,
    threads: int = THREADS,
    lanes: int | None = None,
    **constants: Any,
) -> Planned:
    """The plan of a model for inputs of these shapes; its kernels access what they declare.

    `constants` of the tuning stand in the place of the target's own.
    """
    fixed = {
        name: np.array(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and (value.const_value.dtype.is_floating_point() or is_integer_weight(value))
    }
    shapes = {name: x.shape for name, x in inputs.items()}
    target = tuned(host_target(lanes), **constants)
    made = plan_model(model, shapes, fixed, dict(bindings or {}), target, threads)
    for item in made.items:
        if isinstance(item, Call):
            check_declared(item.kernel)
    weights = {name: Weight(array) for name, array in fixed.items()}
    plan = Plan(made.spec, weights, jit(lanes).addresses(made.texts))
    return Planned(plan, fixed, threads, made.items, made.index)


def interpreted(
    model: ir.Model,
    bindings: Mapping[str, str],
    steps: Sequence[Mapping[str, Array]],
    state: Mapping[str, Array] | None = None,
) -> tuple[list[dict[str, Array]], dict[str, Array]]:
    """Outputs of each step and the state after the last, by the interpreter; by default from the start."""
    initial = model.graph.initializers
    if state is None:
        state = {name: v.numpy() for name in bindings if (v := initial[name].const_value) is not None}
    interpreter = Interpreter(model.graph)
    outputs = []
    for inputs in steps:
        results = interpreter.run({**inputs, **state})
        state = {name: results.pop(target) for name, target in bindings.items()}
        outputs.append(results)
    return outputs, state


def held(
    reference: Reference,
    feeds: Mapping[str, Array],
    got: Mapping[str, Array],
    observe: Callable[[Sequence[str]], Mapping[str, Array]],
) -> tuple[dict[str, Array], dict[str, Array], int]:
    """What float32 and float64 give on the sides of kinks that a plan took.

    One float32 run may be luckily near to the exact one: float32's result is, of that run and of three whose
    every number is off by one rounding, the one that is furthest away.

    Args:
        reference: of the model.
        feeds: every input, state included.
        got: what the plan gave.
        observe: gives named tensors as a plan makes them that keeps them besides.

    Returns:
        Both results, and how many units are not on the float64 run's own side.
    """
    near = reference.near(feeds)
    sides = near.sides(observe(near.values)) if len(near) else near.own
    wrong = [side == WRONG for side in sides]
    sides = tuple(np.where(w, own, side) for w, own, side in zip(wrong, near.own, sides, strict=True))
    exact = reference.run(feeds, near, sides)
    parts = {
        name: (x - exact[name]).reshape(-1)
        for name, x in got.items()
        if np.abs(x - exact[name]).max(initial=0) > 1e-5 * np.abs(exact[name]).max(initial=0)
    }
    if parts and 0 < len(near) <= 64:
        sides = settle(reference, feeds, near, sides, parts, wrong=wrong)
        exact = reference.run(feeds, near, sides)
    moved = sum(int((a != b).sum()) for a, b in zip(sides, near.own, strict=True))
    samples = [reference.single(feeds, near, sides)]
    samples += [reference.perturbed(feeds, near, sides, seed) for seed in range(3)]

    def furthest(name: str) -> Array:
        errors = [float(np.abs(sample[name] - exact[name]).max(initial=0)) for sample in samples]
        return samples[int(np.argmax(errors))][name].astype(samples[0][name].dtype)

    return {name: furthest(name) for name in exact}, exact, moved


def wide(feed: Mapping[str, Array]) -> dict[str, Array]:
    """The same numbers in float64."""
    return {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in feed.items()}


def assert_as_exact(
    got: Mapping[str, Array], single: Mapping[str, Array], double: Mapping[str, Array], kind: str
) -> None:
    """Every tensor is about as near to the float64 run as the interpreter's float32 run is."""
    assert set(got) == set(double)
    largest = max((float(np.abs(x).max(initial=0)) for x in double.values()), default=0.0)
    for name, exact in double.items():
        assert got[name].shape == exact.shape
        assert got[name].dtype == single[name].dtype
        own = float(np.abs(single[name] - exact).max(initial=0))
        scale = float(np.abs(exact).max(initial=0))
        error = float(np.abs(got[name] - exact).max(initial=0))
        allowed = 4 * own + ROUNDING * scale + NOISE * largest
        assert error <= allowed, (
            f"{kind} {name}: error {error:.2g}, float32's own {own:.2g}, scale {scale:.2g}"
        )
