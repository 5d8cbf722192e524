"""Named arrays from NumPy's own .npz files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onward.data._files import PathLike, reading, stem
from onward.data.dataset import Array, Dataset, Task
from onward.errors import DataError

__all__ = ["load_npz", "read_npz"]

_UNREADABLE = (
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
)


def load_npz(
    path: PathLike,
    target: str | None = "y",
    *,
    inputs: Sequence[str] | None = None,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
    ignore_index: int | None = None,
    name: str | None = None,
) -> Dataset:
    """The arrays of an .npz file: `target` is the one to predict, the others (or `inputs`) are inputs.

    task: classification for integer targets and regression for floats, unless given. target None: no targets.
    ignore_index: a label whose samples do not count. Nothing is unpickled. Raises DataError for a file that
    is not .npz, arrays of Python objects, and unknown array names (it lists those there are), beside what
    `Dataset` refuses.
    """
    arrays = read_npz(path)
    wanted = [key for key in arrays if key != target] if inputs is None else list(inputs)
    for key in (*wanted, *([] if target is None else [target])):
        if key not in arrays:
            raise DataError(f"{path}: no array {key!r}; the arrays are {', '.join(arrays) or '(none)'}")
    if not wanted:
        raise DataError(f"{path}: no input arrays beside the target {target!r}")
    targets = None if target is None else arrays[target]
    if task is None:
        task = "regression" if targets is not None and targets.dtype.kind == "f" else "classification"
    return Dataset(
        inputs={key: arrays[key] for key in wanted},
        targets=targets,
        classes=None if classes is None else tuple(classes),
        name=name if name is not None else stem(path),
        task=task,
        ignore_index=ignore_index if task == "classification" else None,
    )


def read_npz(path: PathLike) -> dict[str, Array]:
    """The arrays of an .npz file by name.

    Raises:
        DataError: it is no .npz file, or holds Python objects.
        StorageError: it cannot be read.
    """
    with reading(path):
        try:
            with Path(path).open("rb") as file:
                archive = np.load(file, allow_pickle=False)
                if isinstance(archive, np.ndarray):
                    raise DataError(f"{path}: holds one unnamed array; save named ones with numpy.savez")
                with archive:
                    return {key: archive[key] for key in archive.files}
        except _UNREADABLE as error:
            raise DataError(f"{path}: not a readable .npz file without Python objects ({error})") from error
