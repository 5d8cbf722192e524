"""`python -m onward_server.workers.zygote FD`: imports the engines once and forks a worker when asked.

The server's end of the socket sends `fork N` with three descriptors: the worker's socket, and the memory
files of its inputs and outputs; the worker gives way by N, as nice(1) has it. The zygote tells how workers
ended, and ends with its socket. Workers are killed with it by the kernel, so nothing outlives a server,
however that ends.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def main() -> None:
    """Serve until the socket is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _import_engines()
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([control.fileno(), wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _report(control)
        if control.fileno() in ready:
            try:
                message, descriptors, _, _ = socket.recv_fds(control, 64, 3)
            except ConnectionResetError:
                message, descriptors = b"", []
            if not message:
                os._exit(0)
            if os.fork() == 0:
                control.close()
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(wake_read)
                os.close(wake_write)
                _become_worker(int(message.split()[1]), *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


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
        ended = json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)})
        try:
            control.send(ended.encode())
        except OSError:
            os._exit(0)


def _become_worker(nice: int, channel: int, inputs: int, outputs: int) -> None:
    os.nice(nice)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NAME, b"onward-worker", 0, 0, 0)
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
