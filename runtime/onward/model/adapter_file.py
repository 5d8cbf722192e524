"""Adapter files of onnxruntime (.onnx_adapter): arrays in the place of inputs that have defaults."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onward.errors import InvalidModelError, StorageError
from onward.graph import Array
from onward.model.atomic import atomic_write

__all__ = ["read_adapter", "write_adapter"]


def write_adapter(path: str | Path, matrices: Mapping[str, Array]) -> None:
    """Write an adapter file, which onnxruntime takes by `RunOptions.add_active_adapter`.

    Args:
        path: the file to create or replace; one that was there survives any failure.
        matrices: by name of the input that they replace.

    Raises:
        StorageError: the file cannot be written.
    """
    import onnxruntime

    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        for name, array in matrices.items()
    }
    adapter.set_parameters(values)
    with tempfile.TemporaryDirectory(prefix="onward-adapter-") as folder:
        made = Path(folder) / "adapter"
        adapter.export_adapter(str(made))
        content = made.read_bytes()
    with atomic_write(path) as file:
        file.write(content)


def read_adapter(path: str | Path) -> dict[str, Array]:
    """The arrays of an adapter file by name.

    Raises:
        StorageError: the file is missing or cannot be read.
        InvalidModelError: it is no adapter file.
    """
    import onnxruntime

    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise StorageError(f"adapter {path} cannot be read: {error.strerror}") from None
    try:
        values = onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters()
    except Exception as error:  # noqa: BLE001 - onnxruntime has no public type for it
        raise InvalidModelError(f"{path} is not an adapter file: {error}") from None
    return {name: np.array(value.numpy()) for name, value in values.items()}
