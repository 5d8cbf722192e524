"""Operators whose body in standard operators has kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onward.compile.program import Operation, Program, written
from onward.compile.registry import splits
from onward.graph.requests import Body

__all__: list[str] = []


@splits(Body)
def body(
    program: Program, operation: Operation, request: Body, shared: dict[object, Any]
) -> Sequence[Operation]:
    """The body's operations."""
    return written(program, operation)
