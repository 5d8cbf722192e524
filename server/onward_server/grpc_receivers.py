"""Calls while their messages come and their answers go: one message of each, or streams of them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Protocol, final

from onward_server.grpc_calls import Call, CallFailed, Glance, StreamMethod, UnaryMethod
from onward_server.grpc_framing import EXPIRED, HEAD, OK, framed, inflated, refusal, too_large
from onward_server.http2.streams import Stream

__all__ = ["Port", "StreamCall", "UnaryCall"]

_SMALL = 4096
_UNSENT_OF_A_CALL = 4 << 20


class Port(Protocol):
    """What calls ask of the port that they came by.

    Attributes:
        message_bytes: the largest request.
        held_bytes: of requests that are still coming.
        refusals: how many calls were refused because of bounds.
    """

    message_bytes: int
    held_bytes: int
    refusals: int

    @property
    def most_held(self) -> int:
        """Bytes of requests that may be here."""

    def running(self, call: UnaryCall | StreamCall) -> None:
        """Note one that takes time."""

    def done(self, call: UnaryCall | StreamCall) -> None:
        """Note that it has ended."""


@final
class UnaryCall:
    """Receives the one message of a call and answers it.

    Args:
        port: what counts the bytes that are held.
        stream: of the connection.
        method: what answers.
        glance: what looks at the message before it has come; None: nothing.
        call: what the method may know.
        encoding: how a compressed message is.
    """

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
        port: Port,
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
        """See Receiver."""
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
                self.cut(*too_large(length, self._port.message_bytes))
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
        """See Receiver."""
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
            self._stream.answer(HEAD, framed(found), OK)
            return
        self._port.running(self)
        self._task = found
        found.add_done_callback(self._computed)
        if self._call.deadline is not None:
            left = self._call.deadline - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(left, 0.0), self.cut, *EXPIRED)

    def _joined(self) -> bytes | memoryview:
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    def cancelled(self) -> None:
        """See Receiver."""
        self._over = True
        self._drop()
        if self._task is not None:
            self._task.cancel()

    def cut(self, code: str, text: str) -> None:
        """End it with a status, whatever it is doing."""
        if not self._over:
            self._over = True
            self._drop()
            self._stream.refuse(refusal(code, text))
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
            self._stream.answer(HEAD, framed(data), OK)

    async def _unpacked(self, data: bytes | memoryview) -> bytes:
        plain = await asyncio.to_thread(inflated, data, self._encoding, self._port.message_bytes)
        found = self._method(self._call, plain)
        return found if isinstance(found, bytes) else await found

    def _drop(self) -> None:
        self._chunks = []
        self._port.held_bytes -= self._size
        self._size = 0


@final
class StreamCall:
    """Receives the messages of a call while its answers go out.

    Args:
        port: what counts the bytes that are held.
        stream: of the connection.
        method: what answers.
        call: what the method may know.
        encoding: how compressed messages are.
    """

    def __init__(self, port: Port, stream: Stream, method: StreamMethod, call: Call, encoding: str) -> None:
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
            self._timer = loop.call_later(max(call.deadline - time.monotonic(), 0.0), self.cut, *EXPIRED)

    def data(self, payload: bytes | memoryview) -> None:
        """See Receiver."""
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
                self._fault = CallFailed(*too_large(length, self._port.message_bytes))
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
        """See Receiver."""
        if self._parts and self._fault is None:
            self._fault = CallFailed("INVALID_ARGUMENT", "the stream ends inside a message")
        self._complete = True
        self._wake()

    def cancelled(self) -> None:
        """See Receiver."""
        self._over = True
        self._task.cancel()

    def cut(self, code: str, text: str) -> None:
        """End it with a status, whatever it is doing."""
        if not self._over:
            self._over = True
            block = refusal(code, text)
            if self._started:
                self._stream.finish(block[len(HEAD) :])
            else:
                self._stream.refuse(block)
            self._task.cancel()

    async def _run(self, method: StreamMethod) -> None:
        answers = method(self._call, self._requests())
        try:
            async for data in answers:
                self._start()
                self._stream.send(framed(data))
                await self._stream.sent(_UNSENT_OF_A_CALL)
            self._start()
            if not self._over:
                self._over = True
                self._stream.finish(OK)
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
            self._stream.start(HEAD)

    async def _requests(self) -> AsyncIterator[bytes]:
        while True:
            while self._messages:
                compressed, data = self._messages.popleft()
                self._held -= 5 + len(data)
                self._port.held_bytes -= 5 + len(data)
                self._owe(5 + len(data))
                if compressed:
                    data = await asyncio.to_thread(inflated, data, self._encoding, self._port.message_bytes)
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
