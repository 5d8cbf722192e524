"""What checks may take, with a clock that the test turns."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from onward_server.dataplane.budget import Budget, Meter, metered


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def checks(budget: Budget, clock: Clock, share: float, *, seconds: float, own: float, witness: float) -> int:
    """How many are made when a request comes each millisecond."""
    account = budget.account(share)
    made = 0
    for _ in range(round(seconds * 1000)):
        clock.now += 0.001
        if account.allows():
            account.spent(1, own, witness)
            made += 1
    return made


@pytest.mark.parametrize(("own", "witness"), [(0.0001, 0.0), (0.0001, 0.002), (0.0, 0.5), (0.01, 0.01)])
def test_checks_take_their_share_and_no_more(own: float, witness: float) -> None:
    clock = Clock()
    seconds = 200.0
    made = checks(Budget(2, clock), clock, 0.02, seconds=seconds, own=own, witness=witness)
    spent = made * (own + witness / 2)
    most = 0.02 * (seconds + 1) + own + witness / 2
    assert min(0.9 * 0.02 * seconds, 0.9 * seconds * 1000 * (own + witness / 2)) <= spent <= most


def test_the_first_request_is_checked_whatever_it_takes_and_is_paid_for_later() -> None:
    clock = Clock()
    account = Budget(2, clock).account(0.02)
    assert account.allows()
    account.spent(1, 0.0, 4.0)
    clock.now += 50.0
    assert not account.allows()
    clock.now += 60.0
    assert account.allows()


def test_nothing_is_saved_for_longer_than_a_second() -> None:
    clock = Clock()
    account = Budget(1, clock).account(0.5)
    assert account.allows()
    account.spent(1, 0.1, 0.0)
    clock.now += 1000.0
    made = 0
    while account.allows():
        account.spent(1, 0.1, 0.0)
        made += 1
    assert made <= 6


def test_versions_that_are_asked_share() -> None:
    clock = Clock()
    budget = Budget(2, clock)
    accounts = [budget.account(0.02) for _ in range(4)]
    made = [0, 0, 0, 0]
    for moment in range(200_000):
        clock.now += 0.001
        for number, account in enumerate(accounts[: 4 if moment < 100_000 else 1]):
            if account.allows():
                account.spent(1, 0.001, 0.0)
                made[number] += 1
    assert made[1:] == pytest.approx([500, 500, 500], rel=0.1)
    # once the others are silent their part is the first one's
    assert made[0] == pytest.approx(500 + 2000, rel=0.1)


def busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def test_a_meter_counts_the_steps_of_one_coroutine_and_not_what_runs_beside_it() -> None:
    async def work() -> str:
        busy(0.02)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await asyncio.sleep(10)
        busy(0.02)
        return "done"

    async def other() -> None:
        for _ in range(10):
            busy(0.01)
            await asyncio.sleep(0)

    meter = Meter()
    answer, _ = await asyncio.gather(metered_task(work(), meter), other())
    assert answer == "done"
    assert 0.04 <= meter.seconds < 0.07


async def metered_task(work: Any, meter: Meter) -> Any:
    return await metered(work, meter)


async def test_errors_and_cancellation_pass_a_meter() -> None:
    async def failing() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    with pytest.raises(KeyError):
        await metered(failing(), Meter())
    cleaned = []

    async def waiting() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            cleaned.append(True)

    task = asyncio.create_task(metered_task(waiting(), Meter()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == [True]
