"""Planning in the background: runs are answered meanwhile, errors surface, closing is clean."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import pytest

from onward.compile import planning
from onward.engine import Session, compiled
from onward.engine.compiled import CompiledEngine
from onward.engine.interpreter import Interpreter
from onward.engine.plan_cache import PlanCache
from onward.errors import ConfigError, ShapeError
from onward.graph import Builder

WAIT = 60.0


def model() -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="sums")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 4))
    w = g.initializer("w", np.ones((4, 8), np.float32))
    g.output(g.Mul(g.MatMul(x, w), g.initializer("slope", np.float32([2.0]))), "y")
    return ir.Model(graph, ir_version=10)


def feed(rows: int) -> dict[str, np.ndarray]:
    return {"x": np.ones((rows, 4), np.float32)}


class Compiler:
    """A compiler that waits until it may go on, and may then fail."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.error: Exception | None = None
        self._plan_model = planning.plan_model

    def __call__(self, *arguments: object) -> object:
        rows = arguments[1]["x"][0]  # type: ignore[index]
        self.begun.append(rows)
        assert self.go.wait(WAIT)
        if self.error is not None:
            raise self.error
        made = self._plan_model(*arguments)  # type: ignore[arg-type]
        self.ended.append(rows)
        return made


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    found, plans = Compiler(), PlanCache()
    monkeypatch.setattr(planning, "plan_model", found)
    monkeypatch.setattr(compiled, "default_plans", lambda: plans)
    yield found
    found.go.set()


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every run of the interpreter."""
    runs: list[int] = []
    run = Interpreter.run

    def count(self: Interpreter, *arguments: object, **options: object) -> object:
        runs.append(1)
        return run(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Interpreter, "run", count)
    return runs


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_interpreter_answers_until_the_plan_is_ready(compiler: Compiler, interpreted: list[int]) -> None:
    with Session(model(), engine="compiled", threads=1, background=True) as session:
        for _ in range(3):
            assert session.run(feed(2))["y"].tolist() == [[8.0] * 8] * 2
        assert len(interpreted) == 3
        until(lambda: compiler.begun == [2])
        compiler.go.set()

        def compiled_now() -> bool:
            before = len(interpreted)
            assert session.run(feed(2))["y"].tolist() == [[8.0] * 8] * 2
            return len(interpreted) == before

        until(compiled_now)
    assert compiler.begun == [2]


def test_each_shape_is_planned_once_and_one_after_the_other(compiler: Compiler) -> None:
    with Session(model(), engine="compiled", threads=1, background=True) as session:
        for rows in (2, 3, 2, 4, 3):
            assert session.run(feed(rows))["y"].shape == (rows, 8)
        until(lambda: compiler.begun == [2])
        compiler.go.set()
        until(lambda: compiler.ended == [2, 3, 4])
    assert compiler.begun == [2, 3, 4]


def test_a_plan_that_the_cache_has_is_used_at_once(compiler: Compiler, interpreted: list[int]) -> None:
    compiler.go.set()
    Session(model(), engine="compiled", threads=1).run(feed(2))
    with Session(model(), engine="compiled", threads=1, background=True) as session:
        session.run(feed(2))
    assert interpreted == []
    assert compiler.begun == [2]


@pytest.mark.parametrize(
    ("error", "kind"), [(ShapeError("too odd"), ShapeError), (KeyError("x"), RuntimeError)]
)
def test_an_error_of_the_compiler_is_raised_by_later_runs(
    error: Exception, kind: type[Exception], compiler: Compiler
) -> None:
    compiler.error = error
    with Session(model(), engine="compiled", threads=1, background=True) as session:
        session.run(feed(2))
        compiler.go.set()
        for _ in range(2):
            with pytest.raises(kind, match="planning in the background failed"):
                until(lambda: not session.run(feed(2)))
        compiler.error = None
        assert session.run(feed(3))["y"].shape == (3, 8)
    assert compiler.begun[:1] == [2]


def test_weights_that_are_swapped_meanwhile_are_seen(compiler: Compiler, interpreted: list[int]) -> None:
    with Session(model(), engine="compiled", threads=1, background=True) as session:
        session.run(feed(2))
        until(lambda: compiler.begun == [2])
        session.load_weights({"slope": np.float32([5.0])})
        assert session.run(feed(2))["y"][0, 0] == 20.0
        compiler.go.set()
        until(lambda: compiler.ended == [2, 2])
        session.load_weights({"slope": np.float32([7.0])})

        def compiled_now() -> bool:
            before = len(interpreted)
            assert session.run(feed(2))["y"][0, 0] == 28.0
            return len(interpreted) == before

        until(compiled_now)


def test_closing_leaves_out_what_waits_and_waits_for_what_has_begun(compiler: Compiler) -> None:
    session = Session(model(), engine="compiled", threads=1, background=True)
    for rows in (2, 3, 4):
        session.run(feed(rows))
    until(lambda: compiler.begun == [2])
    closer = threading.Thread(target=session.close)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    compiler.go.set()
    closer.join(WAIT)
    assert not closer.is_alive()
    assert compiler.begun == compiler.ended == [2]
    session.close()
    with pytest.raises(ConfigError, match="closed"):
        session.run(feed(2))
    assert not any(t.name.startswith("onward-plan") for t in threading.enumerate())


def test_a_session_that_is_dropped_is_not_planned_for(compiler: Compiler) -> None:
    session = Session(model(), engine="compiled", threads=1, background=True)
    engine = weakref.ref(session._engine)
    for rows in (2, 3):
        session.run(feed(rows))
    until(lambda: compiler.begun == [2])
    del session
    compiler.go.set()
    until(lambda: gc.collect() >= 0 and engine() is None)
    until(lambda: not any(t.name.startswith("onward-plan") for t in threading.enumerate()))
    assert compiler.begun == [2]


def test_shapes_that_depend_on_data_stay_with_the_interpreter(
    compiler: Compiler, interpreted: list[int]
) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="found")
    g = Builder(graph)
    g.output(g.NonZero(g.input("x", ir.DataType.FLOAT, ("N", 4))), "y")
    compiler.go.set()
    with Session(ir.Model(graph, ir_version=10), engine="compiled", threads=1, background=True) as session:
        session.run(feed(2))
        until(lambda: compiler.begun == [2])
        until(lambda: session.run(feed(2))["y"].shape == (2, 8) and bool(session._engine._plans))
        before = len(interpreted)
        session.run(feed(2))
    assert len(interpreted) == before + 1
    assert compiler.begun == [2]


def test_state_is_not_planned_in_the_background() -> None:
    with pytest.raises(ConfigError, match="state"):
        CompiledEngine(model(), {"w": "y"}, background=True)


def test_the_interpreter_has_nothing_to_plan() -> None:
    with Session(model(), engine="interpreter", background=True) as session:
        assert session.run(feed(1))["y"][0, 0] == 8.0
