"""Convolution beyond the shared cases: extents that are known at run time only, 16-bit floats, refusals."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from tests.ops.cases_windows import CONVOLUTION
from tests.ops.harness import Case, assert_same, feed, model_of, run, run_ort

from onward.autodiff import gradients
from onward.errors import InvalidModelError, ShapeError, UnsupportedError
from onward.graph import Builder, dims_of
from onward.ops.conv import Conv
from onward.ops.conv_transpose import ConvTranspose

_DYNAMIC = [
    case
    for case in CONVOLUTION
    if case.wrt != () and not case.batch and not {"auto_pad", "output_shape"} & set(case.attrs)
]


def _with_dynamic_extents(case: Case) -> ir.Model:
    """The gradient graph of a case whose batch and spatial extents have names."""
    x, w, b = case.operands()
    assert x is not None
    assert w is not None
    assert b is not None
    graph = ir.Graph([], [], nodes=[], opset_imports={"": case.opset}, name="dynamic")
    g = Builder(graph)
    dims: list[int | str] = ["N", x.shape[1], *"HWD"[: x.ndim - 2]]
    operands = [
        g.input("x0", ir.DataType.FLOAT, dims),
        g.input("x1", ir.DataType.FLOAT, w.shape),
        g.input("x2", ir.DataType.FLOAT, b.shape),
    ]
    y = g.emit(case.op_type, *operands, **dict(case.attrs))[0]
    dy = g.input("dy0", ir.DataType.FLOAT, dims_of(y) or ())
    for i, dx in enumerate(gradients(g, {y: dy}, operands)):
        assert dx is not None
        g.output(dx, f"dx{i}")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("case", _DYNAMIC, ids=lambda case: case.id)
def test_gradients_with_dynamic_extents_are_those_with_static_ones(case: Case) -> None:
    static, dynamic = model_of(case, gradient=True), _with_dynamic_extents(case)
    inputs = feed(case, static)
    want = {name: y for name, y in run(static, inputs).items() if name.startswith("dx")}
    assert_same(run(dynamic, inputs), want, rtol=1e-6, atol=1e-6)
    assert_same(run_ort(dynamic, inputs), want, case.rtol, case.atol)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_same_padding_of_unknown_extents_is_refused(auto_pad: str) -> None:
    case = Case("Conv", [(2, 3, 9, 9), (4, 3, 3, 3), (4,)], {"auto_pad": auto_pad, "strides": (2, 2)})
    with pytest.raises(UnsupportedError, match=f"auto_pad={auto_pad} needs static spatial extents"):
        _with_dynamic_extents(case)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_narrow_floats_are_computed_in_float32(dtype: np.dtype[np.generic], group: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 7, 7)).astype(dtype)
    w = rng.normal(size=(4, 4 // group, 3, 3)).astype(dtype)
    conv = Conv(group=group, pads=(1, 1, 1, 1))
    y = conv.kernel(x, w)
    assert y.dtype == dtype
    wide = conv.kernel(x.astype(np.float32), w.astype(np.float32))
    np.testing.assert_array_equal(y, wide.astype(dtype))


def test_large_batches_are_cut_into_chunks_without_a_trace() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(24, 16, 20, 20)).astype(np.float32)
    w = rng.normal(size=(8, 16, 3, 3)).astype(np.float32)
    conv = Conv(pads=(1, 1, 1, 1))
    whole = conv.kernel(x, w)
    np.testing.assert_array_equal(whole[17:18], conv.kernel(x[17:18], w))


def test_a_kernel_larger_than_the_padded_input_is_refused() -> None:
    x, w = np.zeros((1, 1, 4, 4), np.float32), np.zeros((1, 1, 6, 3), np.float32)
    with pytest.raises(ShapeError, match="does not fit"):
        Conv().kernel(x, w)
    with pytest.raises(ShapeError, match="does not fit"):
        Conv().kernel(x, np.zeros((1, 1, 5, 3), np.float32))
    assert Conv(pads=(1, 0, 1, 0)).kernel(x, w).shape == (1, 1, 1, 2)


def test_channels_that_do_not_fit_are_refused() -> None:
    x = np.zeros((1, 4, 5, 5), np.float32)
    with pytest.raises(ShapeError, match="4 channels in 1 groups"):
        Conv().kernel(x, np.zeros((2, 3, 3, 3), np.float32))
    with pytest.raises(ShapeError, match="4 channels in 2 groups"):
        Conv(group=2).kernel(x, np.zeros((3, 2, 3, 3), np.float32))
    with pytest.raises(ShapeError, match="kernel_shape"):
        Conv(kernel_shape=(2, 2)).kernel(x, np.zeros((2, 4, 3, 3), np.float32))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"strides": (1,)}, "'strides'"),
        ({"dilations": (0, 1)}, "'dilations'"),
        ({"pads": (1, 1)}, "'pads'"),
        ({"pads": (0, -1, 0, 0)}, "'pads'"),
        ({"auto_pad": "SAME"}, "'auto_pad'"),
    ],
)
def test_impossible_attributes_are_named(attributes: dict[str, object], message: str) -> None:
    x, w = np.zeros((1, 1, 5, 5), np.float32), np.zeros((1, 1, 3, 3), np.float32)
    with pytest.raises(InvalidModelError, match=message):
        dataclasses.replace(Conv(), **attributes).kernel(x, w)  # type: ignore[arg-type]


def test_an_output_shape_out_of_reach_is_refused() -> None:
    x, w = np.zeros((1, 1, 3), np.float32), np.zeros((1, 1, 3), np.float32)
    with pytest.raises(ShapeError, match="output_padding"):
        ConvTranspose(output_shape=(8,)).kernel(x, w)
    with pytest.raises(ShapeError, match="leave nothing"):
        ConvTranspose(pads=(4, 1)).kernel(x, w)
