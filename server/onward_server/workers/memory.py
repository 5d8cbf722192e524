"""Arrays in memory that two processes map: a sealed memory file, written by one side and read by the other.

A tensor is described by name, protocol datatype, shape, offset and size; strings and BYTES lie there in the
protocol's raw form. A file can grow and never shrinks (it is sealed), so a mapping stays valid whatever the
other side does.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, final

import ml_dtypes
import numpy as np

from onward_protos.tensors import DATATYPES, Array, datatype_of, decode_raw, encode_raw

__all__ = ["Region", "TensorEntry", "memory_file", "numpy_type"]

TensorEntry: TypeAlias = tuple[str, str, list[int], int, int]
"""Name, datatype, shape, offset, bytes."""

_ALIGNMENT = 64
_STEP = 1 << 16


def memory_file(name: str) -> int:
    """A new memory file that can only grow; the descriptor is the caller's."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


def numpy_type(datatype: str) -> np.dtype[Any]:
    """The NumPy element type in which an engine takes a protocol datatype."""
    return np.dtype(ml_dtypes.bfloat16) if datatype == "BF16" else DATATYPES[datatype]


@final
class Region:
    """One side's mapping of a memory file.

    Args:
        descriptor: of `memory_file`; closed by `close`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None

    def write(self, arrays: Mapping[str, Array]) -> list[TensorEntry]:
        """Copy arrays into the file, from its start; what was there before is overwritten.

        Raises:
            OSError: no memory is left.
        """
        entries: list[TensorEntry] = []
        payloads: list[tuple[int, Array | bytes]] = []
        end = 0
        for name, array in arrays.items():
            datatype = datatype_of(array.dtype)
            payload: Array | bytes = encode_raw(array) if datatype == "BYTES" else array
            size = len(payload) if isinstance(payload, bytes) else payload.nbytes
            entries.append((name, datatype, list(array.shape), end, size))
            payloads.append((end, payload))
            end = -(-(end + size) // _ALIGNMENT) * _ALIGNMENT
        memory = self._mapped(end, grow=True)
        for offset, payload in payloads:
            if isinstance(payload, bytes):
                memory[offset : offset + len(payload)] = payload
            elif payload.size:
                target = np.frombuffer(memory, payload.dtype, payload.size, offset)
                target.reshape(payload.shape)[...] = payload
        return entries

    def read(self, entries: Iterable[TensorEntry], *, copy: bool) -> dict[str, Array]:
        """The arrays that the other side described; views are read-only and last until the next write there.

        Raises:
            ValueError: an entry that does not lie in the file or does not fit its shape.
        """
        known = [(str(name), str(kind), [int(n) for n in shape], int(at), int(size))
                 for name, kind, shape, at, size in entries]  # fmt: skip
        end = max((at + size for *_, at, size in known), default=0)
        memory = self._mapped(end, grow=False)
        arrays: dict[str, Array] = {}
        for name, datatype, shape, offset, size in known:
            if offset < 0 or size < 0:
                raise ValueError(f"tensor {name!r} does not lie in the shared memory")
            if datatype == "BYTES":
                raw = decode_raw(datatype, shape, bytes(memory[offset : offset + size]))
                arrays[name] = _text(raw)
                continue
            dtype = numpy_type(datatype)
            count = math.prod(shape)
            if count * dtype.itemsize != size:
                raise ValueError(f"tensor {name!r}: {size} bytes do not fit {datatype}{shape}")
            if not count:
                arrays[name] = np.zeros(shape, dtype)
                continue
            view = np.frombuffer(memory, dtype, count, offset).reshape(shape)
            if copy:
                view = view.copy()
            else:
                view.flags.writeable = False
            arrays[name] = view
        return arrays

    def close(self) -> None:
        """Give the file back; views keep their mapping."""
        self._map = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _mapped(self, size: int, *, grow: bool) -> mmap.mmap:
        if self._map is None or len(self._map) < size:
            length = os.fstat(self._descriptor).st_size
            if length < max(size, 1):
                if not grow and size:
                    raise ValueError("a tensor does not lie in the shared memory")
                length = -(-max(size, 1) // _STEP) * _STEP
                os.ftruncate(self._descriptor, length)
            self._map = mmap.mmap(self._descriptor, length)
        return self._map


def _text(raw: Array) -> Array:
    text = np.empty(raw.size, dtype=object)
    text[:] = [element.decode("utf-8", "surrogateescape") for element in raw.ravel().tolist()]
    return text.reshape(raw.shape)
