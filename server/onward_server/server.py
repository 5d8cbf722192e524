"""A running server: binds, answers, drains."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from onward.errors import ConfigError
from onward_protos import cross_check_pb2, cross_check_pb2_grpc, grpc_service_pb2, grpc_service_pb2_grpc
from onward_server.dataplane import DataPlane
from onward_server.dataplane.executors import ENGINES, EngineFactory
from onward_server.grpc_servicers import CrossCheckServicer, InferenceServicer
from onward_server.settings import ServerSettings

__all__ = ["RunningServer", "running", "serve"]

_LOG = logging.getLogger(__name__)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_CLOSING_SECONDS = 1.0
_INFERENCE_SERVICE = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_CROSS_CHECK_SERVICE = cross_check_pb2.DESCRIPTOR.services_by_name["CrossCheckService"].full_name


@final
class RunningServer:
    """A server that takes requests.

    Attributes:
        plane: its models.
        address: what a client connects to, with the port that was bound.
        port: the port that was bound; 0 for a Unix socket.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        plane: DataPlane,
        checks: health.aio.HealthServicer,
        address: str,
        port: int,
    ) -> None:
        self.plane = plane
        self.address = address
        self.port = port
        self._server = server
        self._health = checks

    async def stop(self, drain_timeout: float) -> bool:
        """Report NOT_SERVING, refuse new requests, let running ones finish, then close.

        Returns:
            Whether every running request finished within `drain_timeout` seconds.
        """
        await self._health.enter_graceful_shutdown()
        finished = await self.plane.drain(drain_timeout)
        await self._server.stop(_CLOSING_SECONDS if finished else 0.0)
        self.plane.close()
        return finished


@asynccontextmanager
async def running(
    settings: ServerSettings, engines: Mapping[str, EngineFactory] = ENGINES
) -> AsyncIterator[RunningServer]:
    """Serve inside this event loop until the block ends, then drain.

    Raises:
        ConfigError: the repository cannot be read or the address cannot be bound.
    """
    server = await _start(settings, engines)
    try:
        yield server
    finally:
        if server.plane.ready:
            await server.stop(settings.drain_timeout)


async def serve(
    settings: ServerSettings,
    *,
    engines: Mapping[str, EngineFactory] = ENGINES,
    on_listening: Callable[[RunningServer], None] | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT, then drain; a second signal stops at once.

    Args:
        settings: see ServerSettings.
        engines: how to open a model in each engine.
        on_listening: called when requests are taken.

    Returns:
        Whether every running request finished within the drain timeout.

    Raises:
        ConfigError: the repository cannot be read or the address cannot be bound.
    """
    loop = asyncio.get_running_loop()
    stop, force = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (force if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with running(settings, engines) as server:
        if on_listening is not None:
            on_listening(server)
        await stop.wait()
        _LOG.info("stopping: %d requests are running", server.plane.pending)
        draining = asyncio.create_task(server.stop(settings.drain_timeout))
        forced = asyncio.create_task(force.wait())
        await asyncio.wait({draining, forced}, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if draining.done():
            return draining.result()
        draining.cancel()
        return False


async def _start(settings: ServerSettings, engines: Mapping[str, EngineFactory]) -> RunningServer:
    plane = await asyncio.to_thread(DataPlane, settings, engines)
    try:
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Without it a second server on the same port would take every other connection.
                ("grpc.so_reuseport", 0),
            ]
        )
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            InferenceServicer(plane, settings), server
        )
        cross_check_pb2_grpc.add_CrossCheckServiceServicer_to_server(CrossCheckServicer(plane), server)
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        reflection.enable_server_reflection(
            (_INFERENCE_SERVICE, _CROSS_CHECK_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        port = _bind(server, settings.listen)
        await server.start()
        for service in ("", _INFERENCE_SERVICE, _CROSS_CHECK_SERVICE, *plane.names):
            await checks.set(service, _SERVING)
    except BaseException:
        plane.close()
        raise
    address = settings.listen
    if not address.startswith("unix:"):
        address = f"{address.rpartition(':')[0]}:{port}"
    return RunningServer(server, plane, checks, address, port if not address.startswith("unix:") else 0)


def _bind(server: grpc.aio.Server, listen: str) -> int:
    port_text = listen.rpartition(":")[2]
    # gRPC takes such a port modulo 65536
    if not listen.startswith("unix:") and port_text.isdecimal() and int(port_text) > 65535:
        raise ConfigError(f"listen {listen!r}: the port must be at most 65535")
    try:
        port: int = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise ConfigError(f"listen {listen!r}: {error}") from error
    if not port:
        raise ConfigError(f"listen {listen!r}: the address cannot be bound")
    return port
