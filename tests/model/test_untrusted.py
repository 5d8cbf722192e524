"""Files whose numbers end the process when ONNX's own inference sees them, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

READ = """
import sys
import numpy as np
from onward.engine import Session
from onward.errors import OnwardError
from onward.model import load, upgrade
try:
    model = load(sys.argv[1])
    upgrade(model)
    for engine in ("interpreter", "compiled"):
        with Session(model, engine=engine) as session:
            print(engine, list(session.run({"x": np.arange(10, dtype=np.float32)})["y"].shape))
except OnwardError as error:
    print(type(error).__name__, error)
"""
LARGEST = 2**63 - 1


def numbers(name: str, *content: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(content, np.int64), name)


def model(nodes: list[onnx.NodeProto], *tensors: onnx.TensorProto, **options: Any) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [10])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", options.pop("opset", 17)), helper.make_opsetid("own", 1)]
    graph = helper.make_graph(nodes, "g", [x], [y], list(tensors))
    return helper.make_model(graph, ir_version=8, opset_imports=opsets, **options)


def sliced(
    *before: onnx.NodeProto, step: int = LARGEST, start: int = 0, end: int = LARGEST
) -> onnx.ModelProto:
    """A slice whose steps a node before it computes from `p`."""
    nodes = [*before, helper.make_node("Slice", ["x", "s", "e", "a", "q" if before else "p"], ["y"])]
    return model(
        nodes,
        numbers("s", 0),
        numbers("e", LARGEST),
        numbers("a", 0),
        numbers("p", LARGEST),
        numbers("one", 1),
    )


def in_a_function() -> onnx.ModelProto:
    constants = [
        helper.make_node("Constant", [], [name], value_ints=[value])
        for name, value in (("s", 0), ("e", 5), ("q", LARGEST))
    ]
    body = [*constants, helper.make_node("Slice", ["x", "s", "e", "s", "q"], ["y"])]
    function = helper.make_function("own", "F", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    return model([helper.make_node("F", ["x"], ["y"], domain="own")], functions=[function])


STEPS = {
    "product": sliced(helper.make_node("Mul", ["p", "one"], ["q"])),
    "joined": sliced(helper.make_node("Concat", ["p"], ["q"], axis=0)),
    "cast": sliced(helper.make_node("Cast", ["p"], ["q"], to=TensorProto.INT64)),
    "same": sliced(helper.make_node("Identity", ["p"], ["q"])),
    "constant": sliced(helper.make_node("Constant", [], ["q"], value_ints=[LARGEST])),
    "function": in_a_function(),
}


def read(proto: onnx.ModelProto, tmp_path: Path) -> list[str]:
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    ran = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.splitlines()


@pytest.mark.parametrize("case", STEPS)
def test_computed_steps_of_any_size(case: str, tmp_path: Path) -> None:
    assert read(STEPS[case], tmp_path) == ["interpreter [1]", "compiled [1]"]


ATTRIBUTES = {
    "LayerNormalization": ("axis", 2**31, ["x", "w"]),
    "GatherND": ("batch_dims", -(2**31), ["x", "i"]),
}


@pytest.mark.parametrize("operator", ATTRIBUTES)
def test_numbers_that_no_axis_has_are_refused(operator: str, tmp_path: Path) -> None:
    name, value, inputs = ATTRIBUTES[operator]
    node = helper.make_node(operator, inputs, ["y"], name="n", **{name: value})
    weight = numpy_helper.from_array(np.ones(10, np.float32), "w")
    (line,) = read(model([node], weight, numbers("i", 1)), tmp_path)
    assert line.startswith("InvalidModelError")
    assert f"node 'n' ({operator}): attribute {name!r} is {value}" in line


@pytest.mark.parametrize("count", [0, 1, 3, 1000])
def test_a_split_into_another_number_of_outputs_is_refused(count: int, tmp_path: Path) -> None:
    node = helper.make_node("Split", ["x"], ["y", "z"], name="n", num_outputs=count)
    (line,) = read(model([node], opset=18), tmp_path)
    assert line.startswith("InvalidModelError")
    assert f"attribute 'num_outputs' is {count}, but the node has 2 outputs" in line
