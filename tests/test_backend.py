"""`onward.backend` as runners use it; the ONNX project's suite itself is in tests/ops/test_onnx_cases.py."""

from __future__ import annotations

import unittest
import warnings

import numpy as np
import onnx
import onnx.backend.base
import pytest

import onward.backend
from onward.engine.compiled import CompiledEngine
from onward.engine.interpreter import Interpreter
from onward.errors import ConfigError, InputError, InvalidModelError, UnsupportedError

FLOAT = onnx.TensorProto.FLOAT


def _model(op_type: str = "Add", domain: str = "") -> onnx.ModelProto:
    node = onnx.helper.make_node(op_type, ["a", "b"], ["c"], domain=domain)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info(name, FLOAT, ["N", 3]) for name in "ab"],
        [onnx.helper.make_tensor_value_info("c", FLOAT, ["N", 3])],
        [onnx.helper.make_tensor("b", FLOAT, [1, 3], [1, 2, 3])],
    )
    imports = [onnx.helper.make_opsetid(d, v) for d, v in {"": 21, domain: 1 if domain else 21}.items()]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)


A = np.arange(6, dtype=np.float32).reshape(2, 3)
WANT = A + np.array([1, 2, 3], np.float32)


@pytest.mark.parametrize(("engine", "kind"), [("compiled", CompiledEngine), ("interpreter", Interpreter)])
def test_prepare_and_run(engine: onward.backend.EngineName, kind: type) -> None:
    rep = onward.backend.prepare(_model(), engine=engine)
    assert isinstance(rep, onnx.backend.base.BackendRep)
    assert isinstance(rep.session._engine, kind)
    for inputs in ([A], (A,), A, {"a": A}):
        (got,) = rep.run(inputs)
        np.testing.assert_array_equal(got, WANT)


def test_the_compiled_engine_is_the_default() -> None:
    assert isinstance(onward.backend.prepare(_model()).session._engine, CompiledEngine)


def test_run_model() -> None:
    np.testing.assert_array_equal(onward.backend.run_model(_model(), [A], "CPU")[0], WANT)


def test_run_node() -> None:
    node = onnx.helper.make_node("TopK", ["x", "k"], ["values", "indices"])
    inputs = [np.array([3, 1, 2], np.float32), np.array([2])]
    for info in (None, [(np.dtype(np.float32), (2,)), (np.dtype(np.int64), (2,))]):
        values, indices = onward.backend.run_node(node, inputs, outputs_info=info)
        np.testing.assert_array_equal(values, [3, 2])
        np.testing.assert_array_equal(indices, [0, 2])


def test_run_node_of_an_old_version_and_with_an_absent_input() -> None:
    squeeze = onnx.helper.make_node("Squeeze", ["x"], ["y"], axes=[0])
    assert onward.backend.run_node(squeeze, [A[None]], opset_version=11)[0].shape == (2, 3)
    clip = onnx.helper.make_node("Clip", ["x", "", "max"], ["y"])
    np.testing.assert_array_equal(onward.backend.run_node(clip, [A, np.float32(2)])[0], np.minimum(A, 2))


def test_scalars_sequences_and_optionals_are_taken_as_the_suite_has_them() -> None:
    node = onnx.helper.make_node("OptionalHasElement", ["x"], ["y"])
    (has,) = onward.backend.run_node(node, [np.float32(1)])
    assert has.shape == ()
    assert has


def test_devices() -> None:
    assert onward.backend.supports_device("CPU")
    assert onward.backend.supports_device("CPU:0")
    assert not onward.backend.supports_device("CUDA")
    with pytest.raises(UnsupportedError, match="CUDA"):
        onward.backend.prepare(_model(), "CUDA")


def test_is_compatible() -> None:
    assert onward.backend.is_compatible(_model())
    assert not onward.backend.is_compatible(_model(), "CUDA")
    assert not onward.backend.is_compatible(_model("Nothing", "some.where"))


def test_what_is_refused() -> None:
    rep = onward.backend.prepare(_model())
    with pytest.raises(InputError, match="2 inputs given; the model has 1"):
        rep.run([A, A])
    with pytest.raises(InputError, match="float64"):
        rep.run([A.astype(np.float64)])
    with pytest.raises(InputError, match="'verbose'"):
        rep.run([A], verbose=True)
    with pytest.raises(InputError, match="'verbose'"):
        onward.backend.prepare(_model(), verbose=True)
    with pytest.raises(ConfigError, match="engine 'quick'"):
        onward.backend.prepare(_model(), engine="quick")  # type: ignore[arg-type]
    node = onnx.helper.make_node("Add", ["a", "b"], ["c"])
    with pytest.raises(InputError, match="1 inputs given; operator Add has 2"):
        onward.backend.run_node(node, [A])
    with pytest.raises(InputError, match="'b': expected a NumPy array, got str"):
        onward.backend.run_node(node, [A, "b"])
    broken = _model()
    broken.graph.node[0].input[0] = "nothing"
    with pytest.raises(InvalidModelError, match="nothing"):
        onward.backend.prepare(broken)


@pytest.mark.slow
def test_the_suites_runner_takes_the_module() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, while expected values are computed
        from onnx.backend.test.runner import Runner

        suite = Runner(onward.backend, __name__)  # type: ignore[arg-type]
        cases = suite.include(
            r"^test_(relu|add|softmax_axis_0|split_equal_parts_1d_opset18)_(cpu|cuda)$"
        ).test_suite
    result = unittest.TestResult()
    cases.run(result)
    assert (result.failures, result.errors) == ([], [])
    devices = [reason for _, reason in result.skipped if "support device CUDA" in reason]
    assert len(devices) == 4
