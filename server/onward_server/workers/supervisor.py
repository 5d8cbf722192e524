"""The server's side of its workers: a zygote with a spare that takes its place, and calls with a time limit.

Everything here belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import onward.errors
import onward_server.errors
from onward.errors import OnwardError
from onward.graph import Array
from onward_server.errors import ExecutionError, RunTimeoutError, WorkerLostError
from onward_server.workers.memory import Region, memory_file
from onward_server.workers.worker import MAX_HEADER_BYTES

__all__ = ["Worker", "Zygote", "error_of"]

_LOG = logging.getLogger(__name__)
_FORK_SECONDS = 30.0
_FORKS = 3
_SPARE_SECONDS = 1.0
_ROOM_SECONDS = 0.05
_STATUS_SECONDS = 0.5
_LARGE = 1 << 20

_ERRORS: Mapping[str, type[OnwardError]] = {
    name: kind
    for module in (onward.errors, onward_server.errors)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, OnwardError)
}


@final
class Zygote:
    """Forks workers; started when the first one is asked for, with a spare that takes its place."""

    def __init__(self) -> None:
        self._current: _Forker | None = None
        self._spare: _Forker | None = None
        self._closed = False

    @property
    def pids(self) -> tuple[int, int]:
        """Process ids of the zygote and of its spare; 0 where there is none yet."""
        return (self._current.pid if self._current else 0, self._spare.pid if self._spare else 0)

    async def fork(self, nice: int = 0) -> Worker:
        """A new worker.

        Args:
            nice: by how much it gives way to the server, as nice(1) has it.

        Raises:
            WorkerLostError: it did not come up.
            RunTimeoutError: it did not in time.
        """
        failure: OnwardError = WorkerLostError("a worker could not be started")
        for _ in range(_FORKS):
            forker = self._started()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            inputs, outputs = memory_file("onward-inputs"), memory_file("onward-outputs")
            worker = Worker(forker, ours, Region(inputs), Region(outputs))
            try:
                with theirs:
                    sent = await forker.ask(b"fork %d" % nice, [theirs.fileno(), inputs, outputs])
                if sent:
                    await worker.greeted(_FORK_SECONDS)
                    return worker
                worker.kill()
            except (WorkerLostError, RunTimeoutError) as error:
                worker.kill()
                failure = error
            except BaseException:
                worker.kill()
                raise
        raise failure

    def close(self) -> None:
        """End the zygote, its spare and every worker."""
        self._closed = True
        for forker in (self._spare, self._current):
            if forker is not None:
                forker.close()

    def _started(self) -> _Forker:
        if self._closed:
            raise WorkerLostError("the server is stopping")
        if self._current is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                process = _launched(theirs.fileno())
            self._current = _Forker(ours, self._lost, process)
            self._renew()
        return self._current

    def _renew(self) -> None:
        """Have the zygote fork a spare, where there is none."""
        if self._closed or self._current is None or self._spare is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                sent = self._current.send(b"spare", [theirs.fileno()])
            except BlockingIOError:
                sent = False
                asyncio.get_running_loop().call_later(_SPARE_SECONDS, self._renew)
        if sent:
            self._spare = _Forker(ours, self._lost)
        else:
            ours.close()

    def _lost(self, forker: _Forker) -> None:
        if forker is self._spare:
            self._spare = None
            asyncio.get_running_loop().call_later(_SPARE_SECONDS, self._renew)
        elif forker is self._current:
            self._current, self._spare = self._spare, None
            if self._closed:
                return
            then = "its spare takes its place" if self._current else "it is started again when it is needed"
            _LOG.warning("the process that forks workers ended; %s", then)
            asyncio.get_running_loop().call_later(_SPARE_SECONDS, _reap, {forker.pid, *forker.workers} - {0})
            self._renew()


@final
class _Forker:
    """A zygote or a spare: the socket to it, and how its workers ended.

    Args:
        control: our end of the socket.
        on_end: called once, when it has ended.
        process: where it is a child of ours.

    Attributes:
        pid: its process id; 0 before it has said it.
        workers: process ids of its workers that have not ended.
    """

    def __init__(
        self,
        control: socket.socket,
        on_end: Callable[[_Forker], None],
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.pid = 0
        self.workers: set[int] = set()
        self._control = control
        self._on_end = on_end
        self._process = process
        self._codes: dict[int, asyncio.Future[int | None]] = {}
        control.setblocking(False)
        asyncio.get_running_loop().add_reader(control, self._readable)

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._control.fileno() >= 0

    async def ask(self, message: bytes, descriptors: Sequence[int]) -> bool:
        """Send a message, waiting for room; whether it could be sent."""
        while self.alive:
            try:
                return self.send(message, descriptors)
            except BlockingIOError:
                await asyncio.sleep(_ROOM_SECONDS)
        return False

    def send(self, message: bytes, descriptors: Sequence[int]) -> bool:
        """Send a message; whether it could be sent. Raises BlockingIOError while there is no room."""
        try:
            socket.send_fds(self._control, [message], descriptors)
        except BlockingIOError:
            raise
        except OSError:
            self.close()
            return False
        return True

    async def code(self, pid: int) -> int | None:
        """How a worker ended: its exit code, or minus the signal; None when that is not known in time."""
        if not self.alive:
            return None
        future = self._codes.setdefault(pid, asyncio.get_running_loop().create_future())
        try:
            return await asyncio.wait_for(asyncio.shield(future), _STATUS_SECONDS)
        except TimeoutError:
            return None
        finally:
            self._codes.pop(pid, None)

    def close(self) -> None:
        """End it, and with it its workers."""
        if not self.alive:
            return
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for future in self._codes.values():
            if not future.done():
                future.set_result(None)
        self._on_end(self)

    def _readable(self) -> None:
        try:
            message = self._control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self.close()
            return
        told = json.loads(message)
        if "pid" in told:
            self.pid = told["pid"]
            return
        self.workers.discard(told["ended"])
        future = self._codes.get(told["ended"])
        if future is None:
            future = self._codes[told["ended"]] = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(10 * _STATUS_SECONDS, self._codes.pop, told["ended"], None)
        if not future.done():
            future.set_result(told["code"])


def _launched(control: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    # a worker computes on the threads that its model was given, and nothing else may spin beside it
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment.setdefault(name, "1")
    environment.setdefault("ORT_DISABLE_TELEMETRY", "1")
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-m", "onward_server.workers.zygote", str(control)],
        env=environment,
        pass_fds=[control],
        stdin=subprocess.DEVNULL,
        stdout=2,
        start_new_session=True,
    )


def _reap(pids: Iterable[int]) -> None:
    """Take the entries of ended processes that are ours now: a container's first process inherits them."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


@final
class Worker:
    """A worker process; one call at a time.

    Attributes:
        pid: its process id; 0 before it has said it.
        on_idle_end: called when the process ends while nothing is asked of it.
    """

    def __init__(self, forker: _Forker, channel: socket.socket, inputs: Region, outputs: Region) -> None:
        self.pid = 0
        self._forker = forker
        self._channel = channel
        self._inputs = inputs
        self._outputs = outputs
        self._handle = -1
        self._waiting: asyncio.Future[bytes] | None = None
        self._killed = ""
        self.on_idle_end: Callable[[], None] | None = None
        channel.setblocking(False)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_HEADER_BYTES)
        asyncio.get_running_loop().add_reader(channel, self._readable)

    @property
    def alive(self) -> bool:
        """Whether it can be called."""
        return self._channel.fileno() >= 0

    async def greeted(self, timeout: float) -> None:
        """Wait until the process has come up."""
        self.pid = int(json.loads(await self._answer(timeout, "starting a worker"))["pid"])
        self._forker.workers.add(self.pid)
        try:
            self._handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            raise WorkerLostError("the worker ended before it was used") from None

    async def call(
        self, header: Mapping[str, Any], arrays: Mapping[str, Array], timeout: float, what: str
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """Send a call with arrays; the answer's header and arrays.

        Args:
            header: its `call` and what that needs.
            arrays: tensors of the call.
            timeout: seconds after which the worker is killed.
            what: what is called, for error texts.

        Raises:
            RunTimeoutError: it took longer; the worker is gone.
            WorkerLostError: the worker ended.
            OnwardError: what the call raised in the worker.
        """
        large = sum(array.nbytes for array in arrays.values()) > _LARGE
        tensors = await asyncio.to_thread(self._inputs.write, arrays) if large else self._inputs.write(arrays)
        try:
            self._channel.send(json.dumps({**header, "tensors": tensors}).encode())
        except OSError:
            self.kill()
            raise WorkerLostError(f"{what}: the worker had ended") from None
        answer = json.loads(await self._answer(timeout, what))
        if "error" in answer:
            raise error_of(answer)
        entries = answer.pop("tensors", [])
        if sum(entry[4] for entry in entries) > _LARGE:
            return answer, await asyncio.to_thread(self._outputs.read, entries, copy=True)
        return answer, self._outputs.read(entries, copy=True)

    def kill(self, why: str = "") -> None:
        """End the process at once; whoever waits for it gets a WorkerLostError."""
        self._killed = self._killed or why
        if self._handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            os.close(self._handle)
            self._handle = -1
        if self.alive:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
            self._inputs.close()
            self._outputs.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(WorkerLostError(self._killed or "the worker was stopped"))

    async def _answer(self, timeout: float, what: str) -> bytes:
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                message = await self._waiting
        except TimeoutError:
            self._waiting = None
            self.kill()
            raise RunTimeoutError(f"{what}: it took longer than {timeout:g} s and was stopped") from None
        finally:
            self._waiting = None
        if message:
            return message
        pid = self.pid
        self.kill()
        raise WorkerLostError(f"{what}: the worker ended ({_how(await self._forker.code(pid))})")

    def _readable(self) -> None:
        try:
            message = self._channel.recv(MAX_HEADER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(message)
        elif not message:
            _LOG.warning("worker %d ended while it was idle", self.pid)
            self.kill()
            if self.on_idle_end is not None:
                self.on_idle_end()


def error_of(answer: Mapping[str, Any]) -> OnwardError:
    """The error that a worker describes."""
    return _ERRORS.get(answer["error"], ExecutionError)(answer["text"])


def _how(code: int | None) -> str:
    if code is None:
        return "it is not known how"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
