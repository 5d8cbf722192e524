"""What transforms must not change: results that are not finite are replaced by sums made without them.

Every transformed position takes part in some result, so what is not finite among inputs or weights, or
becomes so in a transform, always shows.
"""

from __future__ import annotations

from collections.abc import Sequence

from onward.compile.codegen.builder import Function
from onward.compile.codegen.values import Value

__all__ = ["any_not_finite", "repaired"]


def any_not_finite(f: Function, values: Sequence[Value]) -> Value:
    """1 where any lane of the vectors is NaN or infinite, else 0, as i64."""
    wrong = values[0] * 0.0
    for value in values[1:]:
        wrong = f.fma(value, 0.0, wrong)
    lanes = f.bitcast(f.compare("uno", wrong, wrong), f"i{f.lanes}")
    return f.smin(f.cast("zext", lanes, "i64"), 1)


def repaired(f: Function, values: Sequence[Value], direct: Sequence[Value]) -> list[Value]:
    """The values where they are finite, else the direct sums."""
    return [f.select(f.compare("uno", v - v, v - v), d, v) for v, d in zip(values, direct, strict=True)]
