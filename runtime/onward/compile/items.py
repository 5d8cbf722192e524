"""What a plan is made of: kernel calls, and what NumPy does between them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from onward.compile.kernels.element import Element
from onward.compile.kernels.kernel import Access, Kernel
from onward.compile.program import Operation
from onward.compile.tensors import Buffer, Tensor

__all__ = ["Call", "Check", "Copy", "Fallback", "ForeignCall", "Item", "Slot"]

Slot: TypeAlias = "Tensor | Buffer | int"
"""What an argument slot holds: the address of a tensor's first element, of a buffer, or a number.

An address is never given as a number: a plan outlives the process."""


@dataclass(frozen=True, eq=False)
class Call:
    """One kernel call.

    Attributes:
        kernel: what is called.
        slots: its arguments by name.
        label: the operators that it computes, for reports.
        batch: what the kernel's costs are multiplied by.
        scratch: memory for the length of the call.
        element: the element-wise pass over gapless tensors of one type that it is, if it is one.
    """

    kernel: Kernel
    slots: Mapping[str, Slot]
    label: str
    batch: int
    scratch: Buffer | None = None
    element: Element | None = None

    def __post_init__(self) -> None:
        for parameter in self.kernel.parameters:
            number = isinstance(self.slots[parameter.name], int)
            if number != (parameter.access is Access.INTEGER):
                kind = "a number" if number else "memory"
                raise AssertionError(f"slot {parameter.name} of {self.kernel.name} is not {kind}")

    @functools.cached_property
    def reads(self) -> tuple[Buffer, ...]:
        """The memory whose contents matter to it, by the kernel's declaration."""
        return self._buffers(self.kernel.reads)

    @functools.cached_property
    def writes(self) -> tuple[Buffer, ...]:
        """The memory that it changes, by the kernel's declaration."""
        return self._buffers(self.kernel.writes)

    def _buffers(self, names: Iterable[str]) -> tuple[Buffer, ...]:
        found = (self.slots[name] for name in names)
        buffers = (slot.buffer if isinstance(slot, Tensor) else slot for slot in found)
        return tuple(dict.fromkeys(b for b in buffers if isinstance(b, Buffer)))


@dataclass(frozen=True, eq=False)
class Copy:
    """A copy between layouts or buffers that NumPy makes inside the plan."""

    source: Tensor
    target: Tensor
    label: str

    @property
    def reads(self) -> tuple[Buffer, ...]:
        """The memory whose contents matter to it."""
        return (self.source.buffer,)

    @property
    def writes(self) -> tuple[Buffer, ...]:
        """The memory that it changes."""
        return (self.target.buffer,)


@dataclass(frozen=True, eq=False)
class Fallback:
    """A NumPy kernel inside the plan."""

    operation: Operation
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    reason: str

    @property
    def reads(self) -> tuple[Buffer, ...]:
        """The memory whose contents matter to it."""
        return tuple(t.buffer for t in self.inputs if t is not None)

    @property
    def writes(self) -> tuple[Buffer, ...]:
        """The memory that it changes."""
        return tuple(t.buffer for t in self.outputs if t is not None)

    @property
    def label(self) -> str:
        """The operator, for reports."""
        return self.operation.label


@dataclass(frozen=True, eq=False)
class Check:
    """Indices that native kernels rely on: each must be in [low, extent)."""

    operation: Operation
    tensor: Tensor
    low: int
    extent: int
    what: str

    @property
    def reads(self) -> tuple[Buffer, ...]:
        """The memory whose contents matter to it."""
        return (self.tensor.buffer,)

    @property
    def writes(self) -> tuple[Buffer, ...]:
        """The memory that it changes."""
        return ()

    @property
    def label(self) -> str:
        """The operator, for reports."""
        return self.operation.label


@dataclass(frozen=True, eq=False)
class ForeignCall:
    """A call of another library's function on a block, or one that waits until that has ended.

    Attributes:
        name: of the function.
        block: what it works on; a tensor without gaps.
        tag: what tells calls of one function apart.
        waits: which of the two it is.
    """

    name: str
    block: Tensor
    tag: int
    waits: bool
    label: str

    @property
    def reads(self) -> tuple[Buffer, ...]:
        """The memory whose contents matter to it."""
        return (self.block.buffer,)

    @property
    def writes(self) -> tuple[Buffer, ...]:
        """The memory that it changes."""
        return (self.block.buffer,)


Item: TypeAlias = "Call | Check | Copy | Fallback | ForeignCall"
