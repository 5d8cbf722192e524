from __future__ import annotations

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Op, op, requests
from onward.graph.requests import Static, Values
from onward.ops._update import Types, like


@op("WaitCall", domain=ONWARD_DOMAIN, since=1)
class WaitCall(Op):
    """The block of a `StartCall` once its function has done its work; `function` and `tag` are the same."""

    function: str
    tag: int = 0

    def kernel(self, block: Array) -> Array:
        return block

    def lower(self, static: Static, outputs: Values, block: ir.Value) -> requests.WaitCall:
        return requests.WaitCall(outputs[0], block, self.function, self.tag)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, block: ir.Value) -> tuple[ir.Value]:
        return (dy,)

    def infer(self, block: ir.Value) -> Types:
        return like(block)

    def expand(self, g: Builder, block: ir.Value) -> ir.Value:
        raise UnsupportedError(
            f"the function {self.function!r} is of this process: no operator stands for it"
        )
