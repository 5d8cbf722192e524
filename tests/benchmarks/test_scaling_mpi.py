"""The model that predicts how training divides among ranks."""

from __future__ import annotations

import pytest
from benchmarks.scaling_mpi import Network, efficiency


def test_one_rank_exchanges_nothing() -> None:
    assert efficiency(0.1, [1e6], Network(1e-3, 1e6), 1) == 1.0


def test_what_is_ready_last_cannot_be_hidden() -> None:
    network = Network(0.0, 1e9)
    # one bucket of 50 ms, ready at the end of a step of 100 ms
    assert efficiency(0.1, [5e7], network, 2) == pytest.approx(0.1 / 0.15, rel=1e-3)
    # in ten buckets of 5 ms, each ready 6.7 ms after the one before, only the last is waited for
    assert efficiency(0.1, [5e6] * 10, network, 2) == pytest.approx(0.1 / 0.105, rel=1e-3)


def test_latency_counts_by_the_logarithm_of_the_ranks() -> None:
    network = Network(1e-5, 1e12)
    assert network.all_reduce(0, 2) == pytest.approx(2e-5)
    assert network.all_reduce(0, 1024) == pytest.approx(2e-4)
    found = [efficiency(0.01, [1e6] * 4, network, ranks) for ranks in (2, 4, 8, 1024)]
    assert found == sorted(found, reverse=True)
