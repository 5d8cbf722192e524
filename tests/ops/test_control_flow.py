"""If, Loop and Scan, sequences and optionals: both engines, limits, and gradients against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.ops.onnx_cases import array_of, onnx_cases

from onward.autodiff import gradients
from onward.engine.compiled import CompiledEngine
from onward.engine.engines import EngineName
from onward.engine.interpreter import Interpreter
from onward.engine.session import Session
from onward.errors import ConfigError, InputError, InvalidModelError, ShapeError
from onward.graph import Array, Builder, canonical_graph, canonical_model
from onward.graph.run_limits import run_limits
from onward.model import from_bytes, to_bytes, trainable_initializers, upgrade
from onward.passes import expand_onward

_RNG = np.random.default_rng(3)
_KINDS = (
    "test_if",
    "test_loop",
    "test_scan",
    "test_range",
    "test_sequence",
    "test_optional",
    "test_split_to",
)
_CASES = [case for case in onnx_cases() if case.name.startswith(_KINDS)]


def model(body: str, opset: int = 16) -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> {body}'
    return from_bytes(onnx.parser.parse_model(text).SerializeToString())


def _same(got: Any, want: Any) -> None:
    if isinstance(want, list):
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            _same(g, w)
        return
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if want.dtype.kind in "OUST":
        assert got.tolist() == want.tolist()
    else:
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_node_case_in_a_session(case: Any) -> None:
    """What is read from a file, with sequences and optionals at its border, in the compiled engine."""
    proto = case.model
    with Session(from_bytes(proto.SerializeToString()), engine="compiled", threads=1) as session:
        for inputs, outputs in case.data_sets:
            feed = dict(zip([v.name for v in proto.graph.input], map(array_of, inputs), strict=True))
            got = session.run(feed)
            for value, want in zip(proto.graph.output, map(array_of, outputs), strict=True):
                _same(got[value.name], want)


IF = """g (float[4] x, float[4] w, bool c) => (float[4] y) {
  y = If (c) <
    then_branch = t () => (float[4] a) { q = Mul(x, w) a = Exp(q) },
    else_branch = e () => (float[4] b) { b = Neg(x) }>
}"""
FEED = {"x": np.arange(4, dtype=np.float32), "w": np.full(4, 0.5, np.float32)}


def test_captured_values_are_inputs_and_the_users_model_stays() -> None:
    read = model(IF)
    before = to_bytes(read)
    (node,) = canonical_graph(read.graph)
    assert [v.name for v in node.inputs if v is not None] == ["c", "x", "w"]
    assert (node.domain, node.name) == ("ai.onward", next(iter(read.graph)).name)
    for body in ("then_branch", "else_branch"):
        assert len(node.attributes[body].as_graph().inputs) == 2
    assert to_bytes(read) == before
    assert canonical_graph(canonical_graph(read.graph)) is not read.graph


@pytest.mark.parametrize("flag", [True, False])
def test_a_live_condition_runs_compiled_bodies(flag: bool) -> None:
    want = np.exp(FEED["x"] * FEED["w"]) if flag else -FEED["x"]
    feed = {**FEED, "c": np.array(flag)}
    engine = CompiledEngine(model(IF), threads=1)
    np.testing.assert_allclose(engine.run(feed)["y"], want, rtol=1e-6)
    plan = engine.plan({name: x.shape for name, x in feed.items()})
    assert plan is not None
    assert [(row.kernel, row.operators.split()[0]) for row in plan.rows] == [("numpy", "If")]
    engine.close()


@pytest.mark.parametrize("flag", [1, 0])
def test_a_known_condition_disappears(flag: int) -> None:
    """Also where it follows from the input's shape, and through a body inside a body."""
    text = IF.replace(", bool c", "").replace(
        "{ q = Mul(x, w)",
        "{ i = Identity(c) z = If (i) <then_branch = a () => (float[4] k) { k = Mul(x, w) }, "
        "else_branch = b () => (float[4] k2) { k2 = Add(x, w) }> q = Identity(z)",
    )
    text = text.replace(
        "y = If", f"n = Size(x) m = Constant<value = int64 {{{4 if flag else 5}}}>() c = Equal(n, m) y = If"
    )
    engine = CompiledEngine(model(text), threads=1)
    want = np.exp(FEED["x"] * FEED["w"]) if flag else -FEED["x"]
    np.testing.assert_allclose(engine.run(FEED)["y"], want, rtol=1e-6)
    plan = engine.plan({name: x.shape for name, x in FEED.items()})
    assert plan is not None
    assert all(row.kernel != "numpy" for row in plan.rows)
    engine.close()


def test_a_condition_of_several_elements_is_refused() -> None:
    read = model(IF.replace("bool c", "bool[2] c"))
    feed = {**FEED, "c": np.array([True, False])}
    with pytest.raises(ShapeError, match="operator If, opset 16: the condition has 2 elements"):
        Interpreter(read.graph).run(feed)


LOOP = """g (int64 n, float[N] x) => (float[M] y) {
  t = Constant<value = bool {1}>()
  y = Loop (, t, x) <body = b (int64 i, bool c, float[K] s) => (bool c2, float[L] r) {
    c2 = Identity(c) r = BODY }>
}"""


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("Neg(s)", "still true after 64 iterations"),
        ("Concat<axis = 0>(s, s)", "hold [0-9,]+ bytes, and the limit is 65,536"),
    ],
)
def test_a_loop_without_an_end_is_one_error(step: str, message: str) -> None:
    read = model(LOOP.replace("BODY", step))
    node = next(n for n in read.graph if n.op_type == "Loop")
    node.name = "endless"
    for engine in (Interpreter(read.graph), CompiledEngine(read, threads=1)):
        with (
            run_limits(max_open_iterations=64, max_loop_bytes=1 << 16),
            pytest.raises(ShapeError, match=f"node 'endless', operator Loop(, opset 16)?: .*{message}"),
        ):
            engine.run({"n": np.array(3), "x": np.ones(2, np.float32)})
        engine.close()


COLLECTING = """g (int64 n, float[N] x) => (float[M] y, float[A, B] all) {
  y, all = Loop (n, , x) <body = b (int64 i, bool c, float[K] s) => (bool c2, float[K] r, float[K] o) {
    c2 = Identity(c) r = Neg(s) o = Identity(s) }>
}"""


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_what_a_loop_will_take_is_asked_for_before_it_runs(engine: EngineName) -> None:
    read = model(COLLECTING)
    next(n for n in read.graph if n.op_type == "Loop").name = "long"
    with Session(read, engine=engine) as session:
        x = np.ones(2**10, np.float32)
        with pytest.raises(
            ShapeError, match=r"node 'long', operator Loop.*asks for 4,611,686,018,427,387,904"
        ):
            session.run({"n": np.array(2**62), "x": x})
        with pytest.raises(ShapeError, match=r"after its 1,048,576 iterations .* hold 17,179,869,184 bytes"):
            session.run({"n": np.array(2**20), "x": np.ones(2**12, np.float32)})
        with run_limits(max_iterations=5), pytest.raises(ShapeError, match="asks for 6 iterations"):
            session.run({"n": np.array(6), "x": x})
        with run_limits(max_iterations=6):
            assert session.run({"n": np.array(6), "x": x})["all"].shape == (6, 2**10)


NESTED = """g (int64 n, float[N] x) => (float[M] y) {
  y = Loop (n, , x) <body = b (int64 i, bool c, float[K] s) => (bool c2, float[K] r) {
    c2 = Identity(c)
    r = Loop (n, , s) <body = d (int64 j, bool e, float[L] t) => (bool e2, float[L] u) {
      e2 = Identity(e) u = Neg(t) }>
  }>
}"""


def test_iterations_of_loops_inside_count() -> None:
    read, run = model(NESTED), 10
    feed = {"n": np.array(run), "x": np.ones(2, np.float32)}
    with run_limits(max_iterations=run + run * run):
        assert Interpreter(read.graph).run(feed)["y"].tolist() == [1, 1]
    with run_limits(max_iterations=run + run * run - 1), pytest.raises(ShapeError, match="iterations"):
        Interpreter(read.graph).run(feed)


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_iterations is 0"), run_limits(max_iterations=0):
        pass


def test_graphs_nest_to_a_limit() -> None:
    inner = ir.Graph([], [], nodes=[], name="deepest")
    for _ in range(40):
        body = inner
        node = ir.node(
            "If", [ir.Value(name="c")], {"then_branch": body, "else_branch": ir.Graph([], [], nodes=[])}
        )
        inner = ir.Graph([], [], nodes=[node], opset_imports={"": 21})
    with pytest.raises(InvalidModelError, match="more than 32 deep"):
        canonical_graph(inner)


def test_sequences_at_the_border_are_checked() -> None:
    read = model("g (seq(float[2]) s) => (int64 n) { n = SequenceLength(s) }")
    session = Session(read, engine="interpreter")
    assert str(session.inputs[0]) == "s: sequence of float32[2]"
    assert session.run({"s": [np.ones(2, np.float32)] * 3})["n"] == 3
    for wrong in (np.ones(2, np.float32), [np.ones(2)], [np.ones(3, np.float32)], None):
        with pytest.raises(InputError, match="input 's'"):
            session.run({"s": wrong})  # type: ignore[dict-item]


SEQUENCES = """g (float[3, 2] x) => (
  seq(float[M, 2]) s, float[3, 2] back, float[3, 1, 2] new, int64 n, float[1, 2] last,
  seq(float[M, 2]) less, bool has, bool none) {
  s = SplitToSequence<axis = 0>(x)
  back = ConcatFromSequence<axis = 0>(s)
  new = ConcatFromSequence<axis = 0, new_axis = 1>(s)
  n = SequenceLength(s)
  end = Constant<value = int64 {-1}>()
  last = SequenceAt(s, end)
  first = Constant<value = int64 {0}>()
  most = SequenceErase(s)
  fewer = SequenceErase(most, first)
  nothing = SequenceEmpty()
  started = SequenceInsert(nothing, last)
  kept = SequenceAt(fewer, first)
  less = SequenceInsert(started, kept, first)
  o = Optional(x)
  has = OptionalHasElement(o)
  e = Optional<type = float[2]>()
  none = OptionalHasElement(e)
}"""


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_sequences(engine: Any) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    got = Session(model(SEQUENCES, 18), engine=engine).run({"x": x})
    _same(got["s"], [x[:1], x[1:2], x[2:]])
    _same(got["back"], x)
    _same(got["new"], x[:, None])
    _same(got["last"], x[2:])
    _same(got["less"], [x[1:2], x[2:]])
    assert (got["n"], got["has"], got["none"]) == (3, True, False)


@pytest.mark.parametrize("position", [-4, 3])
def test_a_position_outside_a_sequence_is_refused(position: int) -> None:
    read = model("g (seq(float[2]) s, int64 at) => (float[2] y) { y = SequenceAt(s, at) }")
    feed = {"s": [np.ones(2, np.float32)] * 3, "at": np.array(position)}
    with pytest.raises(ShapeError, match=f"SequenceAt, opset 16: position {position} is not in -3…2"):
        Interpreter(read.graph).run(feed)


DIFFERENTIABLE = {
    "if": (
        """g (double[3] x, double[3] w, bool c) => (double[3] y) {
          y = If (c) <
            then_branch = t () => (double[3] a) { q = Mul(x, w) a = Mul(q, x) },
            else_branch = e () => (double[3] b) { b = Sin(x) }>
        }""",
        {"x": (3,), "w": (3,), "c": True},
    ),
    "scan with equal operands, other axes and directions": (
        """g (double[4, 3] x, double[3] h, double[3] w) => (double[3] y) {
          hn, gn, ys, zs = Scan <num_scan_inputs = 2, scan_input_directions = [0, 1],
            scan_output_directions = [1, 0], scan_output_axes = [1, 0],
            body = b (double[3] s, double[3] k, double[3] u, double[3] v)
              => (double[3] s2, double[3] k2, double[3] o, double[3] p) {
              a = Mul(s, w) q = Add(a, u) s2 = Tanh(q) k2 = Mul(k, v) o = Mul(s2, s2)
              p = Add(k2, a) }> (h, h, x, x)
          t = Transpose(ys) c = Mul(t, zs) axes = Constant<value = int64[1] {0}>()
          r = ReduceSum<keepdims = 0>(c, axes) z = Mul(hn, r) y = Add(z, gn)
        }""",
        {"x": (4, 3), "h": (3,), "w": (3,)},
    ),
    "loop that ends by its condition": (
        """g (int64 n, double[3] h, double[3] w) => (double[3] y) {
          hn, ys = Loop <body = b (int64 i, bool c, double[3] s) => (bool c2, double[3] s2, double[3] o) {
            f = CastLike(i, w) z = Mul(s, w) p = Add(z, f) s2 = Tanh(p) o = Mul(s2, s2)
            k = ReduceSum<keepdims = 0>(s2) th = Constant<value = double {2.9}>() c2 = Less(k, th) }> (n, , h)
          axes = Constant<value = int64[1] {0}>() r = ReduceSum<keepdims = 0>(ys, axes) y = Mul(hn, r)
        }""",
        {"n": 7, "h": (3,), "w": (3,)},
    ),
    "an if inside a scan": (
        """g (double[4, 3] x, double[3] h, double[3] w) => (double[3] y) {
          y, ys = Scan <num_scan_inputs = 1,
            body = b (double[3] s, double[3] u) => (double[3] s2, double[3] o) {
            m = ReduceSum<keepdims = 0>(u) zero = Constant<value = double {0}>() c = Less(m, zero)
            s2 = If (c) <then_branch = t () => (double[3] a) { q = Mul(s, w) a = Add(q, u) },
              else_branch = e () => (double[3] d) { d = Tanh(s) }> o = Identity(s2) }> (h, x)
        }""",
        {"x": (4, 3), "h": (3,), "w": (3,)},
    ),
}


def _differentiated(text: str, feed: dict[str, Any]) -> tuple[ir.Model, Array]:
    found = canonical_model(model(text))
    g = Builder(found.graph)
    y = found.graph.outputs[0]
    seed = _RNG.standard_normal((3,))
    wrt = [v for v in found.graph.inputs if feed[v.name or ""].dtype == np.float64]
    for value, d in zip(wrt, gradients(g, {y: g.const(seed)}, wrt), strict=True):
        assert d is not None
        g.output(d, f"d_{value.name}")
    found.opset_imports.update(found.graph.opset_imports)
    return found, seed


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("flag", [True, False])
def test_gradients(name: str, flag: bool) -> None:
    """Against central differences; in the compiled engine; and as standard operators in onnxruntime."""
    text, shapes = DIFFERENTIABLE[name]
    if not flag and name != "if":
        pytest.skip("it has no flag")
    feed = {n: _RNG.standard_normal(s) if isinstance(s, tuple) else np.array(s) for n, s in shapes.items()}
    if name == "if":
        feed["c"] = np.array(flag)
    found, seed = _differentiated(text, feed)
    run = Interpreter(found.graph)
    got = run.run(feed)
    for n, x in feed.items():
        if x.dtype != np.float64:
            continue
        want = np.zeros_like(x)
        for i in np.ndindex(x.shape):
            up, down = x.copy(), x.copy()
            up[i] += 1e-5
            down[i] -= 1e-5
            rise = run.run({**feed, n: up}, ["y"])["y"] - run.run({**feed, n: down}, ["y"])["y"]
            want[i] = (rise * seed).sum() / 2e-5
        np.testing.assert_allclose(got[f"d_{n}"], want, rtol=1e-6, atol=1e-8)
    engine = CompiledEngine(found, threads=1)
    for n, x in engine.run(feed).items():
        np.testing.assert_allclose(x, got[n], rtol=1e-12)
    engine.close()
    import onnxruntime as ort

    stock = ort.InferenceSession(to_bytes(expand_onward(found)), providers=["CPUExecutionProvider"])
    for value, x in zip(stock.get_outputs(), stock.run(None, feed), strict=True):
        np.testing.assert_allclose(x, got[value.name], rtol=1e-10)


TRAINED = """<ir_version: 8, opset_import: ["" : 11]>
g (float[N, 3] x, bool c) => (float[N, 2] y)
  <float[3, 2] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}, float[3, 2] v = {0.5, 0.1, 0.2, 0.4, 0.3, 0.2}> {
  y = If (c) <
    then_branch = t () => (float[N, 2] a) { a = MatMul(x, w) },
    else_branch = e () => (float[N, 2] b) { q = MatMul(x, v) b = Tanh(q) }>
}"""


def test_weights_in_branches_are_trained() -> None:
    """By both engines alike, and by onnxruntime on the step in standard operators."""
    import onnxruntime as ort

    from onward.autodiff import training_step
    from onward.engine.stepping import StepSession
    from onward.train import MSE, SGD

    read = from_bytes(onnx.parser.parse_model(TRAINED).SerializeToString())
    weights = trainable_initializers(read)
    assert weights == ("w", "v")
    step = training_step(upgrade(read, 21), {"y": MSE()}, SGD(), weights)
    sessions = [StepSession(step.model, step.bindings, engine=e) for e in ("interpreter", "compiled")]
    stock = ort.InferenceSession(to_bytes(expand_onward(step.model)), providers=["CPUExecutionProvider"])
    state = {name: sessions[0].state[name] for name in step.bindings}
    names = [value.name for value in stock.get_outputs()]
    losses, x = [], _RNG.standard_normal((4, 3)).astype(np.float32)
    for i in range(6):
        feed = {
            "x": x,
            "c": np.array(i % 2 == 0),
            step.targets["y"]: np.ones((4, 2), np.float32),
            step.learning_rate: np.array(0.1, np.float32),
            step.step: np.array(i),
        }
        before = {name: np.array(sessions[0].state[name]) for name in weights}
        want = dict(zip(names, stock.run(None, {**feed, **state}), strict=True))
        state = {name: want[target] for name, target in step.bindings.items()}
        for session in sessions:
            got = session.run(feed)
            np.testing.assert_allclose(got[step.loss], want[step.loss], rtol=1e-5)
            for name in weights:
                np.testing.assert_allclose(session.state[name], state[name], rtol=1e-5, atol=1e-7)
        moved = [name for name in weights if not np.array_equal(before[name], sessions[0].state[name])]
        assert moved == (["w"] if i % 2 == 0 else ["v"])
        losses.append(float(want[step.loss]))
    assert losses[-1] < losses[1]
    assert losses[-2] < losses[0]
