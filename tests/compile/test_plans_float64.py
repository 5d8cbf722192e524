"""Training in float64 by compiled kernels: the rules and generators of float32, right to the last digits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.plans import interpreted, planned, wide
from tests.compile.test_plans_zoo import Made, make

from onward.compile.codegen.target import LANES
from onward.engine import StepSession
from onward.engine.engines import EngineName
from onward.graph import Array
from onward.passes import cast_floats
from onward.train.optimizers import Adam, AdamW, Optimizer


def close(got: dict[str, Array], want: dict[str, Array]) -> None:
    largest = max(float(np.abs(x).max(initial=0)) for x in want.values())
    for name, exact in want.items():
        assert got[name].dtype == exact.dtype
        scale = max(float(np.abs(exact).max(initial=0)), 1e-3 * largest)
        np.testing.assert_allclose(got[name], exact, rtol=0, atol=1e-12 * scale, err_msg=name)


def double(name: str, batch: int = 4, steps: int = 3, optimizer: Optimizer | None = None) -> Made:
    made = make(name, batch, optimizer, steps=steps)
    step = replace(made.step, model=cast_floats(made.step.model, ir.DataType.DOUBLE))
    return Made(step, [wide(feed) for feed in made.feeds])


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("name", ["lenet5", "mlp"])
def test_training_is_compiled_whole(name: str, lanes: int, usable_lanes: list[int]) -> None:
    """Losses, outputs, gradients and new state are those of the interpreter, at 1e-12; no NumPy step."""
    if lanes not in usable_lanes:
        pytest.skip("this machine has no vectors of that width")
    made = double(name)
    step = made.step
    start = {n: np.array(step.model.graph.initializers[n].const_value.numpy()) for n in step.bindings}  # type: ignore[union-attr]
    wanted, state = interpreted(step.model, step.bindings, made.feeds, start)
    plan = planned(step.model, made.feeds[0], step.bindings, threads=3, lanes=lanes)
    assert plan.fallbacks == {}
    for feed, want in zip(made.feeds, wanted, strict=True):
        assert want["loss"].dtype == np.float64
        close(plan.run(feed), want)
    close({n: plan.fixed[n] for n in step.bindings}, state)


@pytest.mark.parametrize("name", ["resnet20", "transformer_encoder", "textcnn", "alexnet", "vgg11"])
def test_normalization_attention_and_dropout_are_too(name: str) -> None:
    made = double(name, steps=1)
    (want,), _ = interpreted(made.step.model, made.step.bindings, made.feeds)
    plan = planned(made.step.model, made.feeds[0], made.step.bindings)
    assert plan.fallbacks == {}
    close(plan.run(made.feeds[0]), want)


@pytest.mark.parametrize("optimizer", [Adam(weight_decay=0.01, epsilon=1e-3), AdamW(epsilon=1e-3)])
@pytest.mark.parametrize("name", ["mlp", "alexnet"])
def test_adam_and_dropout_are_too(name: str, optimizer: Optimizer) -> None:
    """AlexNet's classifier draws dropout masks. With a small epsilon Adam divides by gradients that are
    nothing but rounding, which differs between engines."""
    made = double(name, steps=3, optimizer=optimizer)
    step = made.step
    start = {n: np.array(step.model.graph.initializers[n].const_value.numpy()) for n in step.bindings}  # type: ignore[union-attr]
    wanted, state = interpreted(step.model, step.bindings, made.feeds, start)
    plan = planned(step.model, made.feeds[0], step.bindings)
    assert plan.fallbacks == {}
    for feed, want in zip(made.feeds, wanted, strict=True):
        close(plan.run(feed), want)
    close({n: plan.fixed[n] for n in step.bindings}, state)


def test_a_session_trains_in_float64() -> None:
    made = double("lenet5")
    losses: dict[str, list[float]] = {}
    engines: tuple[EngineName, ...] = ("compiled", "interpreter")
    for engine in engines:
        session = StepSession(made.step.model, made.step.bindings, engine=engine)
        losses[engine] = [float(session.run(feed)["loss"]) for feed in made.feeds]
    np.testing.assert_allclose(losses["compiled"], losses["interpreter"], rtol=1e-12)
    assert len(set(losses["compiled"])) == 3
