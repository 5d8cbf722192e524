from __future__ import annotations

import os
import sys
import threading

import numpy as np
import pytest

from onward.compile.codegen.builder import Module
from onward.compile.codegen.jit import Jit
from onward.compile.codegen.target import host_target
from onward.engine.team import ALONE, FREE, Step, Steps, Team
from onward.errors import ConfigError


@pytest.fixture(scope="module")
def kernels() -> dict[str, int]:
    """Kernels on a table of i64: mark = table[thread] += 1, spread = table[t] += sum of all table entries."""
    mark = Module(host_target())
    f = mark.entry()
    args, thread, threads = f.arguments
    table = f.load(args, "ptr")
    f.store(f.load(table, "i64", thread) + threads, table, thread)
    f.ret()

    spread = Module(host_target())  # out[thread] = sum(table[:n]): right only after a barrier
    f = spread.entry()
    args, thread, threads = f.arguments
    table, out, n = f.load(args, "ptr"), f.load(args, "ptr", 1), f.load(args, "i64", 2)
    (total,) = f.loop(0, n, carry=[f.value(0)], body=lambda i, c: [c[0] + f.load(table, "i64", i)])
    f.store(total, out, thread)
    f.ret()
    jit = Jit(host_target())
    a, b = jit.addresses([mark.text(), spread.text()])
    return {"mark": a, "spread": b}


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_every_thread_runs_every_step_and_sees_the_one_before(kernels: dict[str, int], threads: int) -> None:
    table, out = np.zeros(threads, np.int64), np.zeros(threads, np.int64)
    mark = np.array([table.ctypes.data], np.int64)
    spread = np.array([table.ctypes.data, out.ctypes.data, threads], np.int64)
    steps = Steps([Step(kernels["mark"], mark.ctypes.data), Step(kernels["spread"], spread.ctypes.data)] * 3)
    with Team(threads) as team:
        for run in range(1, 400):
            team.run(steps)
            assert table.tolist() == [3 * run * threads] * threads
            assert out.tolist() == [3 * run * threads * threads] * threads


def test_thousands_of_runs_with_workers_asleep_and_awake(kernels: dict[str, int]) -> None:
    table = np.zeros(3, np.int64)
    mark = np.array([table.ctypes.data], np.int64)
    steps = Steps([Step(kernels["mark"], mark.ctypes.data)])
    pause = threading.Event()
    with Team(3) as team:
        for run in range(3000):
            team.run(steps)
            if run % 100 == 0:
                pause.wait(0.002)  # long enough for the workers to go to sleep
    assert table.tolist() == [9000] * 3


def test_alone_is_thread_zero_as_a_team_of_one_and_free_needs_no_barrier(kernels: dict[str, int]) -> None:
    table = np.zeros(3, np.int64)
    mark = np.array([table.ctypes.data], np.int64)
    steps = Steps(
        [
            Step(kernels["mark"], mark.ctypes.data, ALONE | FREE),
            Step(kernels["mark"], mark.ctypes.data, ALONE),
            Step(kernels["mark"], mark.ctypes.data, FREE),
        ]
    )
    with Team(3) as team:
        for _ in range(100):
            team.run(steps)
    assert table.tolist() == [100 * (1 + 1 + 3), 300, 300]


def test_several_teams_from_several_threads(kernels: dict[str, int]) -> None:
    tables = [np.zeros(8, np.int64) for _ in range(5)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            threads = number % 3 + 1
            mark = np.array([tables[number].ctypes.data], np.int64)
            steps = Steps([Step(kernels["mark"], mark.ctypes.data)] * 4)
            with Team(threads) as team:
                for _ in range(200):
                    team.run(steps)
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    callers = [threading.Thread(target=work, args=(n,)) for n in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures
    for number, table in enumerate(tables):
        threads = number % 3 + 1
        assert table[:threads].tolist() == [800 * threads] * threads
        assert not table[threads:].any()


def test_one_team_shared_by_threads_runs_one_at_a_time(kernels: dict[str, int]) -> None:
    table = np.zeros(2, np.int64)
    mark = np.array([table.ctypes.data], np.int64)
    steps = Steps([Step(kernels["mark"], mark.ctypes.data)])
    with Team(2) as team:
        callers = [threading.Thread(target=lambda: [team.run(steps) for _ in range(300)]) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert table.tolist() == [2400, 2400]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_error_in_a_python_step_ends_the_run_and_the_team_lives_on(
    kernels: dict[str, int], threads: int
) -> None:
    table = np.zeros(threads, np.int64)
    mark = np.array([table.ctypes.data], np.int64)
    native = Step(kernels["mark"], mark.ctypes.data)
    fails = [True]
    calls: list[str] = []

    def python_step() -> None:
        calls.append(threading.current_thread().name)
        if fails[0]:
            raise ValueError("no such thing")

    steps = Steps([native, python_step, native])
    with Team(threads) as team:
        for _ in range(20):
            with pytest.raises(ValueError, match="no such thing"):
                team.run(steps)
        assert table.tolist() == [20 * threads] * threads
        fails[0] = False
        team.run(steps)
    assert table.tolist() == [22 * threads] * threads
    assert set(calls) == {threading.current_thread().name}


def test_a_team_inside_a_python_step_of_another(kernels: dict[str, int]) -> None:
    table = np.zeros(2, np.int64)
    mark = np.array([table.ctypes.data], np.int64)
    inner_steps = Steps([Step(kernels["mark"], mark.ctypes.data)])

    def fail() -> None:
        raise KeyError("after the inner run")

    with Team(2) as outer, Team(2) as inner, pytest.raises(KeyError):
        outer.run(Steps([lambda: inner.run(inner_steps), fail]))
    assert table.tolist() == [2, 2]


def test_closing_ends_the_threads_and_refuses_further_runs(kernels: dict[str, int]) -> None:
    before = threading.active_count()
    team = Team(4)
    assert threading.active_count() == before + 3
    team.run(Steps([]))
    team.close()
    team.close()
    assert threading.active_count() == before
    with pytest.raises(ConfigError, match="closed"):
        team.run(Steps([]))
    forgotten = Team(3)
    del forgotten
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_a_senseless_number_of_threads(threads: int) -> None:
    with pytest.raises(ConfigError, match="threads="):
        Team(threads)


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs a safe os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_its_own_threads(kernels: dict[str, int]) -> None:
    table = np.zeros(2, np.int64)
    mark = np.array([table.ctypes.data], np.int64)
    steps = Steps([Step(kernels["mark"], mark.ctypes.data)])
    with Team(2) as team:
        team.run(steps)
        child = os.fork()
        if child == 0:
            team.run(steps)
            os._exit(0 if table.tolist() == [4, 4] else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        team.run(steps)
    assert table.tolist() == [4, 4]
