"""Several processes train one model: each has a share of every batch, and sums are exchanged."""

from onward.parallel.communicator import Communicator, PieceCommunicator
from onward.parallel.group import Group, Times, ranks_of
from onward.parallel.mpi import MPICommunicator, launched, stoppable, threads_each, together, world
from onward.parallel.threads import ThreadCommunicator, run_ranks

__all__ = [
    "Communicator",
    "Group",
    "MPICommunicator",
    "PieceCommunicator",
    "ThreadCommunicator",
    "Times",
    "launched",
    "ranks_of",
    "run_ranks",
    "stoppable",
    "threads_each",
    "together",
    "world",
]
