"""Batches that a client sends, collected in an .npz file without holding them in memory."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np

from onward.graph import Array
from onward_server.errors import MemoryLimitError, RequestError

__all__ = ["BatchWriter"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_HEADER = 192
_MAX_TENSORS = 64


@final
class BatchWriter:
    """Collects batches.

    Args:
        folder: for its files.
        limit: bytes of all of them.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._left = limit
        self._files: dict[str, BinaryIO] = {}
        self._kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._rows = 0

    def add(self, tensors: Mapping[str, Array]) -> None:
        """Take one batch.

        Raises:
            RequestError: its tensors are not those of the first batch, or differ in rows.
            MemoryLimitError: there is too much of it.
        """
        if not tensors or len(tensors) > _MAX_TENSORS:
            raise RequestError(f"a batch has {len(tensors)} tensors; give 1 to {_MAX_TENSORS}")
        for name, array in tensors.items():
            if _NAME.fullmatch(name) is None:
                raise RequestError(
                    f"{name[:128]!r} cannot be a tensor's name: letters, digits, '_', '.', '-'"
                )
            if array.ndim == 0 or array.dtype == object:
                raise RequestError(f"tensor {name!r}: give numbers with the samples as the first dimension")
        kinds = {name: (array.dtype, array.shape[1:]) for name, array in tensors.items()}
        if self._kinds and kinds != self._kinds:
            raise RequestError("a batch's tensors have other names, types or shapes than the first one's")
        rows = {array.shape[0] for array in tensors.values()}
        if len(rows) > 1:
            raise RequestError(f"the tensors of a batch have different numbers of rows: {sorted(rows)}")
        self._left -= sum(array.nbytes for array in tensors.values())
        if self._left < 0:
            raise MemoryLimitError(f"the data have more than {self._limit} bytes")
        if not self._kinds:
            self._kinds = kinds
            for number, name in enumerate(kinds):
                file = (self._folder / f"{number}.npy").open("wb")
                file.write(bytes(_HEADER))
                self._files[name] = file
        for name, array in tensors.items():
            self._files[name].write(np.ascontiguousarray(array).data.cast("B") if array.nbytes else b"")
        self._rows += rows.pop()

    def finish(self, path: Path) -> None:
        """Write the .npz file.

        Raises:
            RequestError: there was no sample.
        """
        if not self._rows:
            raise RequestError("no samples were sent")
        with zipfile.ZipFile(path, "w") as archive:
            for number, (name, (dtype, shape)) in enumerate(self._kinds.items()):
                file = self._files[name]
                file.seek(0)
                file.write(_header(dtype, (self._rows, *shape)))
                file.close()
                archive.write(self._folder / f"{number}.npy", f"{name}.npy")
                (self._folder / f"{number}.npy").unlink()

    def close(self) -> None:
        """Give up what was not finished."""
        for number, file in enumerate(self._files.values()):
            file.close()
            (self._folder / f"{number}.npy").unlink(missing_ok=True)


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Of an .npy file, version 1.0, padded to a size that is known before the rows are."""
    text = repr({"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    size = _HEADER - 10
    if len(text) >= size:
        raise RequestError(f"a tensor has {len(shape)} dimensions; give fewer")
    return b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + text.ljust(size - 1).encode() + b"\n"
