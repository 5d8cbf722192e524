"""The one table from domain errors to gRPC status codes, and the guard that applies it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from onward.errors import (
    ConfigError,
    DataError,
    InputError,
    ModelError,
    OnwardError,
    ShapeError,
    StorageError,
    TrainingError,
    UnsupportedError,
    VerificationError,
)
from onward_server.errors import (
    DrainingError,
    ExecutionError,
    ModelNotFoundError,
    ModelUnavailableError,
    OverloadedError,
    ServerError,
)

__all__ = ["MAX_TEXT_BYTES", "STATUS_CODES", "cut", "guarded", "status_of"]

_LOG = logging.getLogger(__name__)
_R = TypeVar("_R")

MAX_TEXT_BYTES = 1024
"""Bound on the text of an error, in bytes of UTF-8."""

STATUS_CODES: dict[type[OnwardError], grpc.StatusCode] = {
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    ShapeError: grpc.StatusCode.INVALID_ARGUMENT,
    DataError: grpc.StatusCode.INVALID_ARGUMENT,
    UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    ModelError: grpc.StatusCode.FAILED_PRECONDITION,
    ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
    StorageError: grpc.StatusCode.INTERNAL,
    TrainingError: grpc.StatusCode.INTERNAL,
    VerificationError: grpc.StatusCode.DATA_LOSS,
    ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    ModelUnavailableError: grpc.StatusCode.UNAVAILABLE,
    DrainingError: grpc.StatusCode.UNAVAILABLE,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ExecutionError: grpc.StatusCode.INTERNAL,
    ServerError: grpc.StatusCode.INTERNAL,
    OnwardError: grpc.StatusCode.INTERNAL,
}
"""The status of an error is that of its class, or of the nearest base class listed here."""


def status_of(error: OnwardError) -> grpc.StatusCode:
    """The status code of an error."""
    return next(STATUS_CODES[base] for base in type(error).__mro__ if base in STATUS_CODES)


def cut(text: str) -> str:
    """The text, shortened to MAX_TEXT_BYTES with an ellipsis where it is longer."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return encoded.decode()
    return encoded[: MAX_TEXT_BYTES - 3].decode("utf-8", "ignore") + "…"


def guarded(
    method: Callable[[Any, Any, Any], Awaitable[_R]],
) -> Callable[[Any, Any, Any], Awaitable[_R]]:
    """Make a servicer's method answer errors with their status; an unforeseen one is logged, not told."""

    @functools.wraps(method)
    async def call(self: Any, request: Any, context: Any) -> _R:
        try:
            return await method(self, request, context)
        except OnwardError as error:
            code, text = status_of(error), cut(str(error))
        except Exception as error:  # noqa: BLE001 - the last line of defence of a request
            _LOG.exception("%s failed", method.__name__)
            code = grpc.StatusCode.INTERNAL
            text = f"internal error ({type(error).__name__}); the server's log has the details"
        await context.abort(code, text)
        raise AssertionError("abort raises")

    return call
