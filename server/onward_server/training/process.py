"""The process of a job, seen from the server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias, final

from onward import errors
from onward.errors import OnwardError
from onward_server import errors as server_errors
from onward_server.errors import ExecutionError, MemoryLimitError, WorkerLostError
from onward_server.storage import kept

__all__ = ["Listener", "TaskProcess"]

_LINE_BYTES = 1 << 24
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Listener: TypeAlias = Callable[[str, float, dict[str, Any]], None]
"""Called with an event's kind, time and fields."""


@final
class TaskProcess:
    """Runs one task of `onward_server.training.runner`.

    Args:
        log: the file that takes what the process writes beside events.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._stopped = False

    async def run(self, task: Mapping[str, Any], listener: Listener) -> dict[str, Any]:
        """Do a task to its end; cancelled, the process is killed.

        Returns:
            The fields of its result.

        Raises:
            OnwardError: what the task raised.
            StorageError: its log cannot be written.
            WorkerLostError: the process ended without a word.
        """
        environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, str(task["threads"]))}
        with kept("the job's log"), self._log.open("ab") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "onward_server.training.runner"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
                limit=_LINE_BYTES,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        found: dict[str, Any] | None = None
        failure: dict[str, Any] | None = None
        try:
            process.stdin.write(json.dumps(task).encode() + b"\n")
            if self._stopped:
                self.stop()
            while line := await process.stdout.readline():
                event = json.loads(line)
                if event["kind"] == "result":
                    found = event["fields"]
                elif event["kind"] == "error":
                    failure = event["fields"]
                else:
                    listener(event["kind"], event["time"], event["fields"])
            code = await process.wait()
        finally:
            if process.returncode is None:
                self.kill()
                await asyncio.shield(process.wait())
            process.stdin.close()
        if failure is not None:
            raise _error(failure["kind"], failure["text"])
        if found is None:
            if code == -signal.SIGKILL:
                raise WorkerLostError(
                    "the job's process was killed; it may have needed more memory than there is"
                )
            raise WorkerLostError(f"the job's process ended with {_ending(code)}")
        return found

    def stop(self) -> None:
        """Ask a run to stop after its step."""
        self._stopped = True
        process = self._process
        if process is not None and process.stdin is not None and process.returncode is None:
            with suppress(OSError, RuntimeError):
                process.stdin.write(b"stop\n")

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _error(kind: str, text: str) -> OnwardError:
    if kind == "MemoryLimitError":
        return MemoryLimitError(text)
    known = getattr(errors, kind, None) or getattr(server_errors, kind, None)
    if isinstance(known, type) and issubclass(known, OnwardError):
        return known(text)
    return ExecutionError(text)
