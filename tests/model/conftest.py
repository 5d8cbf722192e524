from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

MLP = """
<ir_version: 10, opset_import: ["" : 21], producer_name: "tests">
mlp (float[N, 3] x) => (float[N, 2] y)
<float[3, 4] W1 = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[4] b1 = {1, 2, 3, 4}, float[4, 2] W2 = {1, 2, 3, 4, 5, 6, 7, 8}>
{
    [first] h = Gemm(x, W1, b1)
    [act] a = Relu(h)
    [second] y = MatMul(a, W2)
}
"""  # noqa: E501


@pytest.fixture
def mlp() -> onnx.ModelProto:
    """x [N, 3] → Gemm → Relu → MatMul → y [N, 2]."""
    return onnx.parser.parse_model(MLP)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write bytes or a ModelProto to a file of the test's folder."""

    def _write(content: bytes | onnx.ModelProto, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
        return path

    return _write


@pytest.fixture
def external(mlp: onnx.ModelProto) -> Callable[..., onnx.ModelProto]:
    """The MLP with W1 as external data at a location; returns the model and W1's bytes."""

    def _external(location: str = "w.bin", **entries: str) -> tuple[onnx.ModelProto, bytes]:
        tensor = next(t for t in mlp.graph.initializer if t.name == "W1")
        data = onnx.numpy_helper.to_array(tensor).astype("<f4").tobytes()
        tensor.ClearField("float_data")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=value)
        return mlp, data

    return _external


@pytest.fixture
def run_ort() -> Callable[..., list[np.ndarray]]:
    """Run serialised models in onnxruntime on the inputs that a seed gives."""
    import onnxruntime

    def _run(data: bytes, sizes: dict[str, int] | None = None, seed: int = 0) -> list[np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(seed)
        feeds = {}
        for value in session.get_inputs():
            shape = [dim if isinstance(dim, int) else (sizes or {}).get(str(dim), 2) for dim in value.shape]
            if value.type == "tensor(float)":
                feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
            elif value.type == "tensor(bool)":
                feeds[value.name] = rng.integers(0, 2, shape).astype(bool)
            else:
                kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}[value.type]
                feeds[value.name] = rng.integers(0, 2, shape).astype(kind)
        return session.run(None, feeds)

    return _run
