"""Packed weights: what follows from weights alone, computed once for all plans in which it is equal.

The calls of a plan's prologue fall into components that share no KEPT buffer. Their results follow from the
component's kernels, its arguments and the contents of the weights and constants among them: that is the key
under which they are kept in the process. So plans for other batch sizes, and sessions of the same model, read
one copy of the packed weights.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np

from onward.compile.spec import NONE, PlanCall, PlanSpec, PlanStep, PlanTensor, Region
from onward.engine.weights import Weight
from onward.graph import Array

__all__ = ["Component", "Packed", "Packings", "components", "default_packings", "zeros"]

_ALIGN = 64


@final
@dataclass(eq=False)
class Packed:
    """The memory of a component's results.

    Attributes:
        block: the bytes of its buffers, one after the other.
        lock: held while they are computed.
        filled: whether they are.
        sources: what they follow from, which lives as long.
    """

    block: Array
    sources: tuple[Weight, ...]
    lock: threading.Lock = field(default_factory=threading.Lock)
    filled: bool = False


@final
@dataclass(frozen=True)
class Component:
    """Calls of a prologue, by position, and the KEPT buffers that they touch: offsets in a block."""

    steps: tuple[int, ...]
    offsets: Mapping[int, int]
    nbytes: int


@final
class Packings:
    """Packed weights by what they follow from, for as long as a plan has them; safe under several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: weakref.WeakValueDictionary[Hashable, Packed] = weakref.WeakValueDictionary()

    def of(self, spec: PlanSpec, component: Component, weights: Mapping[str, Weight]) -> Packed:
        """The memory for a component's results, which may be filled already."""
        key, sources = _key(spec, component, weights)
        if key is None:
            return Packed(zeros(component.nbytes), sources)
        with self._lock:
            if (known := self._known.get(key)) is None:
                known = self._known[key] = Packed(zeros(component.nbytes), sources)
            return known


def components(spec: PlanSpec) -> tuple[Component, ...]:
    """The prologue, cut where calls share no KEPT buffer."""
    groups: list[tuple[list[int], set[int]]] = []
    for position, step in enumerate(spec.prologue):
        steps, buffers = [position], {b for b in _buffers(step) if spec.buffers[b].region is Region.KEPT}
        for group in [g for g in groups if g[1] & buffers]:
            groups.remove(group)
            steps, buffers = group[0] + steps, group[1] | buffers
        groups.append((steps, buffers))
    made = []
    for steps, buffers in groups:
        offsets, end = {}, 0
        for buffer in sorted(buffers):
            offsets[buffer] = end
            end += -(-spec.buffers[buffer].nbytes // _ALIGN) * _ALIGN
        made.append(Component(tuple(sorted(steps)), offsets, end))
    return tuple(made)


def zeros(nbytes: int) -> Array:
    """Zeroed bytes that begin at a multiple of 64."""
    store = np.zeros(nbytes + _ALIGN, np.uint8)
    shift = -store.ctypes.data % _ALIGN
    return store[shift : shift + nbytes]


@functools.cache
def default_packings() -> Packings:
    """The process's packed weights."""
    return Packings()


def _buffers(step: PlanStep) -> list[int]:
    if isinstance(step, PlanCall):
        return [buffer for buffer, _ in step.arguments if buffer != NONE]
    return [w.buffer for field_ in vars(step).values() for w in _windows(field_)]


def _windows(content: object) -> list[PlanTensor]:
    if isinstance(content, PlanTensor):
        return [content]
    return [w for w in content if isinstance(w, PlanTensor)] if isinstance(content, tuple) else []


def _key(
    spec: PlanSpec, component: Component, weights: Mapping[str, Weight]
) -> tuple[Hashable | None, tuple[Weight, ...]]:
    """What results follow from; None where that has no name."""
    parts: list[Hashable] = [spec.threads]
    sources: list[Weight] = []
    kept = {buffer: number for number, buffer in enumerate(sorted(component.offsets))}
    plain = True
    for position in component.steps:
        step = spec.prologue[position]
        if not isinstance(step, PlanCall):
            plain = False
            continue
        parts.append(spec.kernels[step.kernel])
        for buffer, offset in step.arguments:
            if buffer == NONE:
                parts.append(offset)
                continue
            memory = spec.buffers[buffer]
            match memory.region:
                case Region.KEPT:
                    parts.append(("kept", kept[buffer], memory.nbytes, offset))
                case Region.SESSION:
                    sources.append(weights[memory.name])
                    parts.append(("weight", weights[memory.name].serial, offset))
                case Region.CONSTANT:
                    parts.append(("constant", _digest(spec.constants[memory.offset]), offset))
                case Region.ARENA:
                    parts.append(("scratch", memory.nbytes, offset))
                case Region.INPUT:
                    plain = False
    return (tuple(parts) if plain else None), tuple(sources)


def _digest(array: Array) -> bytes:
    if array.dtype.hasobject:
        return hashlib.sha256(repr(array.tolist()).encode()).digest()
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).digest()
