"""What training asks of whoever carries numbers between processes."""

from __future__ import annotations

from typing import Any, Protocol

from onward.graph import Array

__all__ = ["Communicator", "PieceCommunicator"]


class Communicator(Protocol):
    """A group of processes, its ranks, that make the same calls in the same order.

    Arrays are C-contiguous and change in place. Sums have the same bits on every rank, and on every run with
    as many ranks.
    """

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def all_reduce_start(self, array: Array) -> Any:
        """Begin to replace an array of float32, float64 or int64 by its sum over all ranks.

        The array must be left alone until `all_reduce_wait` has had what this returns.
        """

    def all_reduce_wait(self, pending: Any) -> None:
        """Wait until a sum is there."""

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Replace an array by that of a rank."""

    def barrier(self) -> None:
        """Wait until all ranks are here."""


class PieceCommunicator(Communicator, Protocol):
    """One that gradients may be summed by in pieces: needed where they travel as bfloat16, and where the
    optimizer's state is divided. `all_reduce_wait` waits for these calls too.
    """

    def all_to_all_start(self, sent: Array, received: Array) -> Any:
        """Begin to give piece r of `sent`, of as many equal pieces as there are ranks, to rank r, and to take
        what it has for this rank as piece r of `received`.

        Both are vectors of float32, float64 or uint16 without gaps.
        """

    def all_gather_start(self, array: Array) -> Any:
        """Begin to fill a vector of as many equal pieces as there are ranks; each has put its own there."""
