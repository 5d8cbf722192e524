"""Calls of a plan that start something and wait for it, while kernels between them run."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onward.compile.codegen.builder import Module
from onward.compile.codegen.jit import default_jit
from onward.compile.codegen.target import host_target
from onward.compile.planning import plan_model
from onward.compile.spec import NONE, PlanCall, PlanSpec, PlanStart, PlanWait
from onward.compile.spec_file import read_plan, write_plan
from onward.engine.plan import Plan
from onward.engine.team import Team
from onward.engine.weights import Weight
from onward.errors import ConfigError, OnwardError
from onward.graph import Array, Builder
from onward.graph.foreign import Foreign, foreign, forget_foreign, register_foreign

WAIT = 30.0
SIZE = 64

FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.POINTER(ctypes.c_int64))


def poll_address() -> int:
    """A native function `args -> 1 - args[0][0]`: it asks to be called again until a flag is 1."""
    module = Module(host_target())
    f = module.function("onward_kernel", (("args", "ptr"),), "i64", internal=False)
    flag = f.instruction("i64", f"load atomic i64, ptr {f.load(f.arguments[0], 'ptr').ref} seq_cst, align 8")
    f.emit(f"ret i64 {(f.value(1) - flag).ref}")
    return default_jit().address(module.text())


class Doubler:
    """Its thread doubles a block of floats once a kernel has written another block."""

    def __init__(self) -> None:
        self.flag = np.zeros(1, np.int64)
        self.outcome = 1
        self.others: set[int] = set()
        self._entry = FUNCTION(self._start)
        self.thread: threading.Thread | None = None
        address = ctypes.cast(self._entry, ctypes.c_void_p).value
        assert address is not None
        self.functions = Foreign(address, poll_address(), self.flag.ctypes.data)

    def _start(self, args: ctypes._Pointer[ctypes.c_int64]) -> int:
        _, block, between, count = args[:4]
        self.flag[:] = 0
        self.thread = threading.Thread(target=self._work, args=(block, between, count))
        self.thread.start()
        return 0

    def _work(self, block: int, between: int, count: int) -> None:
        mine = np.ctypeslib.as_array((ctypes.c_float * count).from_address(block))
        theirs = np.ctypeslib.as_array((ctypes.c_float * count).from_address(between))
        pause, waited = threading.Event(), 0.0
        while not theirs.all() and waited < WAIT:  # were the kernel held up by the start, this would not end
            pause.wait(0.001)
            waited += 0.001
        mine *= 2
        theirs[:] = 0
        self.flag[:] = self.outcome if waited < WAIT else 2


@pytest.fixture
def doubler() -> Iterator[Doubler]:
    made = Doubler()
    register_foreign("double", made.functions)
    yield made
    forget_foreign("double")


def plan_of(threads: int) -> tuple[PlanSpec, list[int], dict[str, Weight], Array]:
    """a = x @ v; then, between the start and the wait, b = x @ w; y = a @ u, which must see a doubled."""
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal((SIZE, SIZE)).astype(np.float32) for n in "uvw"}
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="overlap")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, (SIZE, SIZE))
    u, v, w = (g.initializer(n, a) for n, a in weights.items())
    a, b = g.MatMul(x, v), g.MatMul(x, w)
    g.output(a, "a")
    g.output(b, "b")
    g.output(g.MatMul(a, u), "y")
    model = ir.Model(graph, ir_version=10)
    made = plan_model(model, {"x": (SIZE, SIZE)}, weights, {}, host_target(), threads)
    spec = made.spec
    assert len(spec.steps) == 3
    assert all(isinstance(step, PlanCall) for step in spec.steps)
    block, between = spec.outputs["a"].buffer, spec.outputs["b"].buffer
    arguments = ((block, 0), (between, 0), (NONE, SIZE * SIZE))
    first, second, third = (
        replace(step, no_barrier=False) for step in spec.steps if isinstance(step, PlanCall)
    )
    changed = replace(
        spec, steps=(first, PlanStart("double", arguments), second, PlanWait("double", arguments), third)
    )
    addresses = default_jit().addresses(made.texts)
    return changed, addresses, {n: Weight(a) for n, a in weights.items()}, weights["u"]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_kernels_run_between_the_start_and_the_wait(doubler: Doubler, threads: int) -> None:
    spec, addresses, weights, u = plan_of(threads)
    x = np.random.default_rng(1).standard_normal((SIZE, SIZE)).astype(np.float32)
    plan = Plan(spec, weights, addresses)
    with Team(threads) as team:
        for turn in range(20):
            results = plan.run({"x": x}, team if turn % 2 else None)
            doubled = 2 * (x @ weights["v"].array)
            assert np.allclose(results["a"], doubled, rtol=1e-4, atol=1e-4)
            assert not results["b"].any()  # the thread cleared what the kernel between had written
            assert np.allclose(results["y"], doubled @ u, rtol=1e-3, atol=1e-2)


def test_a_failure_ends_the_run_and_names_the_function(doubler: Doubler) -> None:
    spec, addresses, weights, _ = plan_of(2)
    doubler.outcome = 4
    x = np.ones((SIZE, SIZE), np.float32)
    plan = Plan(spec, weights, addresses)
    with Team(2) as team:
        for _ in range(3):
            with pytest.raises(OnwardError, match="'double' that the plan calls failed with code -3"):
                plan.run({"x": x}, team)
        doubler.outcome = 1
        plan.run({"x": x}, team)


def test_a_file_holds_the_name_and_not_the_address(doubler: Doubler) -> None:
    spec, addresses, weights, _ = plan_of(1)
    read = read_plan(write_plan(spec))
    assert read.steps == spec.steps
    forget_foreign("double")
    with pytest.raises(ConfigError, match="register a function"):
        Plan(read, weights, addresses).run({"x": np.ones((SIZE, SIZE), np.float32)}, None)


def test_a_name_stands_for_one_thing(doubler: Doubler) -> None:
    register_foreign("double", doubler.functions)
    with pytest.raises(ConfigError, match="'double'"):
        register_foreign("double", replace(doubler.functions, context=1))
    assert foreign("double") == doubler.functions
