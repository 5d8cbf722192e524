"""Products whose result a convolution reads as an image, with element-wise operations between them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.engine import Session
from onward.model import from_bytes


@pytest.mark.parametrize("activation", ["Elu", "Relu", "Tanh"])
@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("side", [1, 3])
def test_activation_between_product_and_convolution(activation: str, op_type: str, side: int) -> None:
    rng = np.random.default_rng(0)
    kernel, pads = (side, side), [side // 2] * 4
    weights = {
        "a": rng.normal(size=(4, 6)).astype(np.float32),
        "w": rng.normal(size=(5, 5, *kernel)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["rows"]),
        helper.make_node(activation, ["rows"], ["z"]),
        helper.make_node(op_type, ["z", "w"], ["y"], kernel_shape=kernel, pads=pads),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5, 7, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5, 7, 6])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    model, x = from_bytes(proto.SerializeToString()), rng.normal(size=(2, 5, 7, 4)).astype(np.float32)
    with Session(model, engine="interpreter") as slow, Session(model, engine="compiled") as fast:
        np.testing.assert_allclose(fast.run({"x": x})["y"], slow.run({"x": x})["y"], rtol=1e-4, atol=1e-4)
