"""A running server: binds, answers, reloads, drains."""

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

from onward.errors import ConfigError, OnwardError
from onward_server.access import AccessLog
from onward_server.dataplane import DataPlane
from onward_server.dataplane.executors import EngineFactory
from onward_server.grpc_servicers import CROSS_CHECK_SERVICE, INFERENCE_SERVICE, handlers
from onward_server.http_server import HttpServer
from onward_server.settings import ServerSettings, changed_at_rest
from onward_server.tls import grpc_credentials

__all__ = ["RunningServer", "running", "serve"]

_LOG = logging.getLogger(__name__)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_CLOSING_SECONDS = 1.0
_HEALTH_SECONDS = 0.2
_MANY = 2**31 - 1


@final
class _DepartedClients(logging.Filter):
    """Leaves out what gRPC logs, with a traceback, of answers to clients that have gone."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "ExecuteBatchError" not in record.getMessage()


_DEPARTED = _DepartedClients()


@final
class RunningServer:
    """A server that takes requests.

    Attributes:
        plane: its models.
        address: what a gRPC client connects to, with the port that was bound.
        port: the port that was bound; 0 for a Unix socket.
        http_address: what an HTTP client connects to; empty without that port.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        http: HttpServer | None,
        plane: DataPlane,
        checks: health.aio.HealthServicer,
        address: str,
        port: int,
    ) -> None:
        self.plane = plane
        self.address = address
        self.port = port
        self.http_address = "" if http is None else http.address
        self._server = server
        self._http = http
        self._health = checks
        self._known: set[str] = set()
        self._tasks = [asyncio.get_running_loop().create_task(self._report_health())]
        if plane.settings.model_control == "poll":
            self._tasks.append(asyncio.get_running_loop().create_task(plane.watch()))

    async def reload(self, settings: ServerSettings | None = None) -> None:
        """Look at the repository, the certificates and new settings again.

        Args:
            settings: None: those in force. What only a start can change is named in the log.
        """
        if settings is not None:
            for name in changed_at_rest(self.plane.settings, settings):
                _LOG.warning("%s has changed; it takes effect when the server starts again", name)
        try:
            await self.plane.refresh(settings)
            if self._http is not None:
                self._http.reload()
        except OnwardError as error:
            _LOG.error("reload: %s", error)
        else:
            _LOG.info("reloaded: models %s", ", ".join(self.plane.names) or "none")

    async def stop(self, drain_timeout: float, pause: float = 0.0) -> bool:
        """Report NOT_SERVING, pause, refuse new requests, let running ones finish, then close.

        Args:
            drain_timeout: seconds for the running requests.
            pause: seconds in which requests are still taken, so that load balancers learn of it.

        Returns:
            Whether every running request finished within `drain_timeout` seconds.
        """
        for task in self._tasks:
            task.cancel()
        await self._health.enter_graceful_shutdown()
        if self._http is not None:
            self._http.ready = False
        if pause:
            _LOG.info("health is NOT_SERVING; requests are taken for %g s more", pause)
            await asyncio.sleep(pause)
        finished = await self.plane.drain(drain_timeout)
        if self._http is not None:
            await self._http.stop(_CLOSING_SECONDS if finished else 0.0)
        await self._server.stop(_CLOSING_SECONDS if finished else 0.0)
        self.plane.close()
        return finished

    async def _report_health(self) -> None:
        """Keep the health of each model equal to what is served."""
        while True:
            names = set(self.plane.names)
            for name in names - self._known:
                await self._health.set(name, _SERVING)
            for name in self._known - names:
                await self._health.set(name, _NOT_SERVING)
            self._known = names
            await asyncio.sleep(_HEALTH_SECONDS)


@asynccontextmanager
async def running(
    settings: ServerSettings, engines: Mapping[str, EngineFactory] | None = None
) -> AsyncIterator[RunningServer]:
    """Serve inside this event loop until the block ends, then drain.

    Args:
        settings: see ServerSettings.
        engines: how to open a model in each engine; given, models run in threads of this process.

    Raises:
        ConfigError: the repository cannot be read or an address cannot be bound.
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
    engines: Mapping[str, EngineFactory] | None = None,
    on_listening: Callable[[RunningServer], None] | None = None,
    read_again: Callable[[], ServerSettings] | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT, then drain; a second signal stops at once. SIGHUP reloads.

    Args:
        settings: see ServerSettings.
        engines: how to open a model in each engine; given, models run in threads of this process.
        on_listening: called when requests are taken.
        read_again: gives the settings anew, on SIGHUP; None: they stay.

    Returns:
        Whether every running request finished within the drain timeout.

    Raises:
        ConfigError: the repository cannot be read or an address cannot be bound.
    """
    loop = asyncio.get_running_loop()
    stop, force = asyncio.Event(), asyncio.Event()
    reloads: set[asyncio.Task[None]] = set()

    def on_signal() -> None:
        (force if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    async with running(settings, engines) as server:

        async def reload() -> None:
            try:
                await server.reload(read_again() if read_again is not None else None)
            except OnwardError as error:
                _LOG.error("reload: %s; everything stays as it is", error)

        def on_hangup() -> None:
            task = loop.create_task(reload())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        loop.add_signal_handler(signal.SIGHUP, on_hangup)
        if on_listening is not None:
            on_listening(server)
        await stop.wait()
        _LOG.info("stopping: %d requests are running", server.plane.pending)
        draining = asyncio.create_task(server.stop(settings.drain_timeout, settings.shutdown_pause))
        forced = asyncio.create_task(force.wait())
        await asyncio.wait({draining, forced}, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if draining.done():
            return draining.result()
        draining.cancel()
        server.plane.close()
        return False


async def _start(settings: ServerSettings, engines: Mapping[str, EngineFactory] | None) -> RunningServer:
    plane = await DataPlane.open(settings, engines)
    http = None
    try:
        limits = settings.limits
        log = AccessLog(lambda: plane.settings.access_log)
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", limits.metadata_bytes),
                ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
                ("grpc.max_allowed_incoming_connections", limits.connections),
                ("grpc.max_connection_idle_ms", int(limits.idle_seconds * 1e3)),
                # Without these gRPC itself cancels calls of a burst, before the data plane can refuse them.
                ("grpc.server.max_pending_requests", _MANY),
                ("grpc.server.max_pending_requests_hard_limit", _MANY),
                # Without it a second server on the same port would take every other connection.
                ("grpc.so_reuseport", 0),
            ]
        )
        logging.getLogger("grpc._cython.cygrpc").addFilter(_DEPARTED)
        server.add_generic_rpc_handlers(tuple(handlers(plane, log)))
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        reflection.enable_server_reflection(
            (INFERENCE_SERVICE, CROSS_CHECK_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        port = _bind(server, settings, plane)
        if settings.http_listen:
            http = HttpServer(plane, log)
            await http.start()
        await server.start()
        for service in ("", INFERENCE_SERVICE, CROSS_CHECK_SERVICE, *plane.names):
            await checks.set(service, _SERVING)
    except BaseException:
        if http is not None:
            await http.stop(0.0)
        plane.close()
        raise
    address = settings.listen
    if not address.startswith("unix:"):
        address = f"{address.rpartition(':')[0]}:{port}"
    return RunningServer(server, http, plane, checks, address, port if not address.startswith("unix:") else 0)


def _bind(server: grpc.aio.Server, settings: ServerSettings, plane: DataPlane) -> int:
    listen, tls = settings.listen, settings.tls
    port_text = listen.rpartition(":")[2]
    # gRPC takes such a port modulo 65536
    if not listen.startswith("unix:") and port_text.isdecimal() and int(port_text) > 65535:
        raise ConfigError(f"listen {listen!r}: the port must be at most 65535")
    try:
        if tls is None:
            port: int = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, grpc_credentials(lambda: plane.settings.tls or tls))
    except RuntimeError as error:
        raise ConfigError(f"listen {listen!r}: {error}") from error
    if not port:
        raise ConfigError(f"listen {listen!r}: the address cannot be bound")
    return port
