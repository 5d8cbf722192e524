"""What gRPC puts around messages: header blocks that begin and end calls, and compression.

Source: "gRPC over HTTP2" (PROTOCOL-HTTP2.md of gRPC).
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from urllib.parse import quote_from_bytes

from onward_server.grpc_calls import CallFailed
from onward_server.http2.headers import literal

__all__ = ["ACCEPTED", "ENCODINGS", "EXPIRED", "HEAD", "OK", "framed", "inflated", "refusal", "too_large"]

_NUMBERS = {
    "OK": 0, "CANCELLED": 1, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6, "PERMISSION_DENIED": 7, "RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9,
    "ABORTED": 10, "OUT_OF_RANGE": 11, "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14,
    "DATA_LOSS": 15, "UNAUTHENTICATED": 16,
}  # fmt: skip
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")

HEAD = b"\x88" + literal("content-type", "application/grpc")
"""Begins an answer: `:status` 200 and the type."""

OK = literal("grpc-status", "0")
"""Ends one that succeeded."""

ACCEPTED = literal("grpc-accept-encoding", "identity, deflate, gzip")
"""Says how messages may be compressed."""

ENCODINGS = {"gzip": 31, "deflate": 15}
"""Ways to compress messages, and zlib's window bits for them."""

EXPIRED = ("DEADLINE_EXCEEDED", "the request's deadline passed before it was answered")
"""Code and text of a call whose deadline passed."""


def framed(data: bytes) -> bytes:
    """A message as it travels: uncompressed, its length before it."""
    return b"\0" + len(data).to_bytes(4, "big") + data


def too_large(length: int, most: int) -> tuple[str, str]:
    """Code and text for a message that is larger than one may be."""
    return "RESOURCE_EXHAUSTED", f"a message of {length} bytes is larger than {most} bytes"


@lru_cache(256)
def refusal(code: str, text: str) -> bytes:
    """A block of headers that ends a call before it began; behind `HEAD`, the trailers of one that had."""
    shown = quote_from_bytes(text.encode("utf-8", "replace"), safe=_PLAIN)
    return HEAD + literal("grpc-status", str(_NUMBERS[code])) + literal("grpc-message", shown)


def inflated(data: bytes | memoryview, encoding: str, most: int) -> bytes:
    """A compressed message, of at most `most` bytes."""
    if encoding not in ENCODINGS:
        raise CallFailed("INVALID_ARGUMENT", "a message is compressed, and grpc-encoding does not say how")
    inflater = zlib.decompressobj(ENCODINGS[encoding])
    try:
        plain = inflater.decompress(data, most + 1)
    except zlib.error:
        raise CallFailed("INVALID_ARGUMENT", f"a message is not compressed with {encoding}") from None
    if len(plain) > most:
        del plain
        raise CallFailed("RESOURCE_EXHAUSTED", f"a message is larger than {most} bytes when it is unpacked")
    if not inflater.eof:
        raise CallFailed("INVALID_ARGUMENT", f"a message's {encoding} data are cut off")
    return plain
