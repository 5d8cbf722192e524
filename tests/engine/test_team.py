from __future__ import annotations

import os
import sys
import threading

import numpy as np
import pytest

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.jit import Jit
from onward.compile.codegen.target import host_target
from onward.engine import team as teams
from onward.engine import team_code
from onward.engine.team import ALONE, FOREIGN, NO_BARRIER, Step, Steps, Team
from onward.errors import ConfigError, LimitError, OnwardError


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
            Step(kernels["mark"], mark.ctypes.data, ALONE | NO_BARRIER),
            Step(kernels["mark"], mark.ctypes.data, ALONE),
            Step(kernels["mark"], mark.ctypes.data, NO_BARRIER),
        ]
    )
    with Team(3) as team:
        for _ in range(100):
            team.run(steps)
    assert table.tolist() == [100 * (1 + 1 + 3), 300, 300]


def test_threads_that_the_system_does_not_start(
    kernels: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(LimitError, match="starts no thread 4 of 5"):
            Team(5)
    assert not any(thread.is_alive() for thread in started)
    table = np.zeros(2, np.int64)
    mark = np.array([table.ctypes.data], np.int64)
    with Team(2) as team:
        team.run(Steps([Step(kernels["mark"], mark.ctypes.data)]))
    assert table.tolist() == [2, 2]


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


def _sometimes_late(f: Function) -> None:
    """Wait for up to about 100 µs at one in 16 of the places where this stands, by the clock's low bits."""
    clock = f.call("llvm.readcyclecounter", "i64", ())
    noise = f.binary("lshr", clock * 0x9E3779B97F4A7C1, 32)
    with f.when(f.compare("eq", f.binary("and", noise, 15), 0)):
        count = f.binary("and", f.binary("lshr", noise, 8), 2047)
        with f.range(0, count):
            f.call("llvm.x86.sse2.pause", "void", ())


@pytest.fixture(scope="module")
def late_program() -> object:
    return teams._compiled(team_code.code(host_target(), _sometimes_late))


@pytest.mark.skipif(not host_target().x86, reason="the delays need a clock that programs may read")
@pytest.mark.parametrize("threads", [2, 3, 4])
def test_parts_are_computed_once_and_in_order_whoever_is_late(
    kernels: dict[str, int], monkeypatch: pytest.MonkeyPatch, late_program: object, threads: int
) -> None:
    """Delays at every place of the protocol make threads miss parts, epochs and whole runs."""
    monkeypatch.setattr(teams, "_program", lambda: late_program)
    tables = [np.zeros(threads, np.int64) for _ in range(3)]
    out = np.zeros(threads, np.int64)
    marks = [np.array([t.ctypes.data], np.int64) for t in tables]
    spread = np.array([tables[0].ctypes.data, out.ctypes.data, threads], np.int64)
    seen: list[list[int]] = []
    mark = [Step(kernels["mark"], m.ctypes.data) for m in marks]
    free = [Step(kernels["mark"], m.ctypes.data, NO_BARRIER) for m in marks]
    look = Step(kernels["spread"], spread.ctypes.data)
    steps = [mark[0], look, free[1], free[2], mark[0], look, lambda: seen.append(out.tolist()), mark[0], look]
    want = {k: [k * 3 * threads * threads] * threads for k in range(1, 401)}
    pause = threading.Event()
    with Team(threads) as team:
        for run in range(1, 401):
            each = Steps(steps)  # their memory is free again as soon as the run has returned
            if run % 7:
                team.run(each)
            else:
                each.run(threads)
            assert out.tolist() == want[run]
            assert seen[-1] == [x - threads * threads for x in want[run]]
            if run % 50 == 0:
                pause.wait(0.003)
    assert tables[0].tolist() == [400 * 3 * threads] * threads
    assert tables[1].tolist() == tables[2].tolist() == [400 * threads] * threads


def test_one_thread_alone_gives_what_a_team_gives(kernels: dict[str, int]) -> None:
    tables = [np.zeros(3, np.int64) for _ in range(2)]
    for table, alone in zip(tables, (True, False), strict=True):
        mark = np.array([table.ctypes.data], np.int64)
        steps = Steps(
            [Step(kernels["mark"], mark.ctypes.data), Step(kernels["mark"], mark.ctypes.data, ALONE)]
        )
        with Team(3) as team:
            for _ in range(5):
                if alone:
                    steps.run(3)
                else:
                    team.run(steps)
    assert tables[0].tolist() == tables[1].tolist() == [20, 15, 15]


def test_a_worker_that_is_away_is_not_waited_for(kernels: dict[str, int]) -> None:
    """With more threads than cores, all parts are computed in time by those that come."""
    threads = 4 * (os.cpu_count() or 1)
    table = np.zeros(threads, np.int64)
    mark = np.array([table.ctypes.data], np.int64)
    steps = Steps([Step(kernels["mark"], mark.ctypes.data)] * 50)
    with Team(threads) as team:
        for _ in range(40):
            team.run(steps)
    assert table.tolist() == [2000 * threads] * threads


@pytest.fixture(scope="module")
def foreigners() -> dict[str, int]:
    """count: adds 1 to args[0][0], and asks to be called again until it is args[1]; fail: gives -7."""
    count = Module(host_target())
    f = count.function("onward_kernel", (("args", "ptr"),), "i64", internal=False)
    place = f.load(f.arguments[0], "ptr")
    now = f.load(place, "i64") + 1
    f.store(now, place)
    left = f.load(f.arguments[0], "i64", 1) - now
    f.emit(f"ret i64 {left.ref}")
    fail = Module(host_target())
    f = fail.function("onward_kernel", (("args", "ptr"),), "i64", internal=False)
    f.emit("ret i64 -7")
    a, b = Jit(host_target()).addresses([count.text(), fail.text()])
    return {"count": a, "fail": b}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_foreign_function_is_called_by_one_until_it_is_done(
    kernels: dict[str, int], foreigners: dict[str, int], threads: int
) -> None:
    table, calls = np.zeros(threads, np.int64), np.zeros(1, np.int64)
    mark = np.array([table.ctypes.data], np.int64)
    args = np.array([calls.ctypes.data, 100], np.int64)
    count = Step(foreigners["count"], args.ctypes.data, FOREIGN, "count")
    native = Step(kernels["mark"], mark.ctypes.data, NO_BARRIER)
    with Team(threads) as team:
        for _ in range(200):
            calls[:] = 0
            team.run(Steps([native, count, native]))
            assert calls[0] == 100
    assert table.tolist() == [400 * threads] * threads


@pytest.mark.parametrize("threads", [1, 2])
def test_a_foreign_function_that_fails_ends_the_run_by_its_name(
    kernels: dict[str, int], foreigners: dict[str, int], threads: int
) -> None:
    table = np.zeros(threads, np.int64)
    mark = np.array([table.ctypes.data], np.int64)
    native = Step(kernels["mark"], mark.ctypes.data)
    steps = Steps([native, Step(foreigners["fail"], 0, FOREIGN, "all_reduce"), native])
    with Team(threads) as team:
        for _ in range(3):
            with pytest.raises(OnwardError, match="'all_reduce' that the plan calls failed with code -7"):
                team.run(steps)
    assert table.tolist() == [3 * threads] * threads


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
