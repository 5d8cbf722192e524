"""Running what `onward.nn` builds under the ONNX checker and a stock onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onward.nn import Network

Run = Callable[..., list[np.ndarray[Any, Any]]]


@pytest.fixture(scope="session")
def run() -> Run:
    """Check a network in full, and run it as it stands; feeds are given by input name or by order."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    def execute(network: Network, *feeds: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        proto = ir.to_proto(network.model)
        onnx.checker.check_model(proto, full_check=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        named = {spec.name: feed for spec, feed in zip(network.inputs, feeds, strict=True)}
        results = session.run(None, named)
        for spec, result in zip(network.outputs, results, strict=True):
            assert spec.admits(result.shape), f"{spec} does not admit {result.shape}"
            assert spec.dtype == result.dtype
            assert spec.shape is not None
            assert all(isinstance(extent, int) for extent in spec.shape[1:]), spec
        return results

    return execute
