"""A running server: binds, answers, reloads, drains."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import final

from onward.errors import OnwardError
from onward_server.access import AccessLog
from onward_server.dataplane import DataPlane
from onward_server.dataplane.executors import EngineFactory
from onward_server.grpc_port import GrpcPort
from onward_server.grpc_servicers import CROSS_CHECK_SERVICE, INFERENCE_SERVICE, methods
from onward_server.grpc_training import TRAINING_SERVICE, training_methods
from onward_server.health import Health
from onward_server.http_server import HttpServer
from onward_server.reflection import Reflection
from onward_server.settings import ServerSettings, changed_at_rest
from onward_server.statuses import public_reason
from onward_server.tls import FollowedContext, ssl_context
from onward_server.training import TrainingService

__all__ = ["RunningServer", "running", "serve"]

_LOG = logging.getLogger(__name__)
_CLOSING_SECONDS = 1.0
_HEALTH_SECONDS = 0.2


@final
class RunningServer:
    """A server that takes requests.

    Attributes:
        plane: its models.
        training: its jobs; None: not enabled.
        address: what a gRPC client connects to, with the port that was bound.
        port: the port that was bound; 0 for a Unix socket.
        http_address: what an HTTP client connects to; empty without that port.
    """

    def __init__(
        self,
        grpc: GrpcPort,
        http: HttpServer | None,
        plane: DataPlane,
        health: Health,
        tls: FollowedContext | None,
        training: TrainingService | None,
        address: str,
        port: int,
    ) -> None:
        self.plane = plane
        self.training = training
        self.address = address
        self.port = port
        self.http_address = "" if http is None else http.address
        self._grpc = grpc
        self._http = http
        self._health = health
        self._tls = tls
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
            self._follow_certificates(again=True)
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
        self._health.stop()
        if self._http is not None:
            self._http.ready = False
        if pause:
            _LOG.info("health is NOT_SERVING; requests are taken for %g s more", pause)
            await asyncio.sleep(pause)
        finishing = self.plane.drain(drain_timeout)
        if self.training is None:
            finished = await finishing
        else:
            finished, _ = await asyncio.gather(finishing, self.training.close(drain_timeout))
        if self._http is not None:
            await self._http.stop(_CLOSING_SECONDS if finished else 0.0)
        await self._grpc.stop(_CLOSING_SECONDS if finished else 0.0)
        self.plane.close()
        return finished

    def _follow_certificates(self, *, again: bool = False) -> None:
        if self._tls is not None:
            self._tls.follow(again=again)
        if self._http is not None:
            self._http.follow(again=again)

    async def _report_health(self) -> None:
        """Keep the health of each model equal to what is served."""
        while True:
            names = set(self.plane.names)
            for name in names - self._known:
                self._health.set(name, True)
            for name in self._known - names:
                self._health.set(name, False)
            self._known = names
            self._follow_certificates()
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
        current = server.plane.settings
        draining = asyncio.create_task(server.stop(current.drain_timeout, current.shutdown_pause))
        forced = asyncio.create_task(force.wait())
        await asyncio.wait({draining, forced}, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if draining.done():
            return draining.result()
        draining.cancel()
        server.plane.close()
        return False


async def _start(settings: ServerSettings, engines: Mapping[str, EngineFactory] | None) -> RunningServer:
    if settings.tls is not None:
        # before models are opened, which takes longer
        ssl_context(settings.tls)
    plane = await DataPlane.open(settings, engines)
    http = None
    grpc = None
    training = None
    try:
        log = AccessLog(lambda: plane.settings.access_log)
        health = Health()
        unary, streams, glances = methods(plane, log)
        checks, watches = health.methods()
        services = [INFERENCE_SERVICE, CROSS_CHECK_SERVICE]
        if settings.training is not None:
            training = await asyncio.to_thread(TrainingService, settings.training, plane, public_reason)
            more, further = training_methods(training, plane, log)
            unary, streams = {**unary, **more}, {**streams, **further}
            services.append(TRAINING_SERVICE)
            await training.begin()
        reflection = Reflection((*services, health.name))
        grpc = GrpcPort(
            {**unary, **checks},
            {**streams, **watches, **reflection.methods()},
            lambda: plane.settings.limits,
            settings.max_message_bytes,
            glances,
        )
        for service in ("", *services, *plane.names):
            health.set(service, True)
        tls = None
        if settings.tls is not None:
            chosen = settings.tls
            tls = FollowedContext(lambda: plane.settings.tls or chosen, "h2")
        port = await grpc.listen(settings.listen, None if tls is None else tls.context)
        if settings.http_listen:
            http = HttpServer(plane, log, training)
            await http.start()
    except BaseException:
        if grpc is not None:
            await grpc.stop(0.0)
        if http is not None:
            await http.stop(0.0)
        if training is not None:
            await training.close(0.0)
        plane.close()
        raise
    address = settings.listen
    if not address.startswith("unix:"):
        address = f"{address.rpartition(':')[0]}:{port}"
    return RunningServer(grpc, http, plane, health, tls, training, address, port)
