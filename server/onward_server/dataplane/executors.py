"""Engines behind one interface: named arrays in, named arrays out, called from a worker thread."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, final

import ml_dtypes
import numpy as np

from onward.errors import InputError, InvalidModelError, OnwardError
from onward.graph import Array, TensorSpec
from onward_server.dataplane.texts import Texts
from onward_server.errors import ExecutionError, MemoryLimitError

__all__ = ["ENGINES", "EngineFactory", "Executor", "OnnxRuntimeExecutor", "OnwardExecutor"]

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_ONNX_BFLOAT16 = 16
_NO_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory")
_REFUSED = re.compile(r"Non-zero status code returned while running (\w+) node")
"""How onnxruntime says that a kernel refused what it was given: an index out of bounds, a negative extent."""


class Executor(Protocol):
    """One model in one engine. `run` may be called from several threads at once."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """The inputs that a run has to be given."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """What a run can return."""

    @property
    def texts(self) -> Texts | None:
        """The input that takes texts besides token numbers."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Compute the named outputs (None: all). String tensors are object arrays of `str`.

        Raises:
            InputError: the engine found an input that it cannot take.
            ExecutionError: anything else that went wrong inside the engine.
        """


EngineFactory: TypeAlias = Callable[[Path, int], Executor]
"""Opens a model file with a number of threads. Raises ModelError when the model cannot be used."""


@final
class OnwardExecutor:
    """Onward's own engine.

    Args:
        path: the .onnx file.
        threads: threads of one run.
        one_size: whether all runs have inputs of one shape. Otherwise requests of a new size are run in parts
            for which there are plans, where the model allows it.

    Raises:
        ModelError: the file is malformed, unsafe to open, or needs something that is not supported.
        StorageError: the file cannot be read.
    """

    def __init__(self, path: Path, threads: int = 1, *, one_size: bool = False) -> None:
        from onward.engine import Session

        self._session = Session(path, threads=threads, batches="exact" if one_size else "split")
        self.inputs: tuple[TensorSpec, ...] = self._session.inputs
        self.outputs: tuple[TensorSpec, ...] = self._session.outputs
        self.texts = Texts.of(self._session.metadata, self.inputs)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """See Executor."""
        try:
            given = inputs if self.texts is None else self.texts.encoded(inputs)
            return self._session.run(given, outputs)
        except OnwardError as error:
            # the interpreter says in which node memory ran out, as an error of that node
            if isinstance(error.__cause__, MemoryError):
                raise MemoryLimitError(f"the worker ran out of memory: {error}") from error
            raise
        except MemoryError:
            raise
        except Exception as error:
            raise ExecutionError(f"onward: {type(error).__name__}: {error}") from error


@final
class OnnxRuntimeExecutor:
    """onnxruntime on the CPU.

    Args:
        path: the .onnx file, read by `onward.model` first, which refuses what is malformed or unsafe.
        threads: threads of one run.

    Raises:
        ModelError: the file is malformed or unsafe to open, or onnxruntime refuses it.
        StorageError: the file cannot be read.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        from onward.graph import spec_of
        from onward.model import load

        model = load(path)
        graph = model.graph
        self.inputs: tuple[TensorSpec, ...] = tuple(
            spec_of(value) for value in graph.inputs if value.name not in graph.initializers
        )
        self.outputs: tuple[TensorSpec, ...] = tuple(spec_of(value) for value in graph.outputs)
        self.texts = Texts.of(model.metadata_props, self.inputs)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise InvalidModelError(f"{path}: onnxruntime refuses it: {error}") from error
        self._has_bfloat16 = any(spec.dtype == _BFLOAT16 for spec in (*self.inputs, *self.outputs))

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """See Executor."""
        names = list(outputs) if outputs is not None else [spec.name for spec in self.outputs]
        inputs = inputs if self.texts is None else self.texts.encoded(inputs)
        try:
            if self._has_bfloat16:
                return self._run_values(inputs, names)
            arrays = self._session.run(names, dict(inputs))
        except Exception as error:
            if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
                raise MemoryLimitError("onnxruntime ran out of memory") from error
            if (refused := _REFUSED.search(str(error))) is not None:
                raise InputError(f"onnxruntime: operator {refused[1]} does not take these values") from error
            if type(error).__name__ == "InvalidArgument":
                raise InputError(f"onnxruntime: {error}") from error
            raise ExecutionError(f"onnxruntime: {error}") from error
        return dict(zip(names, (_as_array(array) for array in arrays), strict=True))

    def _run_values(self, inputs: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        import onnxruntime

        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                np.ascontiguousarray(array).view(np.uint16), _ONNX_BFLOAT16
            )
            if array.dtype == _BFLOAT16
            else onnxruntime.OrtValue.ortvalue_from_numpy(array)
            for name, array in inputs.items()
        }
        results = self._session.run_with_ort_values(list(names), values)
        return {name: _value_as_array(value) for name, value in zip(names, results, strict=True)}


def _value_as_array(value: Any) -> Array:
    if value.element_type() != _ONNX_BFLOAT16:
        return _as_array(value.numpy())
    shape = tuple(value.shape())
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()) if 0 not in shape else b""
    return np.frombuffer(raw, dtype=_BFLOAT16).reshape(shape)


def _as_array(value: object) -> Array:
    if not isinstance(value, np.ndarray):
        raise ExecutionError(f"an output is a {type(value).__name__}, not a tensor")
    return value


ENGINES: Mapping[str, EngineFactory] = {"onward": OnwardExecutor, "onnxruntime": OnnxRuntimeExecutor}
"""The engines that a model can be served with, by the names that settings use."""
