"""Python values to tensors of a request, and tensors of an answer to arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onward_client.errors import InvalidRequestError, ServerError
from onward_protos.tensors import DATATYPES, Array, TensorFormatError, datatype_of, decode_raw, encode_raw

__all__ = ["array_of", "decode_output", "encode_input", "is_plain"]

_PLAIN = (bool, int, float, str, bytes)


def is_plain(value: object) -> bool:
    """Whether a value is a Python scalar or nested lists and tuples of them, without a dtype of its own."""
    return all(type(leaf) in _PLAIN for leaf in _leaves(value))


def array_of(name: str, value: object, datatype: str) -> tuple[str, Array]:
    """A value as an array for an input, and the datatype to declare.

    An array keeps its dtype, whatever the model takes: the server refuses one that does not fit. Python
    lists and scalars take the model's `datatype` where that loses nothing but precision: bool to BOOL; int
    to an integer type that holds it or to a floating-point type; float to a floating-point type; str and
    bytes to BYTES.

    Raises:
        InvalidRequestError: names the input and the value that does not fit.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        try:
            return datatype_of(array.dtype), array
        except TensorFormatError as error:
            raise InvalidRequestError(f"input {name!r}: {error}") from None
    if not is_plain(value):
        raise InvalidRequestError(
            f"input {name!r}: {type(value).__name__} is neither a NumPy array nor a list of Python numbers "
            "or strings; convert it with numpy.asarray"
        )
    return datatype, _from_python(name, value, datatype)


def encode_input(name: str, datatype: str, array: Array) -> bytes:
    """The raw bytes of an input.

    Raises:
        InvalidRequestError: an element of an object array is neither `str` nor `bytes`.
    """
    try:
        return encode_raw(array.view(np.uint16) if datatype == "BF16" else array)
    except TensorFormatError as error:
        raise InvalidRequestError(f"input {name!r}: {error}") from None


def decode_output(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Array:
    """The array of an answer's output; BF16, which NumPy lacks, becomes float32 without loss.

    Raises:
        ServerError: the bytes do not fit the datatype and shape.
    """
    try:
        array = decode_raw(datatype, shape, raw)
    except TensorFormatError as error:
        raise ServerError(f"the answer's output {name!r} is malformed: {error}") from None
    if datatype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array if array.flags.writeable else array.copy()


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _from_python(name: str, value: object, datatype: str) -> Array:
    if datatype not in DATATYPES:
        raise InvalidRequestError(f"input {name!r}: the model's datatype {datatype!r} is unknown here")
    dtype = DATATYPES[datatype]
    kinds: dict[str, tuple[type, ...]] = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}
    allowed = (int, float) if datatype == "BF16" else kinds.get(dtype.kind, (str, bytes))
    for leaf in _leaves(value):
        if type(leaf) not in allowed:
            raise InvalidRequestError(
                f"input {name!r} takes {datatype}, and {leaf!r} is a Python {type(leaf).__name__}"
            )
    try:
        if datatype == "BF16":
            return _round_to_bfloat16(np.array(value, dtype=np.float32))
        if dtype.kind == "O":
            return _objects(value)
        return np.array(value, dtype=dtype)
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(f"input {name!r} as {datatype}: {error}") from None


def _objects(value: Any) -> Array:
    shape: list[int] = []
    level = value
    while isinstance(level, (list, tuple)):
        shape.append(len(level))
        level = level[0] if level else None
    leaves = list(_leaves(value))
    array = np.empty(len(leaves), dtype=object)
    array[:] = leaves
    return array.reshape(shape)


def _round_to_bfloat16(array: Array) -> Array:
    bits = array.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded)
