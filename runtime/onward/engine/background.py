"""Plans that are made on a thread of their own while runs go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, final

from onward.errors import ConfigError, OnwardError

__all__ = ["Background"]

T = TypeVar("T")


@final
class Background(Generic[T]):
    """Makes things by key, one after the other; each is made once.

    At the end of the process what is being made is waited for.
    """

    def __init__(self) -> None:
        self._jobs: dict[Hashable, Future[T]] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="onward-plan")
        self._lock = threading.Lock()
        self._closed = False

    def start(self, key: Hashable, make: Callable[[], T]) -> None:
        """Begin, unless it was begun before.

        Raises:
            ConfigError: it is closed.
        """
        with self._lock:
            if self._closed:
                raise ConfigError("the session is closed: open a new one")
            if key not in self._jobs:
                self._jobs[key] = self._worker.submit(make)

    def done(self, key: Hashable) -> bool:
        """Whether making it has ended, well or not."""
        with self._lock:
            job = self._jobs.get(key)
        return job is not None and job.done()

    def claim(self, key: Hashable) -> Future[T] | None:
        """What is made, or being made, for the caller to wait for; what waits for its turn is left out."""
        with self._lock:
            job = self._jobs.pop(key, None)
        return None if job is None or job.cancel() else job

    def take(self, key: Hashable) -> T:
        """What was made; it is forgotten here. What went wrong stays, for later calls too.

        Raises:
            OnwardError: of the kind that making it raised.
            RuntimeError: making it raised anything else.
        """
        with self._lock:
            job = self._jobs[key]
            if (error := job.exception()) is None:
                del self._jobs[key]
        if error is None:
            return job.result()
        kind = type(error) if isinstance(error, OnwardError) else RuntimeError
        raise kind(f"planning in the background failed: {error}") from error

    def forget(self) -> None:
        """Leave out what waits, and drop what is made or being made."""
        with self._lock:
            for job in self._jobs.values():
                job.cancel()
            self._jobs.clear()

    def close(self) -> None:
        """Leave out what waits, and wait for what is being made; a second call does nothing."""
        with self._lock:
            self._closed = True
        self.forget()
        self._worker.shutdown(wait=True)
