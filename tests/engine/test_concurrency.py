"""Several runs of one session at once; what sessions share; what is planned, and how often."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onward.compile import planning
from onward.engine import Session, StepSession, compiled
from onward.engine.compiled import CompiledEngine
from onward.engine.plan_cache import PlanCache
from onward.engine.teams import Teams
from onward.errors import ConfigError, InputError, ShapeError
from onward.graph import Array, Builder
from onward.model import load, save
from onward.train import CrossEntropy, Trainer

WAIT = 60.0


def network(scale: float = 1.0) -> ir.Model:
    """Convolutions, whose weights are packed, and a NumPy step among them."""
    rng = np.random.default_rng(0)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="network")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 3, 32, 32))
    w = g.initializer("w", (scale * rng.standard_normal((64, 3, 3, 3)) / 5).astype(np.float32))
    v = g.initializer("v", (scale * rng.standard_normal((64, 64, 3, 3)) / 24).astype(np.float32))
    h = g.Conv(g.Relu(g.Conv(x, w, pads=[1, 1, 1, 1])), v, pads=[1, 1, 1, 1])
    h, places = g.emit("MaxPool", h, outputs=2, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    g.output(places, "places")
    g.output(g.Relu(g.Conv(h, v, pads=[1, 1, 1, 1])), "y")
    return ir.Model(graph, ir_version=10)


def feed(rows: int, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((rows, 3, 32, 32)).astype(np.float32)}


class Planner:
    """Counts what is planned, by batch size; one batch size may be held up, and may then fail."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.held: int | None = None
        self.begun, self.go = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self._plan_model = planning.plan_model

    def __call__(self, *arguments: Any) -> object:
        rows = arguments[1]["x"][0]
        self.rows.append(rows)
        if rows == self.held:
            self.begun.set()
            assert self.go.wait(WAIT)
            if self.error is not None:
                raise self.error
        return self._plan_model(*arguments)


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Planner:
    made, plans = Planner(), PlanCache()
    monkeypatch.setattr(planning, "plan_model", made)
    monkeypatch.setattr(compiled, "default_plans", lambda: plans)
    return made


def together(count: int, call: Callable[[int], Any]) -> list[Any]:
    """What `call` gives to threads that begin at the same time."""
    start = threading.Barrier(count)

    def run(number: int) -> Any:
        start.wait(WAIT)
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return [job.result(WAIT) for job in [pool.submit(run, i) for i in range(count)]]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_runs_at_once_give_the_bits_of_runs_in_turn(planner: Planner, threads: int) -> None:
    feeds = [feed(1 + i % 2, i) for i in range(4)]
    with Session(network(), engine="compiled", threads=threads) as session:
        results = together(4, lambda i: [session.run(feeds[i])["y"].tobytes() for _ in range(12)])
        rows = session._engine.plan({"x": (1, 3, 32, 32)}).rows  # type: ignore[attr-defined]
        assert any(row.kernel == "numpy" for row in rows)
        for i, found in enumerate(results):
            assert set(found) == {session.run(feeds[i])["y"].tobytes()}
    assert sorted(planner.rows) == [1, 2]


def test_threads_that_ask_for_one_plan_wait_for_one(planner: Planner) -> None:
    with Session(network(), engine="compiled", threads=2) as session:
        planner.held = 3
        threading.Timer(0.2, planner.go.set).start()
        results = together(6, lambda _: session.run(feed(3))["y"].tobytes())
    assert len(set(results)) == 1
    assert planner.rows == [3]


def test_runs_go_on_while_another_shape_is_planned(planner: Planner) -> None:
    with Session(network(), engine="compiled", threads=2) as session, ThreadPoolExecutor(1) as pool:
        session.run(feed(1))
        planner.held = 4
        late = pool.submit(session.run, feed(4))
        assert planner.begun.wait(WAIT)
        for _ in range(5):
            session.run(feed(1))
        assert not late.done()
        planner.go.set()
        assert late.result(WAIT)["y"].shape[0] == 4


def test_a_plan_that_fails_fails_for_all_who_wait_and_is_tried_again(planner: Planner) -> None:
    planner.held, planner.error = 2, ShapeError("no")
    threading.Timer(0.2, planner.go.set).start()
    with Session(network(), engine="compiled", threads=1) as session:

        def refused(_: int) -> bool:
            with pytest.raises(ShapeError, match="no"):
                session.run(feed(2))
            return True

        assert all(together(3, refused))
        planner.error = None
        assert session.run(feed(2))["y"].shape[0] == 2


def test_memory_for_runs_is_bounded_and_others_wait(planner: Planner) -> None:
    engine = CompiledEngine(network(), threads=1, workspaces=2)
    together(6, lambda i: [engine.run(feed(1, i)) for _ in range(5)])
    plan = engine.plan({"x": (1, 3, 32, 32)})
    assert plan is not None
    assert 1 <= len(plan._idle) == plan._made <= 2
    held = [plan.take(), plan.take()]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.run, feed(1))
        assert not waiting.done()
        plan.give(held.pop())
        waiting.result(WAIT)
    plan.give(held.pop())
    with pytest.raises(ConfigError, match="workspaces=0"):
        CompiledEngine(network(), workspaces=0)


def test_a_run_that_fails_gives_its_workspace_back(planner: Planner) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="rows")
    g = Builder(graph)
    table = g.initializer("table", np.ones((50, 8), np.float32))
    g.output(g.Gather(table, g.input("x", ir.DataType.INT64, ("N",))), "y")
    engine = CompiledEngine(ir.Model(graph, ir_version=10), threads=1, workspaces=1)
    for _ in range(3):
        with pytest.raises(ShapeError, match="50"):
            engine.run({"x": np.array([1, 50])})
        assert engine.run({"x": np.array([1, 2])})["y"].shape == (2, 8)


def test_old_plans_and_their_memory_go(planner: Planner) -> None:
    engine = CompiledEngine(network(), threads=1)
    engine.run(feed(1))
    plan = engine.plan({"x": (1, 3, 32, 32)})
    assert plan is not None
    arena = weakref.ref(plan._idle[0].arena.base)
    plan = None
    gc.disable()
    try:
        for n in range(2, 2 + compiled._PLANS):
            engine.plan({"x": (n, 3, 32, 32)})
        assert arena() is None
    finally:
        gc.enable()
    assert len(engine._plans) == len(engine._making) == compiled._PLANS


def test_new_weights_are_seen_whole(planner: Planner) -> None:
    """Each run uses the weights from before a change or from after it, never some of each."""
    with Session(network(), engine="compiled", threads=2) as session:
        old = session.run(feed(1))["y"].tobytes()
        half = {n: v.const_value.numpy() for n, v in network(0.5).graph.initializers.items() if n in "vw"}  # type: ignore[union-attr]
        whole = {n: v.const_value.numpy() for n, v in network().graph.initializers.items() if n in "vw"}  # type: ignore[union-attr]
        session.load_weights(half)
        new = session.run(feed(1))["y"].tobytes()
        done = threading.Event()

        def change() -> None:
            while not done.is_set():
                session.load_weights(whole)
                session.load_weights(half)

        changer = threading.Thread(target=change)
        changer.start()
        try:
            results = together(3, lambda _: [session.run(feed(1))["y"].tobytes() for _ in range(30)])
        finally:
            done.set()
            changer.join(WAIT)
    assert {r for found in results for r in found} <= {old, new}
    with Session(network(0.5), engine="compiled", threads=2) as other:
        assert np.allclose(other.run(feed(1))["y"], np.frombuffer(new, np.float32).reshape(1, 64, 32, 32))


def test_sessions_of_one_model_share_weights_and_packed_weights(planner: Planner) -> None:
    first, second = (CompiledEngine(network(), threads=2) for _ in range(2))
    other = CompiledEngine(network(0.5), threads=2)
    for engine in (first, second, other):
        for rows in (1, 2):
            engine.run(feed(rows))
    for name in "vw":
        assert np.shares_memory(first.fixed[name], second.fixed[name])
        assert not np.shares_memory(first.fixed[name], other.fixed[name])
        assert not first.fixed[name].flags.writeable
    plans = [e.plan({"x": (n, 3, 32, 32)}) for e in (first, second) for n in (1, 2)]
    blocks = [{id(packed) for _, packed in plan._packed} for plan in plans if plan is not None]
    assert blocks[0]
    assert blocks[0] == blocks[2]
    assert blocks[0] & blocks[1]
    strange = other.plan({"x": (1, 3, 32, 32)})
    assert strange is not None
    assert not blocks[0] & {id(packed) for _, packed in strange._packed}


def test_shared_weights_go_with_the_last_session(planner: Planner) -> None:
    engines = [CompiledEngine(network(3.0), threads=1) for _ in range(2)]
    for engine in engines:
        engine.run(feed(1))
    store = weakref.ref(engines[0].fixed["v"].base)
    engines.pop().close()
    gc.collect()
    assert store() is not None
    engines.pop().close()
    del engine
    gc.collect()
    assert store() is None


def test_state_is_nobody_elses() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="count")
    g = Builder(graph)
    w = g.initializer("w", np.zeros((4, 8), np.float32))
    graph.inputs.append(w)
    g.output(g.Add(w, g.input("x", ir.DataType.FLOAT, (4, 8))), "more")
    model = ir.Model(graph, ir_version=10)
    one, two = (StepSession(model, {"w": "more"}, engine="compiled") for _ in range(2))
    one.run({"x": np.ones((4, 8), np.float32)})
    assert one.state["w"][0, 0] == 1
    assert two.state["w"][0, 0] == 0


def test_runs_of_a_session_with_state_queue() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="count")
    g = Builder(graph)
    w = g.initializer("w", np.zeros((4, 8), np.float32))
    graph.inputs.append(w)
    g.output(g.Add(w, g.input("x", ir.DataType.FLOAT, (4, 8))), "more")
    session = StepSession(ir.Model(graph, ir_version=10), {"w": "more"}, engine="compiled", threads=2)
    together(4, lambda _: [session.run({"x": np.ones((4, 8), np.float32)}) for _ in range(50)])
    assert (session.state["w"] == 200).all()


def test_a_trainer_has_one_copy_of_its_weights() -> None:
    from onward.nn import zoo

    rng = np.random.default_rng(0)
    data = rng.standard_normal((32, 784)).astype(np.float32), rng.integers(0, 10, 32)
    trainer = Trainer(zoo.build("mlp").model, CrossEntropy(), engine="compiled", threads=1)
    trainer.fit(data, epochs=1, batch_size=16)
    before = trainer.evaluate(data)["loss"]
    trainer.predict(data[0])
    evaluating = [session for session, _, _ in trainer._evaluations.values()]
    assert evaluating
    state = trainer.weights()
    for session in (trainer._inference, *evaluating):
        fixed = session._engine.fixed  # type: ignore[attr-defined]
        assert all(np.shares_memory(fixed[name], array) for name, array in state.items())
    trainer.fit(data, epochs=2, batch_size=16)
    assert trainer.evaluate(data)["loss"] != before
    fresh = Session(trainer.model, engine="compiled", threads=1)
    name = trainer.inputs[0].name
    for output, array in trainer.predict(data[0]).items():
        assert np.array_equal(array, fresh.run({name: data[0]})[output])


def test_loaded_weights_are_copied_unless_asked_not_to_be() -> None:
    for engine in ("compiled", "interpreter"):
        with Session(network(), engine=engine, threads=1) as session:  # type: ignore[arg-type]
            v = np.array(network(2.0).graph.initializers["v"].const_value.numpy())  # type: ignore[union-attr]
            session.load_weights({"v": v})
            before = session.run(feed(1))["y"]
            v[:] = 0
            assert np.array_equal(session.run(feed(1))["y"], before)


def test_teams_go_to_those_for_whom_there_are_cores() -> None:
    teams = Teams(cores=4)
    teams.hold(2)
    first, second = teams.take(2), teams.take(2)
    assert first is not None
    assert second is not None
    assert first is not second
    assert teams.take(2) is None
    teams.give(None)
    teams.give(first)
    assert teams.take(2) is first
    assert teams.take(1) is None
    teams.give(None)
    teams.give(first)
    teams.give(second)
    assert teams.take(2, wanted=False) is None
    third = teams.take(2)
    assert third is second
    teams.give(third)
    teams.give(None)
    many = teams.take(9)  # the only run gets what it asks for
    assert many is not None
    teams.give(many)
    assert many._closed  # nobody holds its size
    teams.release(2)
    assert first._closed
    assert second._closed


def test_weights_in_a_mapped_file_are_read_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    save(network(), path, external_data_threshold=0)
    mapped, copied = load(path, mapped=True), load(path)
    engines = [CompiledEngine(model, threads=1) for model in (mapped, mapped, network(0.5))]
    large = mapped.graph.initializers["v"].const_value
    assert large is not None
    assert np.shares_memory(engines[0].fixed["v"], large.numpy())
    assert np.shares_memory(engines[1].fixed["v"], large.numpy())
    assert not np.shares_memory(engines[2].fixed["v"], large.numpy())
    assert np.array_equal(large.numpy(), copied.graph.initializers["v"].const_value.numpy())  # type: ignore[union-attr]
    with Session(copied, engine="compiled", threads=1) as session:
        assert engines[0].run(feed(2))["y"].tobytes() == session.run(feed(2))["y"].tobytes()
    maps = Path("/proc/self/maps")
    if maps.exists():
        files = [line.split()[-1] for line in maps.read_text().splitlines() if str(tmp_path) in line]
        assert files


def test_sessions_of_one_file_hold_its_weights_once(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    save(network(), path)
    with (
        Session(path, engine="compiled", threads=1) as one,
        Session(path, engine="compiled", threads=1) as two,
    ):
        places = set()
        for session in (one, two):
            held = session._model.graph.initializers["v"].const_value
            assert held is not None
            places |= {held.numpy().ctypes.data, session._engine.fixed["v"].ctypes.data}  # type: ignore[attr-defined]
        assert len(places) == 1
        assert np.array_equal(one.run(feed(1))["y"], two.run(feed(1))["y"])


def test_what_is_prepared_is_not_planned_or_packed_again(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(network(), engine="compiled", threads=2) as session:
        for rows in (1, 4):
            session.prepare({"x": (rows, 3, 32, 32)})
        monkeypatch.setattr(planning, "plan_model", None)
        plan = session._engine.plan({"x": (4, 3, 32, 32)})  # type: ignore[attr-defined]
        assert plan._packed
        assert all(packed.filled for _, packed in plan._packed)
        session.run(feed(4))
        with pytest.raises(InputError, match="missing"):
            session.prepare({})
        with pytest.raises(InputError, match=r"\[1, 4, 32, 32\]"):
            session.prepare({"x": (1, 4, 32, 32)})
        with pytest.raises(InputError, match="'z'"):
            session.prepare({"x": (1, 3, 32, 32), "z": (1,)})
    with Session(network(), engine="interpreter") as session:
        session.prepare({"x": (1, 3, 32, 32)})


def test_sessions_that_are_closed_or_forgotten_leave_no_threads() -> None:
    def workers() -> set[str]:
        return {t.name for t in threading.enumerate() if t.name == "onward-team-4"}

    with Session(network(), engine="compiled", threads=5) as session:
        session.run(feed(2))
        assert workers()
    assert not workers()
    session.close()
    engine = CompiledEngine(network(), threads=5)
    engine.run(feed(2))
    assert workers()
    del engine
    gc.collect()
    CompiledEngine(network(), threads=1)
    assert not workers()


def test_new_weights_find_the_working_memory_of_the_old(planner: Planner) -> None:
    with Session(network(), engine="compiled", threads=1) as session:
        v = np.array(network().graph.initializers["v"].const_value.numpy())  # type: ignore[union-attr]
        session.load_weights({"v": v})
        places = set()
        for scale in (1.0, 2.0, 1.0):
            session.load_weights({"v": v * np.float32(scale)})
            results = session.run(feed(2))["y"]
            with Session(network(), engine="compiled", threads=1) as fresh:
                fresh.load_weights({"v": v * np.float32(scale)})
                assert np.array_equal(fresh.run(feed(2))["y"], results)
            plan = session._engine.plan({"x": (2, 3, 32, 32)})  # type: ignore[attr-defined]
            places.add(plan._idle[0].arena.ctypes.data)
        assert len(places) == 1


@pytest.mark.parametrize("background", [False, True])
def test_weights_that_become_variable_while_a_plan_is_made_are_read(
    planner: Planner, background: bool
) -> None:
    """The plan that was begun took them for constants: it must not be used."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="slope")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 4))
    g.output(g.Mul(x, g.initializer("slope", np.array([2.0], np.float32))), "y")
    model = ir.Model(graph, ir_version=10)
    ones = {"x": np.ones((5, 4), np.float32)}
    planner.held = 5
    with Session(model, engine="compiled", background=background) as session, ThreadPoolExecutor(1) as pool:
        first = pool.submit(session.run, ones)
        assert planner.begun.wait(WAIT)
        planner.held = None
        session.load_weights({"slope": np.array([3.0], np.float32)})
        planner.go.set()
        assert first.result(WAIT)["y"][0, 0] in (2.0, 3.0)
        for _ in range(20):
            assert session.run(ones)["y"][0, 0] == 3.0
        session.prepare({"x": (5, 4)})
        assert session.run(ones)["y"][0, 0] == 3.0
