"""What a generator gives: IR with the layout of its argument block and its costs.

Every kernel has the ABI `void k(i64* args, i64 thread, i64 threads)`. `args` is a block of 64-bit slots in
the order of `Kernel.slots`: addresses, and run-time sizes such as the batch. Work is split statically over
`threads`; every thread of the team calls the kernel with the same block.

A kernel declares what it does with the memory of each slot. Whoever puts kernels in order derives from that
which calls must wait for which: an access that is not declared is a race.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from onward.compile.codegen.builder import Function
from onward.compile.codegen.values import Value

__all__ = ["Access", "Affine", "Kernel", "Parameter", "integer", "read", "slot_values", "update", "write"]

T = TypeVar("T")


@dataclass(frozen=True)
class Affine:
    """A quantity at batch size n: fixed + per_item * n."""

    fixed: int = 0
    per_item: int = 0

    def __call__(self, batch: int) -> int:
        return self.fixed + self.per_item * batch


class Access(Enum):
    """What a kernel does with a slot."""

    INTEGER = "integer"
    """The slot is a number: a size, a stride, a count."""

    READ = "read"
    """Memory at the slot's address is read, never written."""

    WRITE = "write"
    """It is written. The kernel may read what it wrote; what was there before does not matter."""

    UPDATE = "update"
    """It is written, and what was there before matters."""


@dataclass(frozen=True)
class Parameter:
    """A slot of the argument block."""

    name: str
    access: Access


def integer(*names: str) -> tuple[Parameter, ...]:
    """Slots that hold numbers."""
    return tuple(Parameter(name, Access.INTEGER) for name in names)


def read(*names: str) -> tuple[Parameter, ...]:
    """Slots with addresses of what is read only."""
    return tuple(Parameter(name, Access.READ) for name in names)


def write(*names: str) -> tuple[Parameter, ...]:
    """Slots with addresses of results, and of memory for the length of a call."""
    return tuple(Parameter(name, Access.WRITE) for name in names)


def update(*names: str) -> tuple[Parameter, ...]:
    """Slots with addresses of what is read, then written."""
    return tuple(Parameter(name, Access.UPDATE) for name in names)


@dataclass(frozen=True)
class Kernel:
    """A generated kernel.

    `parameters` declares the argument block's 64-bit slots: addresses of float32 data unless the generator
    says otherwise, and sizes in elements. `flops` and `bytes` are for one call by the whole team. `units` is
    the number of independent pieces of work, so threads beyond it idle. `scratch` is the number of bytes per
    thread that the address in slot `scratch` must offer, 64-byte aligned, where there is such a slot.
    `foreign` IR was written by another compiler.
    """

    name: str
    ir: str
    parameters: tuple[Parameter, ...]
    flops: Affine = Affine()
    bytes: Affine = Affine()
    units: Affine = Affine()
    scratch: int = 0
    foreign: bool = False

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of all slots, in their order."""
        return tuple(p.name for p in self.parameters)

    @property
    def reads(self) -> tuple[str, ...]:
        """The slots whose memory must hold its values before a call."""
        return tuple(p.name for p in self.parameters if p.access in (Access.READ, Access.UPDATE))

    @property
    def writes(self) -> tuple[str, ...]:
        """The slots whose memory is not what it was after a call."""
        return tuple(p.name for p in self.parameters if p.access in (Access.WRITE, Access.UPDATE))

    def arguments(self, values: Mapping[str, T]) -> list[T]:
        """Slot values in the slots' order. Raises `KeyError` for a missing or an unknown slot."""
        unknown = set(values) - set(self.slots)
        if unknown:
            raise KeyError(f"kernel {self.name} has no slot {', '.join(sorted(unknown))}")
        return [values[name] for name in self.slots]

    def block(self, values: Mapping[str, int]) -> npt.NDArray[np.int64]:
        """The argument block for given slot values. Raises `KeyError` for a missing or an unknown slot."""
        return np.array(self.arguments(values), np.int64)


def slot_values(f: Function, parameters: Sequence[Parameter]) -> dict[str, Value]:
    """Load every slot of the argument block at the start of an entry function."""
    args = f.arguments[0]
    return {
        p.name: f.load(args, "i64" if p.access is Access.INTEGER else "ptr", i)
        for i, p in enumerate(parameters)
    }
