from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, ShapeError
from onward.graph import Array, Dim, Op, dims_of, dtype_of, op
from onward.ops.ml import DOMAIN
from onward.ops.ml._lookup import looked_up

_TYPES = {"strings": np.dtype(object), "int64s": np.dtype(np.int64), "floats": np.dtype(np.float32)}


@op("LabelEncoder", domain=DOMAIN, since=1)
class LabelEncoder1(Op):
    """The position of a string among the classes, or the string at a position; a default for others."""

    classes_strings: tuple[str, ...] | None = None
    default_int64: int = -1
    default_string: str = "_Unused"

    def kernel(self, X: Array) -> Array:
        classes = np.asarray(self.classes_strings or (), object)
        numbers = np.arange(len(classes))
        if X.dtype == object:
            return looked_up(X, classes, numbers, self.default_int64)
        return looked_up(X, numbers, classes, self.default_string)

    def infer(self, X: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        strings = dtype_of(X) == ir.DataType.STRING
        return [(ir.DataType.INT64 if strings else ir.DataType.STRING, dims_of(X))]


@op("LabelEncoder", domain=DOMAIN, since=2)
class LabelEncoder2(Op):
    """The value of each element's key, or the default of the values' type.

    Of a key that is there twice the first counts; NaN is no key.
    """

    default_float: float = -0.0
    default_int64: int = -1
    default_string: str = "_Unused"
    keys_floats: tuple[float, ...] | None = None
    keys_int64s: tuple[int, ...] | None = None
    keys_strings: tuple[str, ...] | None = None
    values_floats: tuple[float, ...] | None = None
    values_int64s: tuple[int, ...] | None = None
    values_strings: tuple[str, ...] | None = None

    def kernel(self, X: Array) -> Array:
        keys, values = _given(self, "keys"), _given(self, "values")
        _check_type(X, keys)
        known = keys == keys
        return looked_up(X, keys[known], values[known], _default(self, values.dtype))

    def infer(self, X: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(_data_type(_given(self, "values").dtype), dims_of(X))]


@op("LabelEncoder", domain=DOMAIN, since=4)
class LabelEncoder(Op):
    """The value of each element's key, or the default of the values' type: "_Unused", −1, −0.0 or 0.

    Of a key that is there twice the first counts; NaN is a key.
    """

    default_float: float = -0.0
    default_int64: int = -1
    default_string: str = "_Unused"
    default_tensor: Any = None
    keys_floats: tuple[float, ...] | None = None
    keys_int64s: tuple[int, ...] | None = None
    keys_strings: tuple[str, ...] | None = None
    keys_tensor: Any = None
    values_floats: tuple[float, ...] | None = None
    values_int64s: tuple[int, ...] | None = None
    values_strings: tuple[str, ...] | None = None
    values_tensor: Any = None

    def kernel(self, X: Array) -> Array:
        keys, values = _given(self, "keys"), _given(self, "values")
        _check_type(X, keys)
        if self.default_tensor is None:
            default = _default(self, values.dtype)
        else:
            default = np.asarray(self.default_tensor).reshape(-1)[0]
        return looked_up(X, keys, values, default)

    def infer(self, X: ir.Value) -> list[tuple[ir.DataType, tuple[Dim, ...] | None]]:
        return [(_data_type(_given(self, "values").dtype), dims_of(X))]


def _given(operator: LabelEncoder2 | LabelEncoder, what: str) -> Array:
    """The keys or the values.

    Raises:
        InvalidModelError: they are given in none or several of the attributes for them.
    """
    found = {
        kind: np.asarray(content, dtype)
        for kind, dtype in _TYPES.items()
        if (content := getattr(operator, f"{what}_{kind}")) is not None
    }
    if (tensor := getattr(operator, f"{what}_tensor", None)) is not None:
        found["tensor"] = np.asarray(tensor).reshape(-1)
    if len(found) != 1:
        names = ", ".join(f"{what}_{kind}" for kind in (*_TYPES, "tensor"))
        raise InvalidModelError(f"exactly one of {names} is needed; it has {len(found)}")
    return next(iter(found.values()))


def _default(operator: LabelEncoder2 | LabelEncoder, dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "O":
        return operator.default_string
    return operator.default_int64 if dtype.kind == "i" else operator.default_float


def _check_type(X: Array, keys: Array) -> None:
    if X.dtype != keys.dtype:
        raise ShapeError(f"X is {X.dtype}, the keys are {keys.dtype}")


def _data_type(dtype: np.dtype[Any]) -> ir.DataType:
    return ir.DataType.STRING if dtype.kind == "O" else ir.DataType.from_numpy(dtype)
