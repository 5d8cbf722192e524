"""Keys and roles, transport security, the access log."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import logging
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import TensorProto

from onward.errors import ConfigError
from onward_client import AuthenticationError, Client
from onward_protos.grpc_service_pb2 import (
    LogSettingsRequest,
    ModelInferRequest,
    ModelReadyRequest,
    RepositoryIndexRequest,
    RepositoryModelLoadRequest,
    ServerLiveRequest,
)
from onward_protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from onward_server import ServerThread, healthcheck
from onward_server.access import AccessLog
from onward_server.settings import TlsSettings
from onward_server.tls import FollowedContext, ssl_context
from serving import identity, put, settings


def key(name: str, *roles: str) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(f"secret of {name}".encode()).hexdigest(), "roles": roles}


KEYS = [key("reader"), key("caller", "predict"), key("manager", "manage")]
REQUEST = ModelInferRequest(
    model_name="m",
    inputs=[{"name": "x", "datatype": "FP32", "shape": [1]}],
    raw_input_contents=[bytes(4)],
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    repository: Path = tmp_path_factory.mktemp("models")
    put(repository, "m", 1, identity(TensorProto.FLOAT))
    chosen = settings(
        repository,
        http_listen="127.0.0.1:0",
        isolation="thread",
        keys=KEYS,
        model_control="explicit",
        remote_settings=True,
    )
    with ServerThread(chosen) as started:
        yield started


CALLS = {
    "log": lambda stub, meta: stub.LogSettings(LogSettingsRequest(), metadata=meta),
    "silence": lambda stub, meta: stub.LogSettings(
        LogSettingsRequest(settings={"log_verbose_level": LogSettingsRequest.SettingValue(uint32_param=0)}),
        metadata=meta,
    ),
    "live": lambda stub, meta: stub.ServerLive(ServerLiveRequest(), metadata=meta),
    "ready": lambda stub, meta: stub.ModelReady(ModelReadyRequest(name="m"), metadata=meta),
    "index": lambda stub, meta: stub.RepositoryIndex(RepositoryIndexRequest(), metadata=meta),
    "infer": lambda stub, meta: stub.ModelInfer(REQUEST, metadata=meta),
    "stream": lambda stub, meta: list(stub.ModelStreamInfer(iter([REQUEST]), metadata=meta)),
    "load": lambda stub, meta: stub.RepositoryModelLoad(
        RepositoryModelLoadRequest(model_name="m"), metadata=meta
    ),
}
PATHS = {
    "log": ("GET", "/v2/logging"),
    "live": ("GET", "/v2/health/live"),
    "ready": ("GET", "/v2/models/m/ready"),
    "index": ("POST", "/v2/repository/index"),
    "infer": ("POST", "/v2/models/m/infer"),
    "load": ("POST", "/v2/repository/models/m/load"),
}
ALLOWED = {
    "": {"live", "ready"},
    "nobody": {"live", "ready"},
    "reader": {"live", "ready", "index", "log"},
    "caller": {"live", "ready", "index", "log", "infer", "stream"},
    "manager": {"live", "ready", "index", "log", "silence", "load"},
}


@pytest.mark.parametrize("who", ALLOWED)
def test_roles_over_grpc(server: ServerThread, who: str) -> None:
    metadata = [("authorization", f"Bearer secret of {who}")] if who else []
    with grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for name, call in CALLS.items():
            if name in ALLOWED[who]:
                call(stub, metadata)
                continue
            with pytest.raises(grpc.RpcError) as caught:
                call(stub, metadata)
            expected = "PERMISSION_DENIED" if who in ("reader", "caller", "manager") else "UNAUTHENTICATED"
            assert caught.value.code().name == expected, name


@pytest.mark.parametrize("who", ALLOWED)
def test_roles_over_http(server: ServerThread, who: str) -> None:
    headers = {"x-api-key": f"secret of {who}"} if who else {}
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]})
    for name, (method, path) in PATHS.items():
        connection = http.client.HTTPConnection(server.http_address, timeout=30)
        connection.request(method, path, body if name == "infer" else None, headers)
        status = connection.getresponse().status
        connection.close()
        refused = 403 if who in ("reader", "caller", "manager") else 401
        assert status == (200 if name in ALLOWED[who] else refused), name


def test_our_client_brings_its_key(server: ServerThread) -> None:
    with Client(server.address, key="secret of caller") as client:
        assert client.predict("m", {"x": [1.5]})["y"].tolist() == [1.5]
    with Client(server.address) as client, pytest.raises(AuthenticationError, match="give a key"):
        client.predict("m", {"x": np.float32([1.5])})


def test_secrets_are_not_printed() -> None:
    from onward_server.__main__ import _printed

    chosen = settings(Path("/"), keys=KEYS)
    for text in (_printed(chosen), repr(chosen)):
        assert "manager" in text
        assert KEYS[0]["sha256"] not in text


def test_a_key_has_to_be_a_digest() -> None:
    with pytest.raises(ValueError, match="64 lower-case hexadecimal digits"):
        settings(Path("/"), keys=[{"name": "a", "sha256": "secret"}])


def test_the_access_log_samples_answers_and_bounds_failures(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "onward_server.access")
    log = AccessLog(lambda: 0.25)
    for number in range(100):
        if log.takes("OK"):
            log.write(transport="grpc", call="a", code="OK", start=time.perf_counter(), identity=str(number))
    assert len(caplog.records) == 25
    caplog.clear()
    for _ in range(500):
        if log.takes("429"):
            log.write(
                transport="http", call="b", code="429", start=time.perf_counter(), identity="x", text="busy"
            )
    assert 10 <= len(caplog.records) <= 30
    entry = json.loads(caplog.records[0].getMessage())
    assert (entry["call"], entry["code"], entry["text"]) == ("b", "429", "busy")


def test_a_call_that_failed_is_logged_with_its_model_and_its_trace(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "onward_server.access")
    put(repository, "m", 1, identity(TensorProto.FLOAT))
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-id": "mine"}
    chosen = settings(repository, http_listen="127.0.0.1:0", isolation="thread")
    with ServerThread(chosen) as server, grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError):
            GRPCInferenceServiceStub(channel).ModelInfer(
                ModelInferRequest(model_name="m"), metadata=list(headers.items())
            )
        connection = http.client.HTTPConnection(server.http_address, timeout=30)
        connection.request("POST", "/v2/models/m/infer", "{}", headers)
        connection.getresponse()
        connection.close()
    entries = [json.loads(record.getMessage()) for record in caplog.records]
    assert [(e["transport"], e["code"], e["subject"], e["trace_id"], e["request_id"]) for e in entries] == [
        ("grpc", "INVALID_ARGUMENT", "m", trace, "mine"),
        ("http", "400", "m", trace, "mine"),
    ]


def test_what_changes_the_service_is_always_in_the_access_log(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "onward_server.access")
    put(repository, "m", 1, identity(TensorProto.FLOAT))
    chosen = settings(
        repository,
        http_listen="127.0.0.1:0",
        isolation="thread",
        keys=KEYS,
        model_control="explicit",
        access_log=0,
    )
    with ServerThread(chosen) as server, Client(server.address, key="secret of manager") as client:
        client.repository()
        client.load("m")
        connection = http.client.HTTPConnection(server.http_address, timeout=30)
        path, headers = "/v2/repository/models/m/unload", {"x-api-key": "secret of manager"}
        connection.request("POST", path, headers=headers)
        assert connection.getresponse().status == 200
        connection.close()
    entries = [json.loads(record.getMessage()) for record in caplog.records]
    assert [(e["call"].rpartition("/")[2], e["key"], e["subject"]) for e in entries] == [
        ("RepositoryModelLoad", "manager", "m"),
        ("unload", "manager", "m"),
    ]
    assert entries[1]["call"] == "POST /v2/repository/models/{name}/unload"


def test_http_says_what_a_path_takes_and_not_what_answers(server: ServerThread) -> None:
    connection = http.client.HTTPConnection(server.http_address, timeout=30)
    connection.request("PUT", "/v2/models/m/infer")
    response = connection.getresponse()
    assert (response.status, response.getheader("Allow")) == (405, "POST")
    assert response.getheader("Server") == "onward"
    connection.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def test_both_ports_speak_tls_and_ask_for_certificates(tmp_path: Path, certificates: Path) -> None:
    put(tmp_path, "m", 1, identity(TensorProto.FLOAT))
    root, client = (certificates / name for name in ("server.pem", "client.pem"))
    tls = {"certificate": root, "key": certificates / "server.key", "client_ca": client}
    chosen = settings(tmp_path, http_listen="127.0.0.1:0", isolation="thread", tls=tls)
    with ServerThread(chosen) as server:
        mutual = grpc.ssl_channel_credentials(
            root.read_bytes(), (certificates / "client.key").read_bytes(), client.read_bytes()
        )
        with grpc.secure_channel(server.address, mutual) as channel:
            assert GRPCInferenceServiceStub(channel).ServerLive(ServerLiveRequest(), timeout=20).live
        with (
            grpc.secure_channel(server.address, grpc.ssl_channel_credentials(root.read_bytes())) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            GRPCInferenceServiceStub(channel).ServerLive(ServerLiveRequest(), timeout=3)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        files = ["--ca", str(root), "--certificate", str(client), "--key", str(certificates / "client.key")]
        assert healthcheck.main(["--address", server.address, "--timeout", "20", *files]) == 0
        assert healthcheck.main(["--address", server.address, "--ca", str(root)]) == 1
        context = ssl.create_default_context(cafile=str(root))
        context.load_cert_chain(client, certificates / "client.key")
        connection = http.client.HTTPSConnection(server.http_address, context=context, timeout=20)
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().status == 200
        connection.close()
        bare = http.client.HTTPSConnection(
            server.http_address, context=ssl.create_default_context(cafile=str(root)), timeout=20
        )

        def asked() -> None:
            bare.request("GET", "/v2/health/live")
            bare.getresponse()

        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            asked()
        bare.close()


def test_a_key_that_does_not_fit_keeps_the_server_from_starting(tmp_path: Path, certificates: Path) -> None:
    tls = {"certificate": certificates / "server.pem", "key": certificates / "client.key"}
    with pytest.raises(ConfigError, match="tls"):
        ServerThread(settings(tmp_path, isolation="thread", tls=tls))


def test_an_encrypted_key_is_refused_without_asking_for_its_password(
    tmp_path: Path, certificates: Path
) -> None:
    encrypted = tmp_path / "encrypted.key"
    command = [
        "openssl",
        "pkey",
        "-aes256",
        "-passout",
        "pass:secret",
        "-in",
        str(certificates / "server.key"),
    ]
    subprocess.run([*command, "-out", str(encrypted)], check=True, capture_output=True)
    with pytest.raises(ConfigError, match=r"key \S+encrypted.key: it is encrypted; decrypt it"):
        ssl_context(TlsSettings(certificate=certificates / "server.pem", key=encrypted))


def test_certificates_are_followed_and_unusable_ones_left(
    tmp_path: Path, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def use(name: str) -> None:
        for kind in ("pem", "key"):
            shutil.copy(certificates / f"{name}.{kind}", tmp_path / f"used.{kind}")

    def offered(context: ssl.SSLContext) -> str:
        """The certificate that a new connection is offered."""
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        (a, b), (c, d) = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
        one = client.wrap_bio(a, b)
        two = context.wrap_bio(c, d, server_side=True)
        for _ in range(4):
            for side, out, into in ((one, b, c), (two, d, a)):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
                into.write(out.read())
        found = one.getpeercert(binary_form=True)
        assert found is not None
        return ssl.DER_cert_to_PEM_cert(found)

    def pem(name: str) -> str:
        return (certificates / f"{name}.pem").read_text()

    use("server")
    used = TlsSettings(certificate=tmp_path / "used.pem", key=tmp_path / "used.key")
    followed = FollowedContext(lambda: used, "h2")
    assert offered(followed.context) == pem("server")
    use("client")
    followed.follow()
    assert offered(followed.context) == pem("client")
    (tmp_path / "used.pem").write_text("nonsense")
    followed.follow()
    followed.follow()
    assert offered(followed.context) == pem("client")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert caplog.records[0].getMessage().startswith("tls: certificate ")
    followed.follow(again=True)
    assert len(caplog.records) == 2, "a reload says it again"
    (tmp_path / "used.key").unlink()
    for _ in range(3):
        followed.follow()
    assert [record.getMessage() for record in caplog.records][2:] == [
        f"tls: {tmp_path / 'used.key'}: No such file or directory; the certificate in use stays"
    ]
    assert offered(followed.context) == pem("client")
    use("server")
    followed.follow()
    assert offered(followed.context) == pem("server")


def test_an_authority_that_was_replaced_is_trusted_no_longer(tmp_path: Path, certificates: Path) -> None:
    put(tmp_path, "m", 1, identity(TensorProto.FLOAT))
    server_pem, client_pem, trusted = (
        certificates / "server.pem",
        certificates / "client.pem",
        tmp_path / "ca",
    )
    shutil.copy(client_pem, trusted)
    tls = {"certificate": server_pem, "key": certificates / "server.key", "client_ca": trusted}

    def status(address: str, certificate: str) -> int:
        context = ssl.create_default_context(cafile=str(server_pem))
        context.load_cert_chain(certificates / f"{certificate}.pem", certificates / f"{certificate}.key")
        connection = http.client.HTTPSConnection(address, context=context, timeout=20)
        try:
            connection.request("GET", "/v2/health/live")
            return connection.getresponse().status
        except (ssl.SSLError, ConnectionError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def grpc_live(address: str, certificate: str) -> bool:
        pair = [(certificates / f"{certificate}.{kind}").read_bytes() for kind in ("key", "pem")]
        credentials = grpc.ssl_channel_credentials(server_pem.read_bytes(), *pair)
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(address, credentials, options) as channel:
            try:
                return bool(GRPCInferenceServiceStub(channel).ServerLive(ServerLiveRequest(), timeout=3).live)
            except grpc.RpcError:
                return False

    def seen(server: ServerThread) -> list[tuple[int, bool]]:
        return [
            (status(server.http_address, name), grpc_live(server.address, name))
            for name in ("client", "server")
        ]

    with ServerThread(settings(tmp_path, http_listen="127.0.0.1:0", isolation="thread", tls=tls)) as server:
        assert seen(server) == [(200, True), (0, False)]
        shutil.copy(server_pem, trusted)
        time.sleep(1)  # looked at every 0.2 s
        assert seen(server) == [(0, False), (200, True)]


def test_connections_are_bounded_and_idle_ones_closed(tmp_path: Path) -> None:
    limits = {"connections": 2, "idle_seconds": 1.0}
    chosen = settings(tmp_path, http_listen="127.0.0.1:0", isolation="thread", limits=limits)
    with ServerThread(chosen) as server:
        host, port = server.http_address.rsplit(":", 1)
        silent = [socket.create_connection((host, int(port)), timeout=20) for _ in range(2)]
        statuses = []
        for _ in range(2):
            connection = http.client.HTTPConnection(server.http_address, timeout=20)
            connection.request("GET", "/v2/health/live")
            statuses.append(connection.getresponse().status)
            connection.close()
            for waiting in silent:
                assert waiting.recv(1) == b"", "an idle connection is closed"
        assert statuses == [429, 200]
        for waiting in silent:
            waiting.close()
        channels = [
            grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(3)
        ]
        stubs = [GRPCInferenceServiceStub(channel) for channel in channels]
        assert [stub.ServerLive(ServerLiveRequest(), timeout=20).live for stub in stubs[:2]] == [True, True]
        with pytest.raises(grpc.RpcError) as caught:
            stubs[2].ServerLive(ServerLiveRequest(), timeout=0.5)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        for channel in channels:
            channel.close()
