"""Around every gRPC call: keys, deadline, bounds, reading and writing of messages, errors, the access log.

gRPC hands over bytes and takes bytes: it neither reads a message before it is admitted, nor answers for us.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias, final

import grpc
from google.protobuf.message import DecodeError, EncodeError

from onward.errors import OnwardError
from onward_server.access import AccessLog, Need, authorize, request_id
from onward_server.dataplane import DataPlane
from onward_server.errors import DeadlineError, MemoryLimitError, RequestError
from onward_server.statuses import public_text, status_of

__all__ = ["Guard", "Method", "StreamMethod", "Unary", "deadline_of"]

_LOG = logging.getLogger(__name__)
_LARGE = 1 << 20

Unary: TypeAlias = Callable[[Any, float | None], Awaitable[Any]]
"""A method: message and deadline (`time.monotonic()`) in, message out."""

StreamMethod: TypeAlias = Callable[[AsyncIterator[Any], Mapping[str, str]], AsyncIterator[Any]]


@final
class Method:
    """A unary method.

    Args:
        call: what answers it.
        request_type: class of its message.
        need: what a caller needs.
        counted: whether it counts among the requests in the server, which are bounded and drained.
    """

    def __init__(self, call: Unary, request_type: Any, need: Need, *, counted: bool = False) -> None:
        self.call = call
        self.request_type = request_type
        self.need = need
        self.counted = counted


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

    def handler(self, service: str, methods: Mapping[str, Method], streams: Mapping[str, Any]) -> Any:
        """The handler of a service, of unary methods and of ready stream handlers."""
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(f"{service}/{name}", method))
            for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(service, {**handlers, **streams})

    def authorized(self, context: grpc.aio.ServicerContext, need: Need) -> tuple[dict[str, str], str]:
        """Metadata of a call whose key allows it, and the key's name. Raises OnwardError."""
        metadata = {
            key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
        }
        return metadata, authorize(self._plane.settings.keys, metadata, need)

    def read(self, request_type: Any, data: bytes) -> Any:
        """A message from its bytes.

        Raises:
            RequestError: they are none.
        """
        try:
            return request_type.FromString(data)
        except (DecodeError, UnicodeDecodeError, ValueError):
            name = request_type.DESCRIPTOR.full_name
            raise RequestError(f"the request is not a {name} message: it cannot be decoded") from None

    def failure(self, error: Exception, name: str, identity: str) -> tuple[str, str]:
        """Code and text for a client; what it is not told is logged."""
        if not isinstance(error, OnwardError):
            _LOG.error("%s failed (request %s)", name, identity, exc_info=error)
            return "INTERNAL", f"internal error; the server's log has the details (request {identity})"
        code = status_of(error)[0]
        if code == "INTERNAL":
            _LOG.error("%s failed (request %s): %s", name, identity, error)
        return code, public_text(error)

    def _unary(self, name: str, method: Method) -> Any:
        async def call(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
            start = time.perf_counter()
            identity = key = ""
            try:
                deadline = deadline_of(context)
                metadata, key = self.authorized(context, method.need)
                identity = request_id(metadata.get("x-request-id", ""))
                if method.counted:
                    with self._plane.admitted(len(data)):
                        answer = await self._answer(method, data, deadline)
                else:
                    answer = await self._answer(method, data, deadline)
                self._log.write(
                    transport="grpc", call=name, code="OK", start=start, identity=identity, key=key
                )
                return answer
            except Exception as error:  # noqa: BLE001 - the last line of defence of a request
                identity = identity or request_id("")
                code, text = self.failure(error, name, identity)
            self._log.write(
                transport="grpc", call=name, code=code, start=start, identity=identity, key=key, text=text
            )
            await context.abort(grpc.StatusCode[code], text)
            raise AssertionError("abort raises")

        return call

    async def _answer(self, method: Method, data: bytes, deadline: float | None) -> bytes:
        if len(data) > _LARGE:
            request = await asyncio.to_thread(self.read, method.request_type, data)
        else:
            request = self.read(method.request_type, data)
        return await serialized(await method.call(request, deadline))


async def serialized(message: Any) -> bytes:
    """The bytes of an answer.

    Raises:
        MemoryLimitError: it is larger than a message can be.
    """
    try:
        if message.ByteSize() > _LARGE:
            data: bytes = await asyncio.to_thread(message.SerializeToString)
        else:
            data = message.SerializeToString()
    except (EncodeError, ValueError):
        raise MemoryLimitError("the answer is larger than a message can be") from None
    return data


def deadline_of(context: grpc.aio.ServicerContext) -> float | None:
    """When the client gives up, as `time.monotonic()`; None: never.

    Raises:
        DeadlineError: it has.
    """
    remaining = context.time_remaining()
    if remaining is None or remaining > 1e7:
        return None
    if remaining <= 0:
        raise DeadlineError("the request's deadline passed before it was read")
    return time.monotonic() + float(remaining)
