"""Unrolled recurrent operators against their NumPy kernels, and their gradients against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.ops.cases_recurrent import RECURRENT, case
from tests.ops.harness import Case, assert_same, feed, in_double, model_of, run, run_ort

from onward.autodiff import gradients
from onward.engine.compiled import CompiledEngine
from onward.errors import UnsupportedError
from onward.graph import Builder, is_float
from onward.passes import unroll_recurrent
from onward.passes.unroll import unroll_fixed

_PLAIN = {"Relu", "Sigmoid", "Softplus", "Softsign", "Tanh"}


def _suits(case: Case) -> bool:
    lens = case.inputs[4] if len(case.inputs) > 4 else None
    names = case.attrs.get("activations", ())
    return case.opset >= 13 and lens is None and set(names) <= _PLAIN


CASES = [c for c in RECURRENT if _suits(c)]


def _kinds(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_unrolled_equals_the_operator(case: Case) -> None:
    model = model_of(case)
    inputs = feed(case, model)
    unrolled = unroll_recurrent(model)
    assert not _kinds(unrolled) & {"LSTM", "GRU", "RNN"}
    assert _kinds(model) & {"LSTM", "GRU", "RNN"}
    want = run(model, inputs)
    assert_same(run(unrolled, inputs), want, 1e-5, 1e-6)
    assert_same(run_ort(unrolled, inputs), want, 1e-5, 1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_compiled_equals_the_operator(case: Case) -> None:
    model = model_of(case)
    inputs = feed(case, model)
    engine = CompiledEngine(model, threads=1)
    assert_same(engine.run(inputs), run(model, inputs), 1e-5, 1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if c.opset == 21], ids=lambda c: c.id)
def test_gradients_are_central_differences(case: Case) -> None:
    """Of a weighted sum of all outputs, by every float input, along a random direction."""
    unrolled = unroll_recurrent(model_of(case))
    model, inputs = in_double(unrolled, feed(case, unrolled))
    g = Builder(model.graph)
    rng = np.random.default_rng(5)
    outputs = list(model.graph.outputs)
    weights = {
        y.name or "": rng.normal(size=a.shape)
        for y, a in zip(outputs, run(model, inputs).values(), strict=True)
    }
    seeds = {y: g.const(weights[y.name or ""]) for y in outputs}
    wrt = [v for v in model.graph.inputs if is_float(v)]
    names = [
        g.output(d, f"d{v.name}").name or ""
        for v, d in zip(wrt, gradients(g, seeds, wrt), strict=True)
        if d is not None
    ]
    assert names == [f"d{v.name}" for v in wrt]
    found = run(model, inputs)

    def loss(shift: dict[str, Any]) -> float:
        results = run(model, {k: a + shift.get(k, 0) for k, a in inputs.items()})
        return float(sum((results[k] * w).sum() for k, w in weights.items()))

    for v in wrt:
        name = v.name or ""
        direction = rng.normal(size=inputs[name].shape)
        step = 1e-6 * direction
        slope = (loss({name: step}) - loss({name: -step})) / 2e-6
        assert (found[f"d{name}"] * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-7)


def _with_input(dims: list[Any]) -> ir.Model:
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="test"))
    x = g.input("x", ir.DataType.FLOAT, dims)
    w, r = (
        g.initializer("w", np.ones((1, 8, 3), np.float32)),
        g.initializer("r", np.ones((1, 8, 2), np.float32)),
    )
    g.output(g.emit("LSTM", g.Relu(x), w, r, outputs=["", None], hidden_size=2, name="memory")[1], "y")
    return ir.Model(g.graph, ir_version=10)


def test_an_open_length_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"'memory'.*sequence length is not static; fix it"):
        unroll_recurrent(_with_input(["time", "N", 3]))


def test_lengths_and_parametric_activations_are_refused() -> None:
    lens = model_of(case("GRU", lens=np.array([4, 1, 3], np.int32), name="lens"))
    with pytest.raises(UnsupportedError, match="sequence_lens"):
        unroll_recurrent(lens)
    elu = model_of(case("RNN", {"activations": ("Elu",)}, name="elu"))
    with pytest.raises(UnsupportedError, match="activation Elu"):
        unroll_recurrent(elu)


def test_what_is_not_trained_stays() -> None:
    model = _with_input(["time", "N", 3])
    assert "LSTM" in _kinds(unroll_recurrent(model, []))
    with pytest.raises(UnsupportedError, match="memory"):
        unroll_recurrent(model, ["w"])


def test_shapes_of_inputs_fix_the_length() -> None:
    model = _with_input(["time", "N", 3])
    assert "LSTM" not in _kinds(unroll_fixed(model, {"x": (4, 2, 3)}))
    assert "LSTM" in _kinds(unroll_fixed(model, {"x": (2000, 2, 3)}))
    dense = model_of(Case("Relu", [(2, 3)]))
    assert unroll_fixed(dense, {"x0": (2, 3)}) is dense


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("length", [1, 5])
def test_any_batch_and_length(batch: int, length: int) -> None:
    model = _with_input(["time", "N", 3])
    x = np.random.default_rng(0).normal(size=(length, batch, 3)).astype(np.float32)
    want = run(model, {"x": x})
    assert_same(run(unroll_fixed(model, {"x": x.shape}), {"x": x}), want, 1e-5, 1e-6)
    assert_same(CompiledEngine(model, threads=1).run({"x": x}), want, 1e-5, 1e-6)
