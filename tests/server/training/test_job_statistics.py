"""What became of training jobs, with a clock that the test turns."""

from __future__ import annotations

import pytest

from onward_server.training.statistics import DURATION_BUCKETS, JobStatistics


def test_rows_are_counted_once_and_their_rate_is_that_of_the_last_interval() -> None:
    now = [0.0]
    counts = JobStatistics(clock=lambda: now[0])
    counts.progressed("unknown", 10)
    assert (counts.rows, counts.rows_per_second) == (0, 0.0)
    counts.started("a")
    counts.started("b")
    now[0] = 2.0
    counts.progressed("a", 100)
    counts.progressed("b", 10)
    assert counts.rows_per_second == pytest.approx(55.0)
    now[0] = 3.0
    counts.progressed("a", 400)
    counts.progressed("a", 400)
    assert counts.rows == 410
    assert counts.rows_per_second == pytest.approx(305.0)
    # one that tells nothing for long does not go on counting
    now[0] = 62.5
    assert counts.rows_per_second == pytest.approx(300.0)
    counts.stopped("a", 62.5)
    counts.stopped("b", 3.0)
    assert counts.rows_per_second == 0.0
    assert counts.seconds == 65.5
    assert sum(counts.durations) == 2
    assert counts.durations[DURATION_BUCKETS.index(300.0)] == 1
    assert counts.durations[DURATION_BUCKETS.index(5.0)] == 1


def test_a_resumed_run_counts_its_rows_anew() -> None:
    now = [0.0]
    counts = JobStatistics(clock=lambda: now[0])
    for _ in range(2):
        counts.started("a")
        now[0] += 1.0
        counts.progressed("a", 50)
        counts.stopped("a", 1.0)
    assert counts.rows == 100


def test_runs_of_any_length_have_a_place() -> None:
    counts = JobStatistics()
    for seconds in (0.0, 1.0, 86_400.0, 1e9):
        counts.started("a")
        counts.stopped("a", seconds)
        counts.stopped("a", seconds)
    assert counts.durations[0] == 2
    assert counts.durations[-2:] == [1, 1]
