"""The gRPC port: calls over HTTP/2, as bytes. It knows no message type and no model.

Source: "gRPC over HTTP2" (PROTOCOL-HTTP2.md of gRPC). A unary method may answer at once, while its request is
being read: such calls cost no task, and their answers leave in one write.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from onward.errors import ConfigError
from onward_server.grpc_calls import Call, Glance, StreamMethod, UnaryMethod
from onward_server.grpc_framing import ACCEPTED, ENCODINGS, refusal
from onward_server.grpc_receivers import StreamCall, UnaryCall
from onward_server.http2.connection import Connection
from onward_server.http2.headers import Headers, literal
from onward_server.http2.streams import Receiver, Stream
from onward_server.http2.turns import Turns
from onward_server.settings import Limits, host_and_port

__all__ = ["GrpcPort"]

_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_LONG_TIMEOUT = 1e7
_GREETING_SECONDS = 10.0
_TICK = 0.5
_BACKLOG = 1024


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
        self._calls: set[UnaryCall | StreamCall] = set()
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
        if encoding != "identity" and encoding not in ENCODINGS:
            text = f"grpc-encoding {encoding[:32]!r} is not supported; use gzip or deflate"
            return _Head(None, refusal=refusal("UNIMPLEMENTED", text) + ACCEPTED)
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
            stream.refuse(refusal("RESOURCE_EXHAUSTED", "too many bytes are in the server; try later"))
            return _NOBODY
        timeout = head.timeout
        deadline = None if timeout is None or timeout > _LONG_TIMEOUT else time.monotonic() + timeout
        call = Call(head.metadata, deadline)
        assert head.method is not None
        if head.streams:
            return StreamCall(self, stream, head.method, call, head.encoding)  # type: ignore[arg-type]
        return UnaryCall(self, stream, head.method, head.glance, call, head.encoding)  # type: ignore[arg-type]

    def running(self, call: UnaryCall | StreamCall) -> None:
        """For calls: one that takes time."""
        self._calls.add(call)

    def done(self, call: UnaryCall | StreamCall) -> None:
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


def _refused(code: str, text: str) -> _Head:
    return _Head(None, refusal=refusal(code, text))


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
