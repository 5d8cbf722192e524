"""Ranks that are threads of one process: for tests of what several processes compute."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, final

import numpy as np

from onward.errors import TrainingError
from onward.graph import Array

__all__ = ["ThreadCommunicator", "run_ranks"]

_T = TypeVar("_T")


class _Shared:
    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.given: dict[tuple[str, int], dict[int, Array]] = {}
        self.made: dict[tuple[str, int], tuple[list[Array], int]] = {}
        self.broken = False


@final
class ThreadCommunicator:
    """One of several threads; made by `run_ranks`. Sums are taken in the order of ranks."""

    def __init__(self, shared: _Shared, rank: int) -> None:
        self._shared = shared
        self._turns: dict[str, int] = {}
        self.rank = rank
        self.size = shared.size

    def all_reduce_start(self, array: Array) -> Any:
        """Give an array; the last rank to give sums them."""
        return self._give("sum", array, array)

    def all_to_all_start(self, sent: Array, received: Array) -> Any:
        """Give pieces to all ranks."""
        return self._give("deal", sent, received)

    def all_gather_start(self, array: Array) -> Any:
        """Give this rank's piece to all."""
        return self._give("gather", np.split(array, self.size)[self.rank], array)

    def _give(self, what: str, array: Array, target: Array) -> tuple[tuple[str, int], Array]:
        shared, turn = self._shared, (what, self._turns.get(what, 0))
        self._turns[what] = turn[1] + 1
        with shared.changed:
            given = shared.given.setdefault(turn, {})
            given[self.rank] = array.copy()
            if len(given) == self.size:
                arrays = [given[rank] for rank in range(self.size)]
                if len({(a.shape, a.dtype) for a in arrays}) > 1:
                    shared.broken = True
                else:
                    shared.made[turn] = _made(what, arrays), self.size
                del shared.given[turn]
                shared.changed.notify_all()
        return turn, target

    def all_reduce_wait(self, pending: tuple[tuple[str, int], Array]) -> None:
        """Wait until a sum is there.

        Raises:
            TrainingError: another rank has ended, or gave something else.
        """
        turn, array = pending
        shared = self._shared
        with shared.changed:
            shared.changed.wait_for(lambda: shared.broken or turn in shared.made)
            if shared.broken:
                raise TrainingError("another rank has ended")
            results, left = shared.made[turn]
            array[...] = results[self.rank]
            if left == 1:
                del shared.made[turn]
            else:
                shared.made[turn] = results, left - 1

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Replace an array by that of a rank."""
        raw = array.reshape(-1).view(np.uint8)
        mine = raw.astype(np.int64) if self.rank == root else np.zeros(raw.size, np.int64)
        self.all_reduce_wait(self.all_reduce_start(mine))
        if self.rank != root:
            raw[...] = mine.astype(np.uint8)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.all_reduce_wait(self.all_reduce_start(np.zeros(1)))


def _made(what: str, arrays: list[Array]) -> list[Array]:
    """What each rank gets."""
    if what == "sum":
        return [functools.reduce(np.add, arrays)] * len(arrays)
    if what == "gather":
        return [np.concatenate(arrays)] * len(arrays)
    pieces = [np.split(array, len(arrays)) for array in arrays]
    return [np.concatenate(own) for own in zip(*pieces, strict=True)]


def run_ranks(size: int, function: Callable[[ThreadCommunicator], _T]) -> list[_T]:
    """What a function gives on each of several threads, each with its communicator.

    Raises:
        Exception: what the first rank to fail raised.
    """
    shared = _Shared(size)
    results: dict[int, _T] = {}
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            results[rank] = function(ThreadCommunicator(shared, rank))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            with shared.changed:
                errors.append(error)
                shared.broken = True
                shared.changed.notify_all()

    threads: list[Any] = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(size)]
