"""One sweep of an element expression over many tensors: an optimiser's whole update as one kernel.

All elements of all tensors form one range that is split over threads, whatever the tensors' sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onward.compile.codegen.builder import Module, Value
from onward.compile.codegen.target import Target
from onward.compile.kernels.expression import Expression, emit, flops, inputs_of
from onward.compile.kernels.kernel import Affine, Kernel, slot_values
from onward.errors import ShapeError

__all__ = ["Sweep", "segment_table", "sweep"]


@dataclass(frozen=True)
class Sweep:
    """`results[i]` of each tensor is expression i of its `tensors` operands, then of `scalars` shared values.

    `results` names, for each expression, the tensor operand that it overwrites.
    """

    tensors: int
    scalars: int
    results: tuple[int, ...]
    expressions: tuple[Expression, ...]

    def __post_init__(self) -> None:
        if len(self.results) != len(self.expressions) or not set(self.results) <= set(range(self.tensors)):
            raise ShapeError(f"results {self.results} of {len(self.expressions)} expressions")
        if inputs_of(self.expressions) > self.tensors + self.scalars:
            raise ShapeError(
                f"the expressions use more than {self.tensors} tensors and {self.scalars} scalars"
            )


def segment_table(addresses: Sequence[Sequence[int]], sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """The table of a sweep: for each tensor its end in the whole range, then its operands' addresses."""
    ends = np.cumsum(np.array(sizes, np.int64))
    return np.array([[end, *row] for end, row in zip(ends.tolist(), addresses, strict=True)], np.int64)


def sweep(spec: Sweep, target: Target, name: str = "optimiser") -> Kernel:
    """Slots: table (from `segment_table`), segments (its rows), s0, s1, ... (addresses of the scalars).

    `units`, flops and bytes are for one element: the number of elements stands in the table.
    """
    module = Module(target)
    f = module.entry()
    slots = ("table", "segments", *(f"s{i}" for i in range(spec.scalars)))
    values = slot_values(f, slots, frozenset(("segments",)))
    table, segments = values["table"], values["segments"]
    columns, lanes = 1 + spec.tensors, target.lanes
    scalars = [f.broadcast(values[f"s{i}"]) for i in range(spec.scalars)]
    with f.when(f.compare("sgt", segments, 0)):
        total = f.load(table, "i64", (segments - 1) * columns)
        block = 16 * lanes
        low, high = f.share((total + (block - 1)) // block, *f.arguments[1:])
        low, high = low * block, f.smin(high * block, total)

        def one(index: Value, carry: list[Value]) -> list[Value]:
            row = f.at(table, index * columns, "i64")
            begin, end = carry[0], f.load(row, "i64")
            first, last = f.smax(low, begin) - begin, f.smin(high, end) - begin
            pointers = [f.load(row, "ptr", 1 + i) for i in range(spec.tensors)]

            def vector(i: Value, mask: Value | None) -> None:
                loaded = [f.vload(p, i, mask) for p in pointers]
                found = emit(f, spec.expressions, [*loaded, *scalars])
                for result, place in zip(found, spec.results, strict=True):
                    f.vstore(result, pointers[place], i, mask)

            whole = first + f.smax(last - first, 0) // lanes * lanes
            with f.range(first, whole, lanes) as i:
                vector(i, None)
            with f.range(whole, last, lanes) as i:
                vector(i, f.mask(last - i))
            return [end]

        f.loop(0, segments, carry=[f.value(0)], body=one, nonempty=True)
    f.ret()
    return Kernel(
        name=name,
        ir=module.text(),
        slots=slots,
        flops=Affine(0, flops(spec.expressions)),
        bytes=Affine(0, 4 * (spec.tensors + len(spec.results))),
        units=Affine(0, 1),
    )
