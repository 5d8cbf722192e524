"""Weights that sessions share: one read-only copy in the process of what is equal."""

from __future__ import annotations

import functools
import itertools
import mmap
import threading
import weakref
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.graph import Array

__all__ = ["Weight", "Weights", "aligned", "default_weights", "private", "share_initializers"]

_ALIGN = 64

_SAMPLES = 16
"""Elements that tell most different arrays apart before all are compared."""

_serials = itertools.count()


@final
@dataclass(frozen=True, eq=False)
class Weight:
    """An array, and a number that no other contents have had in this process.

    What follows from the contents may be kept under the number as long as the weight lives.
    """

    array: Array
    serial: int = field(default_factory=_serials.__next__)


@final
class Weights:
    """Read-only arrays by content, for as long as somebody has them; safe under several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: defaultdict[Hashable, list[weakref.ref[Weight]]] = defaultdict(list)

    def share(self, array: Array) -> Weight:
        """The one weight of an array's contents.

        A part of a mapped file is not copied: processes that map the file share its memory.
        """
        key = _sample(array)
        with self._lock:
            known = [weight for ref in self._known[key] if (weight := ref()) is not None]
        for weight in known:
            if _same(weight.array, array):
                return weight
        made = Weight(array if _mapped(array) else _read_only(aligned(array)))
        with self._lock:
            self._known[key] = [ref for ref in self._known[key] if ref() is not None]
            self._known[key].append(weakref.ref(made))
            for old in [k for k, refs in self._known.items() if all(ref() is None for ref in refs)]:
                del self._known[old]
        return made


def share_initializers(model: ir.Model) -> list[Weight]:
    """Let a model's weights be the ones that sessions share, instead of copies of its own.

    Returns:
        The weights. Whoever reads the model as a session does until it shares them itself keeps these.
    """
    known, shared = default_weights(), []
    for name, value in model.graph.initializers.items():
        if (tensor := value.const_value) is not None and tensor.dtype.is_floating_point():
            shared.append(known.share(tensor.numpy()))
            value.const_value = ir.Tensor(shared[-1].array, dtype=tensor.dtype, name=name)
    return shared


def private(array: Array) -> Weight:
    """A copy that its owner may change, such as state."""
    return Weight(aligned(array))


def aligned(array: Array) -> Array:
    """A copy that begins at a multiple of 64 bytes."""
    store = np.empty(array.nbytes + _ALIGN, np.uint8)
    shift = -store.ctypes.data % _ALIGN
    copy = store[shift : shift + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


@functools.cache
def default_weights() -> Weights:
    """The process's weights."""
    return Weights()


def _sample(array: Array) -> Hashable:
    places = np.linspace(0, max(0, array.size - 1), min(_SAMPLES, array.size)).astype(np.int64)
    return array.dtype, array.shape, array.reshape(-1)[places].tobytes()


def _same(a: Array, b: Array) -> bool:
    """Whether the bits are equal; a NaN is the same as itself, 0 is not −0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.ctypes.data == b.ctypes.data and a.strides == b.strides:
        return True
    return np.array_equal(_bits(a), _bits(b))


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _mapped(array: Array) -> bool:
    """Whether an array is a part of a mapped file that kernels can read where it is."""
    if array.flags.writeable or not array.flags.c_contiguous or not array.flags.aligned:
        return False
    base: Any = array
    while base is not None:
        if isinstance(base, memoryview):
            base = base.obj
        if isinstance(base, mmap.mmap | np.memmap):
            return True
        base = getattr(base, "base", None)
    return False


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array
