from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, dtype_of, op, requests, static_shape
from onward.graph.requests import Static, Unsupported, Values
from onward.ops._random import uniforms
from onward.ops._shape import constant_of

_MASK_LIMIT = 1 << 20
"""The elements of a mask that a plan holds."""


@op("Dropout", since=(12, 13, 22), multiple_outputs=True)
class Dropout(Op):
    """output = data, and mask true everywhere; in training mode elements are 0 with probability ratio.

    With a seed the elements that fall are those of the standard's reference: NumPy's generator MT19937. The
    specification leaves the stream open, and names no other. Without one they are others in each run.
    `onward.passes.to_training` puts in the place of either what depends on the trainer's seed and step.
    """

    static_operands = ("ratio", "training_mode")

    seed: int | None = None

    def varies_on(self, operands: Sequence[Array | None]) -> bool:
        mode = operands[2] if len(operands) > 2 else None
        return self.seed is None and operands[0] is not None and mode is not None and bool(np.any(mode))

    def kernel(
        self, data: Array, ratio: Array | None = None, training_mode: Array | None = None
    ) -> tuple[Array, Array]:
        if training_mode is None or not np.any(training_mode) or (ratio is not None and not np.any(ratio)):
            return data, np.ones(data.shape, np.bool_)
        share = self._share(ratio)
        mask = np.asarray(self._draw(data.shape) >= share)
        kept = data * np.asarray(1 / (1 - share)).astype(data.dtype)
        return np.where(mask, kept, np.zeros((), data.dtype)), mask

    def _share(self, ratio: Array | None) -> float:
        share = 0.5 if ratio is None else float(np.reshape(ratio, ()))
        if not 0 <= share < 1:
            raise UnsupportedError(f"ratio {share} is not in [0, 1)")
        return share

    def _draw(self, shape: tuple[int, ...]) -> Array:
        if self.seed is None:
            return uniforms(None, shape, ir.DataType.FLOAT, 0, 1)
        # the generator takes 32 bits
        return np.asarray(np.random.RandomState(self.seed & 0xFFFFFFFF).uniform(0, 1, shape))

    def lower(
        self,
        static: Static,
        outputs: Values,
        data: ir.Value,
        ratio: ir.Value | None = None,
        training_mode: ir.Value | None = None,
    ) -> requests.Identity | requests.Body | Unsupported:
        known = None if ratio is None else static.known(ratio)
        mode = np.array(False) if training_mode is None else static.known(training_mode)
        if mode is None or (mode.any() and ratio is not None and known is None):
            return Unsupported("training_mode or ratio that is not constant")
        if mode.any() and (known is None or known.any()):
            if self.seed is None:
                return Unsupported("elements drawn anew in each run")
            if math.prod(static.shape(data)) > _MASK_LIMIT:
                return Unsupported(
                    f"a mask of more than {_MASK_LIMIT:,} elements that NumPy's generator draws"
                )
            self._share(known)
            return requests.Body()
        if any(mask.uses() or mask.is_graph_output() for mask in outputs[1:]):
            return requests.Body()
        return requests.Identity(outputs[0], data)

    def expand(
        self,
        g: Builder,
        data: ir.Value,
        ratio: ir.Value | None = None,
        training_mode: ir.Value | None = None,
    ) -> tuple[ir.Value, ...]:
        """The draws of a seed and a shape are always the same: a constant."""
        shape = static_shape(data) or ()
        share, mode = self._share(constant_of(ratio)), constant_of(training_mode)
        if mode is None or not mode.any() or share == 0:
            mask = g.Expand(g.const(True, np.bool_), g.const(shape, np.int64))
            return (g.Identity(data), mask)[: self.output_count]
        mask = g.const(np.asarray(self._draw(shape) >= share), np.bool_)
        kept = g.Mul(data, g.const(1 / (1 - share), dtype_of(data)))
        return (g.Where(mask, kept, g.const(0, dtype_of(data))), g.Identity(mask))[: self.output_count]

    def gradient(
        self,
        g: Builder,
        dys: tuple[ir.Value | None, ...],
        ys: tuple[ir.Value, ...],
        data: ir.Value,
        ratio: ir.Value | None = None,
        training_mode: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        dy, mode, share = dys[0], constant_of(training_mode), constant_of(ratio)
        drops = training_mode is not None and (mode is None or mode.any())
        if dy is None or not drops or (share is not None and not share.any()):
            return dy, None, None
        kept = g.Sub(g.const(1, dy.dtype), g.Cast(0.5 if ratio is None else ratio, to=int(dtype_of(dy))))
        whole = g.Where(training_mode, g.Div(dy, kept), dy)
        return g.Where(_mask_of(g, ys), whole, g.zeros_like(dy)), None, None


def _mask_of(g: Builder, ys: tuple[ir.Value, ...]) -> ir.Value:
    """What stayed: the second output, which a node that has none gets."""
    node = ys[0].producer()
    assert node is not None
    if len(node.outputs) == 1:
        node.resize_outputs(2)
    mask = node.outputs[1]
    if not mask.name:
        mask.name = g.unique(f"{node.name}/mask", scoped=False)
        mask.type, mask.shape = ir.TensorType(ir.DataType.BOOL), ys[0].shape
    return mask


@op("Dropout", since=10)
class Dropout10(Op):
    """Dropout in inference form, whose ratio is an attribute; the mask, which is left open, is false."""

    ratio: float = 0.5

    def canonical(self, g: Builder, data: ir.Value) -> tuple[ir.Value, ...]:
        output, *mask = _without_mask(g, data, self.ratio, None, self.output_count)
        return (output, *(g.Cast(m, to=int(ir.DataType.BOOL)) for m in mask))


@op("Dropout", since=7)
class Dropout7(Op):
    """Dropout in inference form, whose ratio is an attribute; the mask, which is left open, is 0."""

    ratio: float = 0.5

    def canonical(self, g: Builder, data: ir.Value) -> tuple[ir.Value, ...]:
        return _without_mask(g, data, self.ratio, None, self.output_count)


@op("Dropout", since=(1, 6))
class Dropout1(Op):
    """Dropout whose ratio and mode are attributes."""

    is_test: int = 0
    ratio: float = 0.5

    def canonical(self, g: Builder, data: ir.Value) -> tuple[ir.Value, ...]:
        training = None if self.is_test else g.const(True, np.bool_)
        return _without_mask(g, data, self.ratio, training, self.output_count)


def _without_mask(
    g: Builder, data: ir.Value, ratio: float, training: ir.Value | None, count: int
) -> tuple[ir.Value, ...]:
    """Dropout of the current version, and zeros in place of a mask."""
    output = g.Dropout(data, g.const(ratio, ir.DataType.FLOAT), training)
    return (output,) if count == 1 else (output, g.zeros_like(data))
