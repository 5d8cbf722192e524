"""Quantisation against onnxruntime on random data, at ties and at the ends of ranges; and what is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from onward.engine.compiled import CompiledEngine
from onward.engine.interpreter import Interpreter
from onward.errors import OnwardError, ShapeError
from onward.graph import Array
from onward.model import from_bytes

_RNG = np.random.default_rng(3)
_BITS = {"int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16}


def _model(
    op_type: str, inputs: list[Array | None], output: int, opset: int = 21, **attributes: Any
) -> tuple[bytes, dict[str, Array]]:
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    given = {n: x for n, x in zip(names, inputs, strict=True) if x is not None}
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in given.items()
    ]
    node = helper.make_node(op_type, names, ["y"], name="node", **attributes)
    shape = [None] * max(x.ndim for x in given.values())
    graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("y", output, shape)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return model.SerializeToString(), given


def _both(model: bytes, given: dict[str, Array]) -> Array:
    loaded = from_bytes(model)
    y = Interpreter(loaded.graph).run(given)["y"]
    np.testing.assert_array_equal(CompiledEngine(loaded).run(given)["y"], y)
    return np.asarray(y)


def _equal_to_onnxruntime(op_type: str, inputs: list[Array | None], output: int, **attributes: Any) -> None:
    model, given = _model(op_type, inputs, output, **attributes)
    want = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, given)[0]
    got = _both(model, given)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def _values(*shape: int) -> Array:
    """Normal numbers, halves among them, and what lies outside of every range."""
    x = (_RNG.standard_normal(shape) * 100).astype(np.float32)
    x.reshape(-1)[::3] = np.round(x.reshape(-1)[::3]) + np.float32(0.5)
    x.reshape(-1)[:4] = [np.inf, -np.inf, 3e38, np.nan]
    return x


@pytest.mark.parametrize("name", _BITS)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_quantize(name: str, axis: int | None) -> None:
    dtype = _BITS[name]
    x = _values(5, 4, 6)
    extent = () if axis is None else (x.shape[axis],)
    scale = np.asarray(_RNG.choice([0.5, 1.0, 0.3, 2.0], extent), np.float32)
    zero = np.asarray(_RNG.integers(0, 100, extent), dtype)
    attributes = {} if axis is None else {"axis": axis}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    _equal_to_onnxruntime("QuantizeLinear", [x, scale, zero], kind, **attributes)
    q = np.asarray(_RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (5, 4, 6)), dtype)
    _equal_to_onnxruntime("DequantizeLinear", [q, scale, zero], onnx.TensorProto.FLOAT, **attributes)
    _equal_to_onnxruntime("DequantizeLinear", [q, scale, None], onnx.TensorProto.FLOAT, **attributes)


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks(axis: int) -> None:
    x = _values(6, 10, 3)[:, 2:]
    shape = list(x.shape)
    shape[axis] = 2
    scale = (_RNG.random(shape) + 0.1).astype(np.float32)
    zero = np.asarray(_RNG.integers(-20, 20, shape), np.int8)
    size = x.shape[axis] // 2
    _equal_to_onnxruntime(
        "QuantizeLinear", [x, scale, zero], onnx.TensorProto.INT8, axis=axis, block_size=size
    )
    q = np.asarray(_RNG.integers(-128, 127, x.shape), np.int8)
    _equal_to_onnxruntime(
        "DequantizeLinear", [q, scale, zero], onnx.TensorProto.FLOAT, axis=axis, block_size=size
    )


def test_a_last_block_may_be_short() -> None:
    x, scale = np.arange(5, dtype=np.float32)[None] * 10, np.array([[1, 2, 10]], np.float32)
    model, given = _model("QuantizeLinear", [x, scale], onnx.TensorProto.UINT8, axis=1, block_size=2)
    np.testing.assert_array_equal(_both(model, given), [[0, 10, 10, 15, 4]])


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_narrow_floats(kind: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, kind, None) or np.float16)
    x, scale = _values(40)[4:].astype(dtype), np.asarray(0.37, dtype)
    model, given = _model("QuantizeLinear", [x, scale, np.asarray(3, np.int8)], onnx.TensorProto.INT8)
    quotient = (x.astype(np.float32) / scale.astype(np.float32)).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(_both(model, given), np.clip(np.rint(quotient) + 3, -128, 127))
    wide, given = _model(
        "QuantizeLinear",
        [x, scale, np.asarray(3, np.int8)],
        onnx.TensorProto.INT8,
        opset=23,
        precision=onnx.TensorProto.FLOAT,
    )
    quotient = x.astype(np.float32) / scale.astype(np.float32)
    np.testing.assert_array_equal(_both(wide, given), np.clip(np.rint(quotient) + 3, -128, 127))


def test_integers_are_quantised_and_large_ones_dequantised_exactly() -> None:
    x = np.array([-(2**31), -7, 0, 5, 2**31 - 1], np.int32)
    model, given = _model("QuantizeLinear", [x, np.asarray(2, np.float32)], onnx.TensorProto.UINT8, opset=13)
    np.testing.assert_array_equal(_both(model, given), [0, 0, 0, 2, 255])
    _equal_to_onnxruntime("DequantizeLinear", [x, np.asarray(0.1, np.float32)], onnx.TensorProto.FLOAT)


def test_a_scale_may_be_a_power_of_two_alone() -> None:
    x = np.array([1, 3, -8, 300], np.float32)
    scale = np.asarray(4, ml_dtypes.float8_e8m0fnu)
    model, given = _model(
        "QuantizeLinear",
        [x, scale],
        onnx.TensorProto.FLOAT4E2M1,
        opset=24,
        output_dtype=onnx.TensorProto.FLOAT4E2M1,
    )
    np.testing.assert_array_equal(_both(model, given).astype(np.float32), [0, 1, -2, 6])


def test_range_of_the_data() -> None:
    for x in (
        _values(50)[4:],
        np.abs(_values(50)[4:]),
        -np.abs(_values(9)[4:]),
        np.zeros((2, 3), np.float32),
    ):
        nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])]
        infos = [
            helper.make_tensor_value_info(n, t, x.shape if n == "y" else [])
            for n, t in (("y", onnx.TensorProto.UINT8), ("s", 1), ("z", onnx.TensorProto.UINT8))
        ]
        graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, x.shape)], infos)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        content = model.SerializeToString()
        want = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})
        got = Interpreter(from_bytes(content).graph).run({"x": x})
        for name, value in zip("ysz", want, strict=True):
            np.testing.assert_array_equal(got[name], value)


def _whole(dtype: Any, *shape: int) -> Array:
    info = np.iinfo(dtype)
    return np.asarray(_RNG.integers(info.min, info.max, shape, endpoint=True), dtype)


_UNSIGNED_ALWAYS = [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)]


@pytest.mark.parametrize(("left", "right"), _UNSIGNED_ALWAYS)
@pytest.mark.parametrize("shapes", [((5, 70), (70, 9)), ((2, 3, 4, 300), (300, 2)), ((2, 4, 7), (2, 7, 3))])
def test_products(left: Any, right: Any, shapes: Any) -> None:
    a, b = _whole(left, *shapes[0]), _whole(right, *shapes[1])
    za, zb = np.asarray(_whole(left, 1)[0]), np.asarray(_whole(right, 1)[0])
    _equal_to_onnxruntime("MatMulInteger", [a, b, za, zb], onnx.TensorProto.INT32, opset=10)
    _equal_to_onnxruntime("MatMulInteger", [a, b], onnx.TensorProto.INT32, opset=10)
    scale = np.asarray(1 / a.shape[-1], np.float32)
    kind = helper.np_dtype_to_tensor_dtype(a.dtype)
    operands = [a, scale, za, b, np.float32(0.03), zb, np.float32(1.7), np.asarray(7, left)]
    _equal_to_onnxruntime("QLinearMatMul", [np.asarray(x) for x in operands], kind)


def test_product_by_columns() -> None:
    a, b = _whole(np.uint8, 6, 40), _whole(np.int8, 40, 5)
    scales = (_RNG.random(5) * 0.01).astype(np.float32)
    zeros = np.zeros(5, np.int8)
    operands = [a, np.float32(0.1), np.uint8(9), b, scales, zeros, np.float32(0.2), np.uint8(100)]
    _equal_to_onnxruntime("QLinearMatMul", [np.asarray(x) for x in operands], onnx.TensorProto.UINT8)


def test_product_by_rows() -> None:
    a, b = _whole(np.uint8, 3, 4), _whole(np.uint8, 4, 2)
    zeros = np.array([1, 100, 255], np.uint8)
    model, given = _model("MatMulInteger", [a, b, zeros], onnx.TensorProto.INT32, opset=10)
    want = (a.astype(int) - zeros[:, None].astype(int)) @ b.astype(int)
    np.testing.assert_array_equal(_both(model, given), want)


@pytest.mark.parametrize(("left", "right"), _UNSIGNED_ALWAYS)
@pytest.mark.parametrize("group", [1, 2, 6])
def test_convolutions(left: Any, right: Any, group: int) -> None:
    x, w = _whole(left, 2, 6, 7, 9), _whole(right, 12, 6 // group, 3, 3)
    x_zero, w_zero = np.asarray(_whole(left, 1)[0]), np.asarray(0, right)
    attributes = {"group": group, "pads": [1, 2, 1, 0], "strides": [2, 1]}
    if left is np.uint8:
        _equal_to_onnxruntime(
            "ConvInteger", [x, w, x_zero, w_zero], onnx.TensorProto.INT32, opset=10, **attributes
        )
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    scales = (_RNG.random(12) * 0.02).astype(np.float32)
    bias = _whole(np.int16, 12).astype(np.int32)
    operands = [
        x,
        np.float32(0.1),
        x_zero,
        w,
        scales,
        np.zeros(12, right),
        np.float32(0.7),
        np.asarray(3, left),
    ]
    for given in (operands, [*operands, bias]):
        _equal_to_onnxruntime("QLinearConv", [np.asarray(v) for v in given], kind, **attributes)


def test_padding_is_the_zero_point() -> None:
    x, w = np.full((1, 1, 2, 2), 9, np.uint8), np.ones((1, 1, 3, 3), np.uint8)
    model, given = _model(
        "ConvInteger", [x, w, np.asarray(9, np.uint8)], onnx.TensorProto.INT32, opset=10, pads=[1] * 4
    )
    assert not _both(model, given).any()


@pytest.mark.parametrize(
    ("inputs", "attributes", "kind", "says"),
    [
        ([np.ones((2, 3), np.float32), np.ones(2, np.float32)], {}, ShapeError, "one an index of its axis 1"),
        ([np.ones(3, np.float32), np.ones(3, np.float32)], {}, ShapeError, "axis 1 is out of range"),
        (
            [np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)],
            {"block_size": 2},
            ShapeError,
            "blocks of 2 along axis 1",
        ),
        (
            [np.ones((2, 3), np.float32), np.ones(3, np.float32), np.ones(1, np.uint8)],
            {},
            ShapeError,
            "the zero point's",
        ),
    ],
)
def test_refused(inputs: list[Any], attributes: dict[str, Any], kind: type[OnwardError], says: str) -> None:
    model, given = _model(
        "QuantizeLinear", [np.asarray(x) for x in inputs], onnx.TensorProto.UINT8, **attributes
    )
    with pytest.raises(kind, match=says) as caught:
        Interpreter(from_bytes(model).graph).run(given)
    assert "node" in str(caught.value)
