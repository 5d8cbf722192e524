from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Array, Builder, Op, op, requests
from onward.graph.requests import Static, Unsupported, Values


@op("Dropout", since=(12, 13, 22))
class Dropout(Op):
    """output = data, and mask true everywhere: the inference form.

    The training form draws from hidden state; `onward.passes.to_training` replaces it by a counter-based one.
    """

    seed: int | None = None

    def kernel(
        self, data: Array, ratio: Array | None = None, training_mode: Array | None = None
    ) -> tuple[Array, Array]:
        drops = ratio is None or np.any(ratio != 0)
        if training_mode is not None and np.any(training_mode) and drops:
            raise UnsupportedError(
                "Dropout with training_mode=true is not run as it stands: its random numbers depend on "
                "hidden state; onward.passes.to_training replaces it by one that depends on seed and step"
            )
        return data, np.ones(data.shape, np.bool_)

    def lower(
        self,
        static: Static,
        outputs: Values,
        data: ir.Value,
        ratio: ir.Value | None = None,
        training_mode: ir.Value | None = None,
    ) -> requests.Identity | Unsupported:
        mode = None if training_mode is None else static.known(training_mode)
        drops = None if ratio is None else static.known(ratio)
        if any(mask.uses() or mask.is_graph_output() for mask in outputs[1:]):
            return Unsupported("a mask")
        if training_mode is not None and (mode is None or mode.any()) and (drops is None or drops.any()):
            return Unsupported("training_mode that is not false")
        return requests.Identity(outputs[0], data)

    def gradient(
        self,
        g: Builder,
        dy: ir.Value,
        y: ir.Value,
        data: ir.Value,
        ratio: ir.Value | None = None,
        training_mode: ir.Value | None = None,
    ) -> tuple[ir.Value | None, ...]:
        return dy, None, None


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
