from __future__ import annotations

import json

import onnx

from onward.model import ModelReport, ValueReport, from_bytes, inspect_model


def report(text: str) -> ModelReport:
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 21], producer_name: "p">' + text)
    return inspect_model(from_bytes(proto.SerializeToString()))


def test_mlp(mlp: onnx.ModelProto) -> None:
    found = inspect_model(from_bytes(mlp.SerializeToString()))
    assert found.producer == "tests"
    assert (found.ir_version, found.opsets) == (10, {"": 21})
    assert found.inputs == (ValueReport("x", "FLOAT", ("N", 3)),)
    assert found.outputs == (ValueReport("y", "FLOAT", ("N", 2)),)
    assert found.operators == {"Gemm": 1, "MatMul": 1, "Relu": 1}
    assert (found.parameters, found.parameter_bytes) == (12 + 4 + 8, 96)
    assert [(layer.name, layer.parameters, layer.macs) for layer in found.layers] == [
        ("first", 16, 12),
        ("act", 0, None),
        ("second", 8, 8),
    ]
    assert found.macs == 20
    assert json.loads(json.dumps(found.as_dict()))["layers"][0]["output_shape"] == ["N", 4]


def test_convolutions() -> None:
    found = report(
        """g (float[n, 4, 10, 10] x, float[6, 2, 3, 3] w, float[6, 5, 2, 2] t) => (float[n, a, b, c] y) {
            m = Conv<group = 2>(x, w) y = ConvTranspose<strides = [2, 2]>(m, t)
        }"""
    )
    conv, transposed = found.layers
    assert conv.output_shape == ("n", 6, 8, 8)
    assert conv.macs == 6 * 8 * 8 * (4 // 2) * 9
    assert transposed.output_shape == ("n", 5, 16, 16)
    assert transposed.macs == 6 * 8 * 8 * 5 * 4


def test_matrix_products() -> None:
    found = report(
        """g (float[5, n, 7] a, float[7, 3] b, float[9, 3] c) => (float[p, q, r] y, float[s, t] z) {
            y = MatMul(a, b) z = Gemm<transB = 1>(b, c)
        }"""
    )
    assert [layer.macs for layer in found.layers] == [None, 7 * 9 * 3]
    assert found.layers_of_unknown_cost == 1


def test_shared_weights_count_once_and_branches_are_listed() -> None:
    found = report(
        """g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
            a = Add(x, w) b = Mul(a, w)
            y = If (c) <then_branch = t () => (float[2] u) { u = Relu(b) },
                        else_branch = e () => (float[2] v) { v = Abs(b) }>
        }"""
    )
    assert [layer.parameters for layer in found.layers] == [2, 0, 0, 0, 0]
    assert found.operators == {"Abs": 1, "Add": 1, "If": 1, "Mul": 1, "Relu": 1}
