"""Decomposition: several operations in the place of one, where parts of it fuse with others or are shared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onward.compile.program import Program
from onward.compile.registry import splitter_for

__all__ = ["split"]


def split(program: Program) -> Program:
    """A program with every operation split for which the rules' modules say how."""
    shapes, dtypes = dict(program.shapes), dict(program.dtypes)
    whole = replace(program, operations=[], shapes=shapes, dtypes=dtypes)
    shared: dict[object, Any] = {}
    for operation in program.operations:
        splitter = splitter_for(operation.request)
        parts = None if splitter is None else splitter(whole, operation, operation.request, shared)
        whole.operations.extend([operation] if parts is None else parts)
    return whole
