"""onnxruntime, the independent witness: models in memory in, named arrays out, one-line errors."""

from __future__ import annotations

import ctypes
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError, VerificationError
from onward.graph import ONWARD_DOMAIN, Array
from onward.passes.expand import expand_onward
from onward.passes.functions import with_functions

__all__ = ["Witness"]

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_ONNX_BFLOAT16 = 16
_IN_MEMORY = 1_900_000_000


@final
class Witness:
    """A model in onnxruntime on the CPU.

    Args:
        model: a model, or the bytes or the path of an .onnx file. Operators of `ai.onward` in a model run as
            their bodies.
        optimize: whether onnxruntime may rewrite the graph, as it does by default.
        threads: threads of one run.

    Raises:
        UnsupportedError: onnxruntime has no kernel for an operator or type.
        VerificationError: onnxruntime refuses the model; the message has its reason.
    """

    def __init__(
        self, model: ir.Model | bytes | str | Path, *, optimize: bool = True, threads: int = 1
    ) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        self.version = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

        def opened(source: bytes | str) -> Any:
            try:
                return onnxruntime.InferenceSession(
                    source, sess_options=options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise _refusal(error, "does not load the model") from error

        if isinstance(model, ir.Model):
            self._session = _open_model(model, opened)
        else:
            self._session = opened(model if isinstance(model, bytes) else str(model))
        self.outputs: tuple[str, ...] = tuple(value.name for value in self._session.get_outputs())
        types = {value.type for value in (*self._session.get_inputs(), *self._session.get_outputs())}
        self._as_values = "tensor(bfloat16)" in types

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Compute the named outputs (None: all).

        Raises:
            VerificationError: onnxruntime fails; the message has its reason.
        """
        names = list(self.outputs if outputs is None else outputs)
        feeds = {name: np.asarray(array, order="C") for name, array in inputs.items()}
        try:
            if not self._as_values:
                return dict(zip(names, self._session.run(names, feeds), strict=True))
            values = {name: _to_value(array) for name, array in feeds.items()}
            results = self._session.run_with_ort_values(names, values)
        except Exception as error:
            raise _refusal(error, "does not run the model") from error
        return {name: _from_value(value) for name, value in zip(names, results, strict=True)}


def _open_model(model: ir.Model, opened: Any) -> Any:
    from onward.model import save, to_bytes

    if any(node.domain == ONWARD_DOMAIN for node in model.graph):
        model = expand_onward(model)
    model = with_functions(model)
    weights = (v.const_value for v in model.graph.initializers.values())
    if sum(tensor.nbytes for tensor in weights if tensor is not None) < _IN_MEMORY:
        return opened(to_bytes(model))
    with tempfile.TemporaryDirectory(prefix="onward-verify-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        return opened(str(path))


def _to_value(array: Array) -> Any:
    import onnxruntime

    if array.dtype == _BFLOAT16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _ONNX_BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _from_value(value: Any) -> Array:
    if not value.is_tensor() or value.element_type() != _ONNX_BFLOAT16:
        return value.numpy()
    shape = tuple(value.shape())
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()) if 0 not in shape else b""
    return np.frombuffer(raw, dtype=_BFLOAT16).reshape(shape)


def _refusal(error: Exception, what: str) -> UnsupportedError | VerificationError:
    reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", " ".join(str(error).split()))
    kind = UnsupportedError if type(error).__name__ == "NotImplemented" else VerificationError
    return kind(f"onnxruntime {what}: {reason[:500]}")
