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
        if len(outputs) > 1 or (training_mode is not None and (mode is None or mode.any())):
            return Unsupported("a mask, or training_mode that is not false")
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
    """output = data, the inference form; the mask, which the specification leaves open, is false."""

    ratio: float = 0.5

    def kernel(self, data: Array) -> tuple[Array, Array]:
        return data, np.zeros(data.shape, np.bool_)

    def lower(self, static: Static, outputs: Values, data: ir.Value) -> requests.Identity | Unsupported:
        if len(outputs) > 1:
            return Unsupported("a mask")
        return requests.Identity(outputs[0], data)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value) -> tuple[ir.Value | None, ...]:
        return (dy,)


@op("Dropout", since=7)
class Dropout7(Op):
    """output = data, the inference form; the mask, which the specification leaves open, is 0."""

    ratio: float = 0.5

    def kernel(self, data: Array) -> tuple[Array, Array]:
        return data, np.zeros(data.shape, data.dtype)

    def lower(self, static: Static, outputs: Values, data: ir.Value) -> requests.Identity | Unsupported:
        if len(outputs) > 1:
            return Unsupported("a mask")
        return requests.Identity(outputs[0], data)

    def gradient(self, g: Builder, dy: ir.Value, y: ir.Value, data: ir.Value) -> tuple[ir.Value | None, ...]:
        return (dy,)
