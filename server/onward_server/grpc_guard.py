"""Around every gRPC call: keys, deadline, bounds, reading and writing of messages, errors, the access log.

gRPC hands over bytes and takes bytes: it neither reads a message before it is admitted, nor answers for us.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from google.protobuf.message import DecodeError, EncodeError

from onward.errors import OnwardError
from onward_server.access import CHANGES, AccessLog, Need, authorize, request_id, trace_id
from onward_server.dataplane import DataPlane
from onward_server.errors import DeadlineError, MemoryLimitError, RequestError
from onward_server.grpc_calls import Call, CallFailed, Glance, UnaryMethod
from onward_server.grpc_wire import Parts
from onward_server.statuses import public_text, status_of

__all__ = ["Answer", "Guard", "Method", "Split", "Unary", "serialized", "unstarted"]

_LOG = logging.getLogger(__name__)
_LARGE = 1 << 20

Answer: TypeAlias = "Any | Awaitable[Any]"
"""A message, or something that will be one."""

Unary: TypeAlias = Callable[[Any, Call], Answer]
"""A method: message and call in, message out, now or later."""


@final
class Method:
    """A unary method.

    Args:
        call: what answers it.
        request_type: class of its message.
        need: what a caller needs.
        counted: whether it counts among the requests in the server, which are bounded and drained.
        changes: whether a message asks for a change, which needs the role `manage` besides; None: none does.
        split: takes tensors out of the message's bytes; `call` is given a `Split` then.
    """

    def __init__(
        self,
        call: Unary,
        request_type: Any,
        need: Need,
        *,
        counted: bool = False,
        changes: Callable[[Any], bool] | None = None,
        split: Callable[[bytes | memoryview], Parts] | None = None,
    ) -> None:
        self.call = call
        self.request_type = request_type
        self.need = need
        self.counted = counted
        self.changes = changes
        self.split = split


@final
@dataclass(frozen=True, slots=True)
class Split:
    """A message, and the tensors that were taken out of it; None: they are in it."""

    message: Any
    raw: Sequence[memoryview] | None


@final
class Guard:
    """Makes handlers out of methods.

    Args:
        plane: its settings and bounds.
        log: where calls are logged.
    """

    def __init__(self, plane: DataPlane, log: AccessLog) -> None:
        self._plane = plane
        self._log = log

    def authorized(self, call: Call, need: Need) -> str:
        """The name of the key that a call brings, which allows it. Raises OnwardError."""
        return authorize(self._plane.settings.keys, call.metadata, need)

    def read(self, request_type: Any, data: bytes | memoryview) -> Any:
        """A message from its bytes.

        Raises:
            RequestError: they are none.
        """
        try:
            return request_type.FromString(data)
        except (DecodeError, UnicodeDecodeError, ValueError):
            name = request_type.DESCRIPTOR.full_name
            raise RequestError(f"the request is not a {name} message: it cannot be decoded") from None

    def split(self, method: Method, data: bytes | memoryview) -> Any:
        """What a method is called with, on the event loop; None: reading that takes too long there.

        Raises:
            RequestError: the bytes are no message.
        """
        if method.split is None:
            return self.read(method.request_type, data) if len(data) <= _LARGE else None
        rest, raw = method.split(data)
        return Split(self.read(method.request_type, rest), raw) if len(rest) <= _LARGE else None

    def glance(
        self,
        name: str,
        method: Method,
        look: Callable[[bytes | memoryview, Call], None],
        named: Callable[[bytes | memoryview], str],
    ) -> Glance:
        """What refuses a request before its message has come.

        Args:
            name: for the logs.
            method: whose message it is.
            look: raises OnwardError for a message that begins so.
            named: the model that it names.
        """
        plane = self._plane

        def glance(call: Call, start: bytes | memoryview, size: int) -> None:
            begun = time.perf_counter()
            key = ""
            try:
                key = self.authorized(call, method.need)
                with plane.admitted(size):
                    look(start, call)
            except Exception as error:  # noqa: BLE001 - the last line of defence of a request
                raise self._failed(error, name, call, begun, key, lambda: named(start)) from None

        return glance

    def failure(self, error: Exception, name: str, identity: str) -> tuple[str, str]:
        """Code and text for a client; what it is not told is logged."""
        if not isinstance(error, OnwardError):
            _LOG.error("%s failed (request %s)", name, identity, exc_info=error)
            return "INTERNAL", f"internal error; the server's log has the details (request {identity})"
        code = status_of(error)[0]
        if code == "INTERNAL":
            _LOG.error("%s failed (request %s): %s", name, identity, error)
        return code, public_text(error)

    def unary(self, name: str, method: Method) -> UnaryMethod:
        """A method from bytes to bytes; `name` is for the logs."""
        plane = self._plane

        def start(call: Call, data: bytes | memoryview) -> bytes | asyncio.Task[bytes]:
            begun = time.perf_counter()
            key = ""
            size = len(data)
            counted = False
            request: Any = None
            try:
                if call.deadline is not None and call.deadline <= time.monotonic():
                    raise DeadlineError("the request's deadline passed before it was read")
                key = self.authorized(call, method.need)
                if method.counted:
                    plane.admit(size)
                    counted = True
                request = self.split(method, data)
                if request is not None:
                    changes = self._is_change(method, request, call)
                    answer = method.call(request, call)
                    if not isinstance(answer, Awaitable):
                        found = _written(answer)
                        if counted:
                            plane.leave(size)
                        self._log_answer(name, changes, call, begun, key, lambda: _subject(request))
                        return found
                else:
                    answer = self._read_first(method, data, call)
            except Exception as error:  # noqa: BLE001 - the last line of defence of a request
                if counted:
                    plane.leave(size)
                raise self._failed(error, name, call, begun, key, lambda: _subject(request)) from None
            task = asyncio.get_running_loop().create_task(
                self._finish(answer, name, method, call, begun, key, _subject(request))
            )
            task.add_done_callback(lambda _: unstarted(answer))
            if counted:
                task.add_done_callback(lambda _: plane.leave(size))
            return task

        return start

    async def _read_first(self, method: Method, data: bytes | memoryview, call: Call) -> Any:
        request = await asyncio.to_thread(self.read, method.request_type, data)
        self._is_change(method, request, call)
        answer = method.call(request if method.split is None else Split(request, None), call)
        return await answer if isinstance(answer, Awaitable) else answer

    async def _finish(
        self,
        answer: Awaitable[Any],
        name: str,
        method: Method,
        call: Call,
        begun: float,
        key: str,
        subject: str,
    ) -> bytes:
        try:
            data = await serialized(await answer)
        except Exception as error:  # noqa: BLE001 - as above
            raise self._failed(error, name, call, begun, key, lambda: subject) from None
        self._log_answer(name, method.need in CHANGES, call, begun, key, lambda: subject)
        return data

    def _is_change(self, method: Method, request: Any, call: Call) -> bool:
        """Whether a message asks for a change. Raises OnwardError where the caller may not."""
        if method.changes is None or not method.changes(request):
            return method.need in CHANGES
        self.authorized(call, "manage")
        return True

    def _log_answer(
        self, name: str, changes: bool, call: Call, begun: float, key: str, subject: Callable[[], str]
    ) -> None:
        if self._log.takes("OK", always=changes):
            self._log.write(
                transport="grpc",
                call=name,
                code="OK",
                start=begun,
                identity=request_id(call.metadata.get("x-request-id", "")),
                trace_id=trace_id(call.metadata),
                key=key,
                subject=subject(),
            )

    def _failed(
        self, error: Exception, name: str, call: Call, begun: float, key: str, subject: Callable[[], str]
    ) -> CallFailed:
        identity = request_id(call.metadata.get("x-request-id", ""))
        code, text = self.failure(error, name, identity)
        if self._log.takes(code):
            self._log.write(
                transport="grpc",
                call=name,
                code=code,
                start=begun,
                identity=identity,
                trace_id=trace_id(call.metadata),
                key=key,
                subject=subject(),
                text=text,
            )
        return CallFailed(code, text)


def _subject(request: Any) -> str:
    """The model or the job that a request names; empty where it names none, or was read elsewhere."""
    message = request.message if isinstance(request, Split) else request
    found = (getattr(message, field, "") for field in ("model_name", "model", "name", "id"))
    return next((text for text in found if text), "")[:128]


def unstarted(answer: Awaitable[Any]) -> None:
    """Give up a coroutine whose task was cancelled before it began."""
    if isinstance(answer, Coroutine):
        answer.close()


def _written(message: Any) -> bytes:
    try:
        data: bytes = message.SerializeToString()
    except (EncodeError, ValueError):
        raise MemoryLimitError("the answer is larger than a message can be") from None
    return data


async def serialized(message: Any) -> bytes:
    """The bytes of an answer.

    Raises:
        MemoryLimitError: it is larger than a message can be.
    """
    if message.ByteSize() > _LARGE:
        return await asyncio.to_thread(_written, message)
    return _written(message)
