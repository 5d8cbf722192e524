"""`python -m onward_server.workers.zygote FD`: imports the engines once and forks a worker when asked.

The server's end of the socket sends `fork N` with three descriptors: the worker's socket, and the memory
files of its inputs and outputs; the worker gives way by N, as nice(1) has it. `spare` comes with one: the
socket of a copy of the zygote, which does the same once it is asked, and which outlives this one. A zygote
says its process id, tells how workers ended, and ends with its socket. Workers are killed with it by the
kernel, so nothing outlives a server, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def main() -> None:
    """Serve until the socket is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _import_engines()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _name(b"onward-zygote")
    control = socket.socket(fileno=int(sys.argv[1]))
    while True:
        control = _serve(control)


def _serve(control: socket.socket) -> socket.socket:
    """Do what `control` asks for; returns in a spare only, with that one's socket."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    _tell(control, {"pid": os.getpid()})
    while True:
        ready, _, _ = select.select([control.fileno(), wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _report(control)
        if control.fileno() not in ready:
            continue
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 64, 3)
        except ConnectionResetError:
            message, descriptors = b"", []
        if not message:
            os._exit(0)
        if _forked():
            control.close()
            signal.set_wakeup_fd(-1)
            os.close(wake_read)
            os.close(wake_write)
            if message == b"spare":
                os.setsid()
                _name(b"onward-spare")
                return socket.socket(fileno=descriptors[0])
            _become_worker(int(message.split()[1]), *descriptors)
        if message == b"spare":
            _name(b"onward-zygote")
        # where there was no room for a process, closing them tells the server
        for descriptor in descriptors:
            os.close(descriptor)


def _forked() -> bool:
    """Fork; whether this is the child."""
    try:
        return os.fork() == 0
    except OSError as error:
        print(f"no process can be forked: {error.strerror}", file=sys.stderr, flush=True)
        return False


def _import_engines() -> None:
    import onnxruntime  # noqa: F401

    import onward.compile
    import onward.engine.compiled
    import onward.ops  # noqa: F401
    import onward_server.dataplane.executors
    import onward_server.workers.worker  # noqa: F401

    # what was imported lives for ever: a collection in a worker must not touch, and so copy, its pages
    gc.collect()
    gc.freeze()


def _report(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _tell(control, {"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _tell(control: socket.socket, fields: dict[str, int]) -> None:
    try:
        control.send(json.dumps(fields).encode())
    except OSError:
        os._exit(0)


def _name(name: bytes) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name, 0, 0, 0)


def _become_worker(nice: int, channel: int, inputs: int, outputs: int) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.nice(nice)
    # where memory runs out, a worker goes before the server, and after a training job
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("300")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _name(b"onward-worker")
    from onward_server.workers.worker import work

    code = 1
    try:
        work(socket.socket(fileno=channel), inputs, outputs)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
