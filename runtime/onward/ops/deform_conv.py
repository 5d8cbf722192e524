from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Builder, Op, dims_of, dtype_of, op
from onward.ops._floats import widened
from onward.ops._sampling import Arrays, Graph, Sampling, corners, taps


@op("DeformConv", since=(19, 22))
class DeformConv(Op):
    """A convolution whose taps are read where `offset` moves them to, between pixels linearly and 0 outside,
    and weighted by `mask` (Dai et al. 2017; Zhu et al. 2019).

    By offset, at whole coordinates: the slope of the pixels from there on, as in torch.
    """

    dilations: tuple[int, ...] | None = None
    group: int = 1
    kernel_shape: tuple[int, ...] | None = None
    offset_group: int = 1
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def _starts(self, kernel: tuple[int, ...], out: tuple[int, ...]) -> list[Array]:
        """Where each tap of each window lies along each axis without an offset: [taps · windows]."""
        rank = len(kernel)
        strides = (1,) * rank if self.strides is None else self.strides
        dilations = (1,) * rank if self.dilations is None else self.dilations
        pads = (0,) * 2 * rank if self.pads is None else self.pads
        tap, window = (np.indices(e).reshape(rank, -1) for e in (kernel, out))
        return [
            (tap[a][:, None] * dilations[a] + window[a] * strides[a] - pads[a]).reshape(-1).astype(np.float64)
            for a in range(rank)
        ]

    def _check(self, X: tuple[int, ...], W: tuple[int, ...], offset: tuple[int, ...]) -> None:
        taps_, rank = math.prod(W[2:]), len(W) - 2
        if X[1] != W[1] * self.group or W[0] % self.group or X[1] % self.offset_group:
            raise ShapeError(f"X {list(X)} and W {list(W)} do not fit {self.group} groups")
        if len(X) != len(W) or offset[1] != self.offset_group * taps_ * rank or offset[0] != X[0]:
            raise ShapeError(f"offset {list(offset)} does not fit X {list(X)} and W {list(W)}")
        strides = (1,) * rank if self.strides is None else self.strides
        dilations = (1,) * rank if self.dilations is None else self.dilations
        pads = (0,) * 2 * rank if self.pads is None else self.pads
        for a in range(rank):
            reach = X[2 + a] + pads[a] + pads[a + rank] - dilations[a] * (W[2 + a] - 1) - 1
            if offset[2 + a] != reach // strides[a] + 1:
                raise ShapeError(f"offset {list(offset)} has not the extents of the result")

    @widened
    def kernel(
        self, X: Array, W: Array, offset: Array, B: Array | None = None, mask: Array | None = None
    ) -> Array:
        self._check(X.shape, W.shape, offset.shape)
        rank, count, out = W.ndim - 2, math.prod(W.shape[2:]), offset.shape[2:]
        batch, parts = X.shape[0], self.offset_group
        moved = offset.reshape(batch, parts, count, rank, math.prod(out))
        starts = self._starts(W.shape[2:], out)
        m = Arrays()
        places = [
            moved[:, :, :, a].reshape(batch, parts, -1) + starts[a].astype(X.dtype) for a in range(rank)
        ]
        axes = [taps(m, x, n, Sampling()) for x, n in zip(places, X.shape[2:], strict=True)]
        flat = X.reshape(batch, parts, X.shape[1] // parts, math.prod(X.shape[2:]))
        columns = np.zeros((*flat.shape[:3], places[0].shape[-1]), X.dtype)
        for place, weight, _ in corners(m, axes, X.shape[2:]):
            columns += np.take_along_axis(flat, place[:, :, None], 3) * weight[:, :, None].astype(X.dtype)
        if mask is not None:
            columns *= mask.reshape(batch, parts, 1, -1)
        rows = columns.reshape(batch, self.group, W.shape[1] * count, math.prod(out))
        weights = W.reshape(self.group, W.shape[0] // self.group, W.shape[1] * count)
        y = np.matmul(weights, rows).reshape(batch, W.shape[0], *out)
        if B is not None:
            y += B.reshape(-1, *(1,) * rank)
        return y.astype(X.dtype, copy=False)

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        X: ir.Value,
        W: ir.Value,
        offset: ir.Value,
        B: ir.Value | None = None,
        mask: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        known = [dims_of(v) for v in (X, W, offset)]
        static = [[] if d is None else [n for n in d if isinstance(n, int)] for d in known]
        if any(d is None or len(s) < len(d) - 1 for d, s in zip(known, static, strict=True)):
            raise UnsupportedError("the gradient of DeformConv needs static extents of X, W and offset")
        rank = len(known[1] or ()) - 2
        channels, *extents = static[0][-rank - 1 :]
        outputs, inputs, *kernel = static[1]
        out = static[2][-rank:]
        count, points = math.prod(kernel), math.prod(out)
        parts, group = self.offset_group, self.group
        m = Graph(g, dtype_of(X))

        def shaped(x: ir.Value, *shape: int) -> ir.Value:
            return g.Reshape(x, g.Concat(g.dim(X, 0), list(shape), axis=0))

        moved = shaped(offset, parts, count, rank, points)
        starts = self._starts(tuple(kernel), tuple(out))
        kind = g.const(0.0, dtype_of(X))
        places = [
            g.Add(
                shaped(g.Gather(moved, a, axis=3), parts, count * points),
                g.CastLike(g.const(starts[a]), kind),
            )
            for a in range(rank)
        ]
        axes: list[list[Any]] = [taps(m, x, n, Sampling()) for x, n in zip(places, extents, strict=True)]
        flat = shaped(X, parts, channels // parts, math.prod(extents))
        seed = shaped(dy, group, outputs // group, points)
        weights = g.Reshape(W, [group, outputs // group, inputs * count])
        dcolumns = shaped(
            g.MatMul(g.Transpose(weights, perm=[0, 2, 1]), seed), parts, channels // parts, count * points
        )
        shares = dcolumns
        if mask is not None:
            shares = g.Mul(dcolumns, shaped(mask, parts, 1, count * points))
        columns: ir.Value | None = None
        dflat = g.zeros_like(flat)
        slopes: list[ir.Value | None] = [None] * rank
        for place, weight, along in corners(m, axes, extents):
            index = g.Expand(g.Unsqueeze(place, [2]), g.Shape(shares))
            pixels = g.GatherElements(flat, index, axis=3)
            spread = g.Unsqueeze(weight, [2])
            term = g.Mul(pixels, spread)
            columns = term if columns is None else g.Add(columns, term)
            dflat = g.ScatterElements(dflat, index, g.Mul(shares, spread), axis=3, reduction="add")
            pull = g.ReduceSum(g.Mul(shares, pixels), [2], keepdims=0)
            for axis, slope in enumerate(along):
                part, before = g.Mul(pull, slope), slopes[axis]
                slopes[axis] = part if before is None else g.Add(before, part)
        assert columns is not None
        doffset = g.Concat(*[shaped(s, parts, count, 1, points) for s in slopes if s is not None], axis=3)
        dmask = None
        read = columns
        if mask is not None:
            dmask = g.reshape_like(g.ReduceSum(g.Mul(dcolumns, columns), [2], keepdims=0), mask)
            read = g.Mul(columns, shaped(mask, parts, 1, count * points))
        rows = g.Transpose(shaped(read, group, inputs * count, points), perm=[0, 1, 3, 2])
        dW = g.reshape_like(g.ReduceSum(g.MatMul(seed, rows), [0], keepdims=0), W)
        dB = None if B is None else g.ReduceSum(dy, [0, *range(2, rank + 2)], keepdims=0)
        return g.reshape_like(dflat, X), dW, g.reshape_like(doffset, offset), dB, dmask
