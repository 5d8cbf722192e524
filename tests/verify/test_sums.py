"""What rounding does inside a sum is known, is no fault, and hides none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.verify.mutating import ours_runs, times

from onward import verify
from onward.graph import bind, registered
from onward.train.losses import MSE
from onward.verify.sums import ROUNDING, SUMS, rounding_error

RNG = np.random.default_rng(0)


def terms_of(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Operands whose products have one sign, or cancel."""
    x = rng.uniform(0.5, 1.5, shape)
    return (x if kind == "one sign" else x * rng.choice([-1, 1], shape)).astype(np.float32)


def operator(text: str) -> Any:
    model = ir.serde.deserialize_model(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 21, "ai.onward": 1]> '
            f"g (float[N, M] a, float[N, M] b, int64[K] i, int64[S] s) => (y) {{ y = {text} }}"
        )
    )
    node = next(iter(model.graph))
    return bind(node, 1 if node.domain else 21)


def in_order(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The products of rows of a and columns of b, added one after another in float32."""
    return np.cumsum(a[:, :, None] * b[None], axis=1, dtype=np.float32)[:, -1]


@pytest.mark.parametrize("kind", ["one sign", "cancelling"])
@pytest.mark.parametrize("n", [16, 256, 4096])
def test_a_sum_in_order_errs_by_what_is_said(kind: str, n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = terms_of(rng, kind, (24, n)), terms_of(rng, "one sign", (n, 24))
    wide = (a.astype(np.float64), b.astype(np.float64))
    exact = wide[0] @ wide[1]
    said = rounding_error(operator("MatMul(a, b)"), wide, exact)
    made = np.abs(in_order(a, b) - exact)
    # the model's errors are uniform in (−1, 1) times what is said: √(1/3) of it in the quadratic mean
    ratio = np.sqrt((made**2).mean()) / np.sqrt((said**2).mean())
    assert 0.15 < ratio < 1.2, ratio
    assert (made <= 4 * said).mean() > 0.999


def conv_operands() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal(s) for s in ((2, 3, 6, 6), (4, 3, 3, 3), (4,))]


X, W, B = conv_operands()
CASES = [
    ("MatMul(a, b)", [RNG.standard_normal((3, 7)), RNG.standard_normal((7, 2))], 7),
    ("Gemm<alpha = 2.0>(a, b)", [RNG.standard_normal((3, 7)), RNG.standard_normal((7, 2))], 7),
    ("ReduceSum<keepdims = 0>(a, i)", [RNG.standard_normal((3, 7)), np.array([1])], 7),
    ("ReduceMean<keepdims = 0>(a, i)", [RNG.standard_normal((3, 7)), np.array([1])], 7),
    ("Conv(a, b)", [X, W], 27),
    ("Conv<group = 3>(a, b)", [X, RNG.standard_normal((6, 1, 3, 3))], 9),
    ("ai.onward.ConvGradWeight<kernel_shape = [3, 3]>(a, b)", [RNG.standard_normal((2, 4, 4, 4)), X], 32),
    ("AveragePool<kernel_shape = [2, 2]>(a)", [X], 4),
    ("GlobalAveragePool(a)", [X], 36),
    ("Sum(a, b)", [X, X + 1], 2),
]


@pytest.mark.parametrize(("text", "operands", "count"), CASES, ids=[c[0].partition("(")[0] for c in CASES])
def test_terms_are_counted(text: str, operands: list[np.ndarray], count: int) -> None:
    op = operator(text)
    y = op.kernel(*operands)
    squares = (rounding_error(op, operands, y) / ROUNDING) ** 2
    n, q = SUMS[op.domain, op.op_type](op, operands, y)
    assert np.all(np.broadcast_to(n, y.shape) == count)
    # Σ t² lies between (Σ t)²/n and (Σ |t|)²
    assert np.all(q >= y**2 / count * (1 - 1e-9))
    absolute = op.kernel(*(np.abs(x) if x.dtype.kind == "f" else x for x in operands))
    assert np.all(q <= absolute**2 * (1 + 1e-9))
    np.testing.assert_allclose(squares, y**2 + (count - 1) * (y**2 / 3 + q / 2))


def test_rows_that_gather_much_have_many_terms() -> None:
    op = operator("ai.onward.GatherGrad(a, i, s)")
    dy = np.ones((5, 2))
    n, _ = SUMS[op.domain, op.op_type](op, [dy, np.array([1, 1, 1, 0, 1]), np.array([3, 2])], dy)
    np.testing.assert_array_equal(n, [[1, 1], [4, 4], [0, 0]])


def test_every_rule_is_of_an_operator() -> None:
    assert set(SUMS) <= set(registered())


TERMS = 1 << 18


def cancelling() -> tuple[ir.Model, np.ndarray]:
    """log |x · W| whose gradient is 1 over a sum of `TERMS` terms that cancel in column 1."""
    rng = np.random.default_rng(3)
    x = rng.uniform(0.5, 1.5, (1, TERMS)).astype(np.float32)
    w = rng.uniform(0.5, 1.5, (TERMS, 4)) * rng.choice([-1, 1], (TERMS, 4))
    w[:, 1] -= x[0].astype(np.float64) * ((x[0] @ w[:, 1] - 2e-3) / (x[0].astype(np.float64) ** 2).sum())
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]>
           g (float[1, {TERMS}] x, float[{TERMS}, 4] w) => (float[1, 4] y)
           {{ [product] p = MatMul(x, w)  [square] s = Mul(p, p)  y = Log(s) }}"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w.astype(np.float32), "w"))
    del proto.graph.input[1]
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto)), x


def compared(**options: Any) -> verify.Report:
    model, x = cancelling()
    batch = {"inputs": {"x": x}, "targets": {"y": np.zeros((1, 4), np.float32)}}
    return verify.compare_training(model, {"y": MSE()}, steps=1, **batch, **options)


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_a_long_sum_that_cancels_is_rounding(engine: Any) -> None:
    report = compared(engine=engine)
    assert report.verdict in ("agree", "rounding"), str(report)


@pytest.mark.parametrize("node", ["product", "square"])
def test_a_fault_in_such_a_sum_is_found(monkeypatch: Any, node: str) -> None:
    ours_runs(monkeypatch, times(node, 1.001))
    report = compared()
    assert report.verdict == "differ", str(report)
    assert report.first_difference is not None
    assert report.first_difference.node == node, str(report)


def test_a_lost_term_of_such_a_sum_is_found(monkeypatch: Any) -> None:
    lost = np.zeros((1, 4), np.float32)
    lost[0, 1] = 0.5
    ours_runs(monkeypatch, times("product", 1.0, plus=lost))
    report = compared()
    assert report.verdict == "differ", str(report)
    assert report.first_difference is not None
    assert report.first_difference.node == "product", str(report)
