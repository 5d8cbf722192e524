from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onward.graph import TensorSpec, dims_of, is_float, numpy_dtype, spec_of, static_shape


def test_dimensions_are_numbers_names_or_nothing() -> None:
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape([2, "N", None]))
    assert dims_of(value) == (2, "N", None)
    assert static_shape(value) is None
    assert is_float(value)
    assert str(spec_of(value)) == "x: float16[2, N, ?]"
    assert static_shape(ir.Value(name="y", shape=ir.Shape([]))) == ()
    assert dims_of(ir.Value(name="z")) is None
    assert str(TensorSpec("z", np.dtype("int8"), None)) == "z: int8[?]"


@pytest.mark.parametrize(
    ("shape", "fits"), [((2, 5), True), ((3, 5), False), ((2,), False), ((2, 0), True), ((2, 5, 1), False)]
)
def test_a_spec_admits_shapes_of_its_rank_and_static_extents(shape: tuple[int, ...], fits: bool) -> None:
    assert TensorSpec("x", np.dtype("float32"), (2, "N")).admits(shape) is fits
    assert TensorSpec("x", np.dtype("float32"), None).admits(shape)


def test_element_types() -> None:
    assert numpy_dtype(ir.DataType.BFLOAT16) == ml_dtypes.bfloat16
    assert numpy_dtype(ir.DataType.STRING).kind == "O"
    assert not is_float(ir.Value(name="x"))
