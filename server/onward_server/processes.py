"""A server beside synchronous code: in a thread of this process, or in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Self, final

from onward_server.dataplane.executors import EngineFactory
from onward_server.errors import ServerError
from onward_server.server import RunningServer, running
from onward_server.settings import ServerSettings

__all__ = ["ServerProcess", "ServerThread"]


@final
class ServerThread:
    """A server with an event loop in a thread of this process; a context manager.

    Args:
        settings: see ServerSettings.
        engines: how to open a model in each engine; given, models run in threads of this process.

    Raises:
        ConfigError: the repository cannot be read or the address cannot be bound.
    """

    def __init__(self, settings: ServerSettings, engines: Mapping[str, EngineFactory] | None = None) -> None:
        self._started: Future[tuple[RunningServer, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(settings, engines), name="onward-server", daemon=True
        )
        self._thread.start()
        self._server, self._loop, self._stop = self._started.result()

    @property
    def address(self) -> str:
        """What a client connects to."""
        return self._server.address

    @property
    def http_address(self) -> str:
        """What an HTTP client connects to; empty without that port."""
        return self._server.http_address

    @property
    def server(self) -> RunningServer:
        """The server and its models; its statistics may be read from any thread."""
        return self._server

    def stop(self) -> None:
        """Drain and stop; returns when the thread has ended."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, settings: ServerSettings, engines: Mapping[str, EngineFactory] | None) -> None:
        async def main() -> None:
            stop = asyncio.Event()
            async with running(settings, engines) as server:
                self._started.set_result((server, asyncio.get_running_loop(), stop))
                await stop.wait()

        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - whoever waits for the start has to learn of it
            if not self._started.done():
                self._started.set_exception(error)


@final
class ServerProcess:
    """A server in a process of its own, as `python -m onward_server` starts it; a context manager.

    Args:
        settings: see ServerSettings; the child gets them through its environment.

    Raises:
        ServerError: the process ended before it took requests; the text is its last line.
    """

    def __init__(self, settings: ServerSettings) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ONWARD_SERVER_")}
        for name, value in settings.model_dump(mode="json", exclude_defaults=True).items():
            environment[f"ONWARD_SERVER_{name.upper()}"] = (
                value if isinstance(value, str) else json.dumps(value)
            )
        path = [entry for entry in sys.path if entry]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "onward_server"], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.stdout.close()
            code = self._process.wait()
            raise ServerError(f"the server ended with exit code {code} before it took requests; see its log")
        listening = json.loads(line)
        self.address: str = listening["address"]
        self.port: int = listening["port"]
        self.http_address: str = listening["http_address"]

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def stop(self, timeout: float = 60.0) -> int:
        """Send SIGTERM, wait for the end, kill after `timeout` s; returns the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
