"""What can go wrong in the service beyond the errors of `onward.errors`.

    OnwardError
    ├── ServerError              the service itself
    │   ├── ModelNotFoundError       no model, or no version of it, by that name
    │   ├── ModelUnavailableError    the model is in the repository but could not be loaded
    │   ├── DrainingError            the server is stopping and takes no new requests
    │   ├── OverloadedError          more requests wait, or more bytes are held, than is allowed
    │   ├── DeadlineError            a request's time ended before it was computed
    │   ├── RunTimeoutError          a run took longer than the model may take
    │   ├── MemoryLimitError         a run needed more memory than a worker, or an answer, may have
    │   ├── WorkerLostError          the worker that ran a request ended
    │   ├── ControlError             a change of the repository that the server's settings do not allow
    │   │   └── GateError                what was trained does not pass a gate of its promotion
    │   ├── JobNotFoundError         no training job by that id
    │   ├── UnauthenticatedError     no key, or none that the server knows
    │   ├── PermissionDeniedError    a key without the role that a call needs
    │   └── ExecutionError           an engine failed while it ran a valid request
    ├── StorageError
    │   └── StorageFullError         the server's disk, or what it may use of it, is full
    └── InputError
        └── RequestError             a request whose fields contradict each other or the protocol

The classes carry no status codes: `onward_server.statuses` maps them.
"""

from __future__ import annotations

from onward.errors import InputError, OnwardError, StorageError

__all__ = [
    "ControlError",
    "DeadlineError",
    "DrainingError",
    "ExecutionError",
    "GateError",
    "JobNotFoundError",
    "MemoryLimitError",
    "ModelNotFoundError",
    "ModelUnavailableError",
    "OverloadedError",
    "PermissionDeniedError",
    "RequestError",
    "RunTimeoutError",
    "ServerError",
    "StorageFullError",
    "UnauthenticatedError",
    "WorkerLostError",
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
    """More requests wait, or more bytes are held, than is allowed."""


class DeadlineError(ServerError):
    """A request's time ended before it was computed."""


class RunTimeoutError(ServerError):
    """A run took longer than the model may take."""


class MemoryLimitError(ServerError):
    """A run needed more memory than a worker, or an answer, may have."""


class StorageFullError(StorageError):
    """The server's disk, or what it may use of it, is full."""


class WorkerLostError(ServerError):
    """The worker that ran a request ended."""


class ControlError(ServerError):
    """A change of the repository that the server's settings do not allow."""


class GateError(ControlError):
    """What was trained does not pass a gate of its promotion."""


class JobNotFoundError(ServerError):
    """No training job by that id."""


class UnauthenticatedError(ServerError):
    """No key, or none that the server knows."""


class PermissionDeniedError(ServerError):
    """A key without the role that a call needs."""


class ExecutionError(ServerError):
    """An engine failed while it ran a valid request."""


class RequestError(InputError):
    """A request whose fields contradict each other or the protocol."""
