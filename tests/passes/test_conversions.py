"""16-bit floats and integers: what each pass writes, on networks with every kind of weight."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from tests.train import networks

from onward import nn
from onward.engine import Session
from onward.errors import ConfigError, DataError, UnsupportedError
from onward.graph import Array, Builder
from onward.model import check_model, to_bytes, upgrade
from onward.passes import (
    fold_normalization,
    in_floats,
    quantize_dynamic,
    quantize_static,
    quantize_weights,
    tensors_to_calibrate,
    to_half,
    to_inference,
)
from onward.verify import calibrate, compare, compare_models

FLOAT, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def block(width: int = 32, seed: int = 0) -> ir.Model:
    """A transformer block on token numbers [N, T], at opset 21: table, attention, norms, layers."""
    rng = np.random.default_rng(seed)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="block")
    g = Builder(graph)

    def weight(name: str, *shape: int) -> ir.Value:
        return g.initializer(name, (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))

    def norm(x: ir.Value, name: str) -> ir.Value:
        ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
        scale, bias = g.initializer(f"{name}.scale", ones), g.initializer(f"{name}.bias", zeros)
        return g.LayerNormalization(x, scale, bias, axis=-1)

    tokens = g.input("tokens", ir.DataType.INT64, ("N", "T"))
    x = g.Gather(g.initializer("table", rng.standard_normal((50, width)).astype(np.float32)), tokens)
    q, k, v = (g.MatMul(x, weight(name, width, width)) for name in "qkv")
    scores = g.Softmax(g.Mul(g.MatMul(q, g.Transpose(k, perm=[0, 2, 1])), float(width) ** -0.5), axis=-1)
    x = norm(g.Add(x, g.MatMul(g.MatMul(scores, v), weight("o", width, width))), "first")
    up = g.Gelu(g.Add(g.MatMul(x, weight("up", width, 2 * width)), weight("up.bias", 2 * width)))
    x = norm(g.Add(x, g.MatMul(up, weight("down", 2 * width, width))), "second")
    g.output(x, "y")
    return ir.Model(graph, ir_version=10)


def tokens(batches: int = 3) -> list[dict[str, Array]]:
    rng = np.random.default_rng(7)
    return [{"tokens": rng.integers(0, 50, (4, 9))} for _ in range(batches)]


def images(batches: int = 3) -> list[dict[str, Array]]:
    rng = np.random.default_rng(8)
    return [{"image": rng.standard_normal((5, 1, 6, 6)).astype(np.float32)} for _ in range(batches)]


def convolutional() -> ir.Model:
    """norm_net with statistics that normalise something."""
    model = to_inference(networks.norm_net())
    rng = np.random.default_rng(3)
    for name, low, high in (
        ("scale", 0.5, 2),
        ("bias", -1, 1),
        ("running_mean", -1, 1),
        ("running_var", 0.2, 3),
    ):
        value = model.graph.initializers[f"bn.{name}"]
        value.const_value = ir.tensor(rng.uniform(low, high, 4).astype(np.float32), name=value.name)
    return model


def by_onnxruntime(model: ir.Model, feeds: dict[str, Array]) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def relative(model: ir.Model, other: ir.Model, batches: list[dict[str, Array]]) -> float:
    (row,) = compare_models(model, other, batches)
    return row.error


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(("to", "tolerance"), [(HALF, 2e-3), (BRAIN, 2e-2)])
@pytest.mark.parametrize("keep_io", [False, True])
def test_half_precision_of_a_block(to: ir.DataType, tolerance: float, keep_io: bool) -> None:
    model = block()
    half = to_half(model, to, keep_io=keep_io)
    check_model(half)
    assert half.graph.outputs[0].dtype == (FLOAT if keep_io else to)
    assert half.graph.outputs[0].name == "y"
    assert {v.dtype for v in half.graph.initializers.values()} == {to}
    assert set(half.graph.initializers) == set(model.graph.initializers)
    assert 0 < relative(model, half, tokens()) < tolerance
    assert all(v.dtype == FLOAT for v in model.graph.initializers.values())


def test_half_precision_in_onnxruntime() -> None:
    half = to_half(convolutional(), keep_io=True)
    feeds = images()[0]
    want = by_onnxruntime(half, feeds)
    (got,) = Session(half).run(feeds).values()
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=5e-3)


def test_what_leaves_the_range_stays_in_float32() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="range")
    g = Builder(graph)
    x = g.input("x", FLOAT, ("N", 4))
    large = g.emit("Mul", x, np.float32(3e4), name="large")[0]
    small = g.emit("Add", g.emit("Relu", x, name="plain")[0], np.float32(1e-9), name="small")[0]
    masked = g.emit("Add", x, np.full(4, -1e9, np.float32), name="masked")[0]
    outs = [g.emit("Mul", large, np.float32(1e-4), name="back")[0], g.Div(small, small), g.Max(masked, x)]
    g.output(g.Concat(*outs, axis=1), "y")
    model = ir.Model(graph, ir_version=10)
    feeds = [{"x": np.array([[1, 2, 3, -4], [0.5, 0, 1, 8]], np.float32)}]
    half = to_half(model, keep_io=True, ranges=calibrate(model, feeds))
    types = {n.name: n.outputs[0].dtype for n in half.graph}
    assert {types[name] for name in ("large", "back", "small", "masked")} == {FLOAT}
    assert types["plain"] == HALF
    assert relative(model, half, feeds) < 1e-3
    # without the data, a product beyond 65504 is not seen
    (y,) = Session(to_half(model, keep_io=True)).run(feeds[0]).values()
    assert not np.isfinite(y).all()


def test_nodes_and_operators_to_keep() -> None:
    model = block()
    half = to_half(
        model, keep=["LayerNormalization", next(n.name for n in model.graph if n.op_type == "Softmax")]
    )
    assert {n.outputs[0].dtype for n in half.graph if n.op_type in ("LayerNormalization", "Softmax")} == {
        FLOAT
    }
    assert {n.outputs[0].dtype for n in half.graph if n.op_type in ("MatMul", "Gelu")} == {HALF}
    with pytest.raises(ConfigError, match=r"nothing to keep is called 'Sofmax'.*Softmax"):
        to_half(model, keep=["Sofmax"])
    with pytest.raises(ConfigError, match="no float32 tensors"):
        to_half(to_half(model))
    with pytest.raises(ConfigError, match="not double"):
        to_half(model, ir.DataType.DOUBLE)


def test_bodies_read_float32() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="branches")
    g = Builder(graph)
    x, c = g.input("x", FLOAT, ("N",)), g.input("c", ir.DataType.BOOL, ())
    doubled = g.Add(x, x)
    bodies = []
    for name in ("Neg", "Relu"):
        body = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name=name)
        inner = g.inside(body)
        inner.output(inner.emit(name, doubled)[0], f"{name}_out")
        bodies.append(body)
    node = ir.node("If", [c], {"then_branch": bodies[0], "else_branch": bodies[1]}, name="if")
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(FLOAT), ir.Shape(["N"])
    g.insert(node)
    g.output(g.Sqrt(g.Abs(node.outputs[0])), "y")
    model = ir.Model(graph, ir_version=10)
    half = to_half(model)
    check_model(half)
    for value in (True, False):
        feeds = [{"x": np.array([1.5, -2.0], np.float32), "c": np.array(value)}]
        assert relative(model, half, feeds) < 1e-3


@pytest.mark.parametrize(
    ("bits", "size", "tolerance", "dtype"),
    [
        (8, None, 0.02, np.int8),
        (8, 32, 0.02, np.int8),
        (4, None, 0.2, ml_dtypes.int4),
        (4, 64, 0.25, ml_dtypes.int4),
    ],
)
def test_weights_alone(bits: Any, size: int | None, tolerance: float, dtype: Any) -> None:
    model = block()
    small = quantize_weights(model, bits, block=size)
    check_model(small)
    integers = [v for n in small.graph if n.op_type == "DequantizeLinear" for v in n.inputs[:1] if v]
    assert len(integers) == 7
    assert {v.const_value.numpy().dtype for v in integers if v.const_value} == {np.dtype(dtype)}
    assert "table" not in small.graph.initializers
    assert 0 < relative(model, small, tokens()) < tolerance
    report = compare(small, tokens()[0])
    # onnxruntime itself rounds what it multiplies 4-bit weights by
    assert report.passed or (report.first_difference and report.first_difference.cause == "optimization")
    assert len(to_bytes(small)) < len(to_bytes(model)) * (0.45 if bits == 8 else 0.35)


def test_a_block_need_not_divide_and_scales_are_of_the_formula() -> None:
    w = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="one")
    g = Builder(graph)
    x = g.input("x", FLOAT, ("N", 40))
    g.output(g.MatMul(x, g.initializer("w", w)), "y")
    model = ir.Model(graph, ir_version=10)
    blocks = quantize_weights(model, 8, block=32)
    scale = blocks.graph.initializers["w_scale"].const_value
    assert scale is not None
    np.testing.assert_array_equal(
        scale.numpy(), np.stack([np.abs(w[:32]).max(0), np.abs(w[32:]).max(0)]) / np.float32(127)
    )
    feeds = {"x": np.eye(40, dtype=np.float32)}
    (got,) = Session(blocks).run(feeds).values()
    np.testing.assert_allclose(got, w, atol=np.abs(w).max() / 253)
    np.testing.assert_allclose(by_onnxruntime(blocks, feeds), got, atol=1e-6)
    by_column = quantize_weights(upgrade(model, 13), 8).graph
    assert by_column.opset_imports[""] == 13
    four = quantize_weights(model, 4)
    (rounded,) = Session(four).run(feeds).values()
    assert np.abs(rounded - w).max() <= np.abs(w).max() / 7  # no worse than a step, however the range is cut


def test_weights_that_there_are_not() -> None:
    with pytest.raises(ConfigError, match="nothing to quantise"):
        quantize_weights(to_half(block()))
    with pytest.raises(ConfigError, match=r"nothing to quantise.*not kept"):
        quantize_weights(block(), keep=["MatMul", "Gather"])
    with pytest.raises(ConfigError, match="16, 32, 64, 128 elements, not 48"):
        quantize_weights(block(), 4, block=48)
    with pytest.raises(ConfigError, match="8 or 4 bits, not 3"):
        quantize_weights(block(), 3)  # type: ignore[arg-type]


def test_dynamic_quantisation_measures_what_it_reads_once() -> None:
    model = block()
    quick = quantize_dynamic(model)
    check_model(quick)
    found = kinds(quick)
    assert found.count("MatMulInteger") == 6
    assert found.count("DynamicQuantizeLinear") == 4  # q, k and v read one tensor
    assert 0 < relative(model, quick, tokens()) < 0.05
    report = compare(quick, tokens()[0])
    assert report.passed or report.verdict == "rounding", report
    with pytest.raises(ConfigError, match="nothing to quantise"):
        quantize_dynamic(convolutional())  # its Gemm is small


def test_dynamic_quantisation_of_gemm() -> None:
    model = networks.mlp(features=40, hidden=32)
    quick = quantize_dynamic(model, smallest=1)
    assert kinds(quick).count("MatMulInteger") == 2
    assert "Gemm" not in kinds(quick)
    feeds = [{"x": np.random.default_rng(1).standard_normal((6, 40)).astype(np.float32)}]
    assert 0 < relative(model, quick, feeds) < 0.03
    np.testing.assert_allclose(
        by_onnxruntime(quick, feeds[0]), *Session(quick).run(feeds[0]).values(), atol=1e-5
    )


def test_folded_normalization_is_the_same_function() -> None:
    model = convolutional()
    folded = fold_normalization(model)
    assert "BatchNormalization" not in kinds(folded)
    assert not any(name.startswith("bn.") for name in folded.graph.initializers)
    assert relative(model, folded, images()) < 1e-6
    assert "BatchNormalization" in kinds(model)


@pytest.mark.parametrize("activations", [ir.DataType.UINT8, ir.DataType.INT8])
@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_static_quantisation(activations: ir.DataType, method: Any) -> None:
    model = fold_normalization(convolutional())
    names = tensors_to_calibrate(model)
    assert len(names) == 3  # the image, what Relu gives, what Gemm reads
    ranges = calibrate(model, images(), names, method=method, percentile=99.9)
    integers = quantize_static(model, ranges, activations=activations)
    check_model(integers)
    assert 0 < relative(model, integers, images()) < (0.05 if method == "minmax" else 0.12)
    feeds = images()[0]
    (got,) = Session(integers).run(feeds).values()
    step = np.abs(got).max() / 100
    np.testing.assert_allclose(by_onnxruntime(integers, feeds), got, atol=step)
    floats = in_floats(integers)  # the form of our integer kernels
    assert "DequantizeLinear" not in kinds(floats)
    assert kinds(floats).count("FakeQuantize") == 3 + 2


def test_a_bias_far_larger_than_the_products_keeps_its_value() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="bias")
    g = Builder(graph)
    x = g.input("x", FLOAT, ("N", 4))
    w = g.initializer("w", np.full((4, 2), 1e-9, np.float32))
    g.output(g.Gemm(x, w, g.initializer("b", np.array([100.0, -3.0], np.float32))), "y")
    model = ir.Model(graph, ir_version=10)
    feeds = [{"x": np.ones((1, 4), np.float32)}]
    integers = quantize_static(model, calibrate(model, feeds, ["x"]))
    (got,) = Session(integers).run(feeds[0]).values()
    np.testing.assert_allclose(got, [[100, -3]], rtol=1e-6)


def test_calibration() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="relu")
    g = Builder(graph)
    g.output(g.Relu(g.input("x", FLOAT, ("N",))), "y")
    model = ir.Model(graph, ir_version=10)
    x = np.random.default_rng(2).standard_normal(20_000).astype(np.float32)
    x[0] = 1000
    batches = [{"x": part} for part in np.split(x, 4)]
    seen = calibrate(model, batches)
    assert seen == {"x": (float(x.min()), 1000.0), "y": (0.0, 1000.0)}
    low, high = calibrate(model, batches, ["x"], method="percentile", percentile=99.9)["x"]
    np.testing.assert_allclose([low, high], np.percentile(x, [0.1, 99.9]), atol=1000 / 2048)
    regular = [{"x": part[1:]} for part in np.split(x, 4)]
    low, high = calibrate(model, regular, ["x"], method="percentile", percentile=99)["x"]
    inside = np.concatenate([b["x"] for b in regular])
    np.testing.assert_allclose([low, high], np.percentile(inside, [1, 99]), atol=0.01)
    low, high = calibrate(model, regular, ["y"], method="entropy")["y"]
    assert low == 0
    assert 2 < high <= inside.max()
    assert calibrate(model, batches, ["y"], method="entropy")["y"][1] < 200


def test_data_that_do_not_fit() -> None:
    model = fold_normalization(convolutional())
    names = tensors_to_calibrate(model)
    with pytest.raises(DataError, match="no data to calibrate on"):
        calibrate(model, [])
    bad = images()
    bad[1]["image"][0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="'image' is not finite"):
        calibrate(model, bad, names)
    with pytest.raises(ConfigError, match="no tensor 'nowhere'"):
        calibrate(model, images(), ["nowhere"])
    ranges = calibrate(model, images(), names)
    with pytest.raises(DataError, match="says nothing of tensor"):
        quantize_static(model, {n: r for n, r in ranges.items() if n != "image"})
    with pytest.raises(DataError, match=r"found the range 0.0 … inf for tensor 'image'"):
        quantize_static(model, ranges | {"image": (0.0, np.inf)})
    with pytest.raises(ConfigError, match="nothing to quantise"):
        tensors_to_calibrate(to_half(model))
    with pytest.raises(UnsupportedError, match="opset 11 has no scales by axis"):
        quantize_static(fold_normalization(upgrade(_plain(), 11)), {"input": (0, 1)}, keep=())


def _plain() -> ir.Model:
    return nn.Sequential([nn.Conv2D(4, 3, name="c")], input_shape=(1, 6, 6), name="plain").model


def test_tensors_of_other_shapes_are_infinitely_apart() -> None:
    a, b = networks.mlp(classes=3), networks.mlp(classes=4)
    (row,) = compare_models(a, b, [{"x": np.ones((2, 4), np.float32)}])
    assert row.error == np.inf
    (same,) = compare_models(a, a, [{"x": np.ones((2, 4), np.float32)}])
    assert (same.error, same.max_abs, same.elements) == (0.0, 0.0, 6)
