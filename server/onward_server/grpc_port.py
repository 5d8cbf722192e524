"""The gRPC port: calls over HTTP/2, as bytes. It knows no message type and no model.

Source: "gRPC over HTTP2" (PROTOCOL-HTTP2.md of gRPC). A unary method may answer at once, while its request is
being read: such calls cost no task, and their answers leave in one write.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias, final
from urllib.parse import quote_from_bytes

from onward.errors import ConfigError
from onward_server.http2.connection import Connection, Receiver, Stream
from onward_server.http2.headers import Headers, literal
from onward_server.http2.turns import Turns
from onward_server.settings import Limits, host_and_port

__all__ = ["Call", "CallFailed", "Glance", "GrpcPort", "StreamMethod", "UnaryMethod"]

_LOG = logging.getLogger(__name__)
_NUMBERS = {
    "OK": 0, "CANCELLED": 1, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6, "PERMISSION_DENIED": 7, "RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9,
    "ABORTED": 10, "OUT_OF_RANGE": 11, "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14,
    "DATA_LOSS": 15, "UNAUTHENTICATED": 16,
}  # fmt: skip
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_LONG_TIMEOUT = 1e7
_ENCODINGS = {"gzip": 31, "deflate": 15}
_STATUS_200 = b"\x88"
_TYPE = literal("content-type", "application/grpc")
_HEAD = _STATUS_200 + _TYPE
_OK = literal("grpc-status", "0")
_ACCEPTED = literal("grpc-accept-encoding", "identity, deflate, gzip")
_SMALL = 4096
_UNSENT_OF_A_CALL = 4 << 20
_GREETING_SECONDS = 10.0
_TICK = 0.5
_BACKLOG = 1024


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


@final
@dataclass(frozen=True, slots=True)
class _Head:
    """What the headers of a request say.

    Attributes:
        method: None: there is none by that name.
        glance: what looks at the message before it has come; None: nothing.
        refusal: a block of headers that is the whole answer; empty: the request is fine so far.
    """

    method: UnaryMethod | StreamMethod | None
    streams: bool = False
    glance: Glance | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    encoding: str = "identity"
    refusal: bytes = b""


@final
class GrpcPort:
    """Answers calls on one address.

    Args:
        unary: methods by path, `/package.Service/Method`.
        streams: those that take and give streams of messages.
        limits: gives the limits in force.
        message_bytes: the largest request.
        glances: what looks at messages of unary methods before they have come, by path.
    """

    def __init__(
        self,
        unary: Mapping[str, UnaryMethod],
        streams: Mapping[str, StreamMethod],
        limits: Callable[[], Limits],
        message_bytes: int,
        glances: Mapping[str, Glance] | None = None,
    ) -> None:
        self.turns = Turns()
        self.message_bytes = message_bytes
        self.held_bytes = 0
        self.refusals = 0
        self._unary = {path.encode(): method for path, method in unary.items()}
        self._streams = {path.encode(): method for path, method in streams.items()}
        self._glances = {path.encode(): glance for path, glance in (glances or {}).items()}
        self._limits = limits
        self._servers: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._calls: set[_UnaryCall | _StreamCall] = set()
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def header_bytes(self) -> int:
        """See Application."""
        return self._limits().metadata_bytes

    @property
    def most_held(self) -> int:
        """Bytes of requests that may be here."""
        return self._limits().pending_bytes

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def listen(self, address: str, tls: ssl.SSLContext | None) -> int:
        """Bind and answer.

        Args:
            address: `host:port`, `[v6]:port` or `unix:/path`.
            tls: None: without.

        Returns:
            The port that was bound; 0 for a Unix socket.

        Raises:
            ConfigError: the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        secured = {} if tls is None else {"ssl": tls, "ssl_handshake_timeout": _GREETING_SECONDS}
        try:
            if address.startswith("unix:"):
                path = address.removeprefix("unix:")
                path = path.removeprefix("//") if path.startswith("///") else path
                self._servers.append(
                    await loop.create_unix_server(lambda: Connection(self), path, backlog=_BACKLOG, **secured)  # type: ignore[arg-type]
                )
                port = 0
            else:
                sockets = _bound(address)
                port = sockets[0].getsockname()[1]
                for bound in sockets:
                    self._servers.append(
                        await loop.create_server(
                            lambda: Connection(self), sock=bound, backlog=_BACKLOG, **secured
                        )  # type: ignore[call-overload]
                    )
        except OSError as error:
            raise ConfigError(f"listen {address!r}: {error.strerror or error}") from error
        self._sweeper = loop.create_task(self._sweep())
        return port

    async def stop(self, grace: float) -> None:
        """Take no new connections and calls; calls that run have `grace` seconds, then are cut."""
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.leave()
        deadline = time.monotonic() + grace
        while self._connections and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        if self._sweeper is not None:
            self._sweeper.cancel()
        for call in list(self._calls):
            call.cut("UNAVAILABLE", "the server is stopping")
        if self._connections:
            await asyncio.sleep(0.02)
        for connection in list(self._connections):
            connection.abort()

    # ---- for connections

    def opened(self, connection: Connection) -> bool:
        """See Application."""
        if len(self._connections) >= self._limits().connections:
            self.refusals += 1
            return False
        self._connections.add(connection)
        return True

    def closed(self, connection: Connection) -> None:
        """See Application."""
        self._connections.discard(connection)

    def interpret(self, headers: Headers) -> _Head:
        """See Application."""
        found: dict[bytes, bytes] = {}
        size = 0
        for name, value in headers:
            size += len(name) + len(value) + 32
            found[name] = value
        limit = self.header_bytes
        if size > limit:
            return _refused("RESOURCE_EXHAUSTED", f"the metadata are larger than {limit} bytes")
        if found.get(b":method") != b"POST":
            return _Head(None, refusal=literal(":status", "405"))
        if not found.get(b"content-type", b"").startswith(b"application/grpc"):
            return _Head(None, refusal=literal(":status", "415"))
        path = found.get(b":path", b"")
        unary, streams = self._unary.get(path), self._streams.get(path)
        if unary is None and streams is None:
            shown = path[:128].decode("utf-8", "replace")
            return _refused("UNIMPLEMENTED", f"this server has no method {shown}")
        timeout = None
        given = found.get(b"grpc-timeout")
        if given is not None:
            match = _TIMEOUT.fullmatch(given)
            if match is None:
                return _refused(
                    "INVALID_ARGUMENT", "grpc-timeout is no number of at most 8 digits and a unit"
                )
            timeout = int(match[1]) * _UNITS[match[2].decode()]
        encoding = found.get(b"grpc-encoding", b"identity").decode("utf-8", "replace")
        if encoding != "identity" and encoding not in _ENCODINGS:
            text = f"grpc-encoding {encoding[:32]!r} is not supported; use gzip or deflate"
            refusal = _refusal("UNIMPLEMENTED", text) + _ACCEPTED
            return _Head(None, refusal=refusal)
        metadata = {
            name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
            for name, value in found.items()
            if not name.startswith(b":") and not name.endswith(b"-bin")
        }
        glance = self._glances.get(path)
        return _Head(unary or streams, streams is not None, glance, metadata, timeout, encoding)

    def begin(self, stream: Stream, head: _Head) -> Receiver:
        """See Application."""
        if head.refusal:
            stream.refuse(head.refusal)
            return _NOBODY
        limits = self._limits()
        if self.held_bytes > limits.pending_bytes or stream.connection.unsent > limits.pending_bytes:
            self.refusals += 1
            stream.refuse(_refusal("RESOURCE_EXHAUSTED", "too many bytes are in the server; try later"))
            return _NOBODY
        timeout = head.timeout
        deadline = None if timeout is None or timeout > _LONG_TIMEOUT else time.monotonic() + timeout
        call = Call(head.metadata, deadline)
        assert head.method is not None
        if head.streams:
            return _StreamCall(self, stream, head.method, call, head.encoding)  # type: ignore[arg-type]
        return _UnaryCall(self, stream, head.method, head.glance, call, head.encoding)  # type: ignore[arg-type]

    def running(self, call: _UnaryCall | _StreamCall) -> None:
        """For calls: one that takes time."""
        self._calls.add(call)

    def done(self, call: _UnaryCall | _StreamCall) -> None:
        """For calls: it has ended."""
        self._calls.discard(call)

    async def _sweep(self) -> None:
        """Close connections that never speak, are idle, or do not take what they asked for."""
        loop = asyncio.get_running_loop()
        while True:
            idle = self._limits().idle_seconds
            await asyncio.sleep(min(_TICK, idle / 2))
            now = loop.time()
            for connection in list(self._connections):
                quiet = now - connection.last_used
                if not connection.greeted:
                    if quiet > min(_GREETING_SECONDS, idle):
                        connection.abort()
                elif quiet > idle:
                    if connection.unsent:
                        connection.abort()
                    elif not connection.streams:
                        connection.leave()
                        if quiet > 2 * idle:
                            connection.abort()


@final
class _Nobody:
    """Takes the rest of a request that was refused."""

    def data(self, payload: bytes | memoryview) -> None:
        """See Receiver."""

    def ended(self) -> None:
        """See Receiver."""

    def cancelled(self) -> None:
        """See Receiver."""


_NOBODY = _Nobody()


@final
class _UnaryCall:
    __slots__ = (
        "_call",
        "_chunks",
        "_encoding",
        "_glance",
        "_method",
        "_over",
        "_port",
        "_size",
        "_stream",
        "_task",
        "_timer",
    )

    def __init__(
        self,
        port: GrpcPort,
        stream: Stream,
        method: UnaryMethod,
        glance: Glance | None,
        call: Call,
        encoding: str,
    ) -> None:
        self._port = port
        self._stream = stream
        self._method = method
        self._glance = glance
        self._call = call
        self._encoding = encoding
        self._chunks: list[bytes | memoryview] = []
        self._size = 0
        self._task: asyncio.Task[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    def data(self, payload: bytes | memoryview) -> None:
        if self._over:
            return
        first = self._size < 5
        self._chunks.append(payload)
        self._size += len(payload)
        self._port.held_bytes += len(payload)
        if first and self._size >= 5:
            start = self._joined()
            length = int.from_bytes(start[1:5], "big")
            if length > self._port.message_bytes:
                self.cut(*_too_large(length, self._port.message_bytes))
                return
            if self._port.held_bytes + length - self._size > self._port.most_held:
                self._port.refusals += 1
                self.cut("RESOURCE_EXHAUSTED", "too many bytes of requests are in the server; try later")
                return
            if self._glance is not None and self._size < length + 5 and not start[0]:
                try:
                    self._glance(self._call, start[5:], length)
                except CallFailed as failed:
                    self.cut(failed.code, failed.text)
                    return
        elif self._size > self._port.message_bytes + 5:
            self.cut("INVALID_ARGUMENT", "the request is more than one message")
            return
        self._stream.take(len(payload))

    def ended(self) -> None:
        if self._over:
            return
        body = self._joined()
        self._drop()
        if len(body) < 5 or int.from_bytes(body[1:5], "big") != len(body) - 5 or body[0] > 1:
            self.cut("INVALID_ARGUMENT", "the request is not one gRPC message")
            return
        data = body[5:] if len(body) < _SMALL else memoryview(body)[5:]
        try:
            if body[0]:
                found: bytes | asyncio.Task[bytes] = asyncio.create_task(self._unpacked(data))
            else:
                found = self._method(self._call, data)
        except CallFailed as failed:
            self.cut(failed.code, failed.text)
            return
        if isinstance(found, bytes):
            self._over = True
            self._stream.answer(_HEAD, b"\0" + len(found).to_bytes(4, "big") + found, _OK)
            return
        self._port.running(self)
        self._task = found
        found.add_done_callback(self._computed)
        if self._call.deadline is not None:
            left = self._call.deadline - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(left, 0.0), self.cut, *_EXPIRED)

    def _joined(self) -> bytes | memoryview:
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    def cancelled(self) -> None:
        self._over = True
        self._drop()
        if self._task is not None:
            self._task.cancel()

    def cut(self, code: str, text: str) -> None:
        """End it with a status, whatever it is doing."""
        if not self._over:
            self._over = True
            self._drop()
            self._stream.refuse(_refusal(code, text))
            if self._task is not None:
                self._task.cancel()

    def _computed(self, task: asyncio.Task[bytes]) -> None:
        # a failure holds the frames it came through, and so the request: in a cycle it would stay for long
        self._task = None
        self._port.done(self)
        if self._timer is not None:
            self._timer.cancel()
        if task.cancelled():
            self.cut("UNAVAILABLE", "the request was given up")
            return
        failure = task.exception()
        if isinstance(failure, CallFailed):
            self.cut(failure.code, failure.text)
        elif failure is not None:
            raise failure
        elif not self._over:
            self._over = True
            data = task.result()
            self._stream.answer(_HEAD, b"\0" + len(data).to_bytes(4, "big") + data, _OK)

    async def _unpacked(self, data: bytes | memoryview) -> bytes:
        plain = await asyncio.to_thread(_inflated, data, self._encoding, self._port.message_bytes)
        found = self._method(self._call, plain)
        return found if isinstance(found, bytes) else await found

    def _drop(self) -> None:
        self._chunks = []
        self._port.held_bytes -= self._size
        self._size = 0


@final
class _StreamCall:
    def __init__(
        self, port: GrpcPort, stream: Stream, method: StreamMethod, call: Call, encoding: str
    ) -> None:
        self._port = port
        self._stream = stream
        self._encoding = encoding
        self._call = call
        self._parts: list[bytes | memoryview] = []
        self._have = 0
        self._want = 5
        self._held = 0
        self._messages: deque[tuple[bool, bytes]] = deque()
        self._credit = 0
        self._complete = False
        self._fault: CallFailed | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._over = False
        self._started = False
        port.running(self)
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(method))
        self._task.add_done_callback(self._done)
        self._timer: asyncio.TimerHandle | None = None
        if call.deadline is not None:
            self._timer = loop.call_later(max(call.deadline - time.monotonic(), 0.0), self.cut, *_EXPIRED)

    def data(self, payload: bytes | memoryview) -> None:
        if self._over or self._fault is not None:
            return
        self._parts.append(payload)
        self._have += len(payload)
        self._held += len(payload)
        self._port.held_bytes += len(payload)
        if self._have < self._want:
            self._owe(len(payload))
            return
        buffer = b"".join(self._parts)
        at, self._want = 0, 5
        while len(buffer) - at >= 5:
            length = int.from_bytes(buffer[at + 1 : at + 5], "big")
            if length > self._port.message_bytes:
                self._fault = CallFailed(*_too_large(length, self._port.message_bytes))
                break
            if buffer[at] > 1:
                self._fault = CallFailed("INVALID_ARGUMENT", "the request is not a stream of gRPC messages")
                break
            if len(buffer) - at - 5 < length:
                self._want = 5 + length
                break
            self._messages.append((bool(buffer[at]), buffer[at + 5 : at + 5 + length]))
            at += 5 + length
        rest = buffer[at:] if self._fault is None else b""
        self._parts = [rest] if rest else []
        self._have = len(rest)
        self._owe(len(payload) - at)
        self._wake()

    def ended(self) -> None:
        if self._parts and self._fault is None:
            self._fault = CallFailed("INVALID_ARGUMENT", "the stream ends inside a message")
        self._complete = True
        self._wake()

    def cancelled(self) -> None:
        self._over = True
        self._task.cancel()

    def cut(self, code: str, text: str) -> None:
        """End it with a status, whatever it is doing."""
        if not self._over:
            self._over = True
            block = _refusal(code, text)
            if self._started:
                self._stream.finish(block[len(_HEAD) :])
            else:
                self._stream.refuse(block)
            self._task.cancel()

    async def _run(self, method: StreamMethod) -> None:
        answers = method(self._call, self._requests())
        try:
            async for data in answers:
                self._start()
                self._stream.send(b"\0" + len(data).to_bytes(4, "big") + data)
                await self._stream.sent(_UNSENT_OF_A_CALL)
            self._start()
            if not self._over:
                self._over = True
                self._stream.finish(_OK)
        except CallFailed as failed:
            self.cut(failed.code, failed.text)
        except asyncio.CancelledError:
            self.cut("UNAVAILABLE", "the call was given up")
        finally:
            with suppress(asyncio.CancelledError, CallFailed):
                await answers.aclose()  # type: ignore[attr-defined]

    def _done(self, task: asyncio.Task[None]) -> None:
        # also of a task that was cancelled before it began
        self._over = True
        self._parts = []
        self._messages.clear()
        self._port.done(self)
        self._port.held_bytes -= self._held
        if self._timer is not None:
            self._timer.cancel()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._stream.start(_HEAD)

    async def _requests(self) -> AsyncIterator[bytes]:
        while True:
            while self._messages:
                compressed, data = self._messages.popleft()
                self._held -= 5 + len(data)
                self._port.held_bytes -= 5 + len(data)
                self._owe(5 + len(data))
                if compressed:
                    data = await asyncio.to_thread(_inflated, data, self._encoding, self._port.message_bytes)
                yield data
            if self._fault is not None:
                raise self._fault
            if self._complete:
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _owe(self, size: int) -> None:
        """Let the client send as much as was used up; a message that waits is not."""
        self._credit += size
        if self._credit > 0:
            self._stream.take(self._credit)
            self._credit = 0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


_EXPIRED = ("DEADLINE_EXCEEDED", "the request's deadline passed before it was answered")


def _too_large(length: int, most: int) -> tuple[str, str]:
    return "RESOURCE_EXHAUSTED", f"a message of {length} bytes is larger than {most} bytes"


@lru_cache(256)
def _refusal(code: str, text: str) -> bytes:
    """A block of headers that ends a call before it began; behind `_HEAD`, the trailers of one that had."""
    shown = quote_from_bytes(text.encode("utf-8", "replace"), safe=_PLAIN)
    return _HEAD + literal("grpc-status", str(_NUMBERS[code])) + literal("grpc-message", shown)


_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def _refused(code: str, text: str) -> _Head:
    return _Head(None, refusal=_refusal(code, text))


def _inflated(data: bytes | memoryview, encoding: str, most: int) -> bytes:
    """A compressed message, of at most `most` bytes."""
    if encoding not in _ENCODINGS:
        raise CallFailed("INVALID_ARGUMENT", "a message is compressed, and grpc-encoding does not say how")
    inflater = zlib.decompressobj(_ENCODINGS[encoding])
    try:
        plain = inflater.decompress(data, most + 1)
    except zlib.error:
        raise CallFailed("INVALID_ARGUMENT", f"a message is not compressed with {encoding}") from None
    if len(plain) > most:
        del plain
        raise CallFailed("RESOURCE_EXHAUSTED", f"a message is larger than {most} bytes when it is unpacked")
    if not inflater.eof:
        raise CallFailed("INVALID_ARGUMENT", f"a message's {encoding} data are cut off")
    return plain


def _bound(address: str) -> Sequence[socket.socket]:
    """Sockets for every address of a host, on one port."""
    host, port = host_and_port(address)
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    both = host in ("", "::") and socket.has_dualstack_ipv6()
    for family, _, _, _, where in dict.fromkeys(found):
        if both and family != socket.AF_INET6:
            continue
        try:
            bound = socket.create_server(
                (str(where[0]), port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
            )
        except OSError as error:
            failure = error
            continue
        bound.setblocking(False)
        port = bound.getsockname()[1]
        sockets.append(bound)
    if not sockets:
        raise failure or OSError("the host has no address")
    return sockets
