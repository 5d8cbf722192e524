"""Products with quantised weights: kernels read the integers, and agree with floats that were dequantised."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onward.compile.codegen.target import has_byte_dots, host_target
from onward.compile.options import CompileOptions
from onward.engine.compiled import CompiledEngine
from onward.engine.interpreter import Interpreter
from onward.graph import Array
from onward.model import from_bytes

_RANGES = {
    "int8": (-128, 128),
    "uint8": (0, 256),
    "int4": (-8, 8),
    "uint4": (0, 16),
    "int2": (-2, 2),
    "uint2": (0, 4),
}


@dataclass(frozen=True)
class _Form:
    """How a weight is quantised, and what reads it."""

    kind: str = "int8"
    by: str = "channel"
    block: int = 32
    zero: bool = False
    gemm: bool = False
    bias: bool = False


def _model(k: int, n: int, form: _Form, seed: int = 0, last: str = "Sigmoid") -> bytes:
    rng = np.random.default_rng(seed)
    low, high = _RANGES[form.kind]
    shape, summed = ((n, k), 1) if form.gemm else ((k, n), 0)
    blocks = -(-k // form.block)
    extent = {"tensor": (), "channel": (n,), "block": (n, blocks) if form.gemm else (blocks, n)}[form.by]
    scale = (rng.random(extent) * 0.01 + 0.001).astype(np.float32)
    integers = {"w": rng.integers(low, high, shape)}
    if form.zero:
        integers["z"] = rng.integers(low, high, extent)
    initial = [
        helper.make_tensor(name, getattr(onnx.TensorProto, form.kind.upper()), np.shape(a), np.ravel(a))
        for name, a in integers.items()
    ]
    initial.append(numpy_helper.from_array(np.asarray(scale), "s"))
    initial.append(numpy_helper.from_array(rng.standard_normal(n).astype(np.float32), "b"))
    attributes = {"axis": summed if form.by == "block" else 1 - summed}
    if form.by == "block":
        attributes["block_size"] = form.block
    operands = ["w", "s", *(["z"] if form.zero else [])]
    nodes = [helper.make_node("DequantizeLinear", operands, ["d"], **attributes)]
    if form.gemm:
        bias = ["b"] if form.bias else []
        nodes.append(helper.make_node("Gemm", ["x", "d", *bias], ["p"], transB=1))
    else:
        nodes.append(helper.make_node("MatMul", ["x", "d"], ["q" if form.bias else "p"]))
        if form.bias:
            nodes.append(helper.make_node("Add", ["q", "b"], ["p"]))
    nodes.append(helper.make_node(last, ["p"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["M", k])],
        [helper.make_tensor_value_info("y", 1, ["M", n])],
        initial,
    )
    opset = 25 if form.kind.endswith("2") else 21
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)
    return model.SerializeToString()


def _compared(model: bytes, x: Array, threads: int = 1) -> list[str]:
    """The kernels of a plan, whose results are the interpreter's within rounding."""
    engine = CompiledEngine(from_bytes(model), threads=threads)
    want = Interpreter(from_bytes(model).graph).run({"x": x})["y"]
    np.testing.assert_allclose(engine.run({"x": x})["y"], want, rtol=2e-5, atol=2e-6)
    plan = engine.plan({"x": x.shape})
    assert plan is not None
    engine.close()
    return [str(row) for row in plan.spec.rows]


_FORMS = [
    _Form(kind, by, block, zero, gemm, bias)
    for (kind, by, block), (zero, gemm, bias) in zip(
        itertools.product(("int8", "uint8", "int4", "uint4"), ("tensor", "channel", "block"), (16, 32, 128)),
        itertools.cycle(itertools.product((False, True), repeat=3)),
        strict=False,
    )
]


@pytest.mark.parametrize("form", _FORMS, ids=str)
def test_forms(form: _Form) -> None:
    """Every form over few and many rows, and shapes with tails."""
    rng = np.random.default_rng(1)
    for m, k, n in ((1, 131, 50), (3, 64, 64), (13, 200, 100), (40, 33, 150)):
        x = rng.standard_normal((m, k)).astype(np.float32)
        _compared(_model(k, n, form, m), x)


@pytest.mark.parametrize("m", [1, 2, 3, 5, 6, 7, 8, 11, 12, 13, 29, 64])
@pytest.mark.parametrize("threads", [1, 3])
def test_rows(m: int, threads: int) -> None:
    x = np.random.default_rng(m).standard_normal((m, 400)).astype(np.float32)
    form = _Form("int4", "block", zero=bool(m % 2), bias=True)
    kernels = _compared(_model(400, 200, form), x, threads)
    few = m <= host_target().tuning.product_widened
    wanted = "integer_rows" if few else "packed_gemm"
    assert any(f"{wanted} batchx200x400 int4" in name for name in kernels)


@pytest.mark.parametrize("kind", ["int2", "uint2"])
def test_two_bits(kind: str) -> None:
    x = np.random.default_rng(2).standard_normal((4, 96)).astype(np.float32)
    assert any("integer_rows" in name for name in _compared(_model(96, 40, _Form(kind)), x))


def test_weights_stay_integers() -> None:
    """What a plan keeps is a byte, or half a one, for each weight, and nothing of four."""
    k, n = 512, 256
    for kind, share in (("int8", 1.0), ("int4", 0.5)):
        engine = CompiledEngine(from_bytes(_model(k, n, _Form(kind))), threads=1)
        plan = engine.plan({"x": (1, k)})
        assert plan is not None
        assert plan.spec.kept_bytes <= share * k * n + 4096
        held = sum(a.nbytes for a in engine.fixed.values()) + sum(a.nbytes for a in plan.spec.constants)
        assert held <= share * k * n + 8 * n + 4096
        engine.close()


def test_not_finite_inputs() -> None:
    """NaN and infinities reach the results that they reach in floats."""
    x = np.random.default_rng(3).standard_normal((3, 64)).astype(np.float32)
    x[0, 5], x[1, 7] = np.nan, np.inf
    for form in (_Form(), _Form("int4", "block", zero=True)):
        _compared(_model(64, 48, form), x)


_LEVEL = CompileOptions(accuracy_level=4)
in_bytes = pytest.mark.skipif(not has_byte_dots(host_target()), reason="no instruction for products of bytes")


def _by_rows(model: bytes, x: Array) -> Array:
    """The result with rows of x rounded to 8 bits by their largest magnitude, and exact sums."""
    graph = from_bytes(model).graph
    held = {n: v.const_value.numpy() for n, v in graph.initializers.items() if v.const_value is not None}
    gemm = any(node.op_type == "Gemm" for node in graph)
    w, scale = (held[name].astype(np.float64) for name in ("w", "s"))
    w, scale = (w.T, scale.T) if gemm else (w, scale)
    if scale.ndim == 2:
        scale = np.repeat(scale, -(-len(w) // len(scale)), axis=0)[: len(w)]
    extent = np.abs(x).max(1, keepdims=True)
    one = np.divide(np.float32(127), extent, out=np.zeros_like(extent), where=extent > 0)
    product = (np.rint(x * one).astype(np.float64) @ (w * scale)) * (extent / np.float32(127))
    if any(node.op_type == "Add" or (len(node.inputs) == 3 and gemm) for node in graph):
        product += held["b"]
    return np.asarray(1 / (1 + np.exp(-product)))


def _in_bytes(model: bytes, x: Array, threads: int = 1) -> tuple[Array, str]:
    engine = CompiledEngine(from_bytes(model), threads=threads, options=_LEVEL)
    plan = engine.plan({"x": x.shape})
    assert plan is not None
    y = engine.run({"x": x})["y"]
    engine.close()
    return y, str(plan.spec.rows)


@in_bytes
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "form",
    [
        _Form(kind, by, block, gemm=gemm, bias=by != "tensor")
        for kind, by, block, gemm in (
            ("int8", "tensor", 32, False),
            ("int8", "channel", 32, True),
            ("int8", "block", 32, False),
            ("int4", "channel", 32, False),
            ("int4", "block", 16, True),
            ("int4", "block", 64, False),
        )
    ],
    ids=str,
)
def test_rows_rounded_to_bytes(form: _Form, threads: int) -> None:
    """Sums in int32 are exact: what is left is one rounding for each block."""
    rng = np.random.default_rng(4)
    for m, k, n in ((1, 128, 50), (3, 64, 64), (7, 192, 100), (61, 256, 40), (150, 64, 130)):
        x = rng.standard_normal((m, k)).astype(np.float32)
        model = _model(k, n, form, m)
        y, kernels = _in_bytes(model, x, threads)
        assert "integer_dots" in kernels
        np.testing.assert_allclose(y, _by_rows(model, x), rtol=3e-6, atol=3e-6)


@in_bytes
def test_rows_with_tails_and_extremes() -> None:
    """Depths that are no whole vectors; rows of zeros give zeros, rows that are not finite NaN."""
    x = np.random.default_rng(5).standard_normal((8, 77)).astype(np.float32)
    x[1], x[2], x[3, 4], x[4, 70] = 0.0, x[2] * 1e-30, np.nan, -np.inf
    for form in (_Form(), _Form("int4")):
        model = _model(77, 50, form)
        y, kernels = _in_bytes(model, x)
        assert "integer_dots" in kernels
        finite = np.isfinite(x).all(1)
        assert np.isnan(y[~finite]).all()
        np.testing.assert_allclose(y[finite], _by_rows(model, x[finite]), rtol=3e-6, atol=3e-6)


@in_bytes
def test_error_of_bytes_is_as_documented() -> None:
    """At most 0.0023 √K of the largest |a| · |w| of a row and a column, as a root mean square."""
    rng = np.random.default_rng(6)
    for k in (64, 1024):
        x = rng.standard_normal((32, k)).astype(np.float32)
        model = _model(k, 64, _Form(), last="Neg")
        got, _ = _in_bytes(model, x)
        held = {n: v.const_value for n, v in from_bytes(model).graph.initializers.items()}
        assert held["w"] is not None
        assert held["s"] is not None
        w = held["w"].numpy().astype(np.float64) * held["s"].numpy()
        off = got + x.astype(np.float64) @ w
        bound = 0.0023 * np.sqrt(k) * np.abs(x).max(1, keepdims=True) * np.abs(w).max(0)
        assert 0.1 < np.sqrt(np.mean((off / bound) ** 2)) < 1.0


@in_bytes
@pytest.mark.parametrize("form", [_Form(zero=True), _Form("uint4", "block", zero=True)], ids=str)
def test_asymmetric_weights_stay_in_float32(form: _Form) -> None:
    x = np.random.default_rng(7).standard_normal((3, 64)).astype(np.float32)
    model = _model(64, 48, form)
    y, kernels = _in_bytes(model, x)
    assert "integer_dots" not in kernels
    want = Interpreter(from_bytes(model).graph).run({"x": x})["y"]
    np.testing.assert_allclose(y, want, rtol=2e-5, atol=2e-6)
