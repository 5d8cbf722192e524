"""Training recurrent networks: what has no gradient is refused by name, and a length may stay open."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.ops.cases_recurrent import case
from tests.ops.harness import feed, model_of, run

from onward.autodiff import gradients, training_step
from onward.engine import StepSession
from onward.errors import UnsupportedError
from onward.graph import Builder
from onward.model import trainable_initializers
from onward.nn import zoo
from onward.passes import expand_onward
from onward.train import SGD, CrossEntropy


def _step(length: int | str) -> ir.Model:
    model = zoo.build("lstm_classifier", vocabulary_size=9, length=length, units=4, embedding_size=3).model
    (output,) = (v.name or "" for v in model.graph.outputs)
    return training_step(model, {output: CrossEntropy()}, SGD(), trainable_initializers(model)).model


def test_a_step_of_an_open_length_trains_and_is_not_written_for_others() -> None:
    model = zoo.build("lstm_classifier", vocabulary_size=9, length="time", units=4, embedding_size=3).model
    (output,) = (v.name or "" for v in model.graph.outputs)
    step = training_step(model, {output: CrossEntropy()}, SGD(), trainable_initializers(model))
    session = StepSession(step.model, step.bindings)
    rng = np.random.default_rng(0)
    for time in (5, 300):
        feeds = {
            step.inputs[0]: rng.integers(0, 9, (6, time)),
            next(iter(step.targets.values())): np.arange(6) % 2,
            step.learning_rate: np.array(0.5, np.float32),
            step.step: np.array(0),
            step.seed or "": np.array(0),
        }
        losses = [float(session.run(feeds)["loss"]) for _ in range(20)]
        assert losses[-1] < losses[0]
    with pytest.raises(UnsupportedError, match="LSTM: the sequence length is not static; fix it"):
        expand_onward(step.model)


def test_a_step_is_as_long_for_many_time_steps_as_for_few() -> None:
    assert len(list(_step(1000).graph)) == len(list(_step(2).graph))


def test_an_activation_without_slope_is_refused_by_name() -> None:
    model = model_of(case("RNN", {"activations": ("Elu",)}, name="elu"))
    (y, _), x = model.graph.outputs, model.graph.inputs[0]
    g = Builder(model.graph)
    with pytest.raises(UnsupportedError, match=r"operator RNN.*activation 'elu' has no gradient; use one of"):
        gradients(g, {y: g.zeros_like(y)}, [x])


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_no_gradient_goes_beyond_the_end_of_a_sequence(op_type: str) -> None:
    lens = np.array([4, 0, 2], np.int32)
    found = case(op_type, {"direction": "bidirectional"}, initial=True, lens=lens, name="an end")
    model = model_of(found, gradient=True)
    inputs = feed(found, model)
    results = run(model, inputs)
    assert not results["dx0"][:, 1].any()
    assert not results["dx0"][2:, 2].any()
    assert results["dx0"][:2, 2].all()
    assert not results["dx5"][:, 1].any()
