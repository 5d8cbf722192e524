"""Channels and status codes: everything that both clients share about gRPC itself."""

from __future__ import annotations

from typing import Any

import grpc

from onward_client.errors import (
    AuthenticationError,
    CancelledError,
    ClientError,
    CrossCheckError,
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    ServerError,
    UnavailableError,
    UnsupportedRequestError,
)

__all__ = ["MAX_MESSAGE_BYTES", "channel_options", "credentials_of", "error_of", "metadata_of", "timeout_of"]

MAX_MESSAGE_BYTES = 64 * 2**20

_ERRORS: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedRequestError,
    grpc.StatusCode.DATA_LOSS: CrossCheckError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: AuthenticationError,
    grpc.StatusCode.CANCELLED: CancelledError,
}


def channel_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    """Options of a channel with a bound on messages in both directions."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
    ]


def credentials_of(tls: bool | bytes | grpc.ChannelCredentials) -> grpc.ChannelCredentials | None:
    """Channel credentials: None for plain text, from root certificates in PEM, or as they are."""
    if tls is False:
        return None
    if tls is True:
        return grpc.ssl_channel_credentials()
    return grpc.ssl_channel_credentials(root_certificates=tls) if isinstance(tls, bytes) else tls


def metadata_of(key: str | None) -> tuple[tuple[str, str], ...]:
    """What is sent with each call to say who calls."""
    return () if key is None else (("authorization", f"Bearer {key}"),)


def timeout_of(timeout: float | None, default: float) -> float:
    """The seconds that a call may take.

    Raises:
        InvalidRequestError: not a positive number.
    """
    chosen = default if timeout is None else timeout
    if not chosen > 0:
        raise InvalidRequestError(f"timeout is {chosen}; give seconds above 0")
    return chosen


def error_of(
    error: Any, subject: str, address: str, missing: type[ClientError] = ModelNotFoundError
) -> ClientError:
    """The client's error for a failed call; `missing` is that of what it asks for."""
    code = error.code()
    kind = missing if code is grpc.StatusCode.NOT_FOUND else _ERRORS.get(code, ServerError)
    return kind(f"{subject} from {address}: {code.name}: {error.details()}", code.name)
