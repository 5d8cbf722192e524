"""`training_info`: files of others are run, and ours are written so that others can run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.train import networks

from onward.engine import Session
from onward.errors import ConfigError, InvalidModelError, UnsupportedError
from onward.model import load, save
from onward.passes import to_half
from onward.train import SGD, Adam, StoredLoss, StoredTraining, Trainer

TRAINING = "ai.onnx.preview.training"


def info(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def linear(path: Path, **changes: str) -> None:
    """The specification's own kind of example: a linear model, squared error, Gradient and Momentum."""
    w = numpy_helper.from_array(np.array([[0.5], [-0.5]], np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "inference",
        [info("x", ["N", 2])],
        [info("y", ["N", 1])],
        [w],
    )
    make = helper.make_node
    nodes = [
        make("Sub", ["y", "t"], ["e"]),
        make("Mul", ["e", "e"], ["q"]),
        make("ReduceMean", ["q"], ["loss"], keepdims=0),
        make("Gradient", ["w", "x", "t"], ["dw"], domain=TRAINING, xs=["w"], zs=["x", "t"], y="loss"),
        make(
            "Momentum",
            ["rate", "count", "w", "dw", "v"],
            ["w_new", "v_new"],
            domain=TRAINING,
            alpha=0.9,
            beta=1.0,
            mode="standard",
            norm_coefficient=0.0,
        ),
        make("Add", ["count", "one"], ["count_new"]),
    ]
    algorithm = helper.make_graph(
        nodes,
        "algorithm",
        [info("t", ["N", 1])],
        [
            info("loss", []),
            info("w_new", [2, 1]),
            info("v_new", [2, 1]),
            info("count_new", [], TensorProto.INT64),
        ],
        [
            numpy_helper.from_array(np.float32(0.05), "rate"),
            numpy_helper.from_array(np.int64(0), "count"),
            numpy_helper.from_array(np.int64(1), "one"),
            numpy_helper.from_array(np.zeros((2, 1), np.float32), "v"),
        ],
    )
    initialization = helper.make_graph(
        [make("RandomNormal", [], ["w_first"], shape=[2, 1], seed=3.0)],
        "initialization",
        [],
        [info("w_first", [2, 1])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 12), helper.make_opsetid(TRAINING, 1)], ir_version=8
    )
    training = model.training_info.add()
    training.algorithm.CopyFrom(algorithm)
    training.initialization.CopyFrom(initialization)
    training.initialization_binding.add(key="w", value=changes.get("first", "w_first"))
    for key, value in (("w", "w_new"), ("v", "v_new"), ("count", "count_new")):
        training.update_binding.add(key=changes.get(key, key), value=changes.get(value, value))
    onnx.save(model, path)


def _samples() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    return x, x @ np.array([[2.0], [-1.0]], np.float32)


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_a_file_of_others_trains(tmp_path: Path, engine: Any) -> None:
    linear(tmp_path / "m.onnx")
    training = StoredTraining(tmp_path / "m.onnx", engine=engine)
    assert [spec.name for spec in training.inputs] == ["x", "t"]
    assert set(training.state) == {"w", "v", "count"}
    x, t = _samples()
    # by hand: momentum of the standard, whose first beta is 1
    w, v, losses = np.array([[0.5], [-0.5]]), np.zeros((2, 1)), []
    for _ in range(5):
        error = x @ w - t
        losses.append(float((error**2).mean()))
        v = 0.9 * v + 2 * x.T @ error / len(x)
        w = w - 0.05 * v
    found = [float(training.step({"x": x, "t": t})["loss"]) for _ in range(5)]
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    np.testing.assert_allclose(training.state["w"], w, rtol=1e-4)
    assert training.state["count"] == 5
    for _ in range(200):
        training.step({"x": x, "t": t})
    save(training.model, tmp_path / "trained.onnx")
    np.testing.assert_allclose(Session(tmp_path / "trained.onnx").run({"x": x})["y"], t, atol=1e-2)
    again = StoredTraining(tmp_path / "trained.onnx")
    assert again.state["count"] == 205
    again.initialize()
    first = again.state["w"].copy()
    assert not np.allclose(first, [[2.0], [-1.0]])
    again.initialize()
    np.testing.assert_array_equal(again.state["w"], first)
    assert again.state["count"] == 205  # the binding does not name it


def test_a_trainer_says_that_it_does_something_else(tmp_path: Path) -> None:
    linear(tmp_path / "m.onnx")
    with pytest.warns(UserWarning, match="brings a training step of its own"):
        Trainer(tmp_path / "m.onnx", "mse")


def test_a_trainer_minimises_the_loss_of_a_file(tmp_path: Path) -> None:
    linear(tmp_path / "m.onnx")
    x, t = _samples()
    stored = StoredTraining(tmp_path / "m.onnx")
    stored.initialize()
    trainer = Trainer(stored.model, "stored", SGD(learning_rate=0.05))
    (loss,) = trainer.loss.values()
    assert isinstance(loss, StoredLoss)
    assert (loss.name, loss.of) == ("loss", "y")
    w = stored.state["w"].copy()
    for _ in range(3):
        trainer.fit(x, t, batch_size=16, progress=False)
        w = w - 0.05 * 2 * x.T @ (x @ w - t) / len(x)
    np.testing.assert_allclose(trainer.weights()["w"], w, rtol=1e-4)
    assert trainer.evaluate(x, t)["loss"] == pytest.approx(float(((x @ w - t) ** 2).mean()), rel=1e-4)
    trainer.fit(x, t, epochs=150, batch_size=16, progress=False)
    np.testing.assert_allclose(trainer.weights()["w"], [[2.0], [-1.0]], atol=1e-2)


def test_stored_losses_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no training_info 0, it has 0"):
        Trainer(networks.mlp(), "stored")
    linear(tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    step = proto.training_info[0].algorithm
    step.node[2].input[0] = "decayed"
    step.node.insert(2, helper.make_node("ReduceSumSquare", ["w"], ["size"]))
    step.node.insert(3, helper.make_node("Add", ["q", "size"], ["decayed"]))
    onnx.save(proto, tmp_path / "decayed.onnx")
    with pytest.raises(UnsupportedError, match="loss 'loss' is computed from t, w, y, not from one output"):
        StoredLoss(tmp_path / "decayed.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    nodes = proto.training_info[0].algorithm.node
    nodes[0].input[0] = "x"  # an input of the model in the place of its output
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(UnsupportedError, match="loss 'loss' is computed from t, x, not from one output"):
        StoredLoss(tmp_path / "other.onnx")
    del nodes[3]
    onnx.save(proto, tmp_path / "none.onnx")
    with pytest.raises(UnsupportedError, match="has no Gradient, so that no value is its loss"):
        StoredLoss(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": "none"}, "update_binding names 'none', which is no initializer"),
        ({"w_new": "none"}, "update_binding names 'none', which is no output"),
        ({"first": "none"}, "initialization_binding names 'none', which is no output"),
    ],
)
def test_bindings_that_do_not_fit(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    linear(tmp_path / "m.onnx", **changes)
    with pytest.raises((InvalidModelError, UnsupportedError), match=message):
        StoredTraining(tmp_path / "m.onnx")


def test_a_model_without_training_info_is_refused() -> None:
    with pytest.raises(ConfigError, match="no training_info 0: it has 0"):
        StoredTraining(networks.mlp())


@pytest.mark.parametrize("network", ["mlp", "norm_net"])
def test_what_a_trainer_writes_goes_on_as_the_trainer(tmp_path: Path, network: str) -> None:
    model = getattr(networks, network)()
    trainer = Trainer(model, optimizer=Adam(learning_rate=0.01), seed=5)
    rng = np.random.default_rng(0)
    (spec,) = trainer.inputs
    x = rng.normal(size=(12, *(spec.shape or ())[1:])).astype(np.float32)
    y = rng.integers(0, 3, 12)
    trainer.fit(x, y, epochs=2, batch_size=12, progress=False)
    save(trainer.with_training_info(), tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    # inference is untouched by what the file has besides
    np.testing.assert_allclose(
        Session(tmp_path / "m.onnx").run({spec.name: x})[trainer.outputs[0].name],
        trainer.predict(x)[trainer.outputs[0].name],
        rtol=1e-6,
        atol=1e-6,
    )
    training = StoredTraining(tmp_path / "m.onnx")
    roles = training.roles
    (target,) = roles["targets"].values()
    feeds = {
        spec.name: x,
        target: y,
        roles["learning_rate"]: np.array(0.01, np.float32),
        roles["step"]: np.array(2),
    }
    if roles["seed"] is not None:
        feeds[roles["seed"]] = np.array(5)
    given = {s.name for s in training.inputs}
    mine = training.step({name: a for name, a in feeds.items() if name in given})
    session = trainer._session
    own = {name.removeprefix("training/"): array for name, array in feeds.items()}
    theirs = session.run({s.name: own[s.name] for s in session.inputs})
    np.testing.assert_allclose(mine[roles["loss"]], theirs[trainer.step.loss], rtol=1e-5)
    for name, array in session.state.items():
        np.testing.assert_allclose(training.state[name], array, rtol=1e-4, atol=1e-6)
    before = training.state[trainer.trainable[0]].copy()
    training.initialize()
    assert all(not training.state[name].any() for name in trainer.step.slots)
    np.testing.assert_array_equal(training.state[trainer.trainable[0]], before)


def test_what_is_written_runs_where_the_graphs_are_joined(tmp_path: Path) -> None:
    """Joined by hand as the specification says, in onnxruntime: no code of ours."""
    trainer = Trainer(networks.mlp(), optimizer=SGD(learning_rate=0.1, momentum=0.9))
    x, y = networks.blobs()
    save(trainer.with_training_info(), tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    (training,) = proto.training_info
    roles = json.loads({p.key: p.value for p in proto.metadata_props}["onward.training_info"])
    del proto.training_info[:]
    for field in ("node", "input", "output", "initializer"):
        getattr(proto.graph, field).extend(getattr(training.algorithm, field))
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    feeds = {
        "x": x,
        roles["targets"]["scores"]: y,
        roles["learning_rate"]: np.array(0.1, np.float32),
        roles["step"]: np.array(0),
    }
    names = [output.name for output in session.get_outputs()]
    given = {value.name for value in session.get_inputs()}
    results = session.run(names, {name: a for name, a in feeds.items() if name in given})
    found = dict(zip(names, results, strict=True))
    trainer.fit(x, y, epochs=1, batch_size=len(x), progress=False)
    assert {binding.key for binding in training.update_binding} == set(trainer.state)
    for binding in training.update_binding:
        np.testing.assert_allclose(
            found[binding.value], trainer.state[binding.key], rtol=1e-4, atol=1e-6, err_msg=binding.key
        )


def test_16_bit_files_are_refused_and_say_what_to_do() -> None:
    trainer = Trainer(to_half(networks.mlp(), ir.DataType.FLOAT16))
    with pytest.raises(UnsupportedError, match=r"trained as float32.*Trainer\.training_model"):
        trainer.with_training_info()


def test_the_training_model_begins_with_the_current_state(tmp_path: Path) -> None:
    trainer = Trainer(networks.mlp(), optimizer="adam")
    x, y = networks.blobs()
    trainer.fit(x, y, epochs=1, batch_size=20, progress=False)
    save(trainer.training_model(), tmp_path / "step.onnx")
    model = load(tmp_path / "step.onnx")
    for name, array in trainer.state.items():
        content = model.graph.initializers[name].const_value
        assert content is not None
        np.testing.assert_array_equal(content.numpy(), array)
