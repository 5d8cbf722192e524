from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.train import networks

from onward.engine.interpreter import Interpreter
from onward.errors import UnsupportedError
from onward.graph import Builder
from onward.passes import to_training

FLOAT = ir.DataType.FLOAT


def builder() -> Builder:
    return Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="test"))


def model(g: Builder) -> ir.Model:
    return ir.Model(g.graph, ir_version=10)


def norm(
    g: Builder, x: ir.Value, name: str = "bn", outputs: int = 1, **statistics: ir.Value
) -> tuple[ir.Value, ...]:
    parts = [
        statistics.get(part) or g.initializer(f"{name}.{part}", np.ones(3, np.float32))
        for part in ("scale", "bias", "mean", "var")
    ]
    return g.emit("BatchNormalization", x, *parts, outputs=outputs, training_mode=int(outputs > 1))


def test_batch_norm_uses_the_batch_and_dropout_depends_on_seed_and_step() -> None:
    inference = networks.norm_net()
    form = to_training(inference, ["bn.scale"])
    nodes = {n.op_type: n for n in form.model.graph}
    assert nodes["BatchNormalization"].attributes.get_int("training_mode") == 1
    assert {name: v.name for name, v in form.statistics.items()} == {
        "bn.running_mean": "bn.running_mean.next",
        "bn.running_var": "bn.running_var.next",
    }
    assert (form.seed.name, form.step.name) == ("seed", "step")
    assert nodes["PhiloxDropout"].inputs[1:3] == (form.seed, form.step)
    assert "PhiloxDropout" not in {n.op_type for n in inference.graph}


def test_what_is_frozen_stays_in_inference_form() -> None:
    form = to_training(networks.norm_net(), ["head.weight"])
    node = next(n for n in form.model.graph if n.op_type == "BatchNormalization")
    assert node.attributes.get_int("training_mode", 0) == 0
    assert not form.statistics


def test_names_that_are_taken_are_left_alone() -> None:
    g = builder()
    x = g.input("seed", FLOAT, ("N", 3))
    g.output(g.Dropout(g.Dropout(x, 0.5), 0.5), "step")
    form = to_training(model(g), [])
    assert (form.seed.name, form.step.name) == ("seed_1", "step_1")
    assert [v.name for v in form.model.graph.inputs] == ["seed", "seed_1", "step_1"]
    assert [v.name for v in form.model.graph.outputs] == ["step"]


def test_dropouts_differ_also_where_nodes_share_a_name() -> None:
    g = builder()
    x = g.input("x", FLOAT, ("N", 3))
    for name in ("left", "right"):
        y = g.Dropout(x, 0.5)
        y.producer().name = "drop"
        g.output(y, name)
    form = to_training(model(g), [])
    salts = {n.attributes.get_int("salt") for n in form.model.graph if n.op_type == "PhiloxDropout"}
    assert len(salts) == 2


def test_dropout_that_drops_nothing_needs_no_seed() -> None:
    g = builder()
    g.output(g.Dropout(g.input("x", FLOAT, ("N", 3)), 0.0), "y")
    form = to_training(model(g), [])
    assert form.seed is None
    assert [n.op_type for n in form.model.graph] == ["Identity"]


def _mask_output(g: Builder, x: ir.Value) -> None:
    y, mask = g.emit("Dropout", x, 0.5, outputs=2)
    g.output(y, "y")
    g.output(mask, "mask")


def _computed_ratio(g: Builder, x: ir.Value) -> None:
    g.output(g.Dropout(x, g.ReduceMean(x, keepdims=0)), "y")


def _ratio_of_one(g: Builder, x: ir.Value) -> None:
    g.output(g.Dropout(x, 1.0), "y")


def _read_statistics(g: Builder, x: ir.Value) -> None:
    mean = g.initializer("mean", np.zeros(3, np.float32))
    (y,) = norm(g, x, mean=mean)
    g.output(y, "y")
    g.output(g.Neg(mean), "minus mean")


def _computed_statistics(g: Builder, x: ir.Value) -> None:
    g.output(norm(g, x, mean=g.ReduceMean(x, [0, 2], keepdims=0))[0], "y")


def _used_statistics(g: Builder, x: ir.Value) -> None:
    y, mean, _ = norm(g, x, outputs=3)
    g.output(y, "y")
    g.output(mean, "moved mean")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_mask_output, "its mask output is used"),
        (_computed_ratio, "its ratio is not a constant"),
        (_ratio_of_one, r"ratio 1\.0 is not in \[0, 1\)"),
        (_read_statistics, "its running statistics are used by something else than batch normalization"),
        (_computed_statistics, "its running statistics are not initializers; freeze"),
        (_used_statistics, "its statistics outputs are used"),
    ],
)
def test_what_has_no_training_form_is_refused_by_name(build, message: str) -> None:
    g = builder()
    build(g, g.input("x", FLOAT, ("N", 3, 2)))
    with pytest.raises(UnsupportedError, match=rf"node '\w+', operator \w+: {message}"):
        to_training(model(g), ["a.scale", "b.scale", "bn.scale"])


def test_the_argument_is_left_as_it_was() -> None:
    inference = networks.norm_net()
    before = ir.to_proto(inference).SerializeToString(deterministic=True)
    to_training(inference, ["bn.scale"])
    assert ir.to_proto(inference).SerializeToString(deterministic=True) == before


def test_statistics_that_two_nodes_share_advance_twice() -> None:
    g = builder()
    x = g.input("x", FLOAT, ("N", 3, 2))
    mean = g.initializer("mean", np.zeros(3, np.float32))
    (y,) = norm(g, x, "a", mean=mean)
    g.output(norm(g, g.Add(y, 1.0), "b", mean=mean)[0], "y")
    form = to_training(model(g), ["a.scale", "b.scale"])
    form.model.graph.outputs.append(form.statistics["mean"])
    array = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)
    results = Interpreter(form.model.graph).run({"x": array})
    first = 0.9 * np.zeros(3) + 0.1 * array.mean((0, 2))
    scaled = results["y"]  # of mean 0: what b normalised had the mean of a's bias, plus 1
    assert scaled.shape == array.shape
    bias = form.model.graph.initializers["a.bias"].const_value
    assert bias is not None
    expected = 0.9 * first + 0.1 * (bias.numpy() + 1)
    np.testing.assert_allclose(results[form.statistics["mean"].name or ""], expected, atol=1e-5)
