"""`python -m onward_server.healthcheck`: exit 0 when a server reports SERVING, 1 otherwise."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask `grpc.health.v1.Health/Check` once; returns 0 for SERVING and 1 for anything else."""
    parser = argparse.ArgumentParser(
        prog="python -m onward_server.healthcheck",
        description="Exit 0 when the server reports SERVING, 1 otherwise.",
    )
    parser.add_argument("--address", help="default: ONWARD_SERVER_LISTEN, or 127.0.0.1:8001")
    parser.add_argument("--service", default="", help="a gRPC service or a model; default: the whole server")
    parser.add_argument("--ca", type=Path, help="PEM of authorities: ask over TLS")
    parser.add_argument("--certificate", type=Path, help="PEM of a client's certificate, with --ca")
    parser.add_argument("--key", type=Path, help="PEM of its private key, with --ca")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds (3)")
    options = parser.parse_args(arguments)
    address = options.address or os.environ.get("ONWARD_SERVER_LISTEN") or "127.0.0.1:8001"

    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    target, settings = _reachable(address), [("grpc.enable_http_proxy", 0)]
    if options.ca is None:
        opened = grpc.insecure_channel(target, options=settings)
    else:
        files = (options.ca, options.key, options.certificate)
        try:
            pem = [None if file is None else file.read_bytes() for file in files]
        except OSError as error:
            print(f"{error.filename}: {error.strerror}", file=sys.stderr)
            return 1
        opened = grpc.secure_channel(target, grpc.ssl_channel_credentials(*pem), options=settings)
    with opened as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=options.service), timeout=options.timeout
            )
        except grpc.RpcError as error:
            print(f"{address}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    state = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(f"{address}: {state}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


def _reachable(address: str) -> str:
    host, colon, port = address.rpartition(":")
    local = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}
    return f"{local[host]}{colon}{port}" if host in local else address


if __name__ == "__main__":
    sys.exit(main())
