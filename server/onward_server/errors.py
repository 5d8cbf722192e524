"""What can go wrong in the service beyond the errors of `onward.errors`.

    OnwardError
    ├── ServerError              the service itself
    │   ├── ModelNotFoundError       no model, or no version of it, by that name
    │   ├── ModelUnavailableError    the model is in the repository but could not be loaded
    │   ├── DrainingError            the server is stopping and takes no new requests
    │   ├── OverloadedError          the queue of waiting requests is full
    │   └── ExecutionError           an engine failed while it ran a valid request
    └── InputError
        └── RequestError             a request whose fields contradict each other or the protocol

The classes carry no status codes: `onward_server.grpc_status` maps them.
"""

from __future__ import annotations

from onward.errors import InputError, OnwardError

__all__ = [
    "DrainingError",
    "ExecutionError",
    "ModelNotFoundError",
    "ModelUnavailableError",
    "OverloadedError",
    "RequestError",
    "ServerError",
]


class ServerError(OnwardError):
    """An error of the service itself."""


class ModelNotFoundError(ServerError):
    """No model, or no version of it, by that name."""


class ModelUnavailableError(ServerError):
    """The model is in the repository but could not be loaded."""


class DrainingError(ServerError):
    """The server is stopping and takes no new requests."""


class OverloadedError(ServerError):
    """The queue of waiting requests is full."""


class ExecutionError(ServerError):
    """An engine failed while it ran a valid request."""


class RequestError(InputError):
    """A request whose fields contradict each other or the protocol."""
