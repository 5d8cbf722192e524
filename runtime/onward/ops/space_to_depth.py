from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph import Array, Builder, Op, op, requests, static_shape
from onward.graph.requests import Static, Values


@op("SpaceToDepth", since=(1, 13, 28))
class SpaceToDepth(Op):
    """Blocks of space moved into channels; the block's position leads (DCR) or trails (CRD) in a channel."""

    blocksize: int
    mode: str = "DCR"

    def kernel(self, input: Array) -> Array:
        return space_to_depth(input, self.blocksize, self.mode)

    def lower(self, static: Static, outputs: Values, input: ir.Value) -> requests.Body:
        return requests.Body()

    def expand(self, g: Builder, input: ir.Value) -> ir.Value:
        shape, block = static_shape(input), self.blocksize
        assert shape is not None
        n, c, h, w = shape
        if h % block or w % block:
            raise ShapeError(f"the extents {h} and {w} are not multiples of the block size {block}")
        order = (0, 3, 5, 1, 2, 4) if self.mode == "DCR" else (0, 1, 3, 5, 2, 4)
        blocks = g.Reshape(input, g.const([n, c, h // block, block, w // block, block], np.int64))
        return g.Reshape(
            g.Transpose(blocks, perm=order), g.const([n, c * block**2, h // block, w // block], np.int64)
        )

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        return (g.DepthToSpace(dy, blocksize=self.blocksize, mode=self.mode),)


def space_to_depth(x: Array, block: int, mode: str) -> Array:
    """Blocks of space moved into channels."""
    n, c, h, w = x.shape
    if h % block or w % block:
        raise ValueError(f"the extents {h} and {w} are not multiples of the block size {block}")
    blocks = x.reshape(n, c, h // block, block, w // block, block)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.transpose(order).reshape(n, c * block**2, h // block, w // block)
