"""Slice with every extreme of start, end and step: in files and in both engines; the process lives on."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest

from onward.engine.session import Session
from onward.graph import dims_of
from onward.model import from_bytes

_MOST, _LEAST = 2**63 - 1, -(2**63)
POSITIONS = (0, 2, -1, 2**31, -(2**31) - 1, _MOST, _LEAST)
STEPS = (1, -1, 2, -2, 2**31 - 1, 2**31, -(2**31), 2**62, _MOST, _LEAST + 1, _LEAST)
X = np.arange(5, dtype=np.float32)


def _model(step: int, *, constant_nodes: bool) -> bytes:
    """A Slice for each pair of positions, of data and of a shape."""
    nodes, outputs, tensors = [], [], {"axis": 0, "step": step}
    for i, (start, end) in enumerate(itertools.product(POSITIONS, POSITIONS)):
        tensors |= {f"s{i}": start, f"e{i}": end}
        nodes.append(onnx.helper.make_node("Slice", ["x", f"s{i}", f"e{i}", "axis", "step"], [f"y{i}"]))
        nodes.append(onnx.helper.make_node("Slice", ["shape", f"s{i}", f"e{i}", "axis", "step"], [f"z{i}"]))
        outputs.append(onnx.helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.FLOAT, [f"N{i}"]))
        outputs.append(onnx.helper.make_tensor_value_info(f"z{i}", onnx.TensorProto.INT64, [f"M{i}"]))
    held = [onnx.helper.make_tensor(n, onnx.TensorProto.INT64, [1], [v]) for n, v in tensors.items()]
    given = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [5])]
    head = [onnx.helper.make_node("Shape", ["x"], ["shape"])]
    if constant_nodes:
        head += [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in held]
        held = []
    graph = onnx.helper.make_graph([*head, *nodes], "g", given, outputs, held)
    imports = [onnx.helper.make_opsetid("", 13)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


def _cut(x: np.ndarray[Any, Any], start: int, end: int, step: int) -> list[float]:
    """Clamped as the page of Slice says."""
    n = len(x)
    start, end = start + n * (start < 0), end + n * (end < 0)
    if step > 0:
        places = range(int(np.clip(start, 0, n)), int(np.clip(end, 0, n)), step)
    else:
        places = range(int(np.clip(start, 0, n - 1)), int(np.clip(end, -1, n - 1)), step)
    return [x[i].item() for i in places]


@pytest.mark.parametrize("constant_nodes", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_every_position(step: int, constant_nodes: bool) -> None:
    model = from_bytes(_model(step, constant_nodes=constant_nodes))
    known = {v.name: dims_of(v) for v in model.graph.outputs}
    for engine in ("interpreter", "compiled"):
        got = Session(model, engine=engine, threads=1).run({"x": X})  # type: ignore[arg-type]
        for i, (start, end) in enumerate(itertools.product(POSITIONS, POSITIONS)):
            want = _cut(X, start, end, step)
            assert got[f"y{i}"].tolist() == want, (start, end)
            assert got[f"z{i}"].tolist() == _cut(np.array([5]), start, end, step), (start, end)
            assert known[f"y{i}"] in ((len(want),), (f"N{i}",))
