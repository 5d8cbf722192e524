from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.train import networks

from onward.autodiff import TrainingStep, training_step
from onward.engine import StepSession
from onward.errors import InputError, ShapeError, TrainingError
from onward.model import load, save
from onward.train import SGD, CrossEntropy

WEIGHTS = ["hidden.weight", "hidden.bias", "out.weight", "out.bias"]


def step(weights: list[str] = WEIGHTS, **options) -> TrainingStep:
    return training_step(networks.mlp(**options), {"scores": CrossEntropy()}, SGD(momentum=0.9), weights)


def session(made: TrainingStep, engine: str = "auto") -> StepSession:
    return StepSession(made.model, made.bindings, engine=engine)


def feeds(number: int = 0, labels: int = 3) -> dict[str, np.ndarray]:
    x, y = networks.blobs(12, seed=number)
    return {
        "x": x,
        "target": y % labels,
        "learning_rate": np.array(0.1, np.float32),
        "step": np.array(number),
    }


def copied(run: StepSession) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in run.state.items()}


def test_state_feeds_back_and_the_rest_is_returned() -> None:
    run = session(step())
    assert {s.name for s in run.inputs} == {"x", "target", "learning_rate", "step"}
    assert {s.name for s in run.outputs} == {"scores", "loss", "loss.total", "loss.weight"}
    losses = [float(run.run(feeds())["loss"]) for _ in range(20)]
    assert losses[-1] < losses[0] / 2
    assert set(run.state) == {*WEIGHTS, *(f"{name}.momentum" for name in WEIGHTS)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.ones((12, 5), np.float32)}, InputError, "input 'x'"),
        ({"out.bias": np.ones(3, np.float32)}, InputError, "'out.bias' is state of the training step"),
        ({"more": np.ones(3)}, InputError, "no input named 'more'"),
    ],
)
@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_a_step_that_is_refused_leaves_the_state(engine: str, change, error, message: str) -> None:
    _fails(session(step(), engine), change, error, message)


@pytest.mark.parametrize(
    "engine",
    [
        "interpreter",
        "compiled",
    ],
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((11, 4), np.float32)}, "operator SoftmaxCrossEntropy"),
        ({"target": np.full(12, 3)}, "operator SoftmaxCrossEntropy.*label 3"),
    ],
)
def test_a_step_that_fails_half_way_leaves_the_state(engine: str, change, message: str) -> None:
    _fails(session(step(), engine), change, ShapeError, message)


def _fails(run: StepSession, change, error, message: str) -> None:
    run.run(feeds())
    before = copied(run)
    with pytest.raises(error, match=message):
        run.run({**feeds(), **change})
    assert {k: v.tobytes() for k, v in run.state.items()} == {k: v.tobytes() for k, v in before.items()}
    run.run(feeds())
    assert not np.array_equal(run.state["out.bias"], before["out.bias"])


def test_loaded_state_is_copied_and_gives_the_same_steps() -> None:
    left, right = session(step()), session(step())
    left.run(feeds(0))
    saved = copied(left)
    right.load_state(saved)
    for array in saved.values():
        array[...] = np.nan
    for run in (left, right):
        run.run(feeds(1))
    for name, array in left.state.items():
        np.testing.assert_array_equal(array, right.state[name])


def test_state_that_does_not_fit_changes_nothing() -> None:
    run = session(step())
    before = copied(run)
    lacking = {k: v for k, v in before.items() if k != "out.bias"}
    for state, message in (
        (lacking, "the state lacks 'out.bias'"),
        ({**before, "out.bias": np.zeros(4, np.float32)}, r"expected float32\[3\], got float32\[4\]"),
        ({**before, "out.bias": np.zeros(3)}, "got float64"),
    ):
        with pytest.raises(TrainingError, match=message):
            run.load_state(state)
    np.testing.assert_array_equal(run.state["out.bias"], before["out.bias"])


def test_bindings_are_checked() -> None:
    made = step()
    for wrong in ({"nothing": "loss"}, {"out.bias": "nothing"}):
        with pytest.raises(TrainingError, match="is not in the training step"):
            StepSession(made.model, wrong)


def test_frozen_weights_that_are_listed_as_inputs_need_not_be_fed() -> None:
    model = networks.mlp()
    model.graph.inputs.extend(model.graph.initializers.values())
    made = training_step(model, {"scores": CrossEntropy()}, SGD(), ["out.weight", "out.bias"])
    assert made.inputs == ("x",)
    run = session(made)
    assert {s.name for s in run.inputs} == {"x", "target", "learning_rate", "step"}
    plain = session(
        training_step(networks.mlp(), {"scores": CrossEntropy()}, SGD(), ["out.weight", "out.bias"])
    )
    assert run.run(feeds())["loss"] == plain.run(feeds())["loss"]
    np.testing.assert_array_equal(run.state["out.weight"], plain.state["out.weight"])


def test_a_step_that_was_saved_and_loaded_goes_on(tmp_path: Path) -> None:
    made = step()
    save(made.model, tmp_path / "step.onnx")
    read = TrainingStep.read(load(tmp_path / "step.onnx"))
    left, right = session(made), session(read)
    for number in range(2):
        assert left.run(feeds(number))["loss"] == right.run(feeds(number))["loss"]
    for name, array in left.state.items():
        np.testing.assert_array_equal(array, right.state[name])
