"""Tolerances of quantised models: steps, not the last bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.verify import TOLERANCES, Tolerance, compare, quantised_tolerances
from onward.verify.quantised import STEPS
from onward.verify.tolerance import measure, tolerance_for


def quantised(kind: int, dtype: Any, *, back: bool = True) -> ir.Model:
    """x to integers, and back where that is asked for."""
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q" if back else "y"])]
    if back:
        nodes.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT if back else kind, ["n"])],
        [
            numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
            numpy_helper.from_array(np.array(0, dtype), "zero"),
        ],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def plain() -> ir.Model:
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "scale"], ["v"]),
            helper.make_node("Add", ["x", "v"], ["y"]),
        ],
        "weights",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        [
            numpy_helper.from_array(np.array([1, 2, 3], np.int8), "w"),
            numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        ],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


@pytest.mark.parametrize(
    ("kind", "dtype", "bits"),
    [(TensorProto.INT8, np.int8, 8), (TensorProto.UINT8, np.uint8, 8), (TensorProto.INT16, np.int16, 16)],
)
def test_floats_may_be_four_steps_of_the_narrowest_integers_apart(kind: int, dtype: Any, bits: int) -> None:
    found = quantised_tolerances(quantised(kind, dtype))
    assert found is not None
    step = 1 / (2 ** (bits - 1) - 1)
    assert found["float32"].scale == max(STEPS * step, TOLERANCES["float32"].scale)
    reference = np.array([1.0, -127.0], np.float32)
    inside, outside = (reference + np.float32(steps * step * 127) for steps in (0.99 * STEPS, 1.01 * STEPS))
    tolerance = tolerance_for(reference.dtype, found)
    assert measure(inside, reference, tolerance).ok
    # the relative part of the float's own tolerance is below a hundredth of a step of 8 bits
    assert not measure(outside + np.float32([0.02, 0.02]), reference, tolerance).ok


def test_small_integers_may_be_steps_apart_and_classes_not() -> None:
    found = quantised_tolerances(quantised(TensorProto.INT8, np.int8, back=False))
    for dtype, apart, ok in [
        (np.int8, STEPS, True),
        (np.int8, STEPS + 1, False),
        (np.uint8, STEPS, True),
        (np.int64, 1, False),
        (np.int32, 1, False),
    ]:
        ours, theirs = np.array([7 + apart], dtype), np.array([7], dtype)
        assert measure(ours, theirs, tolerance_for(theirs.dtype, found)).ok is ok


def test_a_model_whose_weights_alone_are_quantised_is_held_to_the_floats() -> None:
    assert quantised_tolerances(plain()) is None


def test_a_quantised_model_passes_its_comparison() -> None:
    model = quantised(TensorProto.INT8, np.int8)
    x = np.random.default_rng(0).uniform(-12, 12, 1000).astype(np.float32)
    report = compare(model, {"x": x}, tolerance=quantised_tolerances(model))
    assert report.passed
    assert report.rows[0].tolerance == Tolerance(1e-5, 1e-4, STEPS / 127)
