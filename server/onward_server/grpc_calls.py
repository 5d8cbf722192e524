"""What a gRPC method is, and what it may know of a call; bytes in, bytes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeAlias

__all__ = ["Call", "CallFailed", "Glance", "StreamMethod", "UnaryMethod"]


class CallFailed(Exception):  # noqa: N818 - the end of a call, with a status; the error behind it was dealt with
    """Ends a call with a status.

    Args:
        code: name of a gRPC status code.
        text: for the client.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Call:
    """What a method may know of a call.

    Attributes:
        metadata: of the request; binary ones are left out.
        deadline: when the client gives up, as `time.monotonic()`; None: never.
    """

    __slots__ = ("deadline", "metadata")

    def __init__(self, metadata: Mapping[str, str], deadline: float | None) -> None:
        self.metadata = metadata
        self.deadline = deadline


UnaryMethod: TypeAlias = Callable[[Call, "bytes | memoryview"], "bytes | asyncio.Task[bytes]"]
"""Bytes of a message in, those of the answer out, now or later. Raises CallFailed."""

StreamMethod: TypeAlias = Callable[[Call, AsyncIterator[bytes]], AsyncIterator[bytes]]
"""Messages in, messages out. Raises CallFailed."""


Glance: TypeAlias = Callable[[Call, "bytes | memoryview", int], None]
"""Looks at the first bytes of a message of so many bytes before the others have come. Raises CallFailed."""
