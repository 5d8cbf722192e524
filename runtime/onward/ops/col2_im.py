from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Builder, Op, dtype_of, numpy_dtype, op, requests
from onward.graph.requests import Static, Values
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

    def _counts(self, windows: tuple[int, ...], image: Sequence[int], block: Sequence[int]) -> list[int]:
        """How many windows there are along each axis."""
        rank, taps = len(image), math.prod(block)
        strides, dilations, pads = self._window(rank)
        counts = [
            (n + pads[a] + pads[a + rank] - dilations[a] * (block[a] - 1) - 1) // strides[a] + 1
            for a, n in enumerate(image)
        ]
        if len(windows) != 3 or taps == 0 or windows[1] % taps or windows[2] != math.prod(counts):
            raise ShapeError(
                f"{list(windows)} are not windows of {list(block)} on images {list(image)}, "
                f"{math.prod(counts)} each"
            )
        return counts

    def kernel(self, input: Array, image_shape: Array, block_shape: Array) -> Array:
        image, block = ([int(n) for n in v] for v in (image_shape, block_shape))
        rank, taps = len(image), math.prod(block)
        strides, dilations, pads = self._window(rank)
        counts = self._counts(input.shape, image, block)
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

    def lower(
        self, static: Static, outputs: Values, input: ir.Value, image_shape: ir.Value, block_shape: ir.Value
    ) -> requests.Request:
        known = static.known(image_shape), static.known(block_shape)
        if known[0] is None or known[1] is None:
            return requests.Unsupported("extents that are not constant")
        image, block = ([int(n) for n in v.reshape(-1)] for v in known if v is not None)
        rank = len(image)
        if rank > 3:
            return requests.Unsupported(f"{rank} axes")
        self._counts(static.shape(input), image, block)
        strides, dilations, pads = self._window(rank)
        ones = (1,) * (3 - rank)
        numbers = (
            (*ones, *block),
            (*ones, *strides),
            (*ones, *dilations),
            (*(0 for _ in ones), *pads[:rank]),
            (*(0 for _ in ones), *pads[rank:]),
        )
        work = math.prod(static.shape(input))
        return requests.Loop((outputs[0],), (input,), _planes, numbers, flops=work)

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


def _planes(
    thread: int,
    threads: int,
    y: Array,
    x: Array,
    block: tuple[int, int, int],
    strides: tuple[int, int, int],
    dilations: tuple[int, int, int],
    begin: tuple[int, int, int],
    end: tuple[int, int, int],
) -> None:
    """Images of a channel are shared out: each sums the elements of its windows, tap by tap. Missing axes
    come first and have the extent 1."""
    depth, height, width = 1, 1, 1
    for d in range(2, y.ndim):
        depth, height, width = height, width, y.shape[d]
    deep = (depth + begin[0] + end[0] - dilations[0] * (block[0] - 1) - 1) // strides[0] + 1
    high = (height + begin[1] + end[1] - dilations[1] * (block[1] - 1) - 1) // strides[1] + 1
    wide = (width + begin[2] + end[2] - dilations[2] * (block[2] - 1) - 1) // strides[2] + 1
    size, planes = depth * height * width, y.shape[0] * y.shape[1]
    for plane in range(planes * thread // threads, planes * (thread + 1) // threads):
        base = plane * size
        for at in range(base, base + size):
            y.flat[at] = 0
        source = plane * block[0] * block[1] * block[2] * deep * high * wide
        for a in range(block[0]):
            for b in range(block[1]):
                for c in range(block[2]):
                    left = c * dilations[2] - begin[2]
                    # the windows whose tap lies inside the image
                    low = max(0, -(left // strides[2]))
                    stop = min(wide, (width - left + strides[2] - 1) // strides[2])
                    for i in range(deep):
                        z = i * strides[0] + a * dilations[0] - begin[0]
                        for j in range(high):
                            row = j * strides[1] + b * dilations[1] - begin[1]
                            if 0 <= z < depth and 0 <= row < height:
                                target = base + (z * height + row) * width + left
                                for k in range(low, stop):
                                    y.flat[target + k * strides[2]] += x.flat[source + k]
                            source += wide
