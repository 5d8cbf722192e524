"""The tensor codec: raw bytes and typed lists, and what it refuses."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onward_protos.tensors import (
    CONTENTS_FIELDS,
    DATATYPES,
    TensorFormatError,
    datatype_of,
    decode_contents,
    decode_raw,
    element_count,
    encode_raw,
)

NUMERIC = [name for name in DATATYPES if name not in ("BYTES", "BF16", "BOOL")]


@pytest.mark.parametrize("name", NUMERIC)
def test_numbers_survive_the_raw_form(name: str) -> None:
    dtype = DATATYPES[name]
    array = np.array([[0, 1, 2], [3, 100, 7]], dtype=dtype)
    decoded = decode_raw(name, (2, 3), encode_raw(array))
    assert datatype_of(array.dtype) == name
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, array)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 1, 2)])
def test_every_shape_survives(shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype=np.float32)
    assert decode_raw("FP32", shape, encode_raw(array)).shape == shape


def test_raw_bytes_are_little_endian_and_row_major() -> None:
    assert encode_raw(np.array([1, 256], dtype=">i4")) == b"\1\0\0\0\0\1\0\0"
    assert encode_raw(np.array([[1, 2], [3, 4]], dtype=np.uint8).T) == b"\1\3\2\4"


def test_bool_is_one_byte_and_only_zero_or_one() -> None:
    array = np.array([True, False])
    assert encode_raw(array) == b"\1\0"
    np.testing.assert_array_equal(decode_raw("BOOL", (2,), b"\1\0"), array)
    with pytest.raises(TensorFormatError, match="neither 0 nor 1"):
        decode_raw("BOOL", (2,), b"\1\2")


def test_bfloat16_travels_as_its_bit_patterns() -> None:
    array = np.array([1.5, -2.0], dtype=ml_dtypes.bfloat16)
    assert datatype_of(array.dtype) == "BF16"
    np.testing.assert_array_equal(decode_raw("BF16", (2,), encode_raw(array)).view(ml_dtypes.bfloat16), array)


def test_bytes_elements_have_a_length_each() -> None:
    array = np.array([["a", "bé"], [b"", b"\xff\0"]], dtype=object)
    raw = encode_raw(array)
    assert raw == b"\1\0\0\0a" + b"\3\0\0\0b\xc3\xa9" + b"\0\0\0\0" + b"\2\0\0\0\xff\0"
    assert decode_raw("BYTES", (2, 2), raw).tolist() == [[b"a", b"b\xc3\xa9"], [b"", b"\xff\0"]]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\1\0\0", "cut off inside its 4-byte length"),
        (b"\5\0\0\0ab", "claims 5 bytes; 2 are left"),
        (b"\xff\xff\xff\xffab", "claims 4294967295 bytes"),
        (b"\1\0\0\0a", "only 1 elements; the shape takes 2"),
        (b"\0\0\0\0" * 3, "more than 2 elements"),
    ],
)
def test_malformed_bytes_are_refused(raw: bytes, text: str) -> None:
    with pytest.raises(TensorFormatError, match=text):
        decode_raw("BYTES", (2,), raw)


@pytest.mark.parametrize("length", [0, 23, 25, 48])
def test_a_wrong_byte_count_is_refused(length: int) -> None:
    with pytest.raises(TensorFormatError, match=f"takes 24 bytes, got {length}"):
        decode_raw("FP32", (2, 3), bytes(length))


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((2, -1), "negative dimension"),
        ((2**62, 2**62), "more than 2\\*\\*40 elements"),
        ((0, 2**62, 2**62), "more than 2\\*\\*40 elements"),
        ((1,) * 33, "33 dimensions"),
    ],
)
def test_impossible_shapes_are_refused(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(TensorFormatError, match=text):
        element_count("FP32", shape)


def test_unknown_datatypes_are_refused() -> None:
    with pytest.raises(TensorFormatError, match="'FP8' is unknown"):
        element_count("FP8", (1,))
    with pytest.raises(TensorFormatError, match="complex64"):
        datatype_of(np.dtype(np.complex64))


@pytest.mark.parametrize("name", [n for n in CONTENTS_FIELDS if n not in ("BYTES", "BOOL")])
def test_numbers_survive_the_typed_form(name: str) -> None:
    decoded = decode_contents(name, (2, 2), [0, 1, 2, 100])
    assert decoded.dtype == DATATYPES[name]
    assert decoded.tolist() == [[0, 1], [2, 100]]


@pytest.mark.parametrize(
    ("name", "value"), [("INT8", 128), ("INT16", -32769), ("UINT8", 256), ("UINT16", 65536)]
)
def test_a_narrow_type_refuses_what_it_cannot_hold(name: str, value: int) -> None:
    with pytest.raises(TensorFormatError, match="range"):
        decode_contents(name, (1,), [value])


@pytest.mark.parametrize("name", ["FP16", "BF16"])
def test_half_precision_has_no_typed_form(name: str) -> None:
    with pytest.raises(TensorFormatError, match="raw_input_contents"):
        decode_contents(name, (1,), [1.0])


def test_a_wrong_element_count_is_refused() -> None:
    with pytest.raises(TensorFormatError, match="fp32_contents has 3 elements; shape \\[2, 2\\] takes 4"):
        decode_contents("FP32", (2, 2), [1.0, 2.0, 3.0])
