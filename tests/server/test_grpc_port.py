"""gRPC over HTTP/2: an independent client in memory, flow control, and what a client must not do."""

from __future__ import annotations

import asyncio
import gc
import gzip
import random
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, final

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hpack import Encoder

from onward_server.grpc_calls import Call, CallFailed
from onward_server.grpc_port import GrpcPort
from onward_server.http2 import frames
from onward_server.http2.connection import Connection
from onward_server.http2.frames import Code, Kind
from onward_server.settings import Limits

MESSAGE_BYTES = 1 << 20


@final
class Transport:
    """What a connection needs of a transport."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.closing = self.aborted = False
        self.pauses = 0

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.data += data

    def writelines(self, data: list[bytes]) -> None:
        self.data += b"".join(data)

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.pauses += 1

    def resume_reading(self) -> None:
        self.pauses -= 1

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = True


def _slow(call: Call, data: bytes | memoryview) -> asyncio.Task[bytes]:
    async def wait() -> bytes:
        await asyncio.sleep(float(bytes(data)))
        return b"late"

    return asyncio.get_running_loop().create_task(wait())


def _fail(call: Call, data: bytes | memoryview) -> bytes:
    raise CallFailed("DATA_LOSS", "100 % wröng\n")


async def _double(call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for data in requests:
        if data == b"fail":
            raise CallFailed("ABORTED", "as asked")
        yield data
        yield data


def port(**limits: Any) -> GrpcPort:
    chosen = Limits(**limits)
    unary = {"/t/Echo": lambda call, data: bytes(data), "/t/Slow": _slow, "/t/Fail": _fail}
    unary["/t/Meta"] = lambda call, data: repr(sorted(call.metadata.items())).encode()
    return GrpcPort(unary, {"/t/Double": _double}, lambda: chosen, MESSAGE_BYTES)


def received(connection: Connection, data: bytes) -> None:
    """Give it bytes, and the turns that it needs for them."""
    connection.data_received(data)
    while connection._waits:
        connection._go_on(float("inf"))


@final
class Client:
    """The `h2` package as a client, in memory."""

    def __init__(self, application: GrpcPort, window: int | None = None) -> None:
        self.transport = Transport()
        self.connection = Connection(application)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.events: list[Any] = []
        self.h2.initiate_connection()
        if window is not None:
            self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})

    def request(self, path: str, body: bytes, *, end: bool = True, **headers: str) -> int:
        number = self.h2.get_next_available_stream_id()
        fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
        fields += [("te", "trailers"), ("content-type", "application/grpc")]
        self.h2.send_headers(number, [*fields, *((k.replace("_", "-"), v) for k, v in headers.items())])
        self.send(number, body, end=end)
        return number

    def send(self, number: int, body: bytes, *, end: bool = True) -> None:
        while body:
            self.exchange()
            if any(isinstance(e, h2.events.StreamReset) and e.stream_id == number for e in self.events):
                # it was answered already
                return
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size, len(body))
            assert room > 0
            self.h2.send_data(number, body[:room])
            body = body[room:]
        self.exchange()
        if end and not any(
            isinstance(e, h2.events.StreamReset) and e.stream_id == number for e in self.events
        ):
            self.h2.end_stream(number)

    def exchange(self) -> None:
        """Both sides' bytes, without acknowledging data."""
        while True:
            sent = self.h2.data_to_send()
            if sent:
                received(self.connection, sent)
            self.connection._flush()
            back = bytes(self.transport.data)
            self.transport.data.clear()
            if not sent and not back:
                return
            self.events += self.h2.receive_data(back)

    async def answer(self, number: int) -> tuple[dict[bytes, bytes], bytes]:
        """Headers and trailers, and the data, of a finished stream."""
        fields: dict[bytes, bytes] = {}
        data = b""
        for _ in range(2000):
            self.exchange()
            found, self.events = self.events, []
            for event in found:
                if getattr(event, "stream_id", None) != number:
                    self.events.append(event)
                    continue
                if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                    fields |= dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    data += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, number)
                elif isinstance(event, h2.events.StreamEnded):
                    self.exchange()
                    return fields, data
            await asyncio.sleep(0.001)
        raise AssertionError(f"no answer: {fields}, {len(data)} bytes")


def message(data: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 70_000, MESSAGE_BYTES])
async def test_a_message_comes_back_whole(size: int) -> None:
    client, data = Client(port()), random.Random(size).randbytes(size)
    fields, answer = await client.answer(client.request("/t/Echo", message(data)))
    assert fields[b":status"] == b"200"
    assert fields[b"grpc-status"] == b"0"
    assert answer == message(data)


@pytest.mark.parametrize("window", [1, 100, 20_000])
async def test_no_more_is_sent_than_the_window_lets_through(window: int) -> None:
    client, data = Client(port(), window), bytes(range(256)) * (1 if window == 1 else 400)
    # h2 refuses data beyond the window that it announced
    numbers = [client.request("/t/Echo", message(data)) for _ in range(3)]
    for number in numbers:
        assert (await client.answer(number))[1] == message(data)
    assert client.connection.unsent == 0
    assert not client.connection.streams


async def test_many_large_requests_do_not_use_up_the_connection() -> None:
    application = port()
    client = Client(application)
    data = bytes(MESSAGE_BYTES)
    for _ in range(40):
        assert len((await client.answer(client.request("/t/Echo", message(data))))[1]) == len(data) + 5
    assert application.held_bytes == 0


async def test_metadata_that_repeat_and_that_change() -> None:
    client = Client(port())
    for value in ("a", "a", "b", "b", "a", "a"):
        _, data = await client.answer(client.request("/t/Meta", message(b""), x_value=value))
        assert f"('x-value', '{value}')" in data.decode()


async def test_the_text_of_an_error_survives_the_header() -> None:
    client = Client(port())
    fields, data = await client.answer(client.request("/t/Fail", message(b"")))
    assert (fields[b"grpc-status"], data) == (b"15", b"")
    assert fields[b"grpc-message"] == b"100 %25 wr%C3%B6ng%0A"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", b"3"),
        (b"\0\0", b"3"),
        (message(b"ab")[:-1], b"3"),
        (message(b"ab") + b"c", b"3"),
        (message(b"ab", 2), b"3"),
        (message(b"ab", 1), b"3"),
        (b"\0\xff\xff\xff\xff", b"8"),
        (message(bytes(MESSAGE_BYTES + 1)), b"8"),
    ],
)
async def test_what_is_not_one_message_is_refused(body: bytes, status: bytes) -> None:
    application = port()
    client = Client(application)
    assert (await client.answer(client.request("/t/Echo", body)))[0][b"grpc-status"] == status
    assert application.held_bytes == 0
    assert (await client.answer(client.request("/t/Echo", message(b"x"))))[1] == message(b"x")


@pytest.mark.parametrize(
    ("encoding", "packed", "status"),
    [
        pytest.param("gzip", gzip.compress(b"text"), b"0", id="gzip"),
        pytest.param("gzip", gzip.compress(bytes(MESSAGE_BYTES + 1)), b"8", id="gzip, too long"),
        pytest.param("gzip", gzip.compress(b"text")[:-9], b"3", id="gzip, cut"),
        pytest.param("gzip", b"text", b"3", id="not gzip"),
        pytest.param("identity", b"text", b"3", id="identity"),
        pytest.param("br", b"text", b"12", id="br"),
    ],
)
async def test_compressed_messages(encoding: str, packed: bytes, status: bytes) -> None:
    client = Client(port())
    number = client.request("/t/Echo", message(packed, 1), grpc_encoding=encoding)
    fields, data = await client.answer(number)
    assert fields[b"grpc-status"] == status
    assert data == (message(b"text") if status == b"0" else b"")


async def test_methods_that_do_not_exist_and_what_is_not_grpc() -> None:
    client = Client(port())
    assert (await client.answer(client.request("/t/None", b"")))[0][b"grpc-status"] == b"12"
    number = client.h2.get_next_available_stream_id()
    get = [(":method", "GET"), (":scheme", "http"), (":path", "/t/Echo"), (":authority", "x")]
    client.h2.send_headers(number, get, end_stream=True)
    assert (await client.answer(number))[0][b":status"] == b"405"


async def test_a_deadline_ends_a_call_that_runs() -> None:
    client = Client(port())
    number = client.request("/t/Slow", message(b"60"), grpc_timeout="20m")
    assert (await client.answer(number))[0][b"grpc-status"] == b"4"
    number = client.request("/t/Slow", message(b"0"), grpc_timeout="60S")
    assert (await client.answer(number))[1] == message(b"late")
    number = client.request("/t/Slow", message(b"0"), grpc_timeout="soon")
    assert (await client.answer(number))[0][b"grpc-status"] == b"3"


async def test_a_reset_cancels_the_call() -> None:
    application = port()
    client = Client(application)
    number = client.request("/t/Slow", message(b"60"))
    client.exchange()
    (call,) = application._calls
    task = call._task
    client.h2.reset_stream(number)
    client.exchange()
    await asyncio.sleep(0.01)
    assert not application._calls
    assert task is not None
    assert task.cancelled()


async def test_a_call_that_failed_keeps_nothing_until_the_next_collection() -> None:
    @final
    class Held:
        """Stands for a large request."""

    held: list[weakref.ref[Held]] = []

    def fail_later(call: Call, data: bytes | memoryview) -> asyncio.Task[bytes]:
        async def fail() -> bytes:
            large = Held()
            held.append(weakref.ref(large))
            await asyncio.sleep(0)
            raise CallFailed("ABORTED", "as asked")

        return asyncio.get_running_loop().create_task(fail())

    limits = Limits()
    client = Client(GrpcPort({"/t/Fail": fail_later}, {}, lambda: limits, MESSAGE_BYTES))
    gc.disable()
    try:
        fields, _ = await client.answer(client.request("/t/Fail", message(b"")))
        await asyncio.sleep(0)
        assert fields[b"grpc-status"] == b"10"
        assert [reference() for reference in held] == [None]
    finally:
        gc.enable()


async def test_a_stream_answers_while_it_is_open_and_ends_with_its_error() -> None:
    client = Client(port())
    number = client.request("/t/Double", message(b"a") + message(b"b")[:3], end=False)
    for _ in range(20):
        client.exchange()
        await asyncio.sleep(0.001)
    client.send(number, message(b"b")[3:] + message(b"fail"))
    fields, data = await client.answer(number)
    assert data == message(b"a") * 2 + message(b"b") * 2
    assert (fields[b"grpc-status"], fields[b"grpc-message"]) == (b"10", b"as asked")


async def test_a_client_that_reads_no_answers_of_its_stream_is_stopped() -> None:
    application = port()
    client = Client(application)
    number = client.request("/t/Double", b"", end=False)
    sent, body = 0, message(bytes(500_000))
    while client.h2.local_flow_control_window(number) >= len(body) and sent < 40:
        client.send(number, body, end=False)
        client.exchange()
        await asyncio.sleep(0.005)
        sent += 1
    assert sent < 40
    assert application.held_bytes <= 5 << 20
    assert client.connection.unsent <= 6 << 20
    client.h2.end_stream(number)
    assert len((await client.answer(number))[1]) == 2 * sent * len(body)
    assert application.held_bytes == client.connection.unsent == 0


async def test_metadata_beyond_the_bound() -> None:
    client = Client(port(metadata_bytes=2000))
    number = client.request("/t/Echo", message(b""), x_large="x" * 3000)
    assert (await client.answer(number))[0][b"grpc-status"] == b"8"
    assert (await client.answer(client.request("/t/Echo", message(b"x"))))[1] == message(b"x")


async def test_connections_beyond_the_bound_are_closed() -> None:
    application = port(connections=1)
    first, second = Client(application), Client(application)
    assert (first.transport.aborted, second.transport.aborted) == (False, True)
    first.connection.connection_lost(None)
    assert not Client(application).transport.aborted


async def test_leaving_lets_open_calls_end() -> None:
    client = Client(port())
    number = client.request("/t/Slow", message(b"0.02"))
    client.exchange()
    client.connection.leave()
    assert number in client.connection.streams
    assert not client.transport.closing
    for _ in range(100):
        await asyncio.sleep(0.005)
        if client.transport.closing:
            break
    # h2's client takes no answers behind the GOAWAY frame
    assert message(b"late") in bytes(client.transport.data)


def headers_of(path: str = "/t/Echo") -> bytes:
    fields = [(":method", "POST"), (":path", path), ("content-type", "application/grpc")]
    block: bytes = Encoder().encode(fields)
    return block


def _continued(pieces: int, size: int) -> bytes:
    more = frames.frame(Kind.CONTINUATION, 0, 1, bytes(size))
    return frames.frame(Kind.HEADERS, 0, 1, headers_of()) + more * pieces


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frames.frame(Kind.DATA, 0, 1, b"x"), Code.PROTOCOL_ERROR),
        (frames.frame(Kind.DATA, 0, 0, b"x"), Code.PROTOCOL_ERROR),
        (frames.headers(2, headers_of(), end=True), Code.PROTOCOL_ERROR),
        (frames.headers(1, b"\xff\xff\xff\xff\xff\xff", end=True), Code.COMPRESSION_ERROR),
        (frames.frame(Kind.HEADERS, frames.END_HEADERS | frames.PADDED, 1, b"\x09x"), Code.PROTOCOL_ERROR),
        (frames.frame(Kind.HEADERS, frames.END_HEADERS | frames.PADDED, 1), Code.PROTOCOL_ERROR),
        (frames.frame(Kind.HEADERS, frames.END_HEADERS | 0x20, 1, b"abc"), Code.FRAME_SIZE_ERROR),
        (frames.frame(Kind.CONTINUATION, 4, 1, b""), Code.PROTOCOL_ERROR),
        (_continued(1, 0) + frames.frame(Kind.PING, 0, 0, bytes(8)), Code.PROTOCOL_ERROR),
        (_continued(2000, 0), Code.ENHANCE_YOUR_CALM),
        (_continued(100, 10_000), Code.ENHANCE_YOUR_CALM),
        (frames.headers(1, headers_of(), end=False) + frames.frame(0, 0, 1) * 2000, Code.ENHANCE_YOUR_CALM),
        (frames.frame(Kind.PING, 0, 0, bytes(7)), Code.FRAME_SIZE_ERROR),
        (frames.frame(Kind.SETTINGS, 0, 0, bytes(7)), Code.FRAME_SIZE_ERROR),
        (frames.settings({4: 2**31}), Code.FLOW_CONTROL_ERROR),
        (frames.settings({5: 100}), Code.PROTOCOL_ERROR),
        (frames.window_update(0, 0), Code.FLOW_CONTROL_ERROR),
        (frames.window_update(0, 2**31 - 1), Code.FLOW_CONTROL_ERROR),
        (frames.window_update(7, 1), Code.PROTOCOL_ERROR),
        (frames.reset(9, 0), Code.PROTOCOL_ERROR),
        (frames.frame(Kind.PUSH_PROMISE, 4, 1, bytes(4)), Code.PROTOCOL_ERROR),
        (b"\xff\xff\xff\0\0\0\0\0\1", Code.FRAME_SIZE_ERROR),
    ],
)
async def test_a_fault_of_the_client_ends_the_connection_with_its_code(data: bytes, code: int) -> None:
    transport, connection = Transport(), Connection(port())
    connection.connection_made(transport)  # type: ignore[arg-type]
    received(connection, frames.PREFACE + frames.settings({}) + data)
    at = transport.data.rindex(frames.goaway(0, 0)[:9][3:5])
    assert int.from_bytes(transport.data[at + 10 : at + 14], "big") == code
    assert transport.closing


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX", b"\x16\x03\x01"])
async def test_other_protocols_are_turned_away(first: bytes) -> None:
    transport, connection = Transport(), Connection(port())
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.data_received(first)
    assert transport.closing


async def test_a_message_may_be_refused_before_it_has_come() -> None:
    seen: list[tuple[bytes, int]] = []

    def glance(call: Call, start: bytes | memoryview, size: int) -> None:
        seen.append((bytes(start), size))
        if start[:2] == b"no":
            raise CallFailed("RESOURCE_EXHAUSTED", "too much to do")

    echo = {"/t/Echo": lambda call, data: bytes(data)}
    application = GrpcPort(echo, {}, Limits, MESSAGE_BYTES, {"/t/Echo": glance})
    client = Client(application)
    refused = client.request("/t/Echo", message(b"no" + bytes(3000))[:1000], end=False)
    fields, _ = await client.answer(refused)
    assert (fields[b"grpc-status"], fields[b"grpc-message"]) == (b"8", b"too much to do")
    assert application.held_bytes == 0
    whole = client.request("/t/Echo", message(b"no" + bytes(100)))
    assert (await client.answer(whole))[0][b"grpc-status"] == b"0"
    welcome = client.request("/t/Echo", message(b"go" + bytes(3000))[:1000], end=False)
    client.send(welcome, message(b"go" + bytes(3000))[1000:])
    assert (await client.answer(welcome))[0][b"grpc-status"] == b"0"
    assert [(start[:2], len(start), size) for start, size in seen] == [(b"no", 995, 3002), (b"go", 995, 3002)]


async def test_a_busy_connection_lets_others_have_their_turn() -> None:
    application = port()
    busy, other = Client(application), Client(application)
    busy.exchange()
    other.exchange()
    await asyncio.sleep(0.01)
    pings = [number.to_bytes(8, "big") for number in range(100_000)]
    busy.connection.data_received(b"".join(frames.frame(Kind.PING, 0, 0, ping) for ping in pings))
    assert busy.transport.pauses == 1
    assert pings[-1] not in busy.transport.data
    # of others what is small is read at once, what is large waits too
    other.connection.data_received(frames.frame(Kind.PING, 0, 0, b"quickly!"))
    assert b"quickly!" in other.transport.data
    other.connection.data_received(frames.frame(Kind.PING, 0, 0, b"patience") * 1000)
    assert b"patience" not in other.transport.data
    turns = 0
    while busy.connection._waits or other.connection._waits:
        await asyncio.sleep(0)
        turns += 1
    assert turns > 2
    assert busy.transport.pauses == other.transport.pauses == 0
    assert other.transport.data.count(b"patience") == 1000
    assert busy.transport.data.endswith(frames.frame(Kind.PING, frames.ACK, 0, pings[-1]))


async def test_a_connection_that_is_lost_between_turns_is_not_read_on() -> None:
    client = Client(port())
    client.exchange()
    client.connection.data_received(frames.frame(Kind.PING, 0, 0, bytes(8)) * 100_000)
    assert client.connection._waits
    client.connection.connection_lost(None)
    before = len(client.transport.data)
    await asyncio.sleep(0.01)
    assert len(client.transport.data) == before


async def test_acknowledgements_that_nobody_reads_end_the_connection() -> None:
    transport, connection = Transport(), Connection(port())
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.data_received(frames.PREFACE + frames.settings({}))
    connection.pause_writing()
    received(connection, frames.frame(Kind.PING, 0, 0, bytes(8)) * 5000)
    assert transport.closing
    assert len(transport.data) < 50_000


async def test_input_cut_into_any_pieces_means_the_same() -> None:
    body = message(b"hello" * 1000)
    whole = frames.PREFACE + frames.settings({}) + frames.headers(1, headers_of(), end=False)
    whole += frames.frame(Kind.DATA, 0, 1, body[:77]) + frames.frame(Kind.DATA, 1, 1, body[77:])
    for size in (1, 7, 1000):
        transport, connection = Transport(), Connection(port())
        connection.connection_made(transport)  # type: ignore[arg-type]
        for at in range(0, len(whole), size):
            received(connection, whole[at : at + size])
        connection._flush()
        assert body in bytes(transport.data)


def _frames(random_: random.Random) -> bytes:
    choices: list[Callable[[int], bytes]] = [
        lambda n: frames.headers(n, headers_of(random_.choice(["/t/Echo", "/t/Double", "/x"])), end=False),
        lambda n: frames.frame(Kind.DATA, random_.randrange(16), n, random_.randbytes(random_.randrange(40))),
        lambda n: frames.frame(Kind.DATA, 1, n, message(b"x")),
        lambda n: frames.reset(n, 8),
        lambda n: frames.window_update(random_.choice([0, n]), random_.randrange(1, 1000)),
        lambda n: frames.settings({random_.randrange(7): random_.choice([0, 1, 100, 20_000])}),
        lambda n: frames.frame(random_.randrange(12), random_.randrange(256), n, random_.randbytes(9)),
    ]
    numbers = [random_.choice([1, 1, 3, 3, 5, 7]) for _ in range(12)]
    return b"".join(random_.choice(choices)(number) for number in sorted(numbers))


async def test_random_frames_break_nothing() -> None:
    application = port()
    unexpected: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unexpected.append(context))
    for seed in range(1500):
        random_ = random.Random(seed)
        transport, connection = Transport(), Connection(application)
        connection.connection_made(transport)  # type: ignore[arg-type]
        connection.data_received(frames.PREFACE + frames.settings({}))
        for _ in range(random_.randrange(1, 4)):
            if not transport.closing:
                connection.data_received(_frames(random_))
        if seed % 100 == 0:
            await asyncio.sleep(0)
        connection.connection_lost(None)
        assert not connection.streams
        assert connection.unsent == 0
    for _ in range(5):
        await asyncio.sleep(0)
    assert unexpected == []
    assert application.held_bytes == 0
    assert application.connections == 0
    assert not application._calls
