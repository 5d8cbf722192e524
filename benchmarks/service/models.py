"""Repositories that the programs serve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["write_endless", "write_filled", "write_identity", "write_mlp", "write_network", "write_slow"]


def write_mlp(repository: Path, name: str = "mlp", config: str = "") -> Path:
    """784-128-10, float32, a free number of rows."""
    generator = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {
        "w1": generator.standard_normal((784, 128)).astype(np.float32) / 28,
        "b1": np.zeros(128, np.float32),
        "w2": generator.standard_normal((128, 10)).astype(np.float32) / 11,
        "b2": np.zeros(10, np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    return _write(repository, name, nodes, ["n", 784], ["n", 10], weights, config)


def write_network(repository: Path, network: str, name: str, config: str = "") -> str:
    """A network of the zoo, with a free number of samples; the name of its input."""
    from benchmarks.suite import ours
    from benchmarks.suite.cases import find

    from onward.model import save

    path = repository / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    model = ours.inference_model(find(network))
    save(model, path)
    if config:
        (repository / name / "config.toml").write_text(config)
    return str(model.graph.inputs[0].name)


def write_slow(repository: Path, name: str = "slow", config: str = "") -> Path:
    """A product of matrices repeated: tens of milliseconds a request of 256 by 256."""
    weight = np.full((256, 256), 1 / 256, np.float32)
    nodes, value = [], "x"
    for layer in range(24):
        nodes.append(helper.make_node("MatMul", [value, "w"], [f"p{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"p{layer}"], [f"t{layer}"]))
        value = f"t{layer}"
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    return _write(repository, name, nodes, ["n", 256], ["n", 256], {"w": weight}, config)


def write_endless(repository: Path, name: str = "endless", config: str = "") -> Path:
    """Counts to `x`, which may be the largest integer: a loop that never ends."""
    scalar: list[int] = []
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["again"]),
            helper.make_node("Add", ["sum", "one"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, scalar),
            helper.make_tensor_value_info("more", TensorProto.BOOL, scalar),
            helper.make_tensor_value_info("sum", TensorProto.INT64, scalar),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, scalar),
            helper.make_tensor_value_info("next", TensorProto.INT64, scalar),
        ],
        [numpy_helper.from_array(np.array(1, np.int64), "one")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["x"], ["rounds"]),
            helper.make_node("Loop", ["rounds", "", "zero"], ["y"], body=body),
        ],
        name,
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, scalar)],
        [numpy_helper.from_array(np.array(0, np.int64), "zero")],
    )
    return _save(repository, name, graph, config)


def write_filled(repository: Path, name: str = "filled", config: str = "") -> Path:
    """The sum of `x` ones: as many elements as a request asks for."""
    one = numpy_helper.from_array(np.ones(1, np.float32), "value")
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["x"], ["ones"], value=one),
            helper.make_node("ReduceSum", ["ones"], ["y"], keepdims=0),
        ],
        name,
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    return _save(repository, name, graph, config)


def write_identity(repository: Path, name: str, element: int, config: str = "") -> Path:
    """y = x of an element type of ONNX, any number of them."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        name,
        [helper.make_tensor_value_info("x", element, ["n"])],
        [helper.make_tensor_value_info("y", element, ["n"])],
    )
    return _save(repository, name, graph, config)


def _write(
    repository: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[str | int],
    outputs: list[str | int],
    weights: dict[str, np.ndarray],
    config: str,
) -> Path:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    return _save(repository, name, graph, config)


def _save(repository: Path, name: str, graph: onnx.GraphProto, config: str) -> Path:
    path = repository / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    if config:
        (repository / name / "config.toml").write_text(config)
    return path
