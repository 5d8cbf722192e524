"""Types of tensors: element type and shape, as the graph knows them before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import numpy as np
import onnx_ir as ir

__all__ = [
    "Array",
    "Dim",
    "TensorSpec",
    "TextTensor",
    "dims_of",
    "dtype_of",
    "is_float",
    "is_tensor",
    "numpy_dtype",
    "spec_of",
    "static_shape",
]

Array: TypeAlias = np.ndarray[Any, Any]
Dim: TypeAlias = int | str | None
"""A static extent, the name of a symbolic one, or None where nothing is known."""

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named value of a model's surface.

    Attributes:
        name: the graph input's or output's name.
        dtype: the NumPy element type (`ml_dtypes` for bfloat16, float8 and 4-bit types; object for strings).
        shape: one entry a dimension: an extent, a symbolic name, or None; `shape` is None where the rank
            itself is unknown. Of a sequence or optional, the shape of its tensors.
        kind: what it is: a tensor, an array; a sequence, a list of arrays; an optional, which may be None;
            or an optional sequence.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...] | None
    kind: Literal["tensor", "sequence", "optional", "optional sequence"] = "tensor"

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        of = "" if self.kind == "tensor" else f"{self.kind} of "
        return f"{self.name}: {of}{self.dtype}[{dims}]"

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape fits: same rank, equal extents where they are static."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            not isinstance(want, int) or want == got for want, got in zip(self.shape, shape, strict=True)
        )


def is_tensor(value: ir.Value) -> bool:
    """Whether a value is a tensor, not a sequence or an optional; untyped values count as tensors."""
    return value.type is None or isinstance(value.type, ir.TensorType)


def dims_of(value: ir.Value) -> tuple[Dim, ...] | None:
    """The dimensions of a tensor as ints, names and None; None where the rank is unknown, or of no tensor."""
    if value.shape is None or not is_tensor(value):
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape of a value when every extent is static, else None."""
    dims = dims_of(value)
    if dims is None:
        return None
    fixed = tuple(d for d in dims if isinstance(d, int))
    return fixed if len(fixed) == len(dims) else None


def dtype_of(value: ir.Value) -> ir.DataType:
    """The element type of a value; UNDEFINED where it is not known."""
    return value.dtype if value.dtype is not None else ir.DataType.UNDEFINED


def is_float(value: ir.Value) -> bool:
    """Whether a value is a tensor of floating-point numbers: only those carry gradients."""
    return dtype_of(value) in _FLOATS and is_tensor(value)


def numpy_dtype(dtype: ir.DataType) -> np.dtype[Any]:
    """The NumPy type of an ONNX element type; strings are object arrays."""
    return np.dtype(object) if dtype == ir.DataType.STRING else np.dtype(dtype.numpy())


def spec_of(value: ir.Value) -> TensorSpec:
    """The named type of a graph input or output."""
    kind: Literal["tensor", "sequence", "optional", "optional sequence"] = "tensor"
    if isinstance(value.type, ir.SequenceType):
        kind = "sequence"
    elif isinstance(value.type, ir.OptionalType):
        inner = value.type.elem_type
        kind = "optional sequence" if isinstance(inner, ir.SequenceType) else "optional"
    dims = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return TensorSpec(value.name or "", numpy_dtype(dtype_of(value)), dims, kind)


@final
class TextTensor(ir.StringTensor):
    """Constant strings; `numpy` gives str objects, which is what kernels and sessions compute with."""

    @staticmethod
    def of(array: Array, name: str | None = None) -> TextTensor:
        """The tensor of an array of str."""
        data = [str(text).encode("utf-8", "surrogateescape") for text in array.reshape(-1)]
        return TextTensor(data, shape=ir.Shape(array.shape), name=name)

    def numpy(self) -> Array:
        texts = [bytes(text).decode("utf-8", "surrogateescape") for text in self.string_data()]
        array = np.empty(len(texts), dtype=object)
        array[:] = texts
        return array.reshape(tuple(self.shape.numpy()))
