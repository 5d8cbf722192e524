"""Functions of other libraries on blocks of gradients: placed by the compiler, called by address."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.verify.test_zoo_training import SMALL

from onward.autodiff import Collective, GradientTransform, TrainingStep, training_step
from onward.compile.spec import PlanCall, PlanCopy, PlanFallback, PlanSpec, PlanStart, PlanWait
from onward.engine import Foreign, Session, StepSession, forget_foreign, register_foreign
from onward.errors import ConfigError, InvalidModelError, OnwardError, UnsupportedError
from onward.graph import Array, Builder
from onward.model import trainable_initializers
from onward.nn import zoo
from onward.passes import expand_onward
from onward.train import SGD, CrossEntropy

FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.POINTER(ctypes.c_int64))
KINDS = {1: np.float32, 11: np.float64}


class Halver:
    """Halves blocks, each on a thread of its own, which its wait asks for until it has ended."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int]] = []
        self.ended: list[int] = []
        self.fails = False
        self._threads: dict[int, threading.Thread] = {}
        self._entries = FUNCTION(self._start), FUNCTION(self._wait)
        start, wait = (ctypes.cast(e, ctypes.c_void_p).value or 0 for e in self._entries)
        self.functions = Foreign(start, wait, 77)

    def _start(self, args: Any) -> int:
        context, address, count, kind, tag = args[:5]
        assert context == 77
        self.started.append((tag, count))
        dtype = np.dtype(KINDS[kind])
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        block = np.frombuffer(memory, dtype)
        thread = threading.Thread(target=np.multiply, args=(block, dtype.type(0.5)), kwargs={"out": block})
        self._threads[tag] = thread
        thread.start()
        return 0

    def _wait(self, args: Any) -> int:
        tag = args[4]
        if self.fails and tag == 1:
            return -5
        if self._threads[tag].is_alive():
            return 1
        self._threads.pop(tag).join()
        self.ended.append(tag)
        return 0


@pytest.fixture
def halver() -> Iterator[Halver]:
    made = Halver()
    register_foreign("halve", made.functions)
    yield made
    forget_foreign("halve")


def halved(g: Builder, gradients: dict[str, ir.Value]) -> dict[str, ir.Value]:
    return {name: g.Mul(d, 0.5) for name, d in gradients.items()}


def step_of(name: str, *transforms: GradientTransform, expose: bool = False) -> TrainingStep:
    model = zoo.build(name, **SMALL[name]).model
    (output,) = model.graph.outputs
    return training_step(
        model,
        {output.name or "": CrossEntropy()},
        SGD(learning_rate=0.1, momentum=0.9),
        trainable_initializers(model),
        gradient_transforms=transforms,
        expose_gradients=expose,
    )


def feed_of(step: TrainingStep, number: int) -> dict[str, Array]:
    rng = np.random.default_rng(number)
    feed: dict[str, Array] = {}
    for value in step.model.graph.inputs:
        name = value.name or ""
        if name in step.model.graph.initializers or value.shape is None:
            continue
        shape = tuple(d if isinstance(d, int) else 6 for d in value.shape)
        if name == step.learning_rate:
            feed[name] = np.array(0.1, np.float32)
        elif name in (step.step, step.seed):
            feed[name] = np.array(number)
        elif value.dtype == ir.DataType.INT64:
            feed[name] = rng.integers(0, 2, shape)
        else:
            feed[name] = rng.standard_normal(shape).astype(np.float32)
    return feed


def trained(step: TrainingStep, engine: str, threads: int = 1) -> tuple[dict[str, Array], PlanSpec | None]:
    """State after three steps, and the plan."""
    session = StepSession(step.model, step.bindings, engine=engine, threads=threads)  # type: ignore[arg-type]
    for number in range(3):
        session.run(feed_of(step, number))
    plan = None
    if engine == "compiled":
        found = session._engine.plan({n: a.shape for n, a in feed_of(step, 0).items()})  # type: ignore[union-attr]
        plan = found.spec
    return session.state, plan


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["lenet5", "mlp", "resnet20", "transformer_encoder"])
def test_gradients_are_changed_in_place_while_the_plan_goes_on(
    halver: Halver, name: str, threads: int
) -> None:
    step = step_of(name, Collective("halve", bucket_bytes=300))
    state, plan = trained(step, "compiled", threads)
    wanted, _ = trained(step_of(name, halved), "compiled", threads)
    assert plan is not None
    for key, array in wanted.items():
        np.testing.assert_allclose(state[key], array, rtol=1e-5, atol=1e-6)
    starts = [i for i, s in enumerate(plan.steps) if isinstance(s, PlanStart)]
    waits = [i for i, s in enumerate(plan.steps) if isinstance(s, PlanWait)]
    assert len(starts) == len(waits) >= 2
    assert halver.started == [(tag, halver.started[tag][1]) for tag in range(len(starts))] * 3
    assert sorted(halver.ended) == sorted(list(range(len(starts))) * 3)
    gradients = sum(np.prod(step.model.graph.initializers[p].shape.numpy()) for p in step.parameters)  # type: ignore[union-attr]
    assert sum(count for _, count in halver.started) == 3 * gradients
    # backward kernels run between the first start and the first wait, and nothing stops the team
    assert any(isinstance(s, PlanCall) for s in plan.steps[starts[0] : waits[0]])
    assert starts[0] < max(i for i in range(waits[0]) if isinstance(plan.steps[i], PlanCall))
    assert not any(isinstance(s, PlanFallback | PlanCopy) for s in plan.steps[starts[0] :])
    assert not [row for row in plan.rows if row.operators.startswith("copy for StartCall")]


@pytest.mark.parametrize("name", ["lenet5", "mlp"])
def test_the_interpreter_runs_the_same_graph(halver: Halver, name: str) -> None:
    step = step_of(name, Collective("halve", bucket_bytes=300))
    state, _ = trained(step, "interpreter")
    assert [tag for tag, _ in halver.started] == halver.ended
    wanted, _ = trained(step_of(name, halved), "interpreter")
    for key, array in wanted.items():
        np.testing.assert_array_equal(state[key], array)


def test_gradients_that_others_read_are_copied(halver: Halver) -> None:
    """An output is the gradient from before the function."""
    step = step_of("mlp", Collective("halve"), expose=True)
    plain = step_of("mlp", expose=True)
    feed = feed_of(step, 0)
    found, wanted = (
        StepSession(s.model, s.bindings, engine="compiled", threads=2).run(feed) for s in (step, plain)
    )
    for p, name in step.gradients.items():
        np.testing.assert_array_equal(found[name], wanted[plain.gradients[p]])


@pytest.mark.parametrize("engine", ["compiled", "interpreter"])
def test_a_failure_leaves_the_state(halver: Halver, engine: str) -> None:
    step = step_of("lenet5", Collective("halve", bucket_bytes=300))
    session = StepSession(step.model, step.bindings, engine=engine)  # type: ignore[arg-type]
    before = {name: array.copy() for name, array in session.state.items()}
    halver.fails = True
    with pytest.raises(OnwardError, match=r"halve.*-5"):
        session.run(feed_of(step, 0))
    for name, array in session.state.items():
        np.testing.assert_array_equal(array, before[name])
    halver.fails = False
    session.run(feed_of(step, 0))  # in other memory: a function may still be at work on that of the first run


def graph_of(write: Any) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "ai.onward": 1}, name="calls")
    g = Builder(graph)
    write(g, g.input("x", ir.DataType.DOUBLE, (3, 4)))
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("engine", ["compiled", "interpreter"])
def test_inputs_constants_and_repeated_tensors_are_copied_into_a_block(halver: Halver, engine: str) -> None:
    def write(g: Builder, x: ir.Value) -> None:
        y = g.Exp(x)
        block = g.onward.StartCall(x, y, g.const(np.ones(5)), y, function="halve")
        g.output(g.onward.WaitCall(block, function="halve"), "block")
        g.output(g.Sqrt(y), "root")

    x = np.random.default_rng(0).normal(size=(3, 4))
    found = Session(graph_of(write), engine=engine, threads=2).run({"x": x})  # type: ignore[arg-type]
    wanted = np.concatenate([x.ravel(), np.exp(x).ravel(), np.ones(5), np.exp(x).ravel()]) / 2
    np.testing.assert_allclose(found["block"], wanted, rtol=1e-14)
    np.testing.assert_allclose(found["root"], np.sqrt(np.exp(x)), rtol=1e-14)


def test_nothing_reads_a_block_before_its_wait(halver: Halver) -> None:
    def write(g: Builder, x: ir.Value) -> None:
        block = g.onward.StartCall(x, function="halve")
        g.output(g.onward.WaitCall(block, function="halve"), "y")
        g.output(g.Neg(block), "early")

    def another(g: Builder, x: ir.Value) -> None:
        block = g.onward.StartCall(x, function="halve", tag=1)
        g.output(g.onward.WaitCall(block, function="halve", tag=2), "y")

    for wrong in (write, another):
        with pytest.raises(InvalidModelError, match="nothing else may read it"):
            Session(graph_of(wrong), engine="compiled").run({"x": np.ones((3, 4))})


def test_what_a_collective_refuses(halver: Halver) -> None:
    with pytest.raises(ConfigError, match="the name of a function"):
        Collective("")
    with pytest.raises(ConfigError, match="bucket_bytes"):
        Collective("halve", bucket_bytes=0)
    step = step_of("mlp", Collective("unknown"))
    for engine in ("compiled", "interpreter"):
        with pytest.raises(ConfigError, match="register a function"):
            trained(step, engine)
    with pytest.raises(UnsupportedError, match="of this process"):
        expand_onward(step.model)
