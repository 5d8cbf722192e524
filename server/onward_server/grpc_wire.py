"""Requests as they come: what can be known of a message without decoding it, and its tensors where they lie.

Source: "Encoding" of the Protocol Buffers documentation. What is not read here is left to the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from onward_protos.grpc_service_pb2 import ModelInferRequest
from onward_server.errors import RequestError

__all__ = ["Parts", "model_of", "split_infer"]

Parts: TypeAlias = "tuple[bytes | memoryview, Sequence[memoryview] | None]"
"""The message without its raw contents, and those; None: they are still in it."""

_FIELDS = ModelInferRequest.DESCRIPTOR.fields_by_name
_NAME = _FIELDS["model_name"].number << 3 | 2
_VERSION = _FIELDS["model_version"].number << 3 | 2
_RAW = _FIELDS["raw_input_contents"].number << 3 | 2
_SMALL_BYTES = 4096
_MOST_FIELDS = 1024
_LONGEST_NAME = 1024


def split_infer(data: bytes | memoryview) -> Parts:
    """Take the raw contents out of a ModelInferRequest, as views.

    Raises:
        RequestError: the bytes are no message.
    """
    size = len(data)
    if size < _SMALL_BYTES:
        return data, None
    view = memoryview(data)
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    at = fields = 0
    try:
        while at < size:
            fields += 1
            if fields > _MOST_FIELDS:
                return data, None
            start = at
            key, at = _number(view, at)
            if key == _RAW:
                length, at = _number(view, at)
                raw.append(view[at : at + length])
                at += length
                continue
            kind = key & 7
            if kind == 2:
                length, at = _number(view, at)
                at += length
            elif kind == 0:
                _, at = _number(view, at)
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                return data, None
            rest.append(view[start:at])
    except IndexError:
        at = size + 1
    if at > size:
        raise RequestError("the request is not an inference.ModelInferRequest message: it ends too early")
    return b"".join(rest), raw


def model_of(start: bytes | memoryview) -> tuple[str, str] | None:
    """Name and version of the model in the first bytes of a ModelInferRequest; None: they do not begin it."""
    found = {}
    at = 0
    try:
        while True:
            key, at = _number(start, at)
            if key not in (_NAME, _VERSION):
                break
            length, at = _number(start, at)
            if length > _LONGEST_NAME or at + length > len(start):
                return None
            found[key] = bytes(start[at : at + length]).decode()
            at += length
    except (IndexError, UnicodeDecodeError):
        return None
    return (found[_NAME], found.get(_VERSION, "")) if _NAME in found else None


def _number(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    value, shift = byte & 127, 7
    while shift < 64:
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + 1
        shift += 7
    raise RequestError("the request is not an inference.ModelInferRequest message: a number has no end")
