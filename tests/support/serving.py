"""Model repositories of tiny ONNX models, and engines that can be told to be wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onward.graph import Array
from onward_server.dataplane import OnnxRuntimeExecutor
from onward_server.dataplane.executors import EngineFactory
from onward_server.settings import ServerSettings


def model(
    op: str, inputs: Mapping[str, tuple[int, Any]], outputs: Mapping[str, tuple[int, Any]], **attributes: Any
) -> onnx.ModelProto:
    """A model of one node."""
    graph = helper.make_graph(
        [helper.make_node(op, list(inputs), list(outputs), **attributes)],
        op,
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def put(repository: Path, name: str, version: str | int, content: onnx.ModelProto | bytes) -> Path:
    """Write a model into a repository."""
    path = repository / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def identity(element: int, shape: Any = ("n",)) -> onnx.ModelProto:
    """y = x."""
    return model("Identity", {"x": (element, shape)}, {"y": (element, shape)})


def two_by_two() -> onnx.ModelProto:
    """total = a + b and product = a * b, over float32[batch, 3]."""
    kind = (TensorProto.FLOAT, ("batch", 3))
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Mul", ["a", "b"], ["product"])],
        "arithmetic",
        [helper.make_tensor_value_info(name, *kind) for name in ("a", "b")],
        [helper.make_tensor_value_info(name, *kind) for name in ("total", "product")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


class Wrapped:
    """onnxruntime, with a function over its outputs: an engine that is wrong on purpose."""

    def __init__(self, path: Path, change: Callable[[dict[str, Array]], dict[str, Array]]) -> None:
        self._engine = OnnxRuntimeExecutor(path)
        self._change = change
        self.inputs = self._engine.inputs
        self.outputs = self._engine.outputs
        self.texts = self._engine.texts

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        return self._change(self._engine.run(inputs, outputs))


def engines(change: Callable[[dict[str, Array]], dict[str, Array]]) -> dict[str, EngineFactory]:
    """Engines of which the one called onward changes its outputs."""
    return {
        "onward": lambda path, threads: Wrapped(path, change),
        "onnxruntime": lambda path, threads: OnnxRuntimeExecutor(path, threads),
    }


RIGHT = engines(lambda outputs: outputs)


def settings(repository: Path, **fields: Any) -> ServerSettings:
    """Settings for a test: a free port, no cross-check unless asked."""
    given: dict[str, Any] = {"listen": "127.0.0.1:0", "cross_check": {"policy": "off"}, **fields}
    return ServerSettings(repository=repository, **given)


FLOAT_PAIR = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.full((2, 3), 2.0, dtype=np.float32),
}
