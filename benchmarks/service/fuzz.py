"""`make fuzz`: malformed requests on both ports. No INTERNAL, UNKNOWN or 500, no traceback, no crash.

python -m benchmarks.service.fuzz [--requests N] [--seed S]

Everything that clients can ask for is switched on: model control, training, shared memory, traces, settings.
Three fifths of the requests go to the gRPC port, to every method of every service; a fifth to the HTTP port's
paths; a fifth breaks off, at any byte, or is reset, on both ports.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gzip
import http.client
import json
import os
import random
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import h2.config
import h2.connection
import numpy as np
from benchmarks.service.fuzz_messages import HTTP_PATHS, SERVICES, body, malformed, mutated, valid, wild
from benchmarks.service.models import write_identity, write_mlp
from benchmarks.service.starting import INFER, STREAM, server
from onnx import TensorProto

from onward_protos import grpc_service_pb2 as pb

_LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
_NOT_SENT = "Internal error from Core"
"""What grpc.aio's client says of a call whose deadline passed while it was begun; no server said it."""
_FORBIDDEN = ("UNKNOWN", "INTERNAL", "500")
_PEAK_MB = 768
"""Bound on the server's memory: a bomb of 256 MB is refused before it is unpacked, at 64 MB a message."""


class Findings:
    """Codes that were seen, and what nobody should see."""

    def __init__(self, folder: str) -> None:
        self.codes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.faults: list[str] = []
        self._folder = folder

    def add(self, where: str, code: str, text: str = "", sent: bytes = b"") -> None:
        self.codes[where][code] += 1
        if code in _FORBIDDEN or self._folder in text or "Traceback" in text:
            self.faults.append(f"{where} {code}: {text[:300]!r} for {sent[:200]!r}")


async def _one(channel: grpc.aio.Channel, random_: random.Random, found: Findings) -> None:
    service = random_.choice([SERVICES[0], *SERVICES])
    method = random_.choice(service.methods)
    path = f"/{service.full_name}/{method.name}"
    kind = random_.random()
    if kind < 0.45:
        path, data = random_.choice([INFER, STREAM]), malformed(random_).SerializeToString()
    elif kind < 0.6:
        path, data = INFER, mutated(random_)
    elif kind < 0.95:
        data = wild(method.input_type, random_).SerializeToString()
    else:
        data = random_.randbytes(random_.randint(0, 300))
    name = path.rsplit("/", 1)[1]
    options = {
        "timeout": random_.choice([20, 20, 20, 0.0005, 0.01]),
        "compression": random_.choice([None, None, grpc.Compression.Gzip, grpc.Compression.Deflate]),
    }
    streams = path == STREAM or method.client_streaming
    answers = path == STREAM or method.server_streaming
    try:
        if streams or answers:
            many = iter(
                [data, valid().SerializeToString()] if path == STREAM else [data] * random_.randint(0, 3)
            )
            kind_of = ("stream" if streams else "unary") + ("_stream" if answers else "_unary")
            call = getattr(channel, kind_of)(path)(many if streams else data, **options)
            if answers:
                async for answer in call:
                    if path == STREAM:
                        text = pb.ModelStreamInferResponse.FromString(answer).error_message
                        code = text.partition(":")[0] or "OK"
                        found.add("gRPC, in streams", code, text, data)
                    if random_.random() < 0.2:
                        call.cancel()
            else:
                await call
            found.add(f"gRPC, {service.name}", "OK")
            return
        sent = channel.unary_unary(path)(data, **options)
        if random_.random() < 0.08:
            await asyncio.sleep(random_.random() / 100)
            sent.cancel()
        await sent
        found.add(f"gRPC, {service.name}", "OK")
    except grpc.RpcError as error:
        code = "not sent" if error.details() == _NOT_SENT else error.code().name
        found.add(f"gRPC, {service.name}", code, f"{name}: {error.details()}", data)
    except asyncio.CancelledError:
        found.add(f"gRPC, {service.name}", "CANCELLED")


async def over_grpc(address: str, count: int, random_: random.Random, found: Findings) -> None:
    """`count` calls, 16 at a time; some are cancelled or have no time left; then messages that are bombs."""
    limit = asyncio.Semaphore(16)
    async with grpc.aio.insecure_channel(address) as channel:

        async def one() -> None:
            async with limit:
                await _one(channel, random_, found)

        await asyncio.gather(*(one() for _ in range(count)))
        for path in (INFER, STREAM.replace("ModelStreamInfer", "ModelReady"), _LOAD):
            try:
                await channel.unary_unary(path)(bytes(2**28), compression=grpc.Compression.Gzip, timeout=60)
                found.add("gRPC, bombs", "OK")
            except grpc.RpcError as error:
                found.add("gRPC, bombs", error.code().name, str(error.details()))


def over_http(address: str, count: int, random_: random.Random, found: Findings) -> None:
    """`count` requests to the HTTP port."""
    bomb = gzip.compress(bytes(2**28), 1)
    for number in range(count):
        path, template = random_.choice(HTTP_PATHS)
        data, headers, kind = body(template, random_), {}, random_.random()
        if kind < 0.2:
            lengths = ["-1", "x", "5", "99999999999999999", "", str(len(data))]
            headers["Inference-Header-Content-Length"] = random_.choice(lengths)
        elif kind < 0.25:
            data, headers["Content-Encoding"] = (bomb if number % 8 == 0 else gzip.compress(data)), "gzip"
        elif kind < 0.3:
            headers["Content-Encoding"] = random_.choice(["gzip", "deflate", "br", "x"])
        elif kind < 0.32:
            data, headers["Content-Encoding"] = zlib.compress(data), "deflate"
        connection = http.client.HTTPConnection(address, timeout=60)
        try:
            connection.request(random_.choice(["POST", "POST", "POST", "GET", "PUT"]), path, data, headers)
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
            sent = f"{path[:80]} {headers} {data[:200]!r}".encode()
            found.add("HTTP", str(response.status), text if response.status >= 400 else "", sent)
        except (http.client.HTTPException, OSError):
            found.add("HTTP", "closed")
        finally:
            connection.close()


def _grpc_bytes() -> tuple[bytes, bytes]:
    """All that a client sends for one request in three frames of data, and a reset of that call."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=False))
    client.initiate_connection()
    client.send_headers(
        1,
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", INFER),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", "5S"),
        ],
    )
    data = valid().SerializeToString()
    data = b"\0" + len(data).to_bytes(4, "big") + data
    for start in range(0, len(data), 1200):
        client.send_data(1, data[start : start + 1200], end_stream=start + 1200 >= len(data))
    sent = client.data_to_send()
    return sent, bytes.fromhex("00000403000000000100000008")


def breaking_off(
    grpc_address: str, http_address: str, count: int, random_: random.Random, found: Findings
) -> None:
    """Requests that end at any byte, by a close or a reset; other protocols."""
    whole, reset = _grpc_bytes()
    content = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 784], "data": [0.5] * 784}]}
    )
    head = b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\n"
    post = head + f"Content-Length: {len(content)}\r\n\r\n{content}".encode()
    others = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"",
    ]
    for number in range(count):
        at, kind = random_.random(), random_.choice(["close", "reset", "abort", "rest later", "other"])
        address, data = random_.choice([(grpc_address, whole), (http_address, post)])
        if kind == "other":
            address = random_.choice([grpc_address, http_address])
            data = random_.choice(others) + random_.randbytes(random_.choice([0, 9, 400, 4000]))
            at = 1.0
        host, port = address.rsplit(":", 1)
        cut = int(len(data) * at)
        try:
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(data[:cut])
                if kind == "reset" and address == grpc_address:
                    connection.sendall(reset)
                elif kind == "abort":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                elif kind == "rest later":
                    connection.sendall(data[cut:])
                if number % 16 == 0:
                    connection.settimeout(0.1)
                    connection.recv(4096)
        except OSError:
            pass
        found.add("broken off", kind)


@contextmanager
def _everything(folder: Path) -> Iterator[None]:
    """The environment in which a server offers all that it has."""
    settings = {
        "MODEL_CONTROL": "explicit",
        "SHARED_MEMORY": "true",
        "REMOTE_SETTINGS": "true",
        "RESPONSE_CACHE_BYTES": "1000000",
        "TRAINING": json.dumps(
            {"folder": str(folder / "training"), "data_roots": [str(folder)], "max_seconds": 20}
        ),
    }
    try:
        import opentelemetry.sdk  # noqa: F401
    except ImportError:
        print("no traces: the extra `trace` is not installed")
    else:
        settings["TRACE"] = json.dumps({"endpoint": "http://127.0.0.1:9/v1/traces", "rate": 100})
    names = {f"ONWARD_SERVER_{name}": value for name, value in settings.items()}
    os.environ.update(names)
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


def peak_mb(pid: int) -> float:
    """The most memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="in all (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random generator (0)")
    options = parser.parse_args()
    random_ = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        found = Findings(folder)
        write_mlp(Path(folder) / "models")
        for name, element in (
            ("wholes", TensorProto.INT64),
            ("texts", TensorProto.STRING),
            ("floats", TensorProto.FLOAT),
        ):
            write_identity(Path(folder) / "models", name, element)
        log = Path(folder) / "log"
        arguments = ["--repository", f"{folder}/models", "--http-listen", "127.0.0.1:0"]
        with _everything(Path(folder)), server(*arguments, log=log) as (process, event):
            addresses = event["address"], event["http_address"]
            before = peak_mb(process.pid)
            fifth = options.requests // 5
            asyncio.run(over_grpc(addresses[0], options.requests - 2 * fifth, random_, found))
            over_http(addresses[1], fifth, random_, found)
            breaking_off(*addresses, fifth, random_, found)
            alive = process.poll() is None
            served = False
            if alive:
                with grpc.insecure_channel(addresses[0]) as channel:
                    # what was fuzzed may have been a valid unload, or a valid load of something else
                    channel.unary_unary(_LOAD)(
                        pb.RepositoryModelLoadRequest(model_name="mlp").SerializeToString(), timeout=60
                    )
                    answer = channel.unary_unary(INFER)(valid().SerializeToString(), timeout=60)
                    response = pb.ModelInferResponse.FromString(answer)
                    served = np.frombuffer(response.raw_output_contents[0], np.float32).size == 10
                peak = peak_mb(process.pid)
        code = process.returncode
        text = log.read_text()
    for where, codes in sorted(found.codes.items()):
        print(f"{where:26} {sum(codes.values()):6} {dict(codes.most_common())}")
    checks = [
        ("no INTERNAL, UNKNOWN or 500, no folder and no traceback in a text", not found.faults),
        ("no traceback in the log", "Traceback" not in text),
        ("the server lives and serves", alive and served),
        (f"it never had {_PEAK_MB} MB", alive and peak < _PEAK_MB),
        ("it stops with exit code 0", code == 0),
    ]
    if alive:
        print(f"resident memory: {before:.0f} MB before, {peak:.0f} MB at its peak")
    for name, holds in checks:
        print(f"{'pass' if holds else 'FAIL'}: {name}")
    for fault in found.faults[:20]:
        print(fault, file=sys.stderr)
    if "Traceback" in text:
        print(text[max(text.index("Traceback") - 300, 0) :][:3000], file=sys.stderr)
    return 0 if all(holds for _, holds in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
