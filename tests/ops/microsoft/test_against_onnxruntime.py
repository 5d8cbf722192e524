"""Operators of `com.microsoft` against onnxruntime, which defines them, in both engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state

from onward.engine.compiled import CompiledEngine
from onward.engine.interpreter import Interpreter
from onward.errors import InvalidModelError, OnwardError, UnsupportedError
from onward.graph import Array, find, registered
from onward.model import from_bytes

DOMAIN = "com.microsoft"
_RNG = np.random.default_rng(11)


@dataclass(frozen=True)
class Case:
    """A node; its float, int8 and uint8 tensors of rank 2 and more are inputs unless `constant` has them."""

    op_type: str
    inputs: Sequence[Array | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = ("y",)
    kinds: Sequence[int] = (onnx.TensorProto.FLOAT,)
    constant: Sequence[int] = ()
    domain: str = DOMAIN
    opset: int = 17
    steps: int = 0
    atol: float = 2e-6
    name: str = ""

    @property
    def id(self) -> str:
        return f"{self.op_type}{'-' if self.name else ''}{self.name}"

    def model(self) -> tuple[bytes, dict[str, Array]]:
        names = [f"x{i}" if x is not None else "" for i, x in enumerate(self.inputs)]
        given = {n: np.asarray(x) for n, x in zip(names, self.inputs, strict=True) if x is not None}
        fixed = {f"x{i}" for i in self.constant}
        infos = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in given.items()
            if n not in fixed
        ]
        weights = [onnx.numpy_helper.from_array(given[n], n) for n in sorted(fixed)]
        node = helper.make_node(
            self.op_type, names, list(self.outputs), name="node", domain=self.domain, **self.attributes
        )
        named = [n for n in self.outputs if n]
        # a node behind it: types must be known without its schema
        after = [helper.make_node("Identity", [n], [f"{n}/out"]) for n in named]
        kinds = dict(zip(named, self.kinds, strict=True))
        outs = [helper.make_tensor_value_info(f"{n}/out", kinds[n], None) for n in named]
        for out in outs:
            out.type.tensor_type.shape.Clear()
        graph = helper.make_graph([node, *after], "g", infos, outs, weights)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        return model.SerializeToString(), {n: x for n, x in given.items() if n not in fixed}


def f(*shape: int) -> Array:
    return _RNG.standard_normal(shape).astype(np.float32)


def u8(*shape: int) -> Array:
    return np.asarray(_RNG.integers(0, 256, shape), np.uint8)


def s8(*shape: int) -> Array:
    return np.asarray(_RNG.integers(-128, 128, shape), np.int8)


def s4(*shape: int) -> Array:
    return _RNG.integers(-8, 8, shape).astype(ml_dtypes.int4)


def u4(*shape: int) -> Array:
    return _RNG.integers(0, 16, shape).astype(ml_dtypes.uint4)


def one(value: float, dtype: Any = np.float32) -> Array:
    return np.asarray(value, dtype)


F, U8, I8, I32 = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT8,
    onnx.TensorProto.INT32,
)
Z, ZI = one(120, np.uint8), one(-3, np.int8)


def quantized(
    op_type: str, *inputs: Array | None, dtype: int = U8, name: str = "", **attributes: Any
) -> Case:
    scales = [i for i, x in enumerate(inputs) if x is not None and x.ndim == 0]
    return Case(op_type, inputs, attributes, kinds=(dtype,), constant=scales, steps=1, name=name)


def _image(n: int = 2) -> Array:
    return u8(n, 6, 7, 5)


def _packed(bits: int, rows: int, length: int) -> Array:
    return u8(rows, 1 if length * bits <= 8 else length * bits // 8)


def new(length: int) -> list[Array]:
    """Queries in six heads, keys and values in three."""
    return [f(2, length, 96), f(2, length, 48), f(2, length, 48)]


def past(length: int) -> list[Array]:
    return [f(2, 3, length, 16), f(2, 3, length, 16)]


def seen(first: int, second: int) -> list[Array]:
    """How many positions of two samples are there, less one, and the most of them."""
    return [np.array([first - 1, second - 1], np.int32), np.array([max(first, second)], np.int32)]


H = f(2, 5, 12)
W3, B3 = f(12, 36) * np.float32(0.3), f(36)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
PLACES = np.array([[0, 1, 2, 3, 4], [8, 3, 4, 5, 6]])
GROUPS = {"num_heads": 6, "kv_num_heads": 3}
CACHES = [f(16, 8), f(16, 8)]
LSTM = [s8(1, 3, 16), s8(1, 4, 16), f(1, 32)]

CASES = [
    Case("QuantizeLinear", [f(3, 4) * 9, one(0.1), Z], kinds=(U8,), constant=[1, 2]),
    Case(
        "QuantizeLinear",
        [f(3, 4) * 9, np.array([0.1, 0.2, 0.3], np.float32), u8(3)],
        {"axis": 0},
        kinds=(U8,),
    ),
    Case("DequantizeLinear", [u8(3, 4), one(0.1), Z], constant=[1, 2]),
    quantized("QLinearAdd", u8(3, 4), one(0.1), Z, u8(4), one(0.2), Z, one(0.3), Z),
    quantized(
        "QLinearAdd", s8(3, 4), one(0.1), ZI, s8(3, 1), one(0.2), ZI, one(0.3), ZI, dtype=I8, name="s8"
    ),
    quantized("QLinearMul", u8(3, 4), one(0.1), Z, u8(3, 4), one(0.2), Z, one(2.0), Z),
    quantized("QLinearSigmoid", u8(3, 40), one(0.05), Z, one(1 / 256), one(0, np.uint8)),
    quantized("QLinearLeakyRelu", u8(3, 40), one(0.05), Z, one(0.03), Z, alpha=0.2),
    quantized("QLinearSoftmax", u8(3, 9), one(0.05), Z, one(1 / 256), one(0, np.uint8), axis=-1, opset=13),
    quantized(
        "QLinearSoftmax",
        u8(3, 2, 4),
        one(0.05),
        Z,
        one(1 / 256),
        one(0, np.uint8),
        axis=1,
        opset=12,
        name="old",
    ),
    quantized("QLinearGlobalAveragePool", _image(), one(0.05), Z, one(0.04), Z, channels_last=0),
    quantized("QLinearGlobalAveragePool", _image(), one(0.05), Z, one(0.04), Z, channels_last=1, name="last"),
    quantized(
        "QLinearAveragePool",
        _image(),
        one(0.05),
        Z,
        one(0.04),
        Z,
        kernel_shape=[3, 2],
        strides=[2, 1],
        pads=[1, 0, 1, 1],
    ),
    quantized(
        "QLinearAveragePool",
        _image(),
        one(0.05),
        Z,
        one(0.04),
        Z,
        kernel_shape=[3, 2],
        channels_last=1,
        name="last",
    ),
    quantized(
        "QLinearConcat", one(0.1), Z, u8(2, 3), one(0.1), Z, u8(2, 4), one(0.05), one(7, np.uint8), axis=1
    ),
    Case(
        "QLinearWhere",
        [_RNG.random((3, 4)) > 0.5, u8(3, 4), one(0.1), Z, u8(4), one(0.05), Z, one(0.2), Z],
        kinds=(U8,),
        constant=[2, 3, 5, 6, 7, 8],
        steps=1,
    ),
    Case(
        "QLinearConv",
        [
            u8(2, 7, 5, 6),
            one(0.05),
            Z,
            s8(4, 6, 3, 3),
            f(4) ** 2 * 0.01 + np.float32(0.001),
            np.zeros(4, np.int8),
            one(0.7),
            Z,
            s8(4).astype(np.int32),
        ],
        {"channels_last": 1, "pads": [1] * 4},
        kinds=(U8,),
        constant=range(1, 9),
        steps=1,
    ),
    Case(
        "QGemm",
        [u8(3, 8), one(0.05), Z, s8(4, 8), one(0.02), one(0, np.int8), s8(4).astype(np.int32), one(0.3), Z],
        {"transB": 1},
        kinds=(U8,),
        constant=[1, 2, 3, 4, 5, 6, 7, 8],
        steps=1,
    ),
    Case(
        "QGemm",
        [u8(3, 8), one(0.05), Z, s8(8, 4), one(0.02), one(0, np.int8)],
        {"alpha": 0.5},
        constant=[1, 2, 3, 4, 5],
        name="float",
        atol=1e-4,
    ),
    Case(
        "MatMulIntegerToFloat",
        [u8(3, 8), s8(8, 4), one(0.05), one(0.02), Z, one(0, np.int8), f(4)],
        constant=[1, 5],
        atol=1e-4,
    ),
    Case(
        "MatMulIntegerToFloat",
        [u8(2, 3, 8), s8(8, 4), one(0.05), f(4) ** 2, Z],
        constant=[1],
        name="columns",
        atol=1e-3,
    ),
    Case(
        "DynamicQuantizeMatMul",
        [f(3, 8), s8(8, 4), one(0.02), one(0, np.int8), f(4)],
        constant=[1, 2, 3, 4],
        atol=1e-4,
    ),
    Case(
        "DynamicQuantizeLSTM",
        [
            f(5, 2, 3),
            *LSTM,
            None,
            None,
            None,
            None,
            one(0.01).reshape(1),
            np.zeros(1, np.int8),
            one(0.01).reshape(1),
            np.zeros(1, np.int8),
        ],
        {"hidden_size": 4},
        ("y", "h", "c"),
        (F, F, F),
        constant=[1, 2, 3, 8, 9, 10, 11],
        atol=0.04,
    ),
    Case(
        "FusedConv", [f(2, 3, 6, 6), f(4, 3, 3, 3), f(4)], {"activation": "Relu", "pads": [1] * 4}, atol=1e-5
    ),
    Case(
        "FusedConv",
        [f(2, 3, 6, 6), f(4, 3, 3, 3), f(4)],
        {"activation": "LeakyRelu", "activation_params": [0.3]},
        name="leaky",
        atol=1e-5,
    ),
    Case(
        "FusedConv",
        [f(2, 3, 6, 6), f(4, 3, 3, 3), f(4), f(2, 4, 4, 4)],
        {"activation": "Relu"},
        name="sum",
        atol=1e-5,
    ),
    Case(
        "FusedConv",
        [f(2, 3, 6, 6), f(4, 3, 3, 3)],
        {"activation": "Clip", "activation_params": [0.0, 1.0]},
        name="clip",
        atol=1e-5,
    ),
    Case(
        "FusedConv",
        [f(2, 3, 6, 6), f(4, 3, 3, 3)],
        {"activation": "HardSigmoid", "activation_params": [0.2, 0.4]},
        name="hard",
        atol=1e-5,
    ),
    Case(
        "FusedGemm",
        [f(3, 4), f(4, 5), f(5)],
        {"activation": "LeakyRelu", "activation_alpha": 0.2, "alpha": 0.5},
    ),
    Case("FusedMatMul", [f(4, 3), f(5, 4)], {"transA": 1, "transB": 1, "alpha": 0.5}),
    Case("FusedMatMul", [f(3, 2, 6, 4), f(2, 6, 4, 5)], {"transBatchA": 1, "alpha": 2.0}, name="batch"),
    Case("FusedMatMul", [f(3, 2, 6, 4), f(2, 6, 3, 5)], {"transBatchA": 1, "transA": 1}, name="both"),
    Case("TransposeMatMul", [f(2, 4, 3), f(2, 4, 5)], {"transA": 1}),
    Case("Gelu", [f(3, 4) * 3]),
    Case("FastGelu", [f(3, 4) * 3, f(4)]),
    Case("FastGelu", [f(3, 4) * 3], name="plain"),
    Case("QuickGelu", [f(3, 4) * 3]),
    Case("BiasGelu", [f(3, 4) * 3, f(4)]),
    Case("LayerNormalization", [f(3, 4), f(4), f(4)], domain="", opset=13, name="old"),
    Case("SimplifiedLayerNormalization", [f(3, 4), f(4)], {"epsilon": 1e-6}, domain=""),
    Case(
        "SkipLayerNormalization",
        [H, f(2, 5, 12), f(12), f(12), f(12)],
        {"epsilon": 1e-6},
        ("y", "", "", "sum"),
        (F, F),
    ),
    Case("SkipLayerNormalization", [H, f(2, 5, 12), f(12)], name="plain"),
    Case(
        "SkipSimplifiedLayerNormalization",
        [H, f(2, 5, 12), f(12), f(12)],
        {"epsilon": 1e-6},
        ("y", "", "", "sum"),
        (F, F),
    ),
    Case(
        "EmbedLayerNormalization",
        [MASK, MASK, f(9, 6), f(8, 6), f(3, 6), f(6), f(6), MASK],
        {},
        ("y", "m"),
        (F, I32),
        atol=1e-5,
    ),
    Case(
        "EmbedLayerNormalization",
        [MASK, None, f(9, 6), f(8, 6), None, f(6), f(6)],
        {},
        ("y", "m", "sum"),
        (F, I32, F),
        name="sum",
        atol=1e-5,
    ),
    Case(
        "QEmbedLayerNormalization",
        [
            *(MASK, MASK, u8(9, 6), u8(8, 6), u8(3, 6), u8(6), u8(6), MASK),
            *(one(0.02), one(0.01), one(0.03), one(0.01), one(0.02)),
            *(Z, Z, Z, one(5, np.uint8), Z),
        ],
        {},
        ("y", "m"),
        (F, I32),
        constant=range(2, 7),
        atol=1e-5,
    ),
    Case(
        "NhwcMaxPool",
        [u8(2, 6, 7, 5)],
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
        kinds=(U8,),
    ),
    Case("Attention", [H, W3, B3], {"num_heads": 3}),
    Case("Attention", [H, W3, B3, MASK], {"num_heads": 3, "scale": 0.4}, name="mask"),
    Case("Attention", [H, W3, B3, np.array([3, 5], np.int32)], {"num_heads": 3}, name="lengths"),
    Case(
        "Attention",
        [H, W3, B3, None, f(2, 2, 3, 4, 4)],
        {"num_heads": 3, "unidirectional": 1},
        ("y", "present"),
        (F, F),
        name="past",
    ),
    Case(
        "Attention",
        [H, f(12, 30) * np.float32(0.3), f(30), None, None, f(2, 3, 5, 5)],
        {"num_heads": 3, "qkv_hidden_sizes": [9, 9, 12]},
        name="sizes",
    ),
    Case(
        "QAttention",
        [u8(2, 5, 12), s8(12, 36), f(36), one(0.01), one(0.01), MASK, Z, one(0, np.int8)],
        {"num_heads": 3},
        constant=[1, 2, 3, 4, 6, 7],
        atol=1e-5,
    ),
    Case("MultiHeadAttention", [H, f(2, 7, 12), f(2, 7, 12)], {"num_heads": 3}),
    Case(
        "MultiHeadAttention",
        [H, f(2, 5, 12), f(2, 5, 12), f(36), MASK],
        {"num_heads": 3, "scale": 0.3},
        name="bias",
    ),
    Case("MultiHeadAttention", [H, f(2, 3, 7, 4), f(2, 3, 7, 4)], {"num_heads": 3}, name="heads"),
    Case(
        "MultiHeadAttention",
        [H, f(2, 5, 12), f(2, 5, 12), None, None, f(1, 3, 5, 8), f(2, 3, 3, 4), f(2, 3, 3, 4)],
        {"num_heads": 3},
        ("y", "k", "v"),
        (F, F, F),
        name="past",
    ),
    Case(
        "MultiHeadAttention",
        [H, f(2, 5, 12), f(2, 5, 12)],
        {"num_heads": 3, "unidirectional": 1},
        name="causal",
    ),
    *(
        Case(
            "MatMulNBits",
            [f(3, 40), _packed(bits, 6 * 2, 32).reshape(6, 2, -1), f(6, 2) ** 2 * np.float32(0.1), zeros],
            {"K": 40, "N": 6, "bits": bits, "block_size": 32},
            constant=[1, 2] + [3] * (zeros is not None),
            name=f"{bits}-{zeros is not None}",
            atol=1e-4,
        )
        for bits in (4, 8)
        for zeros in (None, u8(6, bits * 2 // 8))
    ),
    Case(
        "MatMulNBits",
        [
            f(3, 40),
            _packed(4, 12, 32).reshape(6, 2, -1),
            f(6, 2) ** 2 * np.float32(0.1),
            f(6, 2) * 8,
            None,
            f(6),
        ],
        {"K": 40, "N": 6, "bits": 4, "block_size": 32},
        constant=[1, 2, 3, 5],
        name="float zero points",
        atol=2e-4,
    ),
    Case("RotaryEmbedding", [H, PLACES, f(9, 2), f(9, 2)], {"num_heads": 3}),
    Case(
        "RotaryEmbedding", [f(2, 3, 5, 6), np.array([2]), f(9, 3), f(9, 3)], {"interleaved": 1}, name="first"
    ),
    Case("RotaryEmbedding", [H, PLACES, f(9, 2), f(9, 2)], name="heads by the caches"),
    Case(
        "RotaryEmbedding",
        [f(2, 5, 24), PLACES, f(9, 3), f(9, 3)],
        {"num_heads": 3, "rotary_embedding_dim": 6, "interleaved": 1},
        name="part",
    ),
    *(
        Case("GatherBlockQuantized", inputs, attributes, constant=[0, 2, 3][: len(inputs) - 1], name=name)
        for name, inputs, attributes in (
            ("4", [u8(7, 16), np.array([[3, -1], [0, 3]]), f(7, 2), u8(7, 1)], {"block_size": 16}),
            ("8", [u8(7, 32), np.array([3, 0]), f(7, 2)], {"block_size": 16, "bits": 8}),
            ("int4", [s4(7, 16), np.array([3, 0]), f(7, 1), s4(7, 1)], {"block_size": 16}),
            ("uint4", [u4(7, 16), np.array([3, 0]), f(7, 1)], {"block_size": 16}),
            ("2", [u8(7, 8), np.array([3, 0]), f(7, 2)], {"block_size": 16, "bits": 2}),
        )
    ),
    Case("CDist", [f(4, 3), f(5, 3)], {"metric": "euclidean"}, atol=1e-5),
    Case("CDist", [f(4, 3), f(5, 3)], {"metric": "sqeuclidean"}, name="squares", atol=1e-5),
    Case("GroupQueryAttention", [*new(5), None, None, *seen(5, 5)], GROUPS),
    *(
        Case(
            "GroupQueryAttention",
            [*inputs, *more],
            GROUPS | attributes,
            ("y", "k", "v"),
            (F, F, F),
            name=name,
            constant=[6],
            atol=1e-5,
        )
        for name, inputs, more, attributes in (
            ("packed", [f(2, 5, 192), None, None, None, None, *seen(5, 5)], [], {}),
            ("empty past", [*new(5), *past(0), *seen(5, 5)], CACHES, {"do_rotary": 1}),
            ("past", [*new(1), *past(7), *seen(8, 8)], CACHES, {"do_rotary": 1}),
            ("pasts of their own", [*new(1), *past(7), *seen(4, 8)], CACHES, {"do_rotary": 1}),
            ("long past", [*new(1), *past(11), *seen(4, 8)], CACHES, {"do_rotary": 1}),
            (
                "interleaved",
                [*new(1), *past(7), *seen(8, 8)],
                CACHES,
                {"do_rotary": 1, "rotary_interleaved": 1},
            ),
            ("window", [*new(6), *past(0), *seen(6, 6)], [], {"local_window_size": 3}),
            ("both ways", [*new(5), *past(0), *seen(5, 5)], [], {"causal": 0}),
            ("softcap", [*new(1), *past(7), *seen(8, 8)], [], {"softcap": 0.7, "scale": 0.9}),
            ("smooth", [*new(1), *past(7), *seen(8, 8)], [], {"smooth_softmax": 1}),
            ("bias", [*new(1), *past(7), *seen(8, 8)], [None, None, None, f(2, 1, 1, 8)], {"softcap": 0.7}),
            ("sink", [*new(1), *past(7), *seen(8, 8)], [None, None, None, None, f(6)], {}),
        )
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_as_onnxruntime(case: Case) -> None:
    model, given = case.model()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    want = dict(zip((o.name for o in session.get_outputs()), session.run(None, given), strict=True))
    loaded = from_bytes(model)
    for engine in (Interpreter(loaded.graph), CompiledEngine(loaded)):
        got = engine.run(given)
        for name, array in want.items():
            assert got[name].dtype == array.dtype
            if array.dtype.kind == "f":
                np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=case.atol, err_msg=name)
            else:
                difference = np.abs(got[name].astype(int) - array.astype(int))
                assert difference.max() <= case.steps, name
                assert (difference > 0).mean() <= 0.1, name


def test_queries_and_keys_are_normalised_by_head() -> None:
    q, k, v = new(4)
    weights = {"q": f(16), "k": f(16)}
    behind = [None, None, *seen(4, 4)]
    model, given = Case(
        "GroupQueryAttention", [q, k, v, *behind, *[None] * 7, weights["q"], weights["k"]], GROUPS
    ).model()

    def scaled(x: Array, weight: Array) -> Array:
        heads = x.reshape(2, 4, -1, 16)
        factor = 1 / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + 1e-6)
        return np.asarray(heads * factor * weight, np.float32).reshape(x.shape)

    plain, scaled_given = Case(
        "GroupQueryAttention", [scaled(q, weights["q"]), scaled(k, weights["k"]), v, *behind], GROUPS
    ).model()
    options = onnxruntime.SessionOptions()
    want = onnxruntime.InferenceSession(plain, options).run(None, scaled_given)[0]
    for engine in (Interpreter(from_bytes(model).graph), CompiledEngine(from_bytes(model))):
        np.testing.assert_allclose(engine.run(given)["y/out"], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op_type", sorted(name for domain, name in registered() if domain == DOMAIN))
def test_attributes_have_the_defaults_of_the_schema(op_type: str) -> None:
    schemas = {(s.domain, s.name): s for s in onnxruntime_pybind11_state.get_all_operator_schema()}
    # what onnxruntime calls LayerNormalization and its kin is in the standard's domain
    schema = schemas.get((DOMAIN, op_type)) or schemas["", op_type]
    fields = {each.name: each.default for each in dataclasses.fields(find(DOMAIN, op_type, 1))}
    for name, attribute in schema.attributes.items():
        default = onnx.AttributeProto.FromString(attribute._default_value)
        if default.type:
            value = helper.get_attribute_value(default)
            assert fields[name] == pytest.approx(value.decode() if isinstance(value, bytes) else value), name
        elif attribute.required:
            assert fields[name] is dataclasses.MISSING, name


def test_every_operator_has_a_case() -> None:
    assert {case.op_type for case in CASES} == {name for domain, name in registered() if domain == DOMAIN}


@pytest.mark.parametrize(
    ("case", "kind", "says"),
    [
        (Case("Gelu", [f(2), f(2)]), InvalidModelError, "2 inputs; it takes X"),
        (Case("QLinearAdd", [u8(2), one(1), None, u8(2), one(1), None, None]), InvalidModelError, "C_scale"),
        (Case("Gelu", [f(2)], {"beta": 1.0}), InvalidModelError, "unknown attribute 'beta'"),
        (Case("Attention", [H, W3], {}), InvalidModelError, "attribute 'num_heads' is missing"),
        (
            Case("FusedConv", [f(1, 1, 3, 3), f(1, 1, 1, 1)], {"activation": "Sin"}),
            UnsupportedError,
            "'Sin' is not",
        ),
        (Case("Attention", [H, W3], {"num_heads": 3, "do_rotary": 1}), UnsupportedError, "rotary"),
        (
            Case("SkipLayerNormalization", [f(2, 3), f(2, 3), f(3)], {}, ("y", "mean", "", "s"), (F,) * 3),
            UnsupportedError,
            "output 1",
        ),
        (Case("Nothing", [f(2)]), UnsupportedError, "Nothing of domain 'com.microsoft' is not implemented"),
    ],
    ids=lambda x: x.op_type if isinstance(x, Case) else None,
)
def test_refused(case: Case, kind: type[OnwardError], says: str) -> None:
    model, given = case.model()
    with pytest.raises(kind, match=says) as caught:
        Interpreter(from_bytes(model).graph).run(given)
    assert "node" in str(caught.value)
