"""Heads on any network, samples along any axis, and batches that are no samples at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.data import WholeBatches
from onward.errors import ConfigError, DataError, UnsupportedError
from onward.model import load
from onward.passes import find_head
from onward.train import Adam, CrossEntropy, Trainer
from onward.verify import export

RNG = np.random.default_rng(0)
node = helper.make_node


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array((RNG.standard_normal(shape) * 0.3).astype(np.float32), name)


def whole(name: str, content: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(content, np.int64), name)


def written(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    weights: Sequence[onnx.TensorProto],
    integers: Sequence[str] = (),
) -> Path:
    def info(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
        kind = TensorProto.INT64 if name in integers else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        list(nodes),
        "made",
        [info(*each) for each in inputs.items()],
        [info(*each) for each in outputs.items()],
        list(weights),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


X = RNG.standard_normal((60, 8)).astype(np.float32)
Y = X[:, :3].argmax(1)
IMAGES = RNG.standard_normal((30, 3, 6, 6)).astype(np.float32)
HEADS: dict[str, tuple[list[onnx.NodeProto], list[Any], list[Any], list[onnx.TensorProto]]] = {
    "features": (
        [node("MatMul", ["x", "w"], ["a"]), node("Tanh", ["a"], ["y"])],
        ["N", 8],
        ["N", 10],
        [weight("w", 8, 10)],
    ),
    "scores of a convolution of 3x3, then probabilities": (
        [
            node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
            node("GlobalAveragePool", ["a"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("Softmax", ["f"], ["y"]),
        ],
        ["N", 3, 6, 6],
        ["N", 10],
        [weight("w", 10, 3, 3, 3)],
    ),
    "pooled maps": (
        [
            node("Conv", ["x", "w"], ["a"]),
            node("Relu", ["a"], ["r"]),
            node("GlobalAveragePool", ["r"], ["y"]),
        ],
        ["N", 3, 6, 6],
        ["N", 10, 1, 1],
        [weight("w", 10, 3, 3, 3)],
    ),
    "normalized": (
        [node("MatMul", ["x", "w"], ["a"]), node("BatchNormalization", ["a", "s", "b", "m", "v"], ["y"])],
        ["N", 8],
        ["N", 10],
        [
            weight("w", 8, 10),
            *(
                numpy_helper.from_array(np.full(10, f, np.float32), n)
                for n, f in zip("sbmv", (1, 0, 0, 1), strict=True)
            ),
        ],
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_added_where_none_can_be_replaced(tmp_path: Path, name: str) -> None:
    nodes, takes, gives, weights = HEADS[name]
    path = written(tmp_path / "m.onnx", nodes, {"x": takes}, {"y": gives}, weights)
    x = X if len(takes) == 2 else IMAGES
    labels = Y if len(takes) == 2 else np.arange(30) % 3
    trainer = Trainer(path, optimizer=Adam(learning_rate=0.02), head=3, metrics=["accuracy"])
    assert [str(spec) for spec in trainer.outputs] == ["y: float32[N, 3]"]
    assert {"y/head.weight", "y/head.bias"} <= set(trainer.trainable)
    first = trainer.evaluate(x, labels)["loss"]
    trainer.fit(x, labels, epochs=15, batch_size=15, progress=False)
    assert trainer.evaluate(x, labels)["loss"] < 0.8 * first
    assert "Softmax" not in {n.op_type for n in trainer.model.graph}
    export(trainer.model, tmp_path / "out.onnx")
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "out.onnx")).run(None, {"x": x})
    np.testing.assert_allclose(found, trainer.predict(x)["y"], rtol=1e-4, atol=1e-4)
    # and from now on it can be replaced
    assert find_head(load(tmp_path / "out.onnx")).classes == 3


def test_a_head_whose_weight_is_transposed_is_replaced(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        node("MatMul", ["x", "wt"], ["a"]),
        node("Add", ["b", "a"], ["y"]),
    ]
    path = written(
        tmp_path / "m.onnx", nodes, {"x": ["N", 8]}, {"y": ["N", 10]}, [weight("w", 10, 8), weight("b", 10)]
    )
    trainer = Trainer(path, head=3)
    assert trainer.weights()["w"].shape == (3, 8)
    assert trainer.predict(X)["y"].shape == (60, 3)


def test_a_weight_that_is_tied_stays_and_a_head_comes_behind(tmp_path: Path) -> None:
    nodes = [
        node("Gather", ["e", "t"], ["a"]),
        node("Transpose", ["e"], ["et"], perm=[1, 0]),
        node("MatMul", ["a", "et"], ["y"]),
    ]
    path = written(
        tmp_path / "m.onnx", nodes, {"t": ["N", 5]}, {"y": ["N", 5, 10]}, [weight("e", 10, 8)], ["t"]
    )
    trainer = Trainer(path, CrossEntropy(axis=-1), head=3)
    assert [str(spec) for spec in trainer.outputs] == ["y: float32[N, 5, 3]"]
    assert set(trainer.trainable) == {"e", "y/head.weight", "y/head.bias"}


def test_features_of_unknown_number_are_refused(tmp_path: Path) -> None:
    path = written(
        tmp_path / "m.onnx", [node("Tanh", ["x"], ["y"])], {"x": ["N", "F"]}, {"y": ["N", "F"]}, []
    )
    with pytest.raises(UnsupportedError, match=r"'y', float \['N', 'F'\], is no \[N, features\]"):
        Trainer(path, head=3)


def _time_major(path: Path) -> Path:
    nodes = [
        node("LSTM", ["x", "lw", "lr", "lb"], ["l"], hidden_size=6),
        node("Squeeze", ["l", "ax"], ["s"]),
        node("MatMul", ["s", "w"], ["y"]),
    ]
    weights = [weight("lw", 1, 24, 4), weight("lr", 1, 24, 6), weight("lb", 1, 48), weight("w", 6, 3)]
    return written(path, nodes, {"x": ["T", "N", 4]}, {"y": ["T", "N", 3]}, [*weights, whole("ax", [1])])


def test_samples_along_another_axis(tmp_path: Path) -> None:
    path = _time_major(tmp_path / "m.onnx")
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 7, 4)).astype(np.float32)
    y = np.cumsum(x[..., :3], axis=1).argmax(-1)
    trainer = Trainer(
        path, CrossEntropy(axis=-1), Adam(learning_rate=0.02), sample_axis=1, metrics=["accuracy"]
    )
    assert [str(s) for s in (*trainer.inputs, *trainer.outputs)] == [
        "x: float32[N, T, 4]",
        "y: float32[N, T, 3]",
    ]
    trainer.fit(x, y, epochs=60, batch_size=10, progress=False)
    figures = trainer.evaluate(x, y, batch_size=16)
    assert figures["accuracy"] > 0.7
    export(trainer.model, tmp_path / "out.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"))
    assert session.get_inputs()[0].shape == ["T", "N", 4]
    (found,) = session.run(None, {"x": x.transpose(1, 0, 2).copy()})
    np.testing.assert_allclose(found.transpose(1, 0, 2), trainer.predict(x)["y"], rtol=1e-3, atol=1e-4)
    assert (y == found.argmax(-1).T).mean() == pytest.approx(figures["accuracy"], abs=0.01)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ({"z": 1}, "'z', but inputs and outputs are x, y"),
        ({"x": 3}, r"'x' is \['T', 'N', 4\]: it has no axis 3"),
    ],
)
def test_axes_that_there_are_not(tmp_path: Path, axis: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(_time_major(tmp_path / "m.onnx"), sample_axis=axis)


def _graph_network(path: Path) -> Path:
    nodes = [
        node("MatMul", ["nodes", "w"], ["a"]),
        node("Gather", ["edges", "zero"], ["src"]),
        node("Gather", ["edges", "one"], ["dst"]),
        node("Gather", ["a", "src"], ["m"]),
        node("Unsqueeze", ["dst", "last"], ["d"]),
        node("Shape", ["m"], ["shape"]),
        node("Expand", ["d", "shape"], ["places"]),
        node("ScatterElements", ["a", "places", "m"], ["s"], axis=0, reduction="add"),
        node("Relu", ["s"], ["r"]),
        node("MatMul", ["r", "v"], ["y"]),
    ]
    weights = [weight("w", 4, 12), weight("v", 12, 2), whole("zero", 0), whole("one", 1), whole("last", [1])]
    takes = {"nodes": ["V", 4], "edges": [2, "E"]}
    return written(path, nodes, takes, {"y": ["V", 2]}, weights, ["edges"])


def _graphs() -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Nodes whose label is whether the first numbers of themselves and what points at them sum above 0."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(12):
        count = int(rng.integers(20, 40))
        nodes = rng.standard_normal((count, 4)).astype(np.float32)
        edges = rng.integers(0, count, (2, int(rng.integers(30, 60))))
        sums = nodes[:, 0].copy()
        np.add.at(sums, edges[1], nodes[edges[0], 0])
        found.append(({"nodes": nodes, "edges": edges}, (sums > 0).astype(np.int64)))
    return found


def test_graphs_are_given_whole(tmp_path: Path) -> None:
    graphs = _graphs()
    trainer = Trainer(
        _graph_network(tmp_path / "m.onnx"),
        optimizer=Adam(learning_rate=0.02),
        metrics=["accuracy"],
        engine="interpreter",
    )
    train, held = WholeBatches(graphs[:9]), WholeBatches(graphs[9:])
    trainer.fit(train, validation=held, epochs=25, progress=False)
    figures = trainer.evaluate(held)
    assert figures["accuracy"] > 0.85
    right = [trainer.predict(inputs)["y"].argmax(1) == labels for inputs, labels in graphs[9:]]
    assert np.concatenate(right).mean() == pytest.approx(figures["accuracy"])
    # more edges than a batch of predict has samples: still one graph
    inputs = {"nodes": graphs[0][0]["nodes"], "edges": np.tile(graphs[0][0]["edges"], 20)}
    once = trainer.predict(inputs)["y"]
    np.testing.assert_array_equal(trainer.predict(inputs, batch_size=10)["y"], once)


def test_whole_batches_that_do_not_fit(tmp_path: Path) -> None:
    (inputs, labels), *_ = _graphs()
    with pytest.raises(ConfigError, match="there are no batches"):
        WholeBatches([])
    with pytest.raises(ConfigError, match=r"batch 0: \(inputs by name, targets\) is needed"):
        WholeBatches([inputs])  # type: ignore[list-item]
    with pytest.raises(DataError, match="batch 1 has other inputs than batches, batch 0"):
        WholeBatches([(inputs, labels), ({"nodes": inputs["nodes"]}, labels)])
    trainer = Trainer(_graph_network(tmp_path / "m.onnx"), engine="interpreter")
    with pytest.raises(DataError, match=r"label [78] is out of range"):
        trainer.fit(WholeBatches([(inputs, labels + 7)]), progress=False)
