"""Normalization beyond the shared cases: running statistics, 16-bit floats, mixed types, refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onward.autodiff import gradients
from onward.errors import ShapeError, UnsupportedError
from onward.graph import Builder
from onward.ops.batch_normalization import BatchNormalization
from onward.ops.batch_normalization_grad import BatchNormalizationGrad
from onward.ops.dropout import Dropout
from onward.ops.group_normalization import GroupNormalization
from onward.ops.layer_normalization import LayerNormalization


def test_running_statistics_take_the_population_variance() -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    one = np.ones(2, np.float32)
    _, mean, var = BatchNormalization(training_mode=1, momentum=0.9).kernel(x, one, one, one, one)
    np.testing.assert_allclose(mean, 0.9 + 0.1 * x.mean(axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, 0.9 + 0.1 * x.var(axis=(0, 2)), rtol=1e-6)


def test_batch_normalization_mixes_float16_data_with_float32_statistics() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (4, 3, 5)).astype(np.float16)
    scale, bias, mean = (rng.normal(size=3).astype(np.float32) for _ in range(3))
    var = np.abs(mean) + np.float32(0.5)
    y, running, _ = BatchNormalization(training_mode=1).kernel(x, scale, bias, mean, var)
    wide = BatchNormalization(training_mode=1).kernel(x.astype(np.float32), scale, bias, mean, var)
    assert (y.dtype, running.dtype) == (np.float16, np.float32)
    np.testing.assert_array_equal(y, wide[0].astype(np.float16))
    dX, dscale, dB = BatchNormalizationGrad().kernel(x, x, scale)
    assert (dX.dtype, dscale.dtype, dB.dtype) == (np.float16, np.float32, np.float32)


def test_statistics_of_data_far_from_zero_do_not_cancel() -> None:
    x = (np.random.default_rng(1).normal(size=(8, 1, 32)) + 3000).astype(np.float32)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    y, _, _ = BatchNormalization(training_mode=1).kernel(x, one, zero, zero, one)
    np.testing.assert_allclose(y.std(), 1, rtol=1e-3)
    normalized, _, _ = LayerNormalization().kernel(x, np.ones(32, np.float32))
    np.testing.assert_allclose(normalized.std(axis=-1), 1, rtol=1e-3)


def test_dropout_draws_as_the_reference_evaluator_where_it_has_a_seed() -> None:
    x = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    on = np.array(True)
    info = [("x", x.shape), ("y", x.shape)]
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in info]
    mask = helper.make_tensor_value_info("mask", onnx.TensorProto.BOOL, x.shape)
    node = helper.make_node("Dropout", ["x", "ratio", "on"], ["y", "mask"], seed=7)
    constants = [numpy_helper.from_array(np.float32(0.3), "ratio"), numpy_helper.from_array(on, "on")]
    graph = helper.make_graph([node], "drop", values[:1], [values[1], mask], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    theirs = ReferenceEvaluator(model).run(None, {"x": x})
    ours = Dropout(seed=7).kernel(x, np.float32(0.3), on)
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    assert ours[0].dtype == np.float32


def test_dropout_without_a_seed_draws_anew() -> None:
    x = np.ones((100, 100), np.float16)
    first, second = (Dropout().kernel(x, np.array(0.25, np.float32), np.array(True)) for _ in range(2))
    assert (first[1] != second[1]).any()
    for y, mask in (first, second):
        assert y.dtype == np.float16
        assert mask.mean() == pytest.approx(0.75, abs=0.03)
        np.testing.assert_array_equal(y, np.where(mask, np.float16(1 / 0.75), 0))
    with pytest.raises(UnsupportedError, match=r"ratio 1\.0 is not in \[0, 1\)"):
        Dropout().kernel(x, np.array(1.0, np.float32), np.array(True))


def test_channels_that_make_no_groups_are_refused() -> None:
    one = np.ones(4, np.float32)
    with pytest.raises(ShapeError, match="4 channels do not make 3 groups"):
        GroupNormalization(num_groups=3).kernel(np.ones((2, 4, 5), np.float32), one, one)


def test_gradients_through_the_stashed_statistics_are_refused() -> None:
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="layer"))
    x = g.input("x", ir.DataType.FLOAT, ["N", 4])
    scale = g.input("scale", ir.DataType.FLOAT, [4])
    _, mean, _ = g.emit("LayerNormalization", x, scale, outputs=3)
    with pytest.raises(UnsupportedError, match="Mean and InvStdDev"):
        gradients(g, {mean: mean}, [x])


def test_layer_normalization_keeps_float16_and_stashes_float32() -> None:
    x = np.random.default_rng(4).normal(size=(3, 8)).astype(np.float16)
    y, mean, inverse = LayerNormalization().kernel(x, np.ones(8, np.float16), np.zeros(8, np.float16))
    assert (y.dtype, mean.dtype, inverse.dtype) == (np.float16, np.float32, np.float32)
    assert mean.shape == inverse.shape == (3, 1)
