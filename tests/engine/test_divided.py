"""Models whose shapes depend on data: which parts have plans, what NumPy does, and that results are right."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper as h

from onward.autodiff import training_step
from onward.engine import Session, StepSession, divided
from onward.engine.compiled import CompiledEngine
from onward.engine.divided import ENOUGH, MOST, Segment
from onward.engine.interpreter import Interpreter
from onward.errors import ShapeError
from onward.graph import Builder
from onward.model import from_bytes
from onward.train import SGD
from onward.train.losses import CrossEntropy

Feed = Mapping[str, np.ndarray]

RNG = np.random.default_rng(0)


def new() -> Builder:
    return Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="divided"))


def made(g: Builder) -> ir.Model:
    return ir.Model(g.graph, ir_version=10)


def weight(g: Builder, name: str, *shape: int) -> ir.Value:
    return g.initializer(name, (0.1 * RNG.normal(size=shape)).astype(np.float32))


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def detector() -> ir.Model:
    """A backbone, boxes and scores of two classes, those that are kept, and their boxes."""
    g = new()
    y = g.input("image", ir.DataType.FLOAT, ("N", 3, 32, 32))
    for i, (ins, outs) in enumerate([(3, 8), (8, 16)]):
        w = weight(g, f"w{i}", outs, ins, 3, 3)
        y = g.Relu(g.Conv(y, w, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]))
    boxes, scores = (
        g.Sigmoid(g.Reshape(g.Conv(y, weight(g, n, k, 16, 1, 1), kernel_shape=[1, 1]), g.const([0, k, -1])))
        for n, k in (("boxes", 4), ("scores", 2))
    )
    boxes = g.Transpose(boxes, perm=[0, 2, 1])
    limits = (
        g.const(5),
        g.initializer("iou", np.array([0.5], np.float32)),
        g.initializer("least", np.array([0.2], np.float32)),
    )
    kept = g.NonMaxSuppression(boxes, scores, *limits, center_point_box=1)
    g.output(kept, "kept")
    g.output(g.GatherND(boxes, g.Gather(kept, g.const([0, 2]), axis=1)), "picked")
    return made(g)


def chosen_rows() -> ir.Model:
    """Rows with a positive sum, through a layer: the second product's shape depends on data."""
    g = new()
    x = g.input("x", ir.DataType.FLOAT, ("N", 6))
    y = g.Relu(g.MatMul(x, weight(g, "w", 6, 8)))
    positive = g.Greater(
        g.ReduceSum(x, g.const([1]), keepdims=0), g.initializer("zero", np.zeros(1, np.float32))
    )
    rows = g.Compress(y, positive, axis=0)
    g.output(g.Softmax(g.MatMul(rows, weight(g, "v", 8, 3)), axis=1), "y")
    return made(g)


def places() -> ir.Model:
    g = new()
    x = g.input("x", ir.DataType.FLOAT, ("N", 6))
    y = g.MatMul(x, weight(g, "w", 6, 8))
    found = g.NonZero(g.Relu(y))
    g.output(found, "places")
    g.output(g.GatherND(y, g.Transpose(found, perm=[1, 0])), "values")
    return made(g)


def distinct() -> ir.Model:
    """The kinds among clusters' numbers, and the mean of a network's rows: no path joins the two."""
    g = new()
    ids, x = g.input("ids", ir.DataType.INT64, ("M",)), g.input("x", ir.DataType.FLOAT, ("N", 6))
    g.output(g.Unique(ids), "kinds")
    y = g.Relu(g.MatMul(x, weight(g, "w", 6, 8)))
    g.output(g.MatMul(y, weight(g, "v", 8, 3)), "y")
    return made(g)


LOOP = """
<ir_version: 10, opset_import: ["": 21]>
loops (float[N, 6] x, float[6, 6] w, float[6, 3] v) => (float[N, 3] y, float[T, N, 6] all)
{
    a = MatMul (x, w)
    few = ReduceMax <keepdims = 0> (a)
    count = Cast <to = 7> (few)
    yes = Constant <value_int = 1> ()
    go = Cast <to = 9> (yes)
    last, all = Loop (count, go, a) <body = turn (int64 i, bool on, float[N, 6] h)
        => (bool on_out, float[N, 6] h_out, float[N, 6] h_scan) {
        on_out = Identity (on)
        h_out = Tanh (h)
        h_scan = Identity (h_out)
    }>
    y = MatMul (last, v)
}
"""


def loops() -> ir.Model:
    """As many turns as the largest product says."""
    proto = onnx.parser.parse_model(LOOP)
    for name, array in (("w", np.abs(floats(6, 6))), ("v", floats(6, 3))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    kept = [i for i in proto.graph.input if i.name == "x"]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    return from_bytes(proto.SerializeToString())


def texts() -> ir.Model:
    """Strings are looked up, and what follows has shapes that follow from the inputs'."""
    encode = h.make_node(
        "LabelEncoder", ["s"], ["i"], domain="ai.onnx.ml", keys_strings=["a", "b"], values_floats=[1.0, 2.0]
    )
    nodes = [encode, h.make_node("MatMul", ["i", "w"], ["h"]), h.make_node("Relu", ["h"], ["y"])]
    graph = h.make_graph(
        nodes,
        "texts",
        [h.make_tensor_value_info("s", onnx.TensorProto.STRING, ["N", 4])],
        [h.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 5])],
        [onnx.numpy_helper.from_array(floats(4, 5), "w")],
    )
    opsets = [h.make_opsetid("", 21), h.make_opsetid("ai.onnx.ml", 4)]
    return from_bytes(h.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


CASES: dict[str, tuple[Callable[[], ir.Model], Feed, list[str]]] = {
    "detector": (detector, {"image": floats(2, 3, 32, 32)}, ["known", "numpy"]),
    "compress": (chosen_rows, {"x": floats(9, 6)}, ["known", "numpy", "met"]),
    "nonzero": (places, {"x": floats(5, 6)}, ["known", "numpy"]),
    "unique": (distinct, {"ids": np.array([3, 1, 3]), "x": floats(4, 6)}, ["known", "numpy"]),
    "loop": (loops, {"x": floats(4, 6) * 3}, ["known", "numpy", "known"]),
    "texts": (texts, {"s": np.array([["a", "b", "a", "c"]] * 3, object)}, ["numpy", "known"]),
}


def kind(segment: Segment) -> str:
    return "numpy" if segment.engine is None else "met" if segment.shapes is None else "known"


def shapes_of(feed: Feed) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feed.items()}


def compare(got: Feed, want: Feed) -> None:
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == want[name].dtype
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_parts_have_compiled_kernels_and_give_what_the_interpreter_gives(name: str) -> None:
    make, feed, kinds = CASES[name]
    model = make()
    engine = CompiledEngine(model, threads=1)
    assert engine.plan(shapes_of(feed)) is None
    segments = engine.segments(shapes_of(feed))
    assert [kind(s) for s in segments] == kinds
    for segment in segments:
        assert bool(segment.cuts) == (segment.engine is None)
        if kind(segment) == "known":
            plan = segment.plan()
            assert plan is not None
            assert [r.operators for r in plan.rows if r.reason and "Cast" not in r.operators] == []
            assert any(word in row.kernel for row in plan.rows for word in ("gemm", "conv"))
    want = Interpreter(model.graph).run(feed)
    for _ in range(ENOUGH + 2):
        compare(engine.run(feed), want)
    engine.close()


def test_an_output_alone_is_given_alone() -> None:
    make, feed, _ = CASES["detector"]
    with Session(make(), threads=1) as session:
        assert list(session.run(feed, ["picked"])) == ["picked"]


def test_one_division_serves_other_shapes() -> None:
    model = chosen_rows()
    engine, interpreter = CompiledEngine(model, threads=1), Interpreter(model.graph)
    for n in (3, 5, 3, 8):
        feed = {"x": floats(n, 6)}
        compare(engine.run(feed), interpreter.run(feed))
    assert len(engine._divided) == 1


def test_nothing_that_is_kept_gives_empty_results() -> None:
    model = chosen_rows()
    feed = {"x": -np.ones((4, 6), np.float32)}
    engine = CompiledEngine(model, threads=1)
    for _ in range(ENOUGH + 2):
        assert engine.run(feed)["y"].shape == (0, 3)


def rows_with(kept: int, rows: int) -> Feed:
    """Rows of which so many have a positive sum."""
    return {"x": np.where(np.arange(rows)[:, None] < kept, 1, -1).astype(np.float32) * np.ones(6, np.float32)}


def wait_for_background(engine: CompiledEngine) -> None:
    assert engine._background is not None
    engine._background._worker.submit(lambda: None).result()


def met_engine(engine: CompiledEngine, feed: Feed) -> CompiledEngine:
    (found,) = (s.engine for s in engine.segments(shapes_of(feed)) if kind(s) == "met")
    assert found is not None
    return found


def test_shapes_that_come_often_get_plans_and_new_ones_do_not() -> None:
    engine = CompiledEngine(chosen_rows(), threads=1)
    for kept in range(12):
        engine.run(rows_with(kept, 12))
    inner = met_engine(engine, rows_with(0, 12))
    wait_for_background(inner)
    assert not inner._making
    for _ in range(ENOUGH):
        engine.run(rows_with(7, 12))
    wait_for_background(inner)
    engine.run(rows_with(7, 12))
    assert [shape for key in inner._plans for _, shape in key] == [(7, 8)]


def test_plans_for_shapes_that_are_met_are_bounded() -> None:
    familiar = divided.Familiar()
    for extent in range(2 * MOST):
        for _ in range(ENOUGH - 1):
            assert not familiar.meet({"x": (extent,)})
        assert familiar.meet({"x": (extent,)}) == (extent < MOST)
    assert familiar.meet({"x": (0,)})


def test_runs_go_on_at_once() -> None:
    model, feeds = chosen_rows(), [rows_with(k, 12) for k in range(1, 9)]
    interpreter = Interpreter(model.graph)
    want = [interpreter.run(feed) for feed in feeds]
    wrong: list[int] = []
    done: list[int] = []
    with Session(model, threads=2) as session:

        def work(start: int) -> None:
            for i in range(40):
                k = (start + i) % len(feeds)
                got = session.run(feeds[k])["y"]
                if not np.allclose(got, want[k]["y"], rtol=1e-5, atol=1e-5):
                    wrong.append(k)
            done.append(start)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert sorted(done) == [0, 1, 2, 3]


def test_weights_are_shared_and_replaced() -> None:
    model, feed = chosen_rows(), {"x": np.abs(floats(4, 6))}
    session = Session(model, threads=1)
    session.run(feed)
    engine = session._engine
    assert isinstance(engine, CompiledEngine)
    for segment in engine.segments(shapes_of(feed)):
        if segment.engine is not None:
            for name, array in segment.engine.fixed.items():
                assert array is engine.fixed[name]
    w, v = floats(6, 8), floats(8, 3)
    session.load_weights({"w": w, "v": v})
    h = np.maximum(feed["x"] @ w, 0) @ v
    e = np.exp(h - h.max(1, keepdims=True))
    for _ in range(ENOUGH + 2):
        np.testing.assert_allclose(session.run(feed)["y"], e / e.sum(1, keepdims=True), rtol=1e-4, atol=1e-5)
    session.close()


def test_batches_are_split_in_the_part_that_proves_samples_independent() -> None:
    model = detector()
    feed = {"image": floats(5, 3, 32, 32)}
    with Session(model, threads=1, batches="split") as session:
        compare(session.run(feed), Interpreter(model.graph).run(feed))
        (inner, _) = (s.engine for s in session._engine.segments(shapes_of(feed)))  # type: ignore[attr-defined]
        assert sorted(dict(key)["image"][0] for key in inner._plans) == [1, 4]


def test_background_planning_answers_meanwhile() -> None:
    make, feed, _ = CASES["compress"]
    model = make()
    want = Interpreter(model.graph).run(feed)
    with Session(model, threads=1, background=True) as session:
        for _ in range(5):
            compare(session.run(feed), want)


def test_preparing_plans_what_is_known() -> None:
    make, feed, _ = CASES["detector"]
    engine = CompiledEngine(make(), threads=1)
    engine.prepare(shapes_of(feed))
    inner = engine.segments(shapes_of(feed))[0].engine
    assert inner is not None
    assert len(inner._plans) == 1


@pytest.mark.parametrize("rows", [3, 4])
def test_an_error_behind_a_cut_names_the_node(rows: int) -> None:
    g = new()
    x = g.input("x", ir.DataType.FLOAT, ("N", 6))
    y = g.Relu(g.MatMul(x, weight(g, "w", 6, 8)))
    flat = g.Compress(
        g.Reshape(y, g.const([-1])), g.Greater(g.Reshape(y, g.const([-1])), g.const(np.float32(-1)))
    )
    square = g.Reshape(flat, g.const([-1, 5]))
    name = square.producer().name  # type: ignore[union-attr]
    g.output(g.MatMul(square, weight(g, "v", 5, 2)), "y")
    engine = CompiledEngine(made(g), threads=1)
    for _ in range(ENOUGH + 2):
        with pytest.raises(ShapeError, match=f"node '{name}', operator Reshape, opset 21"):
            engine.run({"x": floats(rows, 6)})


def test_a_step_with_state_advances_it() -> None:
    g = new()
    x = g.input("x", ir.DataType.FLOAT, ("N", 6))
    w = g.initializer("w", np.ones((6, 8), np.float32))
    g.graph.inputs.append(w)
    y = g.MatMul(x, w)
    kept = g.Compress(
        g.ReduceSum(y, g.const([1]), keepdims=0),
        g.Greater(g.ReduceSum(x, g.const([1]), keepdims=0), g.const(np.float32(0))),
    )
    change = g.ReduceSum(kept, keepdims=0)
    g.output(g.Sub(w, g.Mul(change, g.initializer("rate", np.full((8,), 0.01, np.float32)))), "w_next")
    g.output(change, "loss")
    model = made(g)
    feeds = [{"x": floats(5, 6)} for _ in range(6)]
    steps = [StepSession(model, {"w": "w_next"}, engine=e) for e in ("compiled", "interpreter")]
    inner = steps[0]._engine
    assert isinstance(inner, CompiledEngine)
    assert [kind(s) for s in inner.segments({"x": (5, 6)})] == ["known", "numpy", "known"]
    for feed in feeds:
        compare(*(step.run(feed) for step in steps))
    compare(*(dict(step.state) for step in steps))
    assert not np.array_equal(steps[0].state["w"], np.ones((6, 8)))


def test_a_training_step_is_compiled_before_and_behind_what_depends_on_data() -> None:
    """A loss over the rows that are kept: gradients of what they were taken from have known shapes."""
    g = new()
    y = x = g.input("x", ir.DataType.FLOAT, ("N", 4, 8, 8))
    names = [f"w{i}" for i in range(3)]
    for name in names:
        y = g.Relu(g.Conv(y, weight(g, name, 4, 4, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    sums = g.ReduceSum(x, g.const([1, 2, 3]), keepdims=0)
    rows = g.Compress(
        g.Reshape(y, g.const([0, -1])),
        g.Greater(sums, g.initializer("zero", np.zeros(1, np.float32))),
        axis=0,
    )
    g.output(g.MatMul(rows, weight(g, "v", 256, 3)), "logits")
    step = training_step(made(g), {"logits": CrossEntropy()}, SGD(), [*names, "v"])
    compiled, interpreted = (
        StepSession(step.model, step.bindings, engine=e, threads=1) for e in ("compiled", "interpreter")
    )
    x_now = floats(6, 4, 8, 8)
    kept = int((x_now.sum((1, 2, 3)) > 0).sum())
    feed = {
        "x": x_now,
        "target": np.zeros(kept, np.int64),
        "learning_rate": np.array(0.001, np.float32),
        "step": np.array(1),
    }
    feed = {name: array for name, array in feed.items() if name in {spec.name for spec in compiled.inputs}}
    engine = compiled._engine
    assert isinstance(engine, CompiledEngine)
    segments = engine.segments(shapes_of(feed))
    assert [kind(s) for s in segments[:3]] == ["known", "numpy", "known"]
    rows_of_plans = [row.kernel.split()[0] for s in segments if (plan := s.plan()) for row in plan.rows]
    assert sum(kernel.startswith("conv") for kernel in rows_of_plans) >= 8, rows_of_plans
    for _ in range(ENOUGH + 2):
        compare(compiled.run(feed), interpreted.run(feed))
    compare(dict(compiled.state), dict(interpreted.state))


def test_what_reads_a_shape_of_an_earlier_part_is_planned() -> None:
    """A reshape by another value's extents, behind a cut, follows from shapes."""
    g = new()
    x = g.input("x", ir.DataType.FLOAT, ("N", 6))
    y = g.MatMul(x, weight(g, "w", 6, 8))
    width = g.Gather(g.Shape(y), g.const([1]), axis=0)
    rows = g.GatherND(
        y, g.Slice(g.Transpose(g.NonZero(y), perm=[1, 0]), g.const([0]), g.const([1]), g.const([1]))
    )
    again = g.Reshape(g.Relu(rows), g.Concat(g.const([-1]), width, axis=0))
    g.output(g.MatMul(again, weight(g, "v", 8, 3)), "z")
    g.output(width, "width")
    model = made(g)
    engine, feed = CompiledEngine(model, threads=1), {"x": floats(3, 6)}
    assert [kind(s) for s in engine.segments(shapes_of(feed))] == ["known", "numpy", "met", "numpy"]
    want = Interpreter(model.graph).run(feed)
    for _ in range(ENOUGH + 1):
        compare(engine.run(feed), want)
    inner = met_engine(engine, feed)
    wait_for_background(inner)
    compare(engine.run(feed), want)
    (plan,) = inner._plans.values()
    assert plan is not None
    assert [row.kernel.split()[0] for row in plan.rows] == ["take", "element", "gemm"]  # type: ignore[union-attr]


def test_a_body_that_is_large_gets_plans_wherever_its_count_comes_from() -> None:
    """Between NumPy's Loop and its body's products there is a plan, once shapes have come often."""
    model = loops()
    engine, feed = CompiledEngine(model, threads=1), {"x": np.full((3000, 6), 0.5, np.float32)}
    want = Interpreter(model.graph).run(feed)
    assert len(want["all"]) >= 2
    for _ in range(ENOUGH + 1):
        compare(engine.run(feed), want)
    (parts,) = engine._divided.values()
    ((body, _),) = parts._bodies._engines.values()  # type: ignore[union-attr]
    wait_for_background(body)
    compare(engine.run(feed), want)
    (plan,) = body._plans.values()
    assert any(row.kernel == "element" for row in plan.rows)  # type: ignore[union-attr]
