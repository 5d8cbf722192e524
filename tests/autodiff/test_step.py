"""The training step's surface: what it takes from a model and how it names what it adds."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.train import networks

from onward import verify
from onward.autodiff import Clip, TrainingStep, training_step, with_loss
from onward.engine import Session, StepSession
from onward.errors import ConfigError, InvalidModelError, UnsupportedError
from onward.graph import Builder
from onward.train import MSE, SGD, Adam, CrossEntropy, Trainer

FLOAT = ir.DataType.FLOAT


def builder(opset: int = 21) -> Builder:
    return Builder(ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="test"))


def model(g: Builder) -> ir.Model:
    return ir.Model(g.graph, ir_version=10)


def run(step: TrainingStep, engine: str = "auto", **feeds: np.ndarray) -> tuple[dict, StepSession]:
    onnx.checker.check_model(ir.to_proto(step.model))
    session = StepSession(step.model, step.bindings, engine=engine)
    feeds |= {step.learning_rate: np.array(0.5, np.float32), step.step: np.array(0)}
    return session.run(feeds), session


def test_names_that_the_model_has_are_left_alone() -> None:
    """A model whose input, outputs and weights are called what the step would call its own."""
    g = builder()
    x = g.input("learning_rate", FLOAT, ("N", 2))
    w, target = (
        g.initializer("step", np.eye(2, dtype=np.float32)),
        g.initializer("target", np.ones(2, np.float32)),
    )
    g.initializer("step.momentum", np.ones(1, np.float32))
    hidden = g.Mul(g.MatMul(x, w), target)
    hidden.name = "step.next"
    g.output(g.Add(hidden, g.graph.initializers["step.momentum"]), "loss")
    step = training_step(
        model(g),
        {"loss": MSE()},
        SGD(momentum=0.9),
        ["step", "target", "step.momentum"],
        expose_gradients=True,
    )
    assert (step.inputs, step.outputs) == (("learning_rate",), ("loss",))
    added = [step.learning_rate, step.step, step.loss, *step.targets.values(), *step.bindings.values()]
    assert not {"learning_rate", "step", "target", "loss"} & set(added)
    names = [v.name for v in [*step.model.graph.inputs, *step.model.graph.outputs]]
    assert len(set(names)) == len(names)
    x = np.ones((3, 2), np.float32)
    results, session = run(step, learning_rate=x, **{step.targets["loss"]: np.zeros((3, 2), np.float32)})
    np.testing.assert_allclose(results["loss"], np.full((3, 2), 2))
    np.testing.assert_allclose(results[step.loss], 4)
    np.testing.assert_allclose(results[step.gradients["target"]], [2, 2])
    np.testing.assert_allclose(session.state["target"], [0, 0])


def test_a_weight_that_is_used_several_times() -> None:
    g = builder()
    x, w = g.input("x", FLOAT, ("N", 2)), g.initializer("w", np.array([[1, 2], [3, 4]], np.float32))
    g.output(g.MatMul(g.MatMul(x, w), g.Transpose(w, perm=[1, 0])), "y")
    step = training_step(model(g), {"y": MSE()}, SGD(), ["w"], expose_gradients=True)
    rng = np.random.default_rng(0)
    x, t = (rng.standard_normal((3, 2)).astype(np.float32) for _ in range(2))
    results, _ = run(step, x=x, target=t)
    w = np.array([[1, 2], [3, 4]], np.float64)
    d = 2 * (x @ w @ w.T - t) / 6
    np.testing.assert_allclose(results[step.gradients["w"]], x.T @ d @ w + d.T @ x @ w, rtol=1e-4)


def test_a_loss_on_a_value_that_the_graph_uses_further() -> None:
    g = builder()
    x, w = g.input("x", FLOAT, ("N",)), g.initializer("w", np.array([2.0], np.float32))
    inner = g.Mul(x, w)
    g.output(g.Mul(inner, inner), "outer")
    g.output(inner, "inner")
    step = training_step(
        model(g),
        {"inner": MSE(), "outer": MSE()},
        SGD(),
        ["w"],
        loss_weights={"inner": 0.5},
        expose_gradients=True,
    )
    assert dict(step.targets) == {"inner": "inner.target", "outer": "outer.target"}
    x, zero = np.array([1.0, 3.0], np.float32), np.zeros(2, np.float32)
    results, _ = run(step, x=x, **{"inner.target": zero, "outer.target": zero})
    np.testing.assert_allclose(results["loss"], 0.5 * np.mean((2 * x) ** 2) + np.mean((2 * x) ** 4))
    np.testing.assert_allclose(
        results[step.gradients["w"]], [np.mean(2 * x**2) + np.mean(4 * 8 * x**4)], rtol=1e-6
    )


@pytest.mark.parametrize(
    "engine",
    [
        "interpreter",
        "compiled",
    ],
)
def test_outputs_that_are_a_weight_or_an_input(engine: str) -> None:
    g = builder()
    x, w = g.input("x", FLOAT, (2,)), g.initializer("w", np.array([1, 2], np.float32))
    g.graph.outputs.extend([x, w])
    step = training_step(model(g), {"w": MSE()}, SGD(), ["w"])
    results, session = run(step, engine, x=np.ones(2, np.float32), target=np.zeros(2, np.float32))
    assert (results["x"].tolist(), results["w"].tolist()) == ([1, 1], [1, 2])
    np.testing.assert_allclose(session.state["w"], [0.5, 1])
    with pytest.raises(ConfigError, match="the loss does not depend on w"):
        training_step(model(g), {"x": MSE()}, SGD(), ["w"])


def test_inputs_that_nothing_uses_stay() -> None:
    mlp = networks.mlp()
    Builder(mlp.graph).input("unused", FLOAT, ("N",))
    step = training_step(mlp, {"scores": CrossEntropy()}, SGD(), ["out.bias"])
    assert step.inputs == ("x", "unused")
    x, y = networks.blobs(6)
    results, _ = run(step, x=x, target=y, unused=np.ones(1, np.float32))
    assert np.isfinite(results["loss"])


def test_two_weights_with_one_gradient() -> None:
    g = builder()
    x = g.input("x", FLOAT, ("N", 2))
    a, b = (g.initializer(n, np.zeros(2, np.float32)) for n in "ab")
    g.output(g.Add(x, g.Add(a, b)), "y")
    step = training_step(model(g), {"y": MSE()}, SGD(), ["a", "b"], expose_gradients=True)
    results, session = run(step, x=np.ones((3, 2), np.float32), target=np.zeros((3, 2), np.float32))
    assert len(set(step.gradients.values())) == 2
    for name in "ab":
        np.testing.assert_allclose(results[step.gradients[name]], [1, 1])
        np.testing.assert_allclose(session.state[name], [-0.5, -0.5])


def test_clipping_is_of_the_accumulated_gradient() -> None:
    step = training_step(
        networks.mlp(), {"scores": CrossEntropy()}, SGD(), ["out.bias"],
        gradient_transforms=[Clip(norm=0.01)], accumulate=True,
        expose_gradients=True,
    )  # fmt: skip
    session = StepSession(step.model, step.bindings)
    grads = []
    for k in range(2):
        x, y = networks.blobs(9, seed=k)
        feeds = {"x": x, "target": y, "learning_rate": np.array(1.0, np.float32), "step": np.array(k)}
        feeds["update"] = np.array(k)
        grads.append(session.run(feeds)[step.gradients["out.bias"]])
    mean = np.mean(grads, axis=0)
    assert np.linalg.norm(mean) > 0.01
    np.testing.assert_allclose(session.state["out.bias"], -0.01 * mean / np.linalg.norm(mean), rtol=1e-3)
    np.testing.assert_array_equal(session.state["out.bias.accumulated"], [0, 0, 0])


def test_the_model_is_left_as_it_was() -> None:
    inference = networks.norm_net()
    before = ir.to_proto(inference).SerializeToString(deterministic=True)
    training_step(inference, {"scores": CrossEntropy()}, Adam(), ["bn.scale", "head.weight"])
    with_loss(inference, {"scores": CrossEntropy()})
    assert ir.to_proto(inference).SerializeToString(deterministic=True) == before


def test_the_evaluation_model_gives_the_loss_of_the_step() -> None:
    evaluation, totals, targets = with_loss(networks.mlp(), {"scores": CrossEntropy()})
    ((total, weight),) = totals.items()
    step = training_step(networks.mlp(), {"scores": CrossEntropy()}, SGD(), ["out.bias"])
    x, y = networks.blobs(12)
    ours = Session(evaluation).run({"x": x, targets["scores"]: y})
    assert ours[weight] == 12
    np.testing.assert_allclose(ours[total] / 12, run(step, x=x, target=y)[0]["loss"], rtol=1e-6)


def test_a_step_reads_back_what_it_says_of_itself() -> None:
    step = training_step(networks.norm_net(), {"scores": CrossEntropy()}, Adam(), ["bn.scale", "head.weight"])
    assert TrainingStep.read(step.model) == step
    with pytest.raises(InvalidModelError, match="this model is not a training step"):
        TrainingStep.read(networks.mlp())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: "{", "is malformed"),
        (lambda fields: "[]", "is malformed"),
        (lambda fields: json.dumps({**fields, "more": 1}), "is malformed"),
        (lambda fields: json.dumps({k: v for k, v in fields.items() if k != "loss"}), "is malformed"),
        (lambda fields: json.dumps({**fields, "bindings": []}), "is malformed"),
        (
            lambda fields: json.dumps({**fields, "loss": "nothing"}),
            "names 'nothing', which the model does not",
        ),
        (lambda fields: json.dumps({**fields, "bindings": {"nothing": "loss"}}), "names 'nothing'"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(change, message: str) -> None:
    step = training_step(networks.mlp(), {"scores": CrossEntropy()}, SGD(), ["out.bias"])
    fields = json.loads(step.model.metadata_props["onward.training_step"])
    step.model.metadata_props["onward.training_step"] = change(fields)
    with pytest.raises(InvalidModelError, match=message):
        TrainingStep.read(step.model)


def test_models_of_another_opset_are_refused() -> None:
    g = builder(opset=20)
    g.output(g.Mul(g.input("x", FLOAT, (2,)), g.initializer("w", np.ones(2, np.float32))), "y")
    with pytest.raises(UnsupportedError, match=r"built at opset 21, this model has 20; .*upgrade"):
        training_step(model(g), {"y": MSE()}, SGD(), ["w"])


def test_weights_that_only_a_body_reads_are_trained() -> None:
    """An If whose branches take a product of weights from around them: the standard's form of it."""
    g = builder()
    x, w = g.input("x", FLOAT, ("N", 2)), g.initializer("w", np.array([[1, 2], [3, 4]], np.float32))
    product = g.MatMul(x, w)
    branches = []
    for op_type in ("Neg", "Abs"):
        node = ir.node(op_type, [product], name=op_type)
        node.outputs[0].name, node.outputs[0].type = f"{op_type}.y", ir.TensorType(FLOAT)
        node.outputs[0].shape = ir.Shape(["N", 2])
        branches.append(ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 21}, name=op_type))
    positive = g.Greater(g.ReduceSum(x, keepdims=0), 0.0)
    chosen = ir.node(
        "If", [positive], {"then_branch": branches[0], "else_branch": branches[1]}, name="choice"
    )
    chosen.outputs[0].name, chosen.outputs[0].type = "chosen", ir.TensorType(FLOAT)
    chosen.outputs[0].shape = ir.Shape(["N", 2])
    g.graph.append(chosen)
    g.output(g.Mul(chosen.outputs[0], 2.0), "y")
    network = model(g)
    assert Trainer(network, "mse").step.parameters == ("w",)
    report = verify.compare_training(network, {"y": MSE()}, steps=3, batch=3)
    assert report.passed, str(report)
    assert "w.gradient" in [row.name for row in report.rows]
