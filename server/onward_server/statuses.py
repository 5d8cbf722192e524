"""The one table from domain errors to gRPC status codes and HTTP statuses, and what clients are told."""

from __future__ import annotations

import re

from onward.errors import (
    ConfigError,
    DataError,
    InputError,
    LimitError,
    ModelError,
    OnwardError,
    ShapeError,
    StorageError,
    TrainingError,
    UnsupportedError,
    VerificationError,
)
from onward_server.errors import (
    ControlError,
    DeadlineError,
    DrainingError,
    ExecutionError,
    JobNotFoundError,
    MemoryLimitError,
    ModelNotFoundError,
    ModelUnavailableError,
    OverloadedError,
    PermissionDeniedError,
    RunTimeoutError,
    ServerError,
    StorageFullError,
    UnauthenticatedError,
    WorkerLostError,
)

__all__ = ["MAX_TEXT_BYTES", "STATUSES", "cut", "public_reason", "public_text", "status_of"]

MAX_TEXT_BYTES = 1024
"""Bound on the text of an error, in bytes of UTF-8."""

STATUSES: dict[type[OnwardError], tuple[str, int]] = {
    InputError: ("INVALID_ARGUMENT", 400),
    ShapeError: ("INVALID_ARGUMENT", 400),
    LimitError: ("RESOURCE_EXHAUSTED", 507),
    DataError: ("INVALID_ARGUMENT", 400),
    UnsupportedError: ("UNIMPLEMENTED", 501),
    ModelError: ("FAILED_PRECONDITION", 409),
    ConfigError: ("FAILED_PRECONDITION", 409),
    StorageError: ("INTERNAL", 500),
    StorageFullError: ("RESOURCE_EXHAUSTED", 507),
    TrainingError: ("INTERNAL", 500),
    VerificationError: ("DATA_LOSS", 500),
    ModelNotFoundError: ("NOT_FOUND", 404),
    JobNotFoundError: ("NOT_FOUND", 404),
    ModelUnavailableError: ("UNAVAILABLE", 503),
    DrainingError: ("UNAVAILABLE", 503),
    OverloadedError: ("RESOURCE_EXHAUSTED", 429),
    DeadlineError: ("DEADLINE_EXCEEDED", 504),
    RunTimeoutError: ("DEADLINE_EXCEEDED", 504),
    MemoryLimitError: ("RESOURCE_EXHAUSTED", 507),
    WorkerLostError: ("UNAVAILABLE", 503),
    ControlError: ("FAILED_PRECONDITION", 409),
    UnauthenticatedError: ("UNAUTHENTICATED", 401),
    PermissionDeniedError: ("PERMISSION_DENIED", 403),
    ExecutionError: ("INTERNAL", 500),
    ServerError: ("INTERNAL", 500),
    OnwardError: ("INTERNAL", 500),
}
"""gRPC code and HTTP status of an error: those of its class, or of the nearest base class listed here."""

_FOLDERS = re.compile(r"(?<![\w.:/])(?:/[^\s/'\":,;()]+)+/(?=[^\s/'\":,;()])")


def status_of(error: OnwardError) -> tuple[str, int]:
    """The gRPC code, by name, and the HTTP status of an error."""
    return next(STATUSES[base] for base in type(error).__mro__ if base in STATUSES)


def public_text(error: OnwardError) -> str:
    """What a client is told: no folders of the server; of an engine's failure no text of its library."""
    if isinstance(error, ExecutionError):
        return "the engine failed to run the model on these inputs; the server's log has the details"
    return public_reason(str(error))


def public_reason(text: str) -> str:
    """A text for clients: no folders of the server, and not too long."""
    return cut(_FOLDERS.sub("", text))


def cut(text: str) -> str:
    """The text, shortened to MAX_TEXT_BYTES with an ellipsis where it is longer."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return encoded.decode()
    return encoded[: MAX_TEXT_BYTES - 3].decode("utf-8", "ignore") + "…"
