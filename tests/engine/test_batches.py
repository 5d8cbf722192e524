"""Batches of many sizes through one session: few plans, no waiting for them, the results of exact plans."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from tests.verify.test_zoo_training import SMALL

from onward.compile import planning
from onward.compile.codegen.target import host_target
from onward.compile.kernels.panels import block_width
from onward.compile.kernels.product_blocking import needs_partial
from onward.compile.kernels.tile import rows_for
from onward.engine import Session, compiled
from onward.engine.batches import Repeats, cover, powers, rows_of
from onward.engine.plan_cache import PlanCache
from onward.errors import ConfigError, ShapeError
from onward.graph import Array, Builder
from onward.nn import zoo
from onward.verify.tolerance import TOLERANCES, measure

WAIT = 60.0


def model(body: Callable[[Builder, ir.Value], ir.Value], kind: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="batches")
    g = Builder(graph)
    y = g.Identity(body(g, g.input("x", kind, ("N", 6))))
    g.output(y, "y")
    return ir.Model(graph, ir_version=10)


def layers(g: Builder, x: ir.Value) -> ir.Value:
    w = g.initializer("w", np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32))
    return g.Tanh(g.MatMul(x, w))


def centred(g: Builder, x: ir.Value) -> ir.Value:
    return g.Sub(x, g.ReduceMean(x, g.const([0], np.int64)))


def feed(rows: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(rows).normal(size=(rows, 6)).astype(np.float32)}


class Planner:
    """Notes which sizes are planned, and holds planning up where a test says so."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self._plan_model = planning.plan_model

    def __call__(self, *arguments: object) -> object:
        self.sizes.append(arguments[1]["x"][0])  # type: ignore[index]
        assert self.go.wait(WAIT)
        return self._plan_model(*arguments)  # type: ignore[arg-type]

    def wait_for(self, size: int) -> None:
        until = time.monotonic() + WAIT
        while size not in self.sizes:
            assert time.monotonic() < until
            time.sleep(0.001)


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Planner]:
    made = Planner()
    monkeypatch.setattr(planning, "plan_model", made)
    cache = PlanCache()
    monkeypatch.setattr(compiled, "default_plans", lambda: cache)
    yield made
    made.go.set()


def test_forty_sizes_make_no_more_plans_than_there_are_powers_of_two(planner: Planner) -> None:
    sizes = np.random.default_rng(3).permutation(np.arange(1, 128))[:40].tolist()
    reference = Session(model(layers), engine="interpreter")
    with Session(model(layers), engine="compiled", threads=1, batches="split") as session:
        for rows in sizes:
            found, wanted = session.run(feed(rows))["y"], reference.run(feed(rows))["y"]
            assert found.shape == wanted.shape
            assert np.allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert len(planner.sizes) == len(set(planner.sizes)) <= 7
    assert set(planner.sizes) <= {1, 2, 4, 8, 16, 32, 64}


def test_a_size_that_repeats_gets_its_plan_in_the_background(planner: Planner) -> None:
    with Session(model(layers), engine="compiled", threads=1, batches="split") as session:
        first = session.run(feed(13))["y"]
        assert 13 not in planner.sizes
        planner.go.clear()
        for _ in range(10):  # answered while it is made
            assert np.array_equal(session.run(feed(13))["y"], first)
        planner.wait_for(13)
        planner.go.set()
        until = time.monotonic() + WAIT
        while (("x", (13, 6)),) not in session._engine._plans:  # type: ignore[attr-defined]
            assert np.array_equal(session.run(feed(13))["y"], first)
            assert time.monotonic() < until
    assert planner.sizes.count(13) == 1


def test_small_parts_answer_while_a_large_one_is_planned(planner: Planner) -> None:
    with Session(model(layers), engine="compiled", threads=1, batches="split") as session:
        ones = np.concatenate([session.run({"x": row[None]})["y"] for row in feed(12)["x"]])
        planner.go.clear()
        assert np.array_equal(session.run(feed(12))["y"], ones)  # by twelve runs of one sample
        planner.wait_for(8)
        planner.go.set()
        session.run(feed(12))


def test_a_known_size_never_waits_for_planning(planner: Planner) -> None:
    with Session(model(layers), engine="compiled", threads=1, batches="split") as session:
        known = session.run(feed(4))["y"]
        planner.go.clear()
        other = threading.Thread(target=session.run, args=(feed(200),))  # more runs of 4 than may answer it
        other.start()
        planner.wait_for(128)
        for _ in range(50):
            assert np.array_equal(session.run(feed(4))["y"], known)
        assert other.is_alive()
        planner.go.set()
        other.join(WAIT)
        assert not other.is_alive()


def test_samples_that_depend_on_each_other_are_not_split(planner: Planner) -> None:
    with Session(model(centred), engine="compiled", threads=1, batches="split") as session:
        for rows in (3, 13):
            x = feed(rows)["x"]
            assert np.allclose(session.run({"x": x})["y"], x - x.mean(0), atol=1e-6)
    assert planner.sizes == [3, 13]


def test_exact_is_the_default(planner: Planner) -> None:
    with Session(model(layers), engine="compiled", threads=1) as session:
        session.run(feed(13))
    assert planner.sizes == [13]


def test_the_interpreter_answers_while_parts_are_planned(planner: Planner) -> None:
    planner.go.clear()
    with Session(model(layers), engine="compiled", threads=1, background=True, batches="split") as session:
        expected = Session(model(layers), engine="interpreter").run(feed(200))["y"]
        assert np.array_equal(session.run(feed(200), ["y"])["y"], expected)
        planner.wait_for(128)
        planner.go.set()
    assert 200 not in planner.sizes


def test_new_weights_reach_every_part(planner: Planner) -> None:
    with Session(model(layers), engine="compiled", threads=1, batches="split") as session:
        session.run(feed(13))
        session.load_weights({"w": np.zeros((6, 40), np.float32)})
        assert not session.run(feed(13))["y"].any()


def test_plans_that_are_kept_are_bounded(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_SPLIT_PLANS", 5)
    with Session(model(layers), engine="compiled", threads=1, batches="split") as session:
        for rows in (63, 100, 127, 63):
            session.run(feed(rows))
            assert len(session._engine._plans) <= 5  # type: ignore[attr-defined]


def test_an_error_says_which_samples(planner: Planner) -> None:
    def embedding(g: Builder, x: ir.Value) -> ir.Value:
        return g.Gather(g.initializer("w", np.ones((5, 30), np.float32)), x)

    rows = np.zeros((13, 6), np.int64)
    rows[9, 2] = 7
    with (
        Session(model(embedding, ir.DataType.INT64), engine="compiled", batches="split") as session,
        pytest.raises(ShapeError, match=r"samples 8 to 11 of the batch: .* 7 .*\[1, 2\]"),
    ):
        session.run({"x": rows})


def test_settings_that_there_are_not() -> None:
    with pytest.raises(ConfigError, match="choose exact or split"):
        Session(model(layers), engine="compiled", batches="halves")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SMALL)
def test_networks_of_the_zoo_have_the_same_bits_in_parts(name: str) -> None:
    made = zoo.build(name, **SMALL[name]).model
    with (
        Session(made, engine="compiled", threads=2) as exact,
        Session(made, engine="compiled", threads=2, batches="split") as parts,
    ):
        (spec,) = exact.inputs
        tail = [d for d in (spec.shape or ())[1:] if isinstance(d, int)]
        rng = np.random.default_rng(0)
        x = rng.integers(1, 5, (7, *tail)) if spec.dtype.kind == "i" else rng.normal(size=(7, *tail))
        wanted, found = (s.run({spec.name: x.astype(spec.dtype)}) for s in (exact, parts))
    repacked = any(cut_by_rows(k, n, rows=7) for k, n in products(made))
    for output, array in wanted.items():
        if repacked:  # a long product's order of sums depends on its rows
            assert measure(found[output], array, TOLERANCES["float32"]).ok
        else:
            assert np.array_equal(found[output], array)


def products(model: ir.Model) -> list[tuple[int, int]]:
    """Terms and columns of each product with a weight matrix."""
    nodes = [n for n in model.graph if n.op_type in ("Gemm", "MatMul") and n.inputs[1].is_initializer()]
    turned = [bool("transB" in n.attributes and n.attributes["transB"].value) for n in nodes]
    shapes = [tuple(n.inputs[1].shape) for n in nodes]
    return [(k, n) if not turn else (n, k) for (k, n), turn in zip(shapes, turned, strict=True)]


def cut_by_rows(k: int, n: int, *, rows: int) -> bool:
    """Whether so many rows of a product may be more than one tile, and its sums cut into blocks then."""
    target = host_target()
    return rows > rows_for(target, block_width(n, target) // target.lanes) and needs_partial(k, target)


@pytest.mark.parametrize(("terms", "rows"), [(800, 130), (800, 100), (2000, 200), (300, 70)])
def test_long_products_differ_by_the_order_of_their_sums(terms: int, rows: int) -> None:
    """Two orders of a sum of k products are each within (k + 1) units of 2^-24 of Σ|x w| of the true one
    (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); measured: up to 3.1 such units."""
    rng = np.random.default_rng(terms + rows)
    w = rng.normal(size=(terms, 33)).astype(np.float32)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="product")
    g = Builder(graph)
    g.output(g.MatMul(g.input("x", ir.DataType.FLOAT, ("N", terms)), g.initializer("w", w)), "y")
    x = rng.normal(size=(rows, terms)).astype(np.float32)
    made = ir.Model(graph, ir_version=10)
    with (
        Session(made, engine="compiled", threads=1) as exact,
        Session(made, engine="compiled", threads=1, batches="split") as parts,
    ):
        off = np.abs(exact.run({"x": x})["y"].astype(np.float64) - parts.run({"x": x})["y"])
    assert np.all(off <= 16 * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(w)))


def test_numbers_are_sums_of_powers_of_two() -> None:
    assert powers(13) == [8, 4, 1]
    assert powers(2500) == [1024, 1024, 256, 128, 64, 4]
    for rows in range(1, 3000, 7):
        assert sum(powers(rows)) == rows


@pytest.mark.parametrize(
    ("rows", "sizes", "parts"),
    [
        (13, [8, 4, 1], [8, 4, 1]),
        (13, [1], [1] * 13),
        (17, [1], None),
        (13, [8, 4], None),
        (13, [], None),
        (10**9, [1], None),
        (1024 * 40 + 1, [1024, 1], [1024] * 40 + [1]),
    ],
)
def test_parts_by_the_plans_that_there_are(rows: int, sizes: Sequence[int], parts: list[int] | None) -> None:
    assert cover(rows, sizes) == parts


def test_inputs_share_their_first_axis() -> None:
    assert rows_of({"a": (3, 4), "b": (3,)}) == 3
    assert rows_of({"a": (3, 4), "b": (4, 3)}) is None
    assert rows_of({"a": (3, 4), "b": ()}) is None
    assert rows_of({"a": (0, 4)}) is None
    assert rows_of({}) is None


def test_what_came_long_ago_is_forgotten() -> None:
    repeats = Repeats(2)
    assert not repeats.again("a")
    assert repeats.again("a")
    for key in range(1000):
        assert not repeats.again(key)
    assert not repeats.again("a")
