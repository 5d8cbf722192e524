"""`make fuzz`: malformed requests on both ports. No INTERNAL, UNKNOWN or 500, no traceback, no crash.

python -m benchmarks.service.fuzz [--requests N] [--seed S]
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gzip
import http.client
import json
import random
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from benchmarks.service.models import write_mlp
from benchmarks.service.starting import memory_mb, server

from onward_protos import grpc_service_pb2 as pb

_SERVICE = "/inference.GRPCInferenceService/"
_NAMES = ["mlp", "", "nobody", "../mlp", "/etc/passwd", "mlp\0", "é" * 300, "x" * 100_000, "mlp/1", "."]
_DATATYPES = ["FP32", "INT64", "BYTES", "BF16", "FP8", "", "fp32", "x" * 5000]
_EXTENTS = [0, 1, 2, 784, -1, 2**31, 2**62, -(2**63)]
_METHODS = [
    "ModelInfer", "ModelMetadata", "ModelConfig", "ModelReady", "ModelStatistics", "RepositoryIndex",
    "RepositoryModelLoad", "RepositoryModelUnload", "ServerLive",
]  # fmt: skip
_NOT_SENT = "Internal error from Core"
"""What grpc.aio's client says of a call whose deadline passed while it was begun; no server said it."""
_FORBIDDEN = ("UNKNOWN", "INTERNAL")


def valid() -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name="mlp",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 784]}],
        raw_input_contents=[bytes(784 * 4)],
    )


def malformed(random_: random.Random) -> pb.ModelInferRequest:
    """A valid request with one to three things wrong."""
    request = valid()
    for _ in range(random_.randint(1, 3)):
        tensor = request.inputs[0] if request.inputs else request.inputs.add(name="x")
        random_.choice(_defects(random_, request, tensor))()
    return request


def _defects(random_: random.Random, request: Any, tensor: Any) -> list[Callable[[], object]]:
    pick = random_.choice
    return [
        lambda: setattr(request, "model_name", pick(_NAMES)),
        lambda: setattr(request, "model_version", pick(["1", "2", "-1", "x", "9" * 400])),
        lambda: setattr(request, "id", "i" * pick([1, 10_000])),
        lambda: setattr(tensor, "datatype", pick(_DATATYPES)),
        lambda: setattr(tensor, "name", pick(["y", "", "x" * 9000])),
        lambda: tensor.shape.append(pick(_EXTENTS)),
        lambda: tensor.shape.extend([1] * pick([31, 40, 500])),
        lambda: tensor.ClearField("shape"),
        lambda: request.raw_input_contents.append(random_.randbytes(random_.randint(0, 64))),
        lambda: request.ClearField("raw_input_contents"),
        lambda: request.inputs.add(name=pick(["x", "z"]), datatype="FP32", shape=[1]),
        lambda: request.inputs.extend([tensor] * 300),
        lambda: tensor.contents.fp32_contents.extend([1.0] * random_.randint(0, 5)),
        lambda: tensor.contents.bytes_contents.append(b"\xff"),
        lambda: request.outputs.add(name=pick(["y", "z", "", "y" * 5000])),
        lambda: setattr(tensor.parameters["shared_memory_region"], "string_param", "r"),
        lambda: setattr(request.parameters["timeout"], "int64_param", pick([-1, 1, 2**62])),
        lambda: setattr(request.parameters["priority"], "string_param", "high"),
        lambda: setattr(request.parameters["sequence_id"], "uint64_param", 7),
        lambda: setattr(request.outputs.add(name="y").parameters["classification"], "int64_param", -5),
    ]


def mutated(random_: random.Random) -> bytes:
    """Bytes of a request with some of them changed, cut or repeated."""
    data = bytearray(malformed(random_).SerializeToString())
    for _ in range(random_.randint(1, 8)):
        if not data:
            break
        at, kind = random_.randrange(len(data)), random_.randrange(3)
        if kind == 0:
            data[at] = random_.randrange(256)
        elif kind == 1:
            del data[at:]
        else:
            data[at:at] = random_.randbytes(random_.randint(1, 12))
    return bytes(data)


async def over_grpc(address: str, count: int, random_: random.Random) -> collections.Counter[str]:
    """Codes of `count` requests; some are cancelled or have no time left."""
    codes: collections.Counter[str] = collections.Counter()
    limit = asyncio.Semaphore(16)
    async with grpc.aio.insecure_channel(address) as channel:

        async def one() -> None:
            kind = random_.random()
            data = (
                malformed(random_).SerializeToString()
                if kind < 0.5
                else mutated(random_)
                if kind < 0.85
                else random_.randbytes(random_.randint(0, 300))
            )
            method = "ModelInfer" if kind < 0.85 else random_.choice(_METHODS)
            timeout = random_.choice([30, 30, 30, 0.0005, 0.01])
            compression = random_.choice([None, grpc.Compression.Gzip])
            async with limit:
                try:
                    if random_.random() < 0.1:
                        stream = channel.stream_stream(f"{_SERVICE}ModelStreamInfer")(
                            iter([data, valid().SerializeToString()]), timeout=timeout
                        )
                        async for _ in stream:
                            if random_.random() < 0.3:
                                stream.cancel()
                        codes["stream"] += 1
                        return
                    call = channel.unary_unary(_SERVICE + method)(
                        data, timeout=timeout, compression=compression
                    )
                    if random_.random() < 0.05:
                        await asyncio.sleep(random_.random() / 100)
                        call.cancel()
                    await call
                    codes["OK"] += 1
                except grpc.RpcError as error:
                    code = error.code().name
                    if error.details() == _NOT_SENT:
                        code = "not sent"
                    codes[code] += 1
                    if code in _FORBIDDEN:
                        print(f"{code} {method}: {error.details()!r} for {data[:200]!r}", file=sys.stderr)
                except asyncio.CancelledError:
                    codes["CANCELLED"] += 1

        await asyncio.gather(*(one() for _ in range(count)))
    return codes


def _body(random_: random.Random) -> bytes:
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    junk: list[Any] = [None, True, -1, 2**70, 1e400, "x", [], {}, [[[]]], "x" * 5000, [None], {"a": []}]
    body: dict[str, Any] = {"inputs": [tensor]}
    for _ in range(random_.randint(1, 3)):
        owner = random_.choice([tensor, body])
        owner[random_.choice([*owner, "parameters", "outputs", "id"])] = random_.choice(junk)
    data = json.dumps(body).encode()
    if random_.random() < 0.3:
        data = data[: random_.randrange(len(data))] + random_.randbytes(random_.randint(0, 20))
    return data


def over_http(address: str, count: int, random_: random.Random) -> collections.Counter[str]:
    """Statuses of `count` requests."""
    codes: collections.Counter[str] = collections.Counter()
    host, port = address.rsplit(":", 1)
    models = "/v2/repository/models"
    paths = [
        *["/v2/models/mlp/infer"] * 6,
        *("/v2/models/..%2f..%2fetc/infer", f"/v2/models/{'x' * 5000}/infer", "/v2/models/mlp/versions/-1"),
        *("/v2/repository/index", f"{models}/..%2f/load", f"{models}/mlp/load", "/%00"),
    ]
    for _ in range(count):
        headers: dict[str, str] = {}
        body = _body(random_)
        kind = random_.random()
        if kind < 0.2:
            headers["Inference-Header-Content-Length"] = random_.choice(
                ["-1", "x", "5", "99999999999999999", ""]
            )
        elif kind < 0.25:
            body, headers["Content-Encoding"] = gzip.compress(bytes(10**8), 1), "gzip"
        elif kind < 0.3:
            headers["Content-Encoding"] = random_.choice(["gzip", "br", "x"])
        elif kind < 0.33:
            with socket.create_connection((host, int(port))) as raw:
                raw.sendall(random_.randbytes(200))
            codes["raw"] += 1
            continue
        path = random_.choice(paths)
        connection = http.client.HTTPConnection(address, timeout=60)
        try:
            connection.request(random_.choice(["POST", "POST", "GET", "PUT"]), path, body, headers)
            response = connection.getresponse()
            text = response.read()
            codes[str(response.status)] += 1
            if response.status == 500:
                print(f"500 {path[:80]}: {text[:200]!r} for {body[:200]!r} {headers}", file=sys.stderr)
        except (http.client.HTTPException, OSError):
            codes["closed"] += 1
        finally:
            connection.close()
    return codes


def on_the_wrong_port(grpc_address: str, http_address: str, random_: random.Random) -> None:
    """HTTP/1 on the gRPC port, the other way round, and bytes of no protocol on both."""
    for address in (grpc_address, http_address):
        host, port = address.rsplit(":", 1)
        for data in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random_.randbytes(400),
            random_.randbytes(4000),
            b"",
        ):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(data)
                connection.settimeout(0.2)
                try:
                    connection.recv(4096)
                except OSError:
                    continue


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=6000, help="in all (6000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random generator (0)")
    options = parser.parse_args()
    random_ = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        write_mlp(Path(folder) / "models")
        log = Path(folder) / "log"
        arguments = ["--repository", f"{folder}/models", "--http-listen", "127.0.0.1:0"]
        with server(*arguments, "--model-control", "explicit", log=log) as (process, event):
            before = memory_mb([process.pid])
            by_grpc = asyncio.run(over_grpc(event["address"], options.requests * 5 // 6, random_))
            by_http = over_http(event["http_address"], options.requests // 6, random_)
            on_the_wrong_port(event["address"], event["http_address"], random_)
            alive = process.poll() is None
            with grpc.insecure_channel(event["address"]) as channel:
                # a fuzzed unload may have been valid
                load = channel.unary_unary(f"{_SERVICE}RepositoryModelLoad")
                load(pb.RepositoryModelLoadRequest(model_name="mlp").SerializeToString())
                answer = channel.unary_unary(f"{_SERVICE}ModelInfer")(valid().SerializeToString())
                found = pb.ModelInferResponse.FromString(answer)
                served = np.frombuffer(found.raw_output_contents[0], np.float32).size == 10
            after = memory_mb([process.pid])
        code = process.returncode
        text = log.read_text()
    wrong = sum(by_grpc[code] for code in _FORBIDDEN) + by_http["500"]
    checks: list[tuple[str, Callable[[], bool]]] = [
        ("no INTERNAL, UNKNOWN or 500", lambda: wrong == 0),
        ("no traceback in the log", lambda: "Traceback" not in text),
        ("the server lives and serves", lambda: alive and served),
        ("it stops with exit code 0", lambda: code == 0),
    ]
    print(f"gRPC: {dict(by_grpc.most_common())}")
    print(f"HTTP: {dict(by_http.most_common())}")
    print(f"resident memory: {before:.0f} MB before, {after:.0f} MB after")
    for name, holds in checks:
        print(f"{'pass' if holds() else 'FAIL'}: {name}")
    if "Traceback" in text:
        print(text[text.index("Traceback") - 300 :][:3000], file=sys.stderr)
    return 0 if all(holds() for _, holds in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
