"""Element-wise operations as expressions of what they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from onward.compile.kernels.expression import Expression, constant
from onward.compile.program import Operation
from onward.graph import Array
from onward.graph.requests import Request, Values

__all__ = ["Elements", "expressions", "number", "operands_of"]


@dataclass(frozen=True, eq=False)
class Elements(Request):
    """One pass that computes element-wise operations of one shape, and stores some of their results."""

    outputs: Values
    operations: tuple[Operation, ...]
    shape: tuple[int, ...]


def number(content: Array | None) -> Expression | None:
    """A constant of one element as an expression; None for others."""
    if content is None or content.size != 1:
        return None
    element = content.reshape(())
    found = constant(int(element) if content.dtype.kind in "iu" else float(element))
    return found.apply("ne", 0.0) if content.dtype == np.bool_ else found


def expressions(
    operations: Sequence[Operation],
    places: Mapping[ir.Value, Expression],
    dtypes: Mapping[ir.Value, np.dtype[np.generic]] = MappingProxyType({}),
) -> dict[ir.Value, Expression]:
    """What each of some operations computes, given the expressions of what comes from outside.

    Results whose type in `dtypes` is a 2-byte float are rounded to it.
    """
    made: dict[ir.Value, Expression] = {}
    for operation in operations:
        arguments = [None if v is None else made.get(v) or places[v] for v in operation.inputs]
        found = operation.operator.element(*arguments)  # type: ignore[attr-defined]
        results = found if isinstance(found, tuple) else (found,)
        for value, result in zip(operation.outputs, results, strict=False):
            kind = dtypes[value].name if value in dtypes else ""
            made[value] = result.apply(kind) if kind in ("float16", "bfloat16") else result
    return made


def operands_of(operations: Sequence[Operation]) -> list[ir.Value]:
    """What the expressions of some operations read from outside."""
    made = {v for o in operations for v in o.outputs}
    return list(dict.fromkeys(v for o in operations for v in o.inputs if v is not None and v not in made))
