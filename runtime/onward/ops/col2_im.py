from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Builder, Op, dtype_of, numpy_dtype, op
from onward.ops._shape import constant_of


@op("Col2Im", since=18)
class Col2Im(Op):
    """Images [N, C, *image] as the sum of their windows [N, C · block, windows]; what lies in pads is lost.

    A linear map whose transpose takes windows out of images: a convolution with a unit matrix.
    """

    static_operands = ("image_shape", "block_shape")

    dilations: tuple[int, ...] | None = None
    pads: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None

    def _window(self, rank: int) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        """Strides, dilations, pads."""
        strides = (1,) * rank if self.strides is None else self.strides
        dilations = (1,) * rank if self.dilations is None else self.dilations
        pads = (0,) * 2 * rank if self.pads is None else self.pads
        return strides, dilations, pads

    def kernel(self, input: Array, image_shape: Array, block_shape: Array) -> Array:
        image, block = ([int(n) for n in v] for v in (image_shape, block_shape))
        rank, taps = len(image), math.prod(block)
        strides, dilations, pads = self._window(rank)
        counts = [
            (n + pads[a] + pads[a + rank] - dilations[a] * (block[a] - 1) - 1) // strides[a] + 1
            for a, n in enumerate(image)
        ]
        if input.ndim != 3 or taps == 0 or input.shape[1] % taps or input.shape[2] != math.prod(counts):
            raise ShapeError(
                f"{list(input.shape)} are not windows of {block} on images {image}, {math.prod(counts)} each"
            )
        channels = input.shape[1] // taps
        windows = input.reshape(input.shape[0], channels, taps, *counts)
        wide = [n + pads[a] + pads[a + rank] for a, n in enumerate(image)]
        whole = np.zeros((input.shape[0], channels, *wide), input.dtype)
        for tap in itertools.product(*map(range, block)):
            where = tuple(
                slice(t * d, t * d + s * (c - 1) + 1, s)
                for t, d, s, c in zip(tap, dilations, strides, counts, strict=True)
            )
            number = int(np.ravel_multi_index(tap, block))
            whole[(slice(None), slice(None), *where)] += windows[:, :, number]
        inside = tuple(slice(pads[a], pads[a] + n) for a, n in enumerate(image))
        return np.ascontiguousarray(whole[(slice(None), slice(None), *inside)])

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        input: ir.Value,
        image_shape: ir.Value,
        block_shape: ir.Value,
    ) -> tuple[ir.Value | None, ...]:
        known = constant_of(block_shape)
        if known is None:
            raise UnsupportedError("the gradient of Col2Im needs a constant block_shape")
        block = [int(n) for n in known]
        strides, dilations, pads = self._window(len(block))
        taps = math.prod(block)
        unit = np.eye(taps, dtype=numpy_dtype(dtype_of(dy))).reshape(taps, 1, *block)
        planes = g.Reshape(dy, g.Concat([-1, 1], image_shape, axis=0))
        windows = g.Conv(planes, g.const(unit), strides=strides, dilations=dilations, pads=pads)
        return g.reshape_like(windows, input), None, None
