"""Python functions that Numba compiles."""

from __future__ import annotations

from math import prod

import numpy as np

from onward.compile.context import Context, Queries
from onward.compile.items import Slot
from onward.compile.kernels.loop import LOOP_TYPES, STATUS, Operand, available, extents, loop
from onward.compile.registry import lowers
from onward.compile.spec import RAISED
from onward.compile.tensors import Tensor
from onward.graph.requests import Loop

__all__: list[str] = []


def _unsuited(q: Queries, request: Loop) -> str | None:
    if not available():
        return "numba is not installed: pip install onward[loops]"
    values = [v for v in (*request.outputs, *request.operands) if v is not None and v.name]
    if reason := q.empty(*values):
        return reason
    return next((f"{v.name} is {q.dtype(v)}" for v in values if q.dtype(v).name not in LOOP_TYPES), None)


@lowers(Loop, suits=_unsuited)
def loops(c: Context, request: Loop) -> None:
    """One call."""
    operands = [None if v is None else c.plain(v) for v in request.operands]
    for value, extent in request.indices:
        c.check_indices(c.plain(value), extent, low=0)
    outputs = [c.new_plain(v) if v.name else None for v in request.outputs]
    scratch = [
        Tensor(c.scratch(prod(shape), np.dtype(kind)), shape, (), np.dtype(kind))
        for shape, kind in request.scratch
    ]
    arrays: list[Operand | None] = []
    slots: dict[str, Slot] = {}
    nbytes = 0
    for role, tensors in (("output", outputs), ("operand", operands), ("scratch", scratch)):
        for number, tensor in enumerate(tensors):
            if tensor is None:
                arrays.append(None)
                continue
            array = Operand(f"{role}{number}", role, tensor.dtype.name, len(tensor.shape))
            arrays.append(array)
            slots[array.name] = tensor
            slots.update(zip(extents(array), tensor.shape, strict=True))
            nbytes += tensor.nbytes
    kernel = loop(request.function, tuple(arrays), request.constants, c.target, request.flops, nbytes)
    status = c.vector(c.threads, np.dtype(np.int64)) if STATUS in kernel.slots else None
    if status is not None:
        slots[STATUS] = status
    c.call(kernel, slots)
    if status is not None:
        c.check_indices(status, 1, low=0, what=RAISED)
