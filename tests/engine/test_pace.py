from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from onward.engine.pace import Pace


def spent(pace: Pace, runs: int, team: Callable[[], float], one: Callable[[], float]) -> float:
    """Seconds of so many runs, each of which takes what the way that is chosen takes."""
    total = 0.0
    for _ in range(runs):
        seconds = team() if pace.team else one()
        pace.ran(seconds)
        total += seconds
    return total


@pytest.mark.parametrize("one", [1e-4, 1e-3, 4e-3])
def test_on_a_quiet_machine_the_team_is_used(one: float) -> None:
    noise = random.Random(0)
    pace = Pace()
    team = 0.55 * one
    runs = int(1.0 / team)
    total = spent(pace, runs, lambda: team * noise.uniform(1, 1.05), lambda: one * noise.uniform(1, 1.05))
    assert total < 1.06 * team * runs


@pytest.mark.parametrize("one", [1e-4, 1e-3, 4e-3])
def test_where_workers_are_stopped_one_thread_is_used(one: float) -> None:
    """Each of the team's runs takes as long as the other process has the core, again and again."""
    noise = random.Random(1)
    runs = int(1.0 / one)
    total = spent(Pace(), runs, lambda: 0.55 * one + noise.choice([0, 0, 4e-3]), lambda: one)
    assert total < 1.2 * one * runs


@pytest.mark.parametrize("one", [1e-4, 1e-3])
def test_the_team_comes_back_when_the_core_is_free_again(one: float) -> None:
    pace = Pace()
    spent(pace, int(0.5 / one), lambda: 5 * one, lambda: one)
    spent(pace, int(0.3 / one), lambda: 0.55 * one, lambda: one)
    runs = int(0.5 / one)
    assert spent(pace, runs, lambda: 0.55 * one, lambda: one) < 0.6 * one * runs


def test_a_run_that_takes_long_is_always_a_teams() -> None:
    pace = Pace()
    assert spent(pace, 50, lambda: 0.1, lambda: 0.2) == pytest.approx(5.0)


def test_a_machine_that_becomes_slower_keeps_its_team() -> None:
    pace = Pace()
    one = 1e-3
    spent(pace, 500, lambda: 0.55 * one, lambda: one)
    runs = 2000
    assert spent(pace, runs, lambda: 1.1 * one, lambda: 2 * one) < 1.05 * 1.1 * one * runs


def test_interruptions_now_and_then_cost_little() -> None:
    noise = random.Random(2)
    one, team = 2e-4, 1.2e-4
    runs = 20_000
    total = spent(Pace(), runs, lambda: team + (1e-3 if noise.random() < 0.01 else 0.0), lambda: one)
    assert total < 1.12 * runs * (team + 0.01 * 1e-3)
