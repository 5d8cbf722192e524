"""What a plan is, apart from any model: plain data that lowering gives, files hold and an engine runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np

from onward.errors import ShapeError
from onward.graph import Array, Op

__all__ = [
    "NONE",
    "RAISED",
    "PlanBuffer",
    "PlanCall",
    "PlanCheck",
    "PlanCopy",
    "PlanFallback",
    "PlanRow",
    "PlanSpec",
    "PlanStart",
    "PlanStep",
    "PlanTensor",
    "PlanWait",
    "Region",
]

NONE = -1
"""In place of a buffer: the argument is a number."""


class Region(Enum):
    """Which block a buffer is in."""

    ARENA = "arena"
    """The plan's working memory, shared by buffers that live at different times; zeros at first."""

    KEPT = "kept"
    """The plan's own for as long as it lives, filled by the prologue; zeros at first."""

    CONSTANT = "constant"
    """Arrays that are part of the plan."""

    SESSION = "session"
    """A weight or state of the session, by name."""

    INPUT = "input"
    """An input by name; the address is known at each run."""


@dataclass(frozen=True)
class PlanBuffer:
    """A buffer.

    Attributes:
        region: where it is.
        nbytes: its size.
        offset: in bytes, for ARENA and KEPT; the number of the array, for CONSTANT.
        name: for SESSION and INPUT.
    """

    region: Region
    nbytes: int
    offset: int = 0
    name: str = ""


@dataclass(frozen=True)
class PlanTensor:
    """A tensor in a buffer: strides and offset in elements."""

    buffer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class PlanCall:
    """A kernel call.

    Attributes:
        kernel: index of the kernel.
        arguments: a buffer and an offset in bytes each, or NONE and a number.
        no_barrier: whether the next call may start before all threads are done with this one.
    """

    kernel: int
    arguments: tuple[tuple[int, int], ...]
    no_barrier: bool = False


@dataclass(frozen=True)
class PlanCopy:
    """A copy between tensors by NumPy."""

    source: PlanTensor
    target: PlanTensor


RAISED = "it cannot take what an operand holds: engine='interpreter' says what that is"
"""What a check says of the flag of a loop that ended early."""


@dataclass(frozen=True)
class PlanCheck:
    """Indices that native kernels rely on: each must be in [low, extent)."""

    node: str
    op_type: str
    opset: int
    tensor: PlanTensor
    low: int
    extent: int
    what: str

    def apply(self, indices: Array) -> None:
        """Raises:
        ShapeError: an index is out of range.
        """
        # as unsigned numbers, those below `low` are the largest
        shifted = indices - self.low if self.low else indices
        if indices.size and shifted.view(f"u{indices.itemsize}").max() >= self.extent - self.low:
            wrong = (indices < self.low) | (indices >= self.extent)
            where = f"node {self.node!r}, operator {self.op_type}, opset {self.opset}"
            if self.what == RAISED:
                raise ShapeError(f"{where}: {RAISED}")
            place = np.argwhere(wrong)[0].tolist()
            raise ShapeError(
                f"{where}: {self.what} {indices[wrong][0]} at position {place} is not in "
                f"{self.low}…{self.extent - 1}"
            )


@dataclass(frozen=True, eq=False)
class PlanFallback:
    """An operator's NumPy kernel inside the plan; absent operands and results are None."""

    node: str
    op_type: str
    opset: int
    operator: Op
    inputs: tuple[PlanTensor | None, ...]
    outputs: tuple[PlanTensor | None, ...]


@dataclass(frozen=True)
class PlanStart:
    """A call that starts something which goes on while later calls run, such as a collective.

    Everything before it is done, and what it reads and writes is left alone until its `PlanWait`. One thread
    of the team calls it; the others go on.

    Attributes:
        name: under which the function is known (`graph.foreign`).
        arguments: as of `PlanCall`.
    """

    name: str
    arguments: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PlanWait:
    """A call that returns when what a `PlanStart` began has ended; everything after it comes after that.

    Attributes: as of `PlanStart`.
    """

    name: str
    arguments: tuple[tuple[int, int], ...]


PlanStep: TypeAlias = "PlanCall | PlanCopy | PlanCheck | PlanFallback | PlanStart | PlanWait"


@dataclass(frozen=True)
class PlanRow:
    """One call of a plan, for reports.

    Attributes:
        kernel: the kernel's name; "numpy" for a NumPy kernel inside the plan.
        operators: the nodes that it computes.
        flops, bytes: arithmetic and memory traffic of one step, 0 where they are not known.
        reason: why it is a NumPy kernel; empty otherwise.
    """

    kernel: str
    operators: str
    flops: int
    bytes: int
    reason: str = ""


@dataclass(frozen=True, eq=False)
class PlanSpec:
    """A model at fixed input shapes as calls on buffers.

    Attributes:
        threads: of the team that runs it.
        arena_bytes, kept_bytes: sizes of the plan's own blocks.
        buffers: every buffer.
        constants: the arrays of CONSTANT buffers.
        kernels: content addresses of the kernels' machine code.
        checks: of the caller's inputs, before a run.
        prologue: calls that depend on weights alone: they run when those have changed.
        steps: the calls of a run.
        outputs: where the results that are not state are after a run.
        rows: the steps, for reports.
    """

    threads: int
    arena_bytes: int
    kept_bytes: int
    buffers: tuple[PlanBuffer, ...]
    constants: tuple[Array, ...]
    kernels: tuple[str, ...]
    checks: tuple[PlanCheck, ...]
    prologue: tuple[PlanStep, ...]
    steps: tuple[PlanStep, ...]
    outputs: Mapping[str, PlanTensor]
    rows: tuple[PlanRow, ...]

    @property
    def work(self) -> int:
        """Arithmetic operations and bytes of one run, as far as they are known."""
        return sum(row.flops + row.bytes for row in self.rows)
