"""What a generator gives: IR with the layout of its argument block and its costs.

Every kernel has the ABI `void k(i64* args, i64 thread, i64 threads)`. `args` is a block of 64-bit slots in
the order of `Kernel.slots`: addresses, and run-time sizes such as the batch. Work is split statically over
`threads`; every thread of the team calls the kernel with the same block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from onward.compile.codegen.builder import Function, Value

__all__ = ["Affine", "Kernel", "slot_values"]

T = TypeVar("T")


@dataclass(frozen=True)
class Affine:
    """A quantity at batch size n: fixed + per_item * n."""

    fixed: int = 0
    per_item: int = 0

    def __call__(self, batch: int) -> int:
        return self.fixed + self.per_item * batch


@dataclass(frozen=True)
class Kernel:
    """A generated kernel.

    `slots` names the argument block's 64-bit slots: addresses of float32 data unless the generator says
    otherwise, and sizes in elements. `flops` and `bytes` are for one call by the whole team. `units` is the
    number of independent pieces of work, so threads beyond it idle. `scratch` is the number of bytes per
    thread that the address in slot `scratch` must offer, 64-byte aligned, where there is such a slot.
    """

    name: str
    ir: str
    slots: tuple[str, ...]
    flops: Affine = Affine()
    bytes: Affine = Affine()
    units: Affine = Affine()
    scratch: int = 0

    def arguments(self, values: Mapping[str, T]) -> list[T]:
        """Slot values in the slots' order. Raises `KeyError` for a missing or an unknown slot."""
        unknown = set(values) - set(self.slots)
        if unknown:
            raise KeyError(f"kernel {self.name} has no slot {', '.join(sorted(unknown))}")
        return [values[name] for name in self.slots]

    def block(self, values: Mapping[str, int]) -> npt.NDArray[np.int64]:
        """The argument block for given slot values. Raises `KeyError` for a missing or an unknown slot."""
        return np.array(self.arguments(values), np.int64)


def slot_values(f: Function, slots: tuple[str, ...], integers: frozenset[str]) -> dict[str, Value]:
    """Load every slot of the argument block at the start of an entry function."""
    args = f.arguments[0]
    return {name: f.load(args, "i64" if name in integers else "ptr", i) for i, name in enumerate(slots)}
