"""Work that is done before it is asked for, in its own order: by a thread, or by other processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from onward.errors import ConfigError, DataError

__all__ = ["ahead", "in_processes"]

T = TypeVar("T")
R = TypeVar("R")

_POLL_SECONDS = 0.05
_LAST_SECONDS = 10.0


def ahead(items: Generator[T, None, None], count: int) -> Generator[T, None, None]:
    """The same items in the same order, up to `count` of them made by a thread before they are asked for.

    What the thread raises is raised here, in its place. Closing this generator ends the thread, after the
    item that it is making, and closes `items`.
    """
    if count < 1:
        yield from items
        return
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(count)
    stop = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                made.put((item, error), timeout=_POLL_SECONDS)
                return

    def work() -> None:
        try:
            for item in items:
                put(item, None)
                if stop.is_set():
                    break
            put(None, StopIteration())
        except BaseException as error:  # noqa: BLE001 - it is the run's
            put(None, error)
        finally:
            items.close()

    thread = threading.Thread(target=work, name="onward-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join(_LAST_SECONDS)


def in_processes(
    work: Callable[[Any], R], tasks: Iterable[Any], workers: int, count: int
) -> Generator[R, None, None]:
    """`work(task)` for each task, in the tasks' order, by processes of their own.

    Args:
        work: is pickled once for each process.
        tasks: each is pickled.
        workers: how many processes there are.
        count: how many results are made before they are asked for, at least one a process.

    Raises:
        ConfigError: `work` cannot be pickled.
        DataError: a process ended before its work was done.
        Exception: what `work` raises, in its place.
    """
    try:
        content = pickle.dumps(work)
    except Exception as error:  # noqa: BLE001 - pickling runs anyone's code
        raise ConfigError(
            f"the data cannot be sent to worker processes ({error}); define their class at the top of a "
            "module, or say workers=0, which reads in a thread"
        ) from None
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(content,)
    )
    waiting: deque[Future[Any]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(_do, task))
            if len(waiting) > max(count, workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process that reads data ended before its work was done: it ran out of memory or was "
            "killed, or the program that starts it has no `if __name__ == '__main__':` around its own work"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: Callable[[Any], Any] | None = None


def _begin(content: bytes) -> None:
    global _work
    _work = pickle.loads(content)


def _do(task: Any) -> Any:
    assert _work is not None
    return _work(task)
