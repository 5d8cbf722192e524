"""Plans of the zoo's networks against the interpreter: whole training steps, and inference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.plans import Planned, assert_as_exact, held, interpreted, planned, wide
from tests.verify.mutating import times
from tests.verify.test_zoo_training import SLOW, SMALL, calm_branches, networks

from onward.autodiff import Clip, TrainingStep, training_step
from onward.graph import Array
from onward.model import trainable_initializers
from onward.nn import zoo
from onward.passes import cast_floats
from onward.train.losses import CrossEntropy
from onward.train.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from onward.verify.locate import exposing
from onward.verify.reference import Reference

FALLBACKS: dict[str, dict[str, str]] = {}
"""What NumPy computes in a network's plans, and why."""


@dataclass(frozen=True)
class Made:
    """A training step with the inputs of several steps."""

    step: TrainingStep
    feeds: list[dict[str, Array]]


def make(
    name: str, batch: int, optimizer: Optimizer | None = None, steps: int = 3, seed: int = 0, **options: Any
) -> Made:
    """The training step of a small network, and random batches."""
    model = zoo.build(name, seed=seed, **SMALL[name]).model
    calm_branches(model)
    output = model.graph.outputs[0]
    step = training_step(
        model,
        {output.name or "": CrossEntropy()},
        optimizer or SGD(learning_rate=0.1, momentum=0.9),
        trainable_initializers(model),
        expose_gradients=True,
        **options,
    )
    assert output.shape is not None
    classes = int(output.shape[1])  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    feeds = [_feed(step, batch, classes, number, rng) for number in range(steps)]
    return Made(step, feeds)


def _feed(
    step: TrainingStep, batch: int, classes: int, number: int, rng: np.random.Generator
) -> dict[str, Array]:
    feed: dict[str, Array] = {}
    for value in step.model.graph.inputs:
        name = value.name or ""
        if name in step.model.graph.initializers:
            continue
        assert value.shape is not None
        assert value.dtype is not None
        shape = tuple(d if isinstance(d, int) else batch for d in value.shape)
        if name == step.learning_rate:
            feed[name] = np.array(0.05, np.float32)
        elif name == step.step:
            feed[name] = np.array(number)
        elif name == step.seed:
            feed[name] = np.array(7)
        elif name == step.update:
            feed[name] = np.array((number + 1) // 2 if number % 2 else 0)
        elif name in step.targets.values():
            feed[name] = rng.integers(0, classes, shape)
        elif value.dtype.is_floating_point():
            feed[name] = rng.standard_normal(shape).astype(np.float32)
        else:
            feed[name] = rng.integers(0, 50, shape)
    return feed


def check_training(made: Made, *, threads: int = 2, lanes: int | None = None, **constants: Any) -> int:
    """Outputs, gradients and new state of several steps; returns how many units were held at kinks.

    The interpreter takes each step from the plan's state. Where a unit lies so near a kink that rounding puts
    it on one side for the plan and on the other for the interpreter, it is held on the plan's side, and every
    tensor is compared again.
    """
    step, feeds = made.step, made.feeds
    exact_model = cast_floats(step.model, ir.DataType.DOUBLE)
    making = functools.partial(planned, bindings=step.bindings, threads=threads, lanes=lanes, **constants)
    plan = making(step.model, feeds[0])
    reference = Reference(step.model, (step.loss, *step.outputs))
    moved = 0
    for feed in feeds:
        before = {name: plan.fixed[name].copy() for name in step.bindings}
        (narrow,), narrow_state = interpreted(step.model, step.bindings, [feed], before)
        (exact,), exact_state = interpreted(exact_model, step.bindings, [wide(feed)], wide(before))
        for source, target in step.bindings.items():
            narrow[target], exact[target] = narrow_state[source], exact_state[source]
        got = plan.run(feed)
        got |= {target: plan.fixed[name].copy() for name, target in step.bindings.items()}
        try:
            assert_step(step, got, narrow, exact)
        except AssertionError:
            observe = functools.partial(observed, making, step, feed, before)
            narrow, exact, count = held(reference, {**feed, **before}, got, observe)
            assert_step(step, got, narrow, exact)
            moved += count
    return moved


def observed(
    making: Callable[..., Planned],
    step: TrainingStep,
    feed: dict[str, Array],
    state: dict[str, Array],
    names: Sequence[str],
) -> dict[str, Array]:
    """Tensors of a step from a plan that keeps them."""
    plan = making(exposing(step.model, names), feed)
    for name, array in state.items():
        np.copyto(plan.fixed[name], array)
    return plan.run(feed)


def assert_step(
    step: TrainingStep, got: dict[str, Array], narrow: dict[str, Array], exact: dict[str, Array]
) -> None:
    """Each kind of tensor beside the float64 run."""
    groups = {
        "gradient": list(step.gradients.values()),
        "output": [step.loss, *step.outputs],
        **{
            f"state {i}": [step.bindings[name] for name in names]
            for i, names in enumerate((step.parameters, step.slots, step.statistics))
        },
    }
    rest = set(exact) - {name for names in groups.values() for name in names}
    groups["other"] = sorted(rest)
    for kind, names in groups.items():
        parts = [{name: x[name] for name in names} for x in (got, narrow, exact)]
        assert_as_exact(parts[0], parts[1], parts[2], kind)


@pytest.mark.parametrize("name", networks(SMALL))
def test_the_training_step_agrees_with_the_interpreter(name: str) -> None:
    check_training(make(name, 3))


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", networks(set(SMALL) - SLOW))
def test_other_batches_agree(name: str, batch: int) -> None:
    check_training(make(name, batch, steps=1))


OPTIMIZERS: dict[str, tuple[Optimizer, dict[str, Any]]] = {
    "adam": (Adam(learning_rate=0.01, weight_decay=0.1), {}),
    "adamw": (AdamW(learning_rate=0.01), {}),
    "rmsprop": (RMSprop(learning_rate=0.01, momentum=0.9, epsilon=1e-2), {}),
    "adagrad": (Adagrad(learning_rate=0.01, epsilon=1e-2), {}),
    "sgd": (SGD(learning_rate=0.1), {}),
    "nesterov": (SGD(learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=0.1), {}),
    "clipped": (SGD(learning_rate=0.1), {"gradient_transforms": [Clip(value=0.5, norm=1.0)]}),
    "accumulated": (Adam(learning_rate=0.01, epsilon=1e-3), {"accumulate": True}),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_agree(kind: str) -> None:
    optimizer, options = OPTIMIZERS[kind]
    made = make("mlp", 5, optimizer, steps=5, **options)
    check_training(made)
    assert planned(made.step.model, made.feeds[0], made.step.bindings).fallbacks == {}


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("name", ["lenet5", "textcnn", "transformer_encoder"])
def test_all_vector_widths_agree(name: str, lanes: int, usable_lanes: list[int]) -> None:
    if lanes not in usable_lanes:
        pytest.skip("this machine has no vectors of that width")
    check_training(make(name, 3, steps=1), lanes=lanes)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["lenet5", "transformer_encoder", "alexnet"])
def test_any_number_of_threads_agrees(name: str, threads: int) -> None:
    check_training(make(name, 3, steps=1), threads=threads)


@pytest.mark.parametrize("name", networks(set(SMALL) - SLOW))
def test_the_same_threads_give_the_same_bits(name: str) -> None:
    made = make(name, 3, steps=2)
    runs = []
    for _ in range(2):
        plan = planned(made.step.model, made.feeds[0], made.step.bindings, threads=2)
        outputs = [plan.run(feed) for feed in made.feeds]
        runs.append([*(x for o in outputs for x in o.values()), *plan.fixed.values()])
    assert [x.tobytes() for x in runs[0]] == [x.tobytes() for x in runs[1]]


@pytest.mark.parametrize("name", networks(SMALL))
def test_inference_agrees_with_the_interpreter(name: str) -> None:
    model = zoo.build(name, **SMALL[name]).model
    rng = np.random.default_rng(1)
    for batch in (1, 3):
        feed: dict[str, Array] = {}
        for value in model.graph.inputs:
            assert value.shape is not None
            assert value.dtype is not None
            shape = tuple(d if isinstance(d, int) else batch for d in value.shape)
            floats = value.dtype.is_floating_point()
            feed[value.name or ""] = (
                rng.standard_normal(shape).astype(np.float32) if floats else rng.integers(0, 50, shape)
            )
        single, _ = interpreted(model, {}, [feed])
        double, _ = interpreted(cast_floats(model, ir.DataType.DOUBLE), {}, [wide(feed)])
        assert_as_exact(planned(model, feed).run(feed), single[0], double[0], "output")


@pytest.mark.parametrize("name", networks(SMALL))
def test_nothing_falls_back_to_numpy(name: str) -> None:
    made = make(name, 3, steps=1)
    training = planned(made.step.model, made.feeds[0], made.step.bindings)
    model = zoo.build(name, **SMALL[name]).model
    feed = {v.name or "": made.feeds[0][v.name or ""] for v in model.graph.inputs}
    assert {**training.fallbacks, **planned(model, feed).fallbacks} == FALLBACKS.get(name, {})


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "mobilenet_v2"])
def test_a_fault_is_not_held(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that is off by 0.05 % in the middle of the backward pass."""
    made = make(name, 3, steps=1)
    gradients = set(made.step.gradients.values())
    makers = [n.name for n in made.step.model.graph if n.outputs[0].name in gradients]
    right = planned
    wrong = times(makers[len(makers) // 2] or "", 1.0005)

    def faulty(model: ir.Model, *args: Any, **options: Any) -> Planned:
        model = model.clone()
        wrong(model)
        return right(model, *args, **options)

    monkeypatch.setitem(globals(), "planned", faulty)
    with pytest.raises(AssertionError, match=r"gradient .*: error"):
        check_training(made)
