"""Models that run for long, crash an engine, or need more memory than there is."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MOST_ITERATIONS = 2**20
"""What a loop may run for."""


def long_loop() -> onnx.ModelProto:
    """The square root of x, taken n times, each by way of matrices: MOST_ITERATIONS take many minutes."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["more"]),
            helper.make_node("Sqrt", ["v"], ["root"]),
            helper.make_node("Mul", ["root", "eye"], ["diagonal"]),
            helper.make_node("MatMul", ["diagonal", "diagonal"], ["squares"]),
            helper.make_node("ReduceMax", ["squares"], ["square"], keepdims=0),
            helper.make_node("Sqrt", ["square"], ["w"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, []),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "yes", "x"], ["y"], name="roots", body=body)],
        "long_loop",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [
            numpy_helper.from_array(np.array(True), "yes"),
            numpy_helper.from_array(np.eye(384, dtype=np.float32), "eye"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def divide() -> onnx.ModelProto:
    """q = a / b over int64: INT64_MIN / -1 kills a process that computes it in onnxruntime."""
    kind = (TensorProto.INT64, ["n"])
    graph = helper.make_graph(
        [helper.make_node("Div", ["a", "b"], ["q"])],
        "divide",
        [helper.make_tensor_value_info(name, *kind) for name in ("a", "b")],
        [helper.make_tensor_value_info("q", *kind)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def blow_up() -> onnx.ModelProto:
    """The sum of zeros in any number."""
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["y"], keepdims=0),
        ],
        "blow_up",
        [helper.make_tensor_value_info("shape", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def large_answer() -> onnx.ModelProto:
    """Zeros in any number."""
    graph = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["shape"], ["y"])],
        "large",
        [helper.make_tensor_value_info("shape", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
