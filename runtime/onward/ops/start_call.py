from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Dim, Op, dims_of, dtype_of, op, requests, static_shape
from onward.graph.foreign import call_foreign
from onward.graph.requests import Static, Values
from onward.ops._update import Types


@op("StartCall", domain=ONWARD_DOMAIN, since=1)
class StartCall(Op):
    """The elements of X1, X2, … behind each other as one block, on which a function begins to work.

    Only the `WaitCall` of the same function and tag may read the block. The function's addresses are given by
    `onward.engine.register_foreign`. The interpreter waits for it at once.

    With `size`, the block has so many elements, of which the operands are those from `offset` on; the others
    are the function's to write, and hold nothing before.

    A function with `self_adjoint` is linear and its own transpose, as a sum over processes is: the gradient
    of X1, X2, … is then the function of the block's gradient, with the tag `gradient_tag`.
    """

    function: str
    tag: int = 0
    size: int = 0
    offset: int = 0
    self_adjoint: int = 0
    gradient_tag: int = 0

    def kernel(self, *X: Array) -> Array:
        block = np.concatenate([x.reshape(-1) for x in X])
        if self.size:
            given, block = block, np.zeros(self.size, block.dtype)
            block[self.offset : self.offset + given.size] = given
        call_foreign(self.function, block, self.tag)
        return block

    def lower(self, static: Static, outputs: Values, *X: ir.Value) -> requests.StartCall:
        return requests.StartCall(outputs[0], X, self.function, self.tag, self.offset)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, *X: ir.Value) -> tuple[ir.Value | None, ...]:
        if not self.self_adjoint or self.size:
            raise UnsupportedError(f"nothing is known of the gradient of the function {self.function!r}")
        started = g.onward.StartCall(dy, function=self.function, tag=self.gradient_tag)
        block = g.onward.WaitCall(started, function=self.function, tag=self.gradient_tag)
        parts: list[ir.Value | None] = []
        start = 0
        for x in X:
            if (shape := static_shape(x)) is None:
                raise UnsupportedError(
                    f"{x.name!r} has no fixed shape, which the gradient of StartCall needs"
                )
            end = start + math.prod(shape)
            parts.append(g.Reshape(g.Slice(block, [start], [end]), g.const(np.array(shape, np.int64))))
            start = end
        return tuple(parts)

    def infer(self, *X: ir.Value) -> Types:
        kinds = {dtype_of(x) for x in X}
        if len(kinds) != 1:
            named = ", ".join(sorted(kind.name.lower() for kind in kinds)) or "none"
            raise ShapeError(f"a block holds tensors of one element type, got {named}")
        dims = [dims_of(x) for x in X]
        counts: list[Dim] = [
            None
            if d is None or any(not isinstance(n, int) for n in d)
            else math.prod(n for n in d if isinstance(n, int))
            for d in dims
        ]
        known = [n for n in counts if isinstance(n, int)]
        total = sum(known) if len(known) == len(counts) else None
        if self.size and total is not None and not 0 <= self.offset <= self.size - total:
            raise ShapeError(f"{total} elements from {self.offset} on do not fit a block of {self.size}")
        return [(kinds.pop(), (self.size or total,))]

    def expand(self, g: Builder, *X: ir.Value) -> ir.Value:
        raise UnsupportedError(
            f"the function {self.function!r} is of this process: no operator stands for it"
        )
