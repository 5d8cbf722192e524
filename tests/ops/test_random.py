"""Random numbers: functions of the seed, in both engines; without a seed, new ones at each run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onward.engine import Session
from onward.graph import Builder

SHAPE = (40, 50)
P = np.full(SHAPE, 0.3, np.float32)
LOGITS = np.log(np.array([[0.2, 0.5, 0.3], [1.0, 1.0, 2.0]], np.float32))
OPERATORS: dict[str, tuple[np.ndarray | None, dict[str, Any]]] = {
    "RandomUniform": (None, {"shape": SHAPE, "low": -1.0, "high": 3.0}),
    "RandomUniformLike": (P, {"low": -1.0, "high": 3.0}),
    "RandomNormal": (None, {"shape": SHAPE, "mean": 1.0, "scale": 2.0}),
    "RandomNormalLike": (P, {"mean": 1.0, "scale": 2.0}),
    "Bernoulli": (P, {}),
    "Multinomial": (LOGITS, {"sample_size": 4000}),
}


def _runs(op_type: str, engine: str, times: int, opset: int = 22, **attributes: Any) -> list[np.ndarray]:
    operand, given = OPERATORS[op_type]
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="random"))
    inputs = [] if operand is None else [g.input("x", ir.DataType.FLOAT, operand.shape)]
    g.output(getattr(g, op_type)(*inputs, **given, **attributes), "y")
    with Session(ir.Model(g.graph, ir_version=10), engine=engine) as session:  # type: ignore[arg-type]
        return [session.run({} if operand is None else {"x": operand})["y"] for _ in range(times)]


@pytest.mark.parametrize("op_type", OPERATORS)
def test_the_same_seed_gives_the_same_numbers(op_type: str) -> None:
    first, second = _runs(op_type, "compiled", 2, seed=7.0)
    (interpreted,) = _runs(op_type, "interpreter", 1, seed=7.0)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, interpreted)
    (other,) = _runs(op_type, "compiled", 1, seed=7.5)
    assert (first != other).mean() > 0.2


@pytest.mark.parametrize("engine", ["compiled", "interpreter"])
@pytest.mark.parametrize("op_type", OPERATORS)
def test_without_a_seed_each_run_has_its_own(op_type: str, engine: str) -> None:
    first, second = _runs(op_type, engine, 2)
    assert (first != second).mean() > 0.2


@pytest.mark.parametrize("op_type", ["RandomUniform", "RandomUniformLike"])
def test_uniform(op_type: str) -> None:
    (y,) = _runs(op_type, "interpreter", 1, seed=1.0)
    assert y.shape == SHAPE
    assert y.min() >= -1
    assert y.max() < 3
    assert abs(y.mean() - 1) < 0.1
    assert abs(y.var() - 16 / 12) < 0.1


@pytest.mark.parametrize("op_type", ["RandomNormal", "RandomNormalLike"])
def test_normal(op_type: str) -> None:
    (y,) = _runs(op_type, "interpreter", 1, seed=1.0)
    assert y.shape == SHAPE
    assert abs(y.mean() - 1) < 0.15
    assert abs(y.std() - 2) < 0.1
    assert abs((y < 1).mean() - 0.5) < 0.05


def test_bernoulli() -> None:
    (y,) = _runs("Bernoulli", "interpreter", 1, seed=1.0)
    assert set(np.unique(y)) == {0, 1}
    assert abs(y.mean() - 0.3) < 0.05


def test_multinomial() -> None:
    (y,) = _runs("Multinomial", "interpreter", 1, seed=1.0, dtype=int(ir.DataType.INT64))
    assert y.dtype == np.int64
    for row, want in zip(y, ([0.2, 0.5, 0.3], [0.25, 0.25, 0.5]), strict=True):
        np.testing.assert_allclose(np.bincount(row, minlength=3) / row.size, want, atol=0.04)


@pytest.mark.parametrize("dtype", ["DOUBLE", "FLOAT16"])
def test_element_types(dtype: str) -> None:
    kind = ir.DataType[dtype]
    for op_type in ("RandomUniform", "RandomNormalLike"):
        (y,) = _runs(op_type, "compiled", 1, seed=2.0, dtype=int(kind))
        assert y.dtype == kind.numpy()
