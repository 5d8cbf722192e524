"""Frames of HTTP/2 (RFC 9113, sections 4, 6 and 7): their numbers, and how they are written."""

from __future__ import annotations

import struct

__all__ = [
    "ACK",
    "END_HEADERS",
    "END_STREAM",
    "FRAME",
    "PADDED",
    "PREFACE",
    "PRIORITY_FLAG",
    "Code",
    "ConnectionFault",
    "Kind",
    "Setting",
    "frame",
    "goaway",
    "headers",
    "reset",
    "settings",
    "window_update",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME = struct.Struct(">HBBBI")
"""Length (its upper 16 and lower 8 bits), kind, flags and stream of a frame's 9 bytes."""

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

_PAIR = struct.Struct(">HI")


class Kind:
    """Kinds of frames (section 6)."""

    DATA = 0x0
    HEADERS = 0x1
    PRIORITY = 0x2
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PUSH_PROMISE = 0x5
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9


class Setting:
    """Identifiers of settings (section 6.5.2)."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class Code:
    """Error codes (section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class ConnectionFault(Exception):  # noqa: N818 - RFC 9113 calls it a connection error; it is no ConnectionError
    """What the peer did ends the connection (section 5.4.1).

    Args:
        code: of the GOAWAY frame.
        text: its debug data.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame."""
    size = len(payload)
    return FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def headers(stream: int, block: bytes, *, end: bool) -> bytes:
    """A HEADERS frame of one whole block of at most 16,384 bytes."""
    return frame(Kind.HEADERS, END_HEADERS | END_STREAM if end else END_HEADERS, stream, block)


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(Kind.SETTINGS, 0, 0, b"".join(_PAIR.pack(*pair) for pair in values.items()))


def window_update(stream: int, credit: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(Kind.WINDOW_UPDATE, 0, stream, credit.to_bytes(4, "big"))


def reset(stream: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return frame(Kind.RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(last: int, code: int, text: str = "") -> bytes:
    """A GOAWAY frame."""
    return frame(Kind.GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big") + text.encode()[:256])
