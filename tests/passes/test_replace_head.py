from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onward import nn, train
from onward.data import Dataset
from onward.engine import Session
from onward.errors import ConfigError, UnsupportedError
from onward.graph import dims_of
from onward.model import from_bytes, to_bytes
from onward.passes import find_head, replace_head


def dense(*after: nn.Layer) -> nn.Network:
    return nn.Sequential([nn.Dense(6, "relu"), nn.Dense(10), *after], input_shape=(4,), name="dense")


def convolutional() -> nn.Network:
    layers = [nn.Conv2D(8, 3), nn.Conv2D(10, 1), nn.ReLU(), nn.GlobalAveragePool(keepdims=True), nn.Flatten()]
    return nn.Sequential([*layers, nn.Reshape((10,)), nn.Softmax()], input_shape=(3, 8, 8), name="squeeze")


def sequence() -> nn.Network:
    return nn.Sequential(
        [nn.Embedding(9, 5), nn.Dense(10)], input_shape=(6,), input_dtype="int64", name="tagger"
    )


@pytest.mark.parametrize(
    "network",
    [
        *[nn.zoo.build(name) for name in ("lenet5", "mlp", "textcnn")],
        dense(),
        dense(nn.Softmax()),
        convolutional(),
        sequence(),
    ],
    ids=lambda n: n.name,
)
def test_only_the_head_changes(network: nn.Network) -> None:
    model = network.model
    head = find_head(model)
    changed = replace_head(model, 3, seed=7)
    for name, value in model.graph.initializers.items():
        new = changed.graph.initializers.get(name)
        if name in (head.weight, head.bias) or value.dtype != 1:
            continue
        assert new is not None
        np.testing.assert_array_equal(new.const_value.numpy(), value.const_value.numpy())  # type: ignore[union-attr]
    weight = changed.graph.initializers[head.weight].const_value
    assert weight is not None
    assert weight.numpy().shape[head.axis] == 3
    assert weight.numpy().std() > 0
    assert head.bias is not None
    assert not changed.graph.initializers[head.bias].const_value.numpy().any()  # type: ignore[union-attr]
    again = replace_head(model, 3, seed=7).graph.initializers[head.weight].const_value
    other = replace_head(model, 3, seed=8).graph.initializers[head.weight].const_value
    np.testing.assert_array_equal(weight.numpy(), again.numpy())  # type: ignore[union-attr]
    assert not np.array_equal(weight.numpy(), other.numpy())  # type: ignore[union-attr]
    dims = dims_of(changed.graph.outputs[0])
    assert dims is not None
    assert dims[-1] == 3
    # the file is sound, and a stock runtime agrees on it
    stored = to_bytes(changed)
    onnx.checker.check_model(stored, full_check=True)
    spec = Session(changed).inputs[0]
    shape = [2 if not isinstance(d, int) else d for d in spec.shape or ()]
    x = np.ones(shape, spec.dtype)
    ours = next(iter(Session(from_bytes(stored)).run({spec.name: x}).values()))
    theirs = onnxruntime.InferenceSession(stored, providers=["CPUExecutionProvider"]).run(
        None, {spec.name: x}
    )[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_weight_is_drawn_for_its_fans() -> None:
    changed = replace_head(nn.Sequential([nn.Dense(2)], input_shape=(3000,)).model, 1000)
    weight = changed.graph.initializers["dense_1.weight"].const_value
    assert weight is not None
    limit = np.sqrt(6 / 4000)
    assert np.abs(weight.numpy()).max() == pytest.approx(limit, rel=0.01)


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ([nn.Dense(5), nn.Tanh()], "Tanh"),
        ([nn.Dense(5), nn.LayerNorm()], "LayerNormalization"),
    ],
)
def test_other_ends_are_refused_by_name(layers: list[nn.Layer], names: str) -> None:
    with pytest.raises(UnsupportedError, match=names):
        replace_head(nn.Sequential(layers, input_shape=(4,)).model, 3)


def test_a_weight_that_others_use_is_refused() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
            helper.make_node("MatMul", ["h", "w"], ["y"], name="second"),
        ],
        "tied",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor("w", TensorProto.FLOAT, [4, 4], np.eye(4, dtype=np.float32).ravel())],
    )
    tied = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(UnsupportedError, match="second"):
        replace_head(from_bytes(tied.SerializeToString()), 3)


def test_no_such_output_and_no_outputs() -> None:
    with pytest.raises(ConfigError, match="no output 'z'"):
        find_head(dense().model, "z")
    with pytest.raises(ConfigError, match="at least 1"):
        replace_head(dense().model, 0)


def test_a_trainer_puts_a_head_on() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    found = Dataset({"x": x}, (x[:, 0] > 0).astype(np.int64) + (x[:, 0] > 1), classes=("a", "b", "c"))
    with pytest.raises(ConfigError, match=r"has 3 classes, output 'output' has 10; Trainer\(..., head=3\)"):
        train.Trainer(dense()).fit(found, epochs=1)
    trainer = train.Trainer(dense(), "cross_entropy", "adam", head=3, metrics=["accuracy"])
    trainer.fit(found, epochs=1)
    assert trainer.outputs[0].shape == ("N", 3)
    assert "dense_2.weight" in trainer.trainable
