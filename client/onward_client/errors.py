"""Every exception that the client raises on purpose.

ClientError
├── InvalidRequestError        inputs that do not fit the model; refused here or by the server
├── ModelNotFoundError         no model, or no version of it, by that name
├── JobNotFoundError           no training job by that id
├── DeadlineExceededError      no answer within the time allowed
├── UnavailableError           no server there, or it is stopping, or the model is not loaded
├── OverloadedError            too many requests wait, or a message is larger than allowed
├── UnsupportedRequestError    the server does not have this call or extension
├── CrossCheckError            the server's engines disagree on the answer
├── AuthenticationError        credentials are missing or not accepted
├── ServerError                the server failed
└── CancelledError             the call was cancelled on the way
"""

from __future__ import annotations

__all__ = [
    "AuthenticationError",
    "CancelledError",
    "ClientError",
    "CrossCheckError",
    "DeadlineExceededError",
    "InvalidRequestError",
    "JobNotFoundError",
    "ModelNotFoundError",
    "OverloadedError",
    "ServerError",
    "UnavailableError",
    "UnsupportedRequestError",
]


class ClientError(Exception):
    """The root of every error that the client raises on purpose.

    Args:
        text: what happened, where, and why.
        code: name of the gRPC status, e.g. "NOT_FOUND"; empty when no call was made.
    """

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class InvalidRequestError(ClientError):
    """Inputs that do not fit the model, or a request that contradicts itself."""


class ModelNotFoundError(ClientError):
    """No model, or no version of it, by that name."""


class JobNotFoundError(ClientError):
    """No training job by that id."""


class DeadlineExceededError(ClientError):
    """No answer within the time allowed."""


class UnavailableError(ClientError):
    """No server there, or it is stopping, or the model could not be loaded."""


class OverloadedError(ClientError):
    """Too many requests wait already, or a message is larger than allowed."""


class UnsupportedRequestError(ClientError):
    """The server does not have this call or this extension of the protocol."""


class CrossCheckError(ClientError):
    """The server's engines disagree on the answer, and its policy is to refuse then."""


class AuthenticationError(ClientError):
    """Credentials are missing or not accepted."""


class ServerError(ClientError):
    """The server failed."""


class CancelledError(ClientError):
    """The call was cancelled before it was answered."""
