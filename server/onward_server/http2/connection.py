"""One connection of an HTTP/2 server: frames in, streams, flow control, frames out."""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any, Protocol, final

from onward_server.http2 import frames
from onward_server.http2.frames import FRAME, Code, ConnectionFault, Kind, Setting
from onward_server.http2.headers import HeaderBlocks, Headers
from onward_server.http2.streams import STREAM_WINDOW, Receiver, Stream
from onward_server.http2.turns import Turns

__all__ = ["Application", "Connection"]

_DEFAULT_WINDOW = 65_535
_MOST_WINDOW = 2**31 - 1
_CONNECTION_WINDOW = 16 << 20
_FRAME_BYTES = 256 << 10
_DEFAULT_FRAME_BYTES = 16_384
_WRITE_HIGH = 1 << 20
_JOIN_BYTES = 256 << 10
_UNREAD_CONTROLS = 1000
_EMPTY_FRAMES = 1000
_SMALL_BYTES = 4096
_VIEW_BYTES = 16_384
_PAIR = struct.Struct(">HI")


class Application(Protocol):
    """What the streams of a connection are for."""

    @property
    def header_bytes(self) -> int:
        """Bound on the headers of a request, as it is announced."""

    @property
    def turns(self) -> Turns:
        """Shared by all of its connections."""

    def opened(self, connection: Connection) -> bool:
        """Whether one more connection is welcome."""

    def closed(self, connection: Connection) -> None:
        """One that was welcome is gone."""

    def interpret(self, headers: Headers) -> Any:
        """What is to be known of a request's headers; kept for requests that repeat them."""

    def begin(self, stream: Stream, head: Any) -> Receiver:
        """A request with these headers."""


@final
class Connection(asyncio.Protocol):
    """A protocol of asyncio's for one connection.

    What is written while one piece of input is read goes out together.

    Args:
        application: what its streams are for.

    Attributes:
        streams: those that are open, by number.
        last_used: `loop.time()` when something was last read, or when it had streams last.
        unsent: bytes of answers that the client has not let through.
    """

    def __init__(self, application: Application) -> None:
        self.streams: dict[int, Stream] = {}
        self.unsent = 0
        self.last_used = 0.0
        self.greeted = False
        self._application = application
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._welcome = False
        self._parts: list[bytes] = []
        self._have = 0
        self._want = 0
        self._out: list[bytes | memoryview] = []
        self._reading = False
        self._waits = False
        self._turns = application.turns
        self._flushing = False
        self._paused = False
        self._leaving = False
        self._heads: HeaderBlocks[Any] = HeaderBlocks(application.interpret)
        self._last = 0
        self._block: tuple[int, int, bytearray] | None = None
        self._window = _DEFAULT_WINDOW
        self._first_window = _DEFAULT_WINDOW
        self._frame_bytes = _DEFAULT_FRAME_BYTES
        self._credit = 0
        self._controls = 0
        self._empty = 0
        self._blocked: dict[int, Stream] = {}

    # ---- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        self.last_used = self._loop.time()
        self._welcome = self._application.opened(self)
        if not self._welcome:
            self.abort()
            return
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH)  # type: ignore[union-attr]
        values = {
            Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            Setting.MAX_FRAME_SIZE: _FRAME_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: self._application.header_bytes,
        }
        self.write(frames.settings(values) + frames.window_update(0, _CONNECTION_WINDOW - _DEFAULT_WINDOW))

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._leaving and not self.streams:
            return
        self.last_used = self._loop.time()
        self._parts.append(data)
        self._have += len(data)
        if self._waits or self._have < self._want:
            return
        end = self._turns.end()
        if (self._have > _SMALL_BYTES and time.perf_counter() > end) or not self._take(end):
            # nothing more comes until what has come is read
            self._waits = True
            if self._transport is not None and not self._transport.is_closing():
                self._transport.pause_reading()
            self._turns.wait(self._go_on)

    def _go_on(self, end: float) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._take(end):
            self._waits = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
        else:
            self._turns.wait(self._go_on)

    def _take(self, end: float) -> bool:
        """Read the frames that have come, until the turn ends; whether that was all."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._have = 0
        self._want = 0
        self._reading = True
        try:
            at = self._read(data, end) if self.greeted else self._greet(data, end)
            if at < len(data):
                rest = data[at:]
                self._parts.append(rest)
                self._have = len(rest)
                if self.greeted:
                    self._want = 9 + int.from_bytes(rest[:3], "big") if len(rest) >= 9 else 9
                return not self.greeted or self._have < self._want
        except ConnectionFault as fault:
            self.write(frames.goaway(self._last, fault.code, fault.text))
            self._flush()
            self._end()
        finally:
            self._reading = False
            self._flush()
        return True

    def eof_received(self) -> bool:
        """See asyncio.Protocol."""
        return False

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._paused = True

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._paused = False
        self._controls = 0
        self._pump_all()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        self._out.clear()
        for stream in list(self.streams.values()):
            self._cancel(stream)
        if self._welcome:
            self._welcome = False
            self._application.closed(self)

    # ---- the application's side

    def write(self, data: bytes | memoryview) -> None:
        """Bytes of whole frames."""
        self._out.append(data)
        if not self._reading and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def answer(self, stream: Stream, head: bytes, body: bytes, trailers: bytes) -> None:
        """See Stream.answer."""
        size = len(body)
        number = stream.id
        room = min(self._window, stream.window, self._frame_bytes)
        if size > room or self._paused or self._blocked:
            self.write(frames.headers(number, head, end=False))
            stream.push(body)
            stream.finish(trailers)
            return
        self._window -= size
        before = FRAME.pack(0, len(head), Kind.HEADERS, frames.END_HEADERS, number)
        data = FRAME.pack(size >> 8, size & 0xFF, Kind.DATA, 0, number)
        flags = frames.END_HEADERS | frames.END_STREAM
        after = FRAME.pack(0, len(trailers), Kind.HEADERS, flags, number)
        self.write(b"".join((before, head, data, body, after, trailers)))
        self.release(stream)

    def pump(self, stream: Stream) -> None:
        """Send what the windows let through of a stream's data, then its trailers."""
        if self._transport is None:
            return
        while stream.pending_bytes:
            room = min(self._window, stream.window, self._frame_bytes)
            if room <= 0 or self._paused:
                self._blocked[stream.id] = stream
                return
            chunk = stream.chunk(room)
            if chunk is None:
                break
            size = len(chunk)
            self._window -= size
            stream.window -= size
            self.write(FRAME.pack(size >> 8, size & 0xFF, Kind.DATA, 0, stream.id))
            self.write(chunk)
            if len(self._out) > 64:
                self._flush()
        self._blocked.pop(stream.id, None)
        trailers = stream.trailers
        if trailers is not None:
            self.write(frames.headers(stream.id, trailers, end=True))
            self.release(stream)

    def release(self, stream: Stream) -> None:
        """Its answer is complete; what the client still sends on it is not read."""
        if not stream.ended:
            self.write(frames.reset(stream.id, Code.NO_ERROR))
        self.streams.pop(stream.id, None)
        self._blocked.pop(stream.id, None)
        stream.drop()
        if not self.streams:
            self.last_used = self._loop.time()
            if self._leaving:
                self._flush()
                self._end()

    def leave(self) -> None:
        """Take no new streams, and close when the open ones are answered."""
        if self._leaving or self._transport is None:
            return
        self._leaving = True
        self.write(frames.goaway(self._last, Code.NO_ERROR))
        if not self.streams:
            self._flush()
            self._end()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # ---- frames

    def _greet(self, buffer: bytes, turn: float) -> int:
        """Take the preface, and what follows it."""
        if not frames.PREFACE.startswith(buffer[: len(frames.PREFACE)]):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "this port speaks HTTP/2")
        if len(buffer) < len(frames.PREFACE):
            self._want = len(frames.PREFACE)
            return 0
        self.greeted = True
        return len(frames.PREFACE) + self._read(buffer[len(frames.PREFACE) :], turn)

    def _read(self, buffer: bytes, turn: float) -> int:
        """Take the whole frames of a buffer until the turn ends; returns how many bytes they are."""
        at, size = 0, len(buffer)
        view = memoryview(buffer)
        while size - at >= 9:
            high, low, kind, flags, number = FRAME.unpack_from(buffer, at)
            length = high << 8 | low
            if length > _FRAME_BYTES:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"a frame has at most {_FRAME_BYTES} bytes")
            begin = at + 9
            end = begin + length
            if end > size:
                break
            number &= _MOST_WINDOW
            if self._block is not None and (kind != Kind.CONTINUATION or number != self._block[0]):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a block of headers is interrupted")
            at = end
            if kind == Kind.DATA:
                # small slices of a large buffer must not keep it alive
                whole = length >= _VIEW_BYTES and length * 4 >= size
                self._data(number, flags, view[begin:end] if whole else buffer[begin:end])
            elif kind == Kind.HEADERS:
                self._headers(number, flags, buffer[begin:end])
            elif kind == Kind.CONTINUATION:
                self._continuation(flags, buffer[begin:end])
            else:
                self._control(kind, flags, number, buffer[begin:end])
            if self._transport is None:
                return size
            if time.perf_counter() > turn:
                break
        return at

    def _data(self, number: int, flags: int, payload: bytes | memoryview) -> None:
        if not number or number > self._last:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "data on a stream that is not open")
        size = len(payload)
        self._credit += size
        if self._credit >= _CONNECTION_WINDOW // 2:
            self.write(frames.window_update(0, self._credit))
            self._credit = 0
        if flags & frames.PADDED:
            payload = _unpadded(bytes(payload))
        stream = self.streams.get(number)
        if stream is None or stream.ended:
            return
        receiver = stream.receiver
        assert receiver is not None
        if payload:
            receiver.data(payload)
            if size != len(payload):
                stream.take(size - len(payload))
        elif not flags & frames.END_STREAM:
            self._empty += 1
            if self._empty > _EMPTY_FRAMES:
                raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many empty frames")
        if flags & frames.END_STREAM and not stream.closed:
            stream.ended = True
            receiver.ended()

    def _headers(self, number: int, flags: int, payload: bytes) -> None:
        if flags & frames.PADDED:
            payload = _unpadded(payload)
        if flags & frames.PRIORITY_FLAG:
            if len(payload) < 5:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a priority has 5 bytes")
            payload = payload[5:]
        if not number % 2:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a client's streams have odd numbers")
        if flags & frames.END_HEADERS:
            self._begin(number, flags, payload)
        else:
            self._block = (number, flags, bytearray(payload))
            self._bound(self._block[2])

    def _continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "there is no block of headers to continue")
        number, first, block = self._block
        block += payload
        self._bound(block)
        if not payload:
            self._empty += 1
            if self._empty > _EMPTY_FRAMES:
                raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many empty frames")
        if flags & frames.END_HEADERS:
            self._block = None
            self._begin(number, first, bytes(block))

    def _bound(self, block: bytearray) -> None:
        if len(block) > max(4 * self._application.header_bytes, 1 << 16):
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "a block of headers is too large")

    def _begin(self, number: int, flags: int, block: bytes) -> None:
        head = self._heads.read(block)
        if number <= self._last:
            stream = self.streams.get(number)
            if stream is None or stream.ended:
                # trailers of a request that was answered already
                return
            if not flags & frames.END_STREAM:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "headers inside a request")
            stream.ended = True
            assert stream.receiver is not None
            stream.receiver.ended()
            return
        if self._leaving:
            return
        self._last = number
        stream = self.streams[number] = Stream(self, number, self._first_window)
        stream.ended = bool(flags & frames.END_STREAM)
        stream.receiver = self._application.begin(stream, head)
        if stream.ended and not stream.closed:
            stream.receiver.ended()

    def _control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == Kind.WINDOW_UPDATE:
            self._window_update(number, payload)
        elif kind == Kind.RST_STREAM:
            if len(payload) != 4 or not number or number > self._last:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a reset of a stream that is not open")
            stream = self.streams.get(number)
            if stream is not None:
                self._cancel(stream)
        elif kind == Kind.SETTINGS:
            if not flags & frames.ACK:
                self._settings(payload)
                self._acknowledge(frames.frame(Kind.SETTINGS, frames.ACK, 0))
        elif kind == Kind.PING:
            if len(payload) != 8 or number:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a ping has 8 bytes, on no stream")
            if not flags & frames.ACK:
                self._acknowledge(frames.frame(Kind.PING, frames.ACK, 0, payload))
        elif kind == Kind.PUSH_PROMISE:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a client promises nothing")

    def _acknowledge(self, data: bytes) -> None:
        if self._paused:
            self._controls += 1
            if self._controls > _UNREAD_CONTROLS:
                raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "acknowledgements are not read")
        self.write(data)

    def _window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a credit has 4 bytes")
        credit = int.from_bytes(payload, "big") & _MOST_WINDOW
        if not number:
            self._window += credit
            if not credit or self._window > _MOST_WINDOW:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a window has 1 to 2**31 - 1 bytes")
            if self._blocked:
                self._pump_all()
            return
        if number > self._last:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "credit for a stream that is not open")
        stream = self.streams.get(number)
        if stream is None:
            return
        stream.window += credit
        if not credit or stream.window > _MOST_WINDOW:
            self.write(frames.reset(number, Code.FLOW_CONTROL_ERROR))
            self._cancel(stream)
        elif number in self._blocked:
            self.pump(stream)

    def _settings(self, payload: bytes) -> None:
        if len(payload) % 6 or len(payload) > 6 * 100:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "settings have 6 bytes each")
        for name, value in _PAIR.iter_unpack(payload):
            if name == Setting.INITIAL_WINDOW_SIZE:
                if value > _MOST_WINDOW:
                    raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a window has at most 2**31 - 1 bytes")
                for stream in self.streams.values():
                    stream.window += value - self._first_window
                self._first_window = value
                self._pump_all()
            elif name == Setting.MAX_FRAME_SIZE:
                if not _DEFAULT_FRAME_BYTES <= value < 2**24:
                    raise ConnectionFault(Code.PROTOCOL_ERROR, "a frame has 16,384 to 2**24 - 1 bytes")
                self._frame_bytes = min(value, _FRAME_BYTES)

    # ---- the rest

    def _pump_all(self) -> None:
        for stream in list(self._blocked.values()):
            if self._paused or self._window <= 0:
                return
            self.pump(stream)

    def _cancel(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        self._blocked.pop(stream.id, None)
        stream.ended = True
        stream.drop()
        if stream.receiver is not None:
            stream.receiver.cancelled()
        if self._leaving and not self.streams:
            self._end()

    def _flush(self) -> None:
        self._flushing = False
        if not self._out or self._transport is None:
            return
        out, self._out = self._out, []
        if len(out) == 1:
            self._transport.write(out[0])
        elif sum(map(len, out)) <= _JOIN_BYTES:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)

    def _end(self) -> None:
        """Close behind what was written."""
        for stream in list(self.streams.values()):
            self._cancel(stream)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()


def _unpadded(payload: bytes) -> bytes:
    padding = payload[0] + 1 if payload else 1
    if padding > len(payload):
        raise ConnectionFault(Code.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
