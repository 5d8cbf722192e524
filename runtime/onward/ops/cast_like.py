from __future__ import annotations

import functools

import onnx_ir as ir

from onward.graph import Array, Builder, Op, dtype_of, op, requests
from onward.graph.requests import Static, Values
from onward.ops.cast import converted, converted_back


@op("CastLike", since=(15, 19, 21, 23, 24, 25))
class CastLike(Op):
    """input in the element type of target_type."""

    saturate: int = 1
    round_mode: str = "up"

    def kernel(self, input: Array, target_type: Array) -> Array:
        return _alike(input, target_type, bool(self.saturate), self.round_mode)

    def lower(
        self, static: Static, outputs: Values, input: ir.Value, target_type: ir.Value
    ) -> requests.Convert:
        to = int(dtype_of(outputs[0]))
        rule = functools.partial(converted, to=to, saturate=bool(self.saturate), round_mode=self.round_mode)
        return requests.Convert(outputs[0], input, rule)

    def gradient(
        self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value, target_type: ir.Value
    ) -> tuple[ir.Value | None, ...]:
        return converted_back(g, dy, input), None


def _alike(x: Array, target: Array, saturate: bool, round_mode: str) -> Array:
    to = ir.DataType.STRING if target.dtype.kind in "OUST" else ir.DataType.from_numpy(target.dtype)
    return converted(x, int(to), saturate=saturate, round_mode=round_mode)
