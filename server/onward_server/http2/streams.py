"""Streams of an HTTP/2 connection: a request and its answer each, and what waits to be sent."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol, final

from onward_server.http2 import frames

__all__ = ["STREAM_WINDOW", "Receiver", "Sender", "Stream"]

STREAM_WINDOW = 4 << 20
"""Bytes of a request that its client may send ahead."""


class Receiver(Protocol):
    """What becomes of one stream's request."""

    def data(self, payload: bytes | memoryview) -> None:
        """Bytes of its body; a view keeps at most four times as many bytes alive."""

    def ended(self) -> None:
        """Its body is complete."""

    def cancelled(self) -> None:
        """The client has given it up, or is gone."""


class Sender(Protocol):
    """What streams ask of their connection.

    Attributes:
        unsent: bytes of answers that have not left.
    """

    unsent: int

    def write(self, data: bytes | memoryview) -> None:
        """Send frames."""

    def answer(self, stream: Stream, head: bytes, body: bytes, trailers: bytes) -> None:
        """Send a whole answer."""

    def pump(self, stream: Stream) -> None:
        """Send as much of a stream's data as the client lets through."""

    def release(self, stream: Stream) -> None:
        """Forget a stream whose answer is complete."""


@final
class Stream:
    """A request and its answer.

    Attributes:
        id: its number on the connection.
        receiver: what takes the request; None before there is one.
        closed: whether nothing can be sent on it any more.
    """

    __slots__ = (
        "_connection",
        "_credit",
        "_pending",
        "_trailers",
        "_waiters",
        "closed",
        "ended",
        "id",
        "pending_bytes",
        "receiver",
        "window",
    )

    def __init__(self, connection: Sender, number: int, window: int) -> None:
        self.id = number
        self.receiver: Receiver | None = None
        self.closed = False
        self.ended = False
        self.window = window
        self.pending_bytes = 0
        self._connection = connection
        self._credit = 0
        self._pending: deque[bytes | memoryview] | None = None
        self._trailers: bytes | None = None
        self._waiters: list[asyncio.Future[None]] | None = None

    @property
    def connection(self) -> Sender:
        """The one that it is on."""
        return self._connection

    def answer(self, head: bytes, body: bytes, trailers: bytes) -> None:
        """The whole answer: a block of headers, data, a block of trailers."""
        if not self.closed:
            self._connection.answer(self, head, body, trailers)

    def start(self, head: bytes) -> None:
        """A block of headers; data follow."""
        if not self.closed:
            self._connection.write(frames.headers(self.id, head, end=False))

    def send(self, data: bytes) -> None:
        """Data, as soon as the client lets them through."""
        if not self.closed:
            self.push(data)
            self._connection.pump(self)

    async def sent(self, most: int) -> None:
        """Wait until at most so many bytes have not been sent, or none can be any more."""
        while not self.closed and self.pending_bytes > most:
            waiter = asyncio.get_running_loop().create_future()
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(waiter)
            await waiter

    def finish(self, trailers: bytes) -> None:
        """A block of trailers behind everything that was sent."""
        if not self.closed:
            self._trailers = trailers
            self._connection.pump(self)

    def refuse(self, block: bytes) -> None:
        """Headers that are the whole answer."""
        if not self.closed:
            connection = self._connection
            connection.write(frames.headers(self.id, block, end=True))
            connection.release(self)

    def take(self, size: int) -> None:
        """Let the client send so many bytes more."""
        if self.ended or self.closed:
            return
        self._credit += size
        if self._credit >= STREAM_WINDOW // 2:
            self._connection.write(frames.window_update(self.id, self._credit))
            self._credit = 0

    def push(self, data: bytes) -> None:
        """For the connection: data that wait."""
        if self._pending is None:
            self._pending = deque()
        self._pending.append(data)
        self.pending_bytes += len(data)
        self._connection.unsent += len(data)

    def chunk(self, room: int) -> bytes | memoryview | None:
        """For the connection: what is sent next, of at most `room` bytes; None: nothing."""
        if not self._pending:
            return None
        first = self._pending[0]
        if len(first) <= room:
            self._pending.popleft()
        else:
            view = memoryview(first)
            self._pending[0] = view[room:]
            first = view[:room]
        self.pending_bytes -= len(first)
        self._connection.unsent -= len(first)
        self.wake()
        return first

    @property
    def trailers(self) -> bytes | None:
        """For the connection: what ends the answer, when all data are gone."""
        return None if self._pending else self._trailers

    def drop(self) -> None:
        """For the connection: it is over."""
        self.closed = True
        self._connection.unsent -= self.pending_bytes
        self.pending_bytes = 0
        self._pending = None
        self.wake()

    def wake(self) -> None:
        """For the connection: something was sent."""
        if self._waiters:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters = None
