from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.verify.planting import interpret

from onward import nn, verify
from onward.autodiff import Clip, training_step
from onward.engine import StepSession
from onward.errors import ConfigError, UnsupportedError
from onward.graph import ONWARD_DOMAIN, find
from onward.train.losses import MSE, BinaryCrossEntropy, CrossEntropy, KLDivergence
from onward.train.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
from onward.verify.witness import Witness


def network(*, dropout: float = 0.0, norm: bool = False, outputs: int = 4) -> ir.Model:
    layers: list[nn.Layer] = [nn.Dense(12, name="hidden")]
    if norm:
        layers.append(nn.BatchNorm(name="norm"))
    layers.append(nn.Tanh(name="tanh"))
    if dropout:
        layers.append(nn.Dropout(dropout, name="drop"))
    layers.append(nn.Dense(outputs, name="head"))
    return nn.Sequential(layers, input_shape=(6,), name="small").model


def scaled_kernel(monkeypatch: pytest.MonkeyPatch, domain: str, op_type: str, opset: int) -> None:
    cls = find(domain, op_type, opset)
    right = cls.kernel

    def wrong(self, *inputs):
        result = right(self, *inputs)
        first, *others = result if isinstance(result, tuple) else (result,)
        scaled = (first * first.dtype.type(1.002)).astype(first.dtype)
        return (scaled, *others) if isinstance(result, tuple) else scaled

    interpret(monkeypatch)
    monkeypatch.setattr(cls, "kernel", wrong)


def test_every_tensor_of_the_step_is_compared():
    report = verify.compare_training(network(norm=True), optimizer=SGD(momentum=0.9), batch=8)
    assert report.passed, str(report)
    assert report.runs == 3
    kinds = {kind: sorted(row.name for row in report.rows if row.kind == kind) for kind in ("loss", "output")}
    assert kinds == {"loss": ["loss", "loss.total", "loss.weight"], "output": ["output"]}
    weights = ["head.bias", "head.weight", "hidden.bias", "hidden.weight", "norm.bias", "norm.scale"]
    names = {row.kind: [] for row in report.rows}
    for row in report.rows:
        names[row.kind].append(row.name)
    assert sorted(names["parameter"]) == weights
    assert sorted(names["gradient"]) == [f"{name}.gradient" for name in weights]
    assert sorted(names["slot"]) == [f"{name}.momentum" for name in weights]
    assert sorted(names["statistic"]) == ["norm.running_mean", "norm.running_var"]


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(momentum=0.9, nesterov=True, weight_decay=0.01),
        Adam(),
        AdamW(),
        RMSprop(momentum=0.5),
        Adagrad(),
    ],
    ids=lambda o: type(o).__name__,
)
def test_every_optimizer_agrees(optimizer):
    report = verify.compare_training(network(), optimizer=optimizer, batch=8, steps=4)
    assert report.passed, str(report)
    assert {row.kind for row in report.rows} == {"loss", "output", "gradient", "parameter", "slot"}


@pytest.mark.parametrize(
    "loss", [MSE(), BinaryCrossEntropy(), KLDivergence(), CrossEntropy(label_smoothing=0.1)], ids=repr
)
def test_losses_agree_on_targets_drawn_for_them(loss):
    report = verify.compare_training(network(), {"output": loss}, batch=5)
    assert report.passed, str(report)


def test_clipping_and_accumulation_agree():
    report = verify.compare_training(
        network(), optimizer=SGD(momentum=0.9), batch=4, steps=5, accumulate=2, clip=Clip(value=0.5, norm=0.1)
    )
    assert report.passed, str(report)
    assert any(row.name.endswith(".accumulated") for row in report.rows)


def test_both_engines_drop_the_same_units():
    """Outputs are compared at every step: one unit dropped in one engine alone would change them."""
    model = network(dropout=0.5)
    report = verify.compare_training(model, batch=16, steps=3, seed=11)
    assert report.passed, str(report)

    step = training_step(model, {"output": CrossEntropy()}, SGD(), ["head.weight"])
    ours, theirs = StepSession(step.model, step.bindings), Witness(step.model)
    state = {name: array.copy() for name, array in ours.state.items()}
    rng = np.random.default_rng(0)
    feeds = {"input": rng.standard_normal((16, 6)).astype(np.float32), "target": rng.integers(0, 4, 16)}
    seen = []
    for seed, number in ((0, 0), (0, 1), (1, 0)):
        scalars = {
            "learning_rate": np.zeros((), np.float32),
            "step": np.array(number),
            "seed": np.array(seed),
        }
        seen.append(ours.run({**feeds, **scalars})["output"])
        other = theirs.run({**feeds, **scalars, **state}, ["output"])["output"]
        np.testing.assert_allclose(seen[-1], other, rtol=1e-5, atol=1e-6)
    assert not np.allclose(seen[0], seen[1])
    assert not np.allclose(seen[0], seen[2])


@pytest.mark.parametrize(
    ("domain", "op_type", "opset", "node"),
    [
        ("", "Tanh", 21, "tanh/Tanh"),
        (
            ONWARD_DOMAIN,
            "SoftmaxCrossEntropyGrad",
            1,
            "grad/loss/SoftmaxCrossEntropy/SoftmaxCrossEntropyGrad",
        ),
        (ONWARD_DOMAIN, "SGDUpdate", 1, "update/hidden.weight/SGDUpdate"),
    ],
)
def test_a_planted_mismatch_is_traced_to_its_node(monkeypatch, domain, op_type, opset, node):
    scaled_kernel(monkeypatch, domain, op_type, opset)
    report = verify.compare_training(network(), batch=4, steps=2, learning_rate=1.0, engine="interpreter")
    found = report.first_difference
    assert report.verdict == "differ"
    assert found is not None
    assert (found.cause, found.node, found.operator, found.domain, found.opset) == (
        "node",
        node,
        op_type,
        domain,
        opset,
    )


def test_a_planted_gradient_rule_shows_in_no_engine():
    """Both engines run the same graph: a wrong rule is for gradient checks to find, not for this."""
    report = verify.compare_training(network(), batch=4)
    assert report.passed


def test_default_losses_follow_the_outputs():
    model = ir.serde.deserialize_model(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["": 21]>
            g (float[N, 4] x) => (float[N, 4] scores, float[N, 1] value, float[N, 2, 2] map, int64[N] best) {
                scores = Tanh(x)
                value = ReduceMean<keepdims = 1>(x)
                map = Identity(x)
                best = ArgMax<axis = 1, keepdims = 0>(x)
            }"""
        )
    )
    assert verify.default_losses(model) == {"scores": CrossEntropy(), "value": MSE(), "map": MSE()}
    model.graph.outputs[:] = [model.graph.outputs[3]]
    with pytest.raises(ConfigError, match="no floating-point output"):
        verify.default_losses(model)


def test_several_outputs_and_a_model_of_another_opset():
    model = ir.serde.deserialize_model(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17]>
            g (float[N, 3] x) => (float[N, 3] scores, float[N, 3] unused_head)
            <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}, float[3] b = {1, 2, 3}> {
                h = MatMul(x, w)
                scores = Softmax(h)
                unused_head = Add(x, b)
            }"""
        )
    )
    report = verify.compare_training(model, {"scores": CrossEntropy()}, batch=3)
    assert report.passed, str(report)
    assert [row.name for row in report.rows if row.kind == "parameter"] == ["w"]
    assert verify.compare_training(model, batch=3).passed


def test_given_batches_are_used():
    x = np.full((2, 6), np.nan, np.float32)
    report = verify.compare_training(
        network(), inputs={"input": x}, targets={"output": np.array([0, 3])}, steps=1
    )
    assert report.passed, "NaN travels the same way in both engines"
    with pytest.raises(ConfigError, match="target for 'q'"):
        verify.compare_training(network(), targets={"q": np.array([0])})
    with pytest.raises(ConfigError, match="steps"):
        verify.compare_training(network(), steps=0)


def test_a_missing_operator_is_an_error_and_no_report(monkeypatch):
    def refuse(*args, **options):
        raise UnsupportedError("this graph cannot run:\n  node 'tanh/Tanh'")

    monkeypatch.setattr("onward.verify._steps.StepSession", refuse)
    with pytest.raises(UnsupportedError, match="tanh/Tanh"):
        verify.compare_training(network())
