"""TLS to a server with a certificate of its own."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from onward_client import Client, UnavailableError
from onward_client.cli import app
from onward_protos.grpc_service_pb2 import ServerLiveResponse, ServerReadyResponse
from onward_protos.grpc_service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)


class Live(GRPCInferenceServiceServicer):
    def ServerLive(self, request: Any, context: Any) -> ServerLiveResponse:  # noqa: N802
        return ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> ServerReadyResponse:  # noqa: N802
        return ServerReadyResponse(ready=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with the openssl command")
def test_a_client_checks_the_servers_certificate(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_GRPCInferenceServiceServicer_to_server(Live(), server)
        pair = (key.read_bytes(), certificate.read_bytes())
        port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
        server.start()
        try:
            with Client(f"localhost:{port}", tls=certificate.read_bytes()) as trusting:
                assert trusting.server_live()
            with Client(f"localhost:{port}", tls=True) as strict, pytest.raises(UnavailableError):
                strict.server_live()
            address = f"localhost:{port}"
            asked = ["ready", "--address", address, "--timeout", "20"]
            run = CliRunner().invoke
            assert run(app, ["--ca", str(certificate), *asked]).output == "ready\n"
            assert run(app, asked, env={"ONWARD_CLIENT_CA": str(certificate)}).output == "ready\n"
            files = ["--certificate", str(certificate), "--certificate-key", str(key)]
            assert run(app, ["--ca", str(certificate), *files, *asked]).exit_code == 0
            for options, text in (
                (["--tls"], "UNAVAILABLE"),
                (["--ca", str(tmp_path / "none.pem")], "none.pem: cannot be read: No such file"),
                (files[:2], "--certificate and --certificate-key: give both"),
            ):
                failed = run(app, [*options, *asked])
                assert (failed.exit_code, text in failed.output) == (2, True)
        finally:
            server.stop(None).wait()
