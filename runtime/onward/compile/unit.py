"""The compilation unit: a program in groups before it is lowered, and the machine that it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import onnx_ir as ir

from onward.compile.codegen.target import Target
from onward.compile.groups import Group
from onward.compile.kernels.layout import Image
from onward.compile.options import CompileOptions
from onward.compile.program import Program
from onward.compile.uses import Uses

__all__ = ["Unit"]


@final
@dataclass(frozen=True, eq=False)
class Unit:
    """A compilation unit.

    Attributes:
        program: what to compute.
        groups: its operations in the order in which they run.
        uses: who reads what.
        images: the values that are kept channels-last.
        options: what the user chose about kernels.
        target: for which processor.
        threads: how many threads will run it.
    """

    program: Program
    groups: tuple[Group, ...]
    uses: Uses
    images: Mapping[ir.Value, Image]
    options: CompileOptions
    target: Target
    threads: int
