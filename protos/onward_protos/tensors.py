"""Tensors as the Open Inference Protocol writes them: datatype names, raw bytes and typed lists.

Source: Open Inference Protocol v2, "Tensor Data"; Triton's binary tensor data extension for BYTES and BF16.

A decoded array has the NumPy type of the table below. BYTES become an object array of `bytes`. BF16 has no
NumPy type of its own: it is decoded to its 16-bit patterns (uint16), and the caller gives them meaning.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

__all__ = [
    "CONTENTS_FIELDS",
    "DATATYPES",
    "MAX_ELEMENTS",
    "Array",
    "TensorFormatError",
    "datatype_of",
    "decode_contents",
    "decode_raw",
    "element_count",
    "encode_raw",
]

Array: TypeAlias = np.ndarray[Any, Any]

DATATYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype("<u1"),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
        "UINT64": np.dtype("<u8"),
        "INT8": np.dtype("<i1"),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "FP16": np.dtype("<f2"),
        "FP32": np.dtype("<f4"),
        "FP64": np.dtype("<f8"),
        "BF16": np.dtype("<u2"),
        "BYTES": np.dtype(object),
    }
)
"""NumPy element type in which each protocol datatype is stored after decoding."""

CONTENTS_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "BOOL": "bool_contents",
        "INT8": "int_contents",
        "INT16": "int_contents",
        "INT32": "int_contents",
        "INT64": "int64_contents",
        "UINT8": "uint_contents",
        "UINT16": "uint_contents",
        "UINT32": "uint_contents",
        "UINT64": "uint64_contents",
        "FP32": "fp32_contents",
        "FP64": "fp64_contents",
        "BYTES": "bytes_contents",
    }
)
"""The list of InferTensorContents that carries each datatype; FP16 and BF16 have none."""

MAX_ELEMENTS = 2**40
"""Bound on the product of a shape's non-zero dimensions: beyond it NumPy's own size arithmetic overflows."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items() if name not in ("BF16", "BYTES")}


class TensorFormatError(ValueError):
    """A tensor whose datatype, shape and bytes do not fit together; the text says which."""


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a NumPy element type; strings and objects are BYTES, `bfloat16` is BF16.

    Raises:
        TensorFormatError: the protocol has no such type.
    """
    if dtype.kind in "OUS":
        return "BYTES"
    if dtype.name == "bfloat16":
        return "BF16"
    name = _NAMES.get(dtype.newbyteorder("<"))
    if name is None:
        raise TensorFormatError(f"the protocol has no datatype for {dtype}; it has {', '.join(DATATYPES)}")
    return name


def element_count(datatype: str, shape: Sequence[int]) -> int:
    """The number of elements of a tensor, after checking its datatype and shape.

    Raises:
        TensorFormatError: unknown datatype, a negative dimension, or a shape beyond MAX_ELEMENTS.
    """
    if datatype not in DATATYPES:
        raise TensorFormatError(f"datatype {datatype!r} is unknown; use one of {', '.join(DATATYPES)}")
    if any(extent < 0 for extent in shape):
        raise TensorFormatError(f"shape {list(shape)} has a negative dimension")
    if len(shape) > 32:
        raise TensorFormatError(f"shape has {len(shape)} dimensions; at most 32 are possible")
    if math.prod(extent for extent in shape if extent) > MAX_ELEMENTS:
        raise TensorFormatError(f"shape {list(shape)} has more than 2**40 elements")
    return math.prod(shape)


def decode_raw(datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Array:
    """A tensor from its raw bytes, without a copy where the element size is fixed (then read-only).

    Raises:
        TensorFormatError: the bytes are not exactly those of the shape, or a BOOL is neither 0 nor 1.
    """
    count = element_count(datatype, shape)
    if datatype == "BYTES":
        return _object_array(_split_bytes(bytes(raw), count), shape)
    dtype = DATATYPES[datatype]
    expected = count * dtype.itemsize
    if len(raw) != expected:
        raise TensorFormatError(
            f"{datatype} of shape {list(shape)} takes {expected} bytes, got {len(raw)} bytes"
        )
    if datatype == "BOOL":
        codes = np.frombuffer(raw, dtype=np.uint8)
        if codes.size and int(codes.max()) > 1:
            raise TensorFormatError("a BOOL byte is neither 0 nor 1")
        return codes.view(np.bool_).reshape(tuple(shape))
    return np.frombuffer(raw, dtype=dtype).reshape(tuple(shape))


def decode_contents(datatype: str, shape: Sequence[int], values: Sequence[Any]) -> Array:
    """A tensor from the elements of its typed list.

    Raises:
        TensorFormatError: the datatype has no typed list, the count is wrong, or a value is out of range.
    """
    count = element_count(datatype, shape)
    if datatype not in CONTENTS_FIELDS:
        raise TensorFormatError(f"{datatype} has no typed contents; send it in raw_input_contents")
    if len(values) != count:
        raise TensorFormatError(
            f"{CONTENTS_FIELDS[datatype]} has {len(values)} elements; shape {list(shape)} takes {count}"
        )
    if datatype == "BYTES":
        return _object_array(list(values), shape)
    dtype = DATATYPES[datatype]
    if dtype.kind in "iu" and dtype.itemsize < 4:
        wide = np.array(values, dtype=np.int64)
        limits = np.iinfo(dtype)
        if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
            raise TensorFormatError(f"a value is outside {datatype}'s range {limits.min} to {limits.max}")
        return wide.astype(dtype).reshape(tuple(shape))
    return np.array(values, dtype=dtype).reshape(tuple(shape))


def encode_raw(array: Array) -> bytes:
    """The raw bytes of an array, row-major and little-endian; `str` elements are written as UTF-8.

    Raises:
        TensorFormatError: an element of an object array is neither `str` nor `bytes`.
    """
    if array.dtype.kind in "OUS":
        return b"".join(_length_and_bytes(element) for element in array.ravel().tolist())
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and not np.little_endian):
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()


def _length_and_bytes(element: object) -> bytes:
    if isinstance(element, str):
        element = element.encode()
    if not isinstance(element, bytes):
        raise TensorFormatError(f"a BYTES element is {type(element).__name__}; give str or bytes")
    return struct.pack("<I", len(element)) + element


def _split_bytes(raw: bytes, count: int) -> list[bytes]:
    elements: list[bytes] = []
    position = 0
    while position < len(raw):
        start = position + 4
        if start > len(raw):
            raise TensorFormatError(f"BYTES element {len(elements)} is cut off inside its 4-byte length")
        position = start + int.from_bytes(raw[start - 4 : start], "little")
        if position > len(raw):
            raise TensorFormatError(
                f"BYTES element {len(elements)} claims {position - start} bytes; {len(raw) - start} are left"
            )
        elements.append(raw[start:position])
        if len(elements) > count:
            break
    if len(elements) != count:
        more = "more than " if len(elements) > count else "only "
        raise TensorFormatError(
            f"BYTES data holds {more}{min(len(elements), count)} elements; the shape takes {count}"
        )
    return elements


def _object_array(elements: list[Any], shape: Sequence[int]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(tuple(shape))
