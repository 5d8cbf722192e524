"""`grpc.health.v1.Health`: whether the server, each service and each model by name takes requests.

Source: "GRPC Health Checking Protocol" (health-checking.md of gRPC).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from onward_server.grpc_calls import Call, CallFailed, StreamMethod, UnaryMethod

__all__ = ["Health"]

_SERVICE: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_STATUS = health_pb2.HealthCheckResponse.ServingStatus


@final
class Health:
    """States by name, and who watches them; used on one event loop."""

    name = _SERVICE

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._stopping = False
        self._changed = asyncio.Event()

    def set(self, name: str, serving: bool) -> None:
        """Say whether `name` takes requests; without effect once the server is stopping."""
        if self._serving.get(name) is not serving:
            self._serving[name] = serving
            self._tell()

    def stop(self) -> None:
        """Nothing takes requests any more."""
        self._stopping = True
        self._tell()

    def methods(self) -> tuple[dict[str, UnaryMethod], dict[str, StreamMethod]]:
        """By path: unary ones, and those of streams."""
        return {f"/{_SERVICE}/Check": self._check}, {f"/{_SERVICE}/Watch": self._watch}

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _status(self, name: str) -> int:
        serving = self._serving.get(name)
        if serving is None:
            return _STATUS.Value("SERVICE_UNKNOWN")
        return _STATUS.Value("SERVING" if serving and not self._stopping else "NOT_SERVING")

    def _check(self, call: Call, data: bytes | memoryview) -> bytes:
        status = self._status(_service(data))
        if status == _STATUS.Value("SERVICE_UNKNOWN"):
            raise CallFailed("NOT_FOUND", "no service or model has this name")
        answer: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
        return answer

    async def _watch(self, call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        name: str | None = None
        async for data in requests:
            name = _service(data)
            break
        if name is None:
            raise CallFailed("INVALID_ARGUMENT", "the request has no message")
        last = None
        while True:
            changed, status = self._changed, self._status(name)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status).SerializeToString()
            await changed.wait()


def _service(data: bytes | memoryview) -> str:
    try:
        found: str = health_pb2.HealthCheckRequest.FromString(data).service
    except (DecodeError, UnicodeDecodeError, ValueError):
        raise CallFailed("INVALID_ARGUMENT", "the request is not a HealthCheckRequest message") from None
    return found
