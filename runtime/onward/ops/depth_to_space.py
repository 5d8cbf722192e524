from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Builder, Op, dims_of, op, requests, static_shape
from onward.graph.requests import Static, Values


@op("DepthToSpace", since=(1, 11, 13, 28))
class DepthToSpace(Op):
    """Channels moved into blocks of space; the block's position leads (DCR) or trails (CRD) in a channel."""

    blocksize: int
    mode: str = "DCR"

    def kernel(self, input: Array) -> Array:
        return depth_to_space(input, self.blocksize, self.mode)

    def lower(self, static: Static, outputs: Values, input: ir.Value) -> requests.Body:
        return requests.Body()

    def expand(self, g: Builder, input: ir.Value) -> ir.Value:
        shape, block = static_shape(input), self.blocksize
        assert shape is not None
        n, c, h, w = shape
        if c % block**2:
            raise ShapeError(f"{c} channels are not a multiple of the block's {block**2}")
        depth = c // block**2
        leading = self.mode == "DCR"
        split = [n, block, block, depth, h, w] if leading else [n, depth, block, block, h, w]
        order = (0, 3, 4, 1, 5, 2) if leading else (0, 1, 4, 2, 5, 3)
        blocks = g.Transpose(g.Reshape(input, g.const(split, np.int64)), perm=order)
        return g.Reshape(blocks, g.const([n, depth, h * block, w * block], np.int64))

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, input: ir.Value) -> tuple[ir.Value, ...]:
        back = g.SpaceToDepth(dy, blocksize=self.blocksize)
        if self.mode == "DCR":
            return (back,)
        dims = dims_of(input)
        depth = dims[1] if dims is not None else None
        if not isinstance(depth, int):
            raise UnsupportedError("the gradient of DepthToSpace needs the number of channels")
        area = self.blocksize**2
        order = np.arange(depth).reshape(area, depth // area).T.reshape(-1)
        return (g.Gather(back, order, axis=1),)


def depth_to_space(x: Array, block: int, mode: str) -> Array:
    """Channels moved into blocks of space."""
    n, c, h, w = x.shape
    if c % block**2:
        raise ValueError(f"{c} channels are not a multiple of the block's {block**2}")
    depth = c // block**2
    if mode == "DCR":
        blocks = x.reshape(n, block, block, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, depth, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, depth, h * block, w * block)
