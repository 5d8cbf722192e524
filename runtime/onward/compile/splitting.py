"""Decomposition: several operations in the place of one, where parts of it fuse with others or are shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from onward.compile.program import Operation, Program
from onward.compile.registry import splitter_for
from onward.graph.requests import Body

__all__ = ["split"]


def split(program: Program) -> Program:
    """A program with every operation split for which the rules' modules say how."""
    shapes, dtypes = dict(program.shapes), dict(program.dtypes)
    whole = replace(program, operations=[], shapes=shapes, dtypes=dtypes)
    shared: dict[object, Any] = {}
    for operation in program.operations:
        whole.operations.extend(_parts(whole, operation, shared))
    return whole


def _parts(program: Program, operation: Operation, shared: dict[object, Any]) -> Iterator[Operation]:
    """What stands in the place of an operation; what a body consists of may be split itself."""
    splitter = splitter_for(operation.request)
    parts = None if splitter is None else splitter(program, operation, operation.request, shared)
    if parts is None:
        yield operation
    elif isinstance(operation.request, Body):
        for part in parts:
            yield from _parts(program, part, shared)
    else:
        yield from parts
