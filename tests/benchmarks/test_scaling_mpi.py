"""The model that predicts how training divides among ranks."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from benchmarks.scaling_model import RANKS, Network, Schedule, efficiency, plot
from benchmarks.scaling_mpi import schedules

FAST = Network(0.0, 1e9)


def even(count: int, total: float = 5e7) -> Schedule:
    """A step of 100 ms: buckets from 40 ms on, the last at 90 ms, then 10 ms of update."""
    buckets = [(0.04 + 0.05 * (i + 1) / count, total / count) for i in range(count)]
    return Schedule(0.1, buckets, 0.09)


def test_one_rank_exchanges_nothing() -> None:
    for hidden in (False, True):
        assert efficiency(even(3), Network(1e-3, 1e6), 1, hidden=hidden) == pytest.approx(1.0)


def test_what_is_ready_last_cannot_be_hidden() -> None:
    # one bucket of 50 ms, needed as soon as it is ready
    assert even(1).replay(FAST, 2, hidden=True) == pytest.approx(0.15, rel=1e-3)
    # in ten buckets of 5 ms, each ready 5 ms after the one before, only the last is waited for
    assert even(10).replay(FAST, 2, hidden=True) == pytest.approx(0.105, rel=1e-3)
    # where nothing goes on behind computing, all of it is
    assert even(10).replay(FAST, 2, hidden=False) == pytest.approx(0.15, rel=1e-3)


def test_exchanges_come_in_turn() -> None:
    # ten buckets of 10 ms, ready every 5 ms: the second half is waited for
    assert even(10, 1e8).replay(FAST, 2, hidden=True) == pytest.approx(0.045 + 0.1 + 0.01, rel=1e-3)


def test_faster_ranks_hide_less() -> None:
    fast = even(10).faster(2)
    assert fast.replay(FAST, 1, hidden=True) == pytest.approx(0.05)
    # twice as fast, the ten buckets of 5 ms come every 2.5 ms, from 22.5 ms on; 5 ms of update follow
    assert fast.replay(FAST, 2, hidden=True) == pytest.approx(0.0225 + 0.05 + 0.005, rel=1e-3)


def test_latency_counts_by_the_logarithm_of_the_ranks() -> None:
    network = Network(1e-5, 1e12)
    assert network.all_reduce(0, 2) == pytest.approx(2e-5)
    assert network.all_reduce(0, 1024) == pytest.approx(2e-4)
    found = [efficiency(even(4), network, ranks, hidden=True) for ranks in (2, 4, 8, 1024)]
    assert found == sorted(found, reverse=True)


def test_ranks_that_share_cores_take_turns_at_copying() -> None:
    alone, shared = Network(1e-5, 1e9), Network(1e-5, 1e9, cores=2)
    assert shared.all_reduce(1e6, 2) == alone.all_reduce(1e6, 2)
    assert shared.all_reduce(1e6, 4) == pytest.approx(2 * alone.all_reduce(1e6, 4))


def test_ranks_that_share_cores_take_turns_at_computing() -> None:
    """Before the backward pass and behind it all ranks are needed."""
    together = even(10).replay(FAST, 2, hidden=False)
    assert even(10).replay(FAST, 2, hidden=False, turn=1e-3) == pytest.approx(together + 2e-3, rel=1e-3)
    # a turn is no shorter than the sum itself
    slow = Network(1e-2, 1e9)
    assert even(10).replay(slow, 2, hidden=False, turn=1e-3) == even(10).replay(slow, 2, hidden=False)


def test_the_schedule_of_a_network_is_measured() -> None:
    schedule = schedules(["mlp"], 3)["mlp"]
    ready = [at for at, _ in schedule.buckets]
    assert 0 < ready[0] <= ready[-1] <= schedule.wait < schedule.step
    assert sum(nbytes for _, nbytes in schedule.buckets) == 4 * (
        784 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    )


def test_the_plot_is_svg_with_a_line_for_each_case() -> None:
    root = ElementTree.fromstring(plot({"a": even(2), "b": even(5)}))
    lines = [each for each in root.iter() if each.tag.endswith("polyline")]
    assert len(lines) == 2 * 2 * 2
    assert all(len(line.attrib["points"].split()) == len(RANKS) for line in lines)
