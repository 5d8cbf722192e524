"""Both engines behind the one interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from onward.engine import CompileOptions
from onward.engine.engines import Engine, EngineName
from onward.errors import InputError, ModelError, StorageError
from onward_server.dataplane import DataPlane, InferRequest, OnnxRuntimeExecutor, OnwardExecutor
from onward_server.dataplane.executors import ENGINES
from onward_server.errors import MemoryLimitError
from serving import FLOAT_PAIR, identity, model, put, settings, two_by_two


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_an_engine_describes_and_runs_a_model(repository: Path, engine: str) -> None:
    executor = ENGINES[engine](put(repository, "m", 1, two_by_two()), 1)
    assert [(s.name, s.dtype, s.shape) for s in executor.inputs] == [
        ("a", np.float32, ("batch", 3)),
        ("b", np.float32, ("batch", 3)),
    ]
    assert [s.name for s in executor.outputs] == ["total", "product"]
    outputs = executor.run(FLOAT_PAIR)
    np.testing.assert_array_equal(outputs["total"], FLOAT_PAIR["a"] + 2)
    np.testing.assert_array_equal(outputs["product"], FLOAT_PAIR["a"] * 2)
    assert list(executor.run(FLOAT_PAIR, ["product"])) == ["product"]


def test_onwards_engine_gets_its_threads(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onward.engine import session

    asked: list[int | None] = []
    make = session.make_engine

    def observed(
        model: ir.Model, name: EngineName, threads: int | None, options: CompileOptions, **rest: Any
    ) -> Engine:
        asked.append(threads)
        return make(model, name, threads, options, **rest)

    monkeypatch.setattr(session, "make_engine", observed)
    path = put(repository, "m", 1, two_by_two())
    for threads in (1, 2):
        OnwardExecutor(path, threads).run(FLOAT_PAIR)
    assert asked == [1, 2]


@pytest.mark.parametrize("engine", sorted(ENGINES))
@pytest.mark.parametrize("content", [b"", b"not a model", two_by_two().SerializeToString()[:-30]])
def test_an_engine_refuses_what_is_no_model(repository: Path, engine: str, content: bytes) -> None:
    with pytest.raises(ModelError):
        ENGINES[engine](put(repository, "m", 1, content), 1)


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_an_engine_refuses_an_operator_that_does_not_exist(repository: Path, engine: str) -> None:
    kind = {"x": (TensorProto.FLOAT, [2])}
    path = put(repository, "m", 1, model("Frobnicate", kind, {"y": kind["x"]}))
    with pytest.raises(ModelError, match="Frobnicate"):
        ENGINES[engine](path, 1)


async def test_each_engine_serves_with_the_other_as_its_witness(repository: Path) -> None:
    put(repository, "m", 1, two_by_two())
    for engine in sorted(ENGINES):
        chosen = settings(repository, engine=engine, cross_check={"policy": "every", "on_mismatch": "fail"})
        plane = await DataPlane.open(chosen)
        try:
            answer = await plane.infer(InferRequest("m", FLOAT_PAIR))
        finally:
            plane.close()
        assert answer.parameters == {"engine": engine, "cross_check": "passed"}


def test_onnxruntime_takes_and_returns_bfloat16(repository: Path) -> None:
    executor = OnnxRuntimeExecutor(put(repository, "m", 1, identity(TensorProto.BFLOAT16, ("n", "m"))))
    for x in (np.array([[1.5, -2], [3, np.inf]], ml_dtypes.bfloat16), np.zeros((0, 2), ml_dtypes.bfloat16)):
        y = executor.run({"x": x})["y"]
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, x)


def test_onnxruntime_takes_and_returns_strings(repository: Path) -> None:
    executor = OnnxRuntimeExecutor(put(repository, "m", 1, identity(TensorProto.STRING)))
    assert executor.run({"x": np.array(["a", "é"], dtype=object)})["y"].tolist() == ["a", "é"]


def test_onnxruntime_failures_are_sorted_by_whose_they_are(repository: Path) -> None:
    executor = OnnxRuntimeExecutor(put(repository, "m", 1, identity(TensorProto.FLOAT)))
    with pytest.raises(InputError, match="onnxruntime"):
        executor.run({"x": np.zeros((2, 2), dtype=np.float32)})
    shapes = {"x": (TensorProto.FLOAT, ["n"]), "s": (TensorProto.INT64, [1])}
    reshape = OnnxRuntimeExecutor(
        put(repository, "r", 1, model("Reshape", shapes, {"y": (TensorProto.FLOAT, ["k"])}))
    )
    with pytest.raises(InputError, match=r"^onnxruntime: operator Reshape does not take these values$"):
        reshape.run({"x": np.zeros(3, dtype=np.float32), "s": np.array([5])})
    shape = {"s": (TensorProto.INT64, [1])}
    filled = OnnxRuntimeExecutor(
        put(repository, "f", 1, model("ConstantOfShape", shape, {"y": (TensorProto.FLOAT, ["k"])}))
    )
    for size in (-1, 10**14):
        with pytest.raises((InputError, MemoryLimitError)) as found:
            filled.run({"s": np.array([size])})
        assert isinstance(found.value, InputError) == (size < 0)


def test_engines_refuse_a_missing_file(repository: Path) -> None:
    for kind in (OnwardExecutor, OnnxRuntimeExecutor):
        with pytest.raises(StorageError, match="none"):
            kind(repository / "none.onnx")
