"""What other runtimes read although the standard does not allow it: read too, and said."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tests.model import hostile

from onward.engine import Session
from onward.engine.engines import EngineName
from onward.model import from_bytes, inspect_model, save, upgrade

made = functools.cache(hostile.files)

FLOAT = TensorProto.FLOAT
X = helper.make_tensor_value_info("x", FLOAT, ["N", 3])


def relu(given: onnx.ValueInfoProto, result: onnx.ValueInfoProto, *imports: onnx.OperatorSetIdProto) -> bytes:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [given], [result])
    opsets = [helper.make_opsetid("", 17), *imports]
    made: bytes = helper.make_model(graph, ir_version=8, opset_imports=opsets).SerializeToString()
    return made


def declared(name: str, *dims: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, dims)


CASES = {
    "no shape": (
        relu(X, helper.make_tensor_value_info("y", FLOAT, None)),
        "output 'y' declares no shape: the one that follows is used",
    ),
    "no type": (
        relu(X, onnx.ValueInfoProto(name="y")),
        "output 'y' declares no shape: the one that follows is used",
    ),
    "minus one": (
        relu(declared("x", -1, 3), declared("y", "N", 3)),
        "input 'x' declares the dimension -1: read as unknown",
    ),
    "zero": (
        relu(declared("x", 0, 3), declared("y", 0, 3)),
        "output 'y' declares the dimension 0: read as unknown",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_a_leniency_is_read_run_and_said(case: str, engine: str, tmp_path: Path) -> None:
    data, note = CASES[case]
    model = from_bytes(data)
    report = inspect_model(model)
    assert note in report.leniencies
    assert report.outputs[0].dtype == "FLOAT"
    assert report.outputs[0].shape is not None
    assert report.outputs[0].shape[1] == 3
    x = np.array([[-1, 2, 3], [4, -5, 6]], np.float32)
    for again in (model, upgrade(model)):
        with Session(again, engine=engine) as session:  # type: ignore[arg-type]
            assert np.array_equal(session.run({"x": x})["y"], np.maximum(x, 0))
    save(model, tmp_path / "again.onnx")
    assert not inspect_model(from_bytes((tmp_path / "again.onnx").read_bytes())).leniencies


def test_truly_empty_inputs_still_fit_a_dimension_of_zero() -> None:
    with Session(from_bytes(CASES["zero"][0])) as session:
        assert session.run({"x": np.zeros((0, 3), np.float32)})["y"].shape == (0, 3)


def test_a_sound_file_has_nothing_to_say() -> None:
    assert inspect_model(from_bytes(relu(X, declared("y", "N", 3)))).leniencies == ()


def test_imports_that_nothing_uses_do_not_matter() -> None:
    domains = ("com.acme", "ai.onnx.ml", "com.microsoft", "ai.onnx.preview.training")
    imports = [helper.make_opsetid(domain, 3) for domain in domains]
    with Session(from_bytes(relu(X, declared("y", "N", 3), *imports))) as session:
        assert session.run({"x": np.ones((2, 3), np.float32)})["y"].shape == (2, 3)


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_absent_optional_outputs_and_inputs_have_empty_names(engine: str) -> None:
    nodes = [
        helper.make_node("Clip", ["x", "", "high"], ["c"]),
        helper.make_node("Dropout", ["c"], ["y", ""]),
    ]
    high = helper.make_tensor("high", FLOAT, [], [0.5])
    graph = helper.make_graph(nodes, "g", [X], [declared("y", "N", 3)], [high])
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    with Session(from_bytes(proto.SerializeToString()), engine=engine) as session:  # type: ignore[arg-type]
        y = session.run({"x": np.array([[-1, 0.25, 2]], np.float32)})["y"]
    assert np.array_equal(y, np.array([[-1, 0.25, 0.5]], np.float32))


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_a_flag_that_is_neither_0_nor_1_is_0(engine: EngineName) -> None:
    node = helper.make_node("ReduceSum", ["x"], ["y"], name="n", keepdims=-1)
    y = helper.make_tensor_value_info("y", FLOAT, None)
    graph = helper.make_graph([node], "g", [declared("x", 2, 3)], [y])
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    model = from_bytes(proto.SerializeToString())
    assert "node 'n' says keepdims -1: read as 0, for it is not 1" in inspect_model(model).leniencies
    with Session(model, engine=engine) as session:
        assert session.run({"x": np.ones((2, 3), np.float32)})["y"].shape == ()


def test_an_initialiser_that_an_old_file_does_not_declare_is_a_constant() -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "k"], ["y"], broadcast=1, axis=0)],
        "g",
        [declared("x", 2, 3)],
        [declared("y", 2, 3)],
        [helper.make_tensor("k", FLOAT, [2], [10, 20])],
    )
    made = helper.make_model(graph, ir_version=3, opset_imports=[helper.make_opsetid("", 6)])
    model = from_bytes(made.SerializeToString())
    assert inspect_model(model).leniencies == (
        "initialisers are no inputs, as IR 3 asks: 'k' read as constants",
    )
    with Session(model) as session:
        got = session.run({"x": np.zeros((2, 3), np.float32)})["y"]
    np.testing.assert_array_equal(got, [[10] * 3, [20] * 3])


SAID = {
    "tensors": {
        "two kinds of data": "raw_data and in float_data: raw_data are read",
        "segment": "tensor 'w' is said to be a segment: read as a whole",
        "unused of wrong size": "initialiser 'w', which nothing reads, is left out",
        "bool of 7": "tensor 'w' holds booleans that are neither 0 nor 1: read as 1",
        "same name twice": "initialiser 'w' is there more than once: the last counts",
        "empty name": "1 initialisers have no name: left out",
        "sparse descending": "indices do not ascend: each value is put where its index says",
        "sparse twice": "indices do not ascend",
    },
    "versions": {
        "IR 0": "the IR version is 0: read as 3",
        "IR 2": "the IR version is 2: read as 3",
        "only ml imported": "operator set 'ai.onnx' is not imported: read as",
        "imported twice": "operator set 'ai.onnx' is imported as 17 and as 11: read as 11",
        "declared otherwise": "'y' is declared with shape [3], but [10] follows: read as that",
        "declared of another rank": "'y' is declared with shape [1,10], but [10] follows",
        "input negative": "input 'x' declares the dimension -7: read as unknown",
    },
    "odd": {
        "input of no shape": "input 'x' declares no shape: any is taken",
        "initialiser declared without shape": "input 'w' declares no shape: any is taken",
        "value_info wrong": "'a' is declared with shape [3], but [10] follows",
        "graph without name": "the graph has no name",
        "nodes backwards": "are not in the order in which they need each other: sorted",
        "Conv auto_pad empty": "node 'n' says an empty auto_pad: read as NOTSET",
        "ml not imported, used": "operator set 'ai.onnx.ml' is not imported: read as",
        "microsoft not imported": "operator set 'com.microsoft' is not imported: read as 1",
    },
}


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, names in SAID.items() for n in names])
def test_what_onnxruntime_reads_we_read_and_say(group: str, name: str) -> None:
    data = made(group)[name]
    model = from_bytes(data)
    notes = inspect_model(model).leniencies
    assert any(SAID[group][name] in note for note in notes), notes
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    theirs = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    x = np.linspace(-1, 1, 16 if "Conv" in name else 10, dtype=np.float32)
    feeds = {"x": x.reshape(1, 1, 4, 4) if "Conv" in name else x}
    (want,) = theirs.run(None, feeds)
    with Session(model, engine="interpreter") as session:
        np.testing.assert_allclose(session.run(feeds)["y"], want, rtol=1e-6)
