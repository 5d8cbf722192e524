"""What the gradients of LSTM, GRU and RNN share: the time loop backwards over NumPy arrays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onward.graph import Array, Builder, Dim, dims_of, dtype_of, requests
from onward.graph.requests import Static, Values
from onward.ops._recurrent import Activation, Attributes, Recurrent, Weights, recurrence
from onward.ops._shape import require_shape
from onward.ops._unrolled import unrolled_gradient

__all__ = ["CellGradient", "HiddenStateGrad", "RecurrentGrad"]


@dataclass(frozen=True, slots=True)
class CellGradient:
    """The gradients of one step.

    Attributes:
        x: of the gates' part that comes from Xt, [N, gates · H]; its sum is that of the first bias.
        states: of the states before the step.
        R: [gates · H, H].
        Rb: of the second bias, [gates · H].
        P: of LSTM's peepholes, [3 · H]; None for others.
    """

    x: Array
    states: tuple[Array, ...]
    R: Array
    Rb: Array
    P: Array | None = None


Returned = tuple[ir.DataType, tuple[Dim, ...] | None]


@dataclass(frozen=True, kw_only=True)
class RecurrentGrad(Attributes):
    """The time loop backwards; `cell_gradient` is one step of it."""

    states: ClassVar[int] = 1
    """States whose last gradients arrive, behind that of Y."""

    @abstractmethod
    def forward(self) -> Recurrent:
        """The operator that this is the gradient of."""

    @abstractmethod
    def cell_gradient(
        self,
        activations: Sequence[Activation],
        x: Array,
        states: tuple[Array, ...],
        w: Weights,
        d: tuple[Array, ...],
    ) -> CellGradient:
        """The gradients of a step, given those of the states after it.

        Args:
            activations, x, states, w: as for `Recurrent.cell`.
            d: the gradients of the states after the step, H first.
        """

    def run(
        self,
        dY: Array | None,
        d_last: Sequence[Array | None],
        X: Array,
        W: Array,
        R: Array,
        B: Array | None,
        sequence_lens: Array | None,
        initial: Sequence[Array | None],
        P: Array | None = None,
    ) -> tuple[Array, ...]:
        """dX, dW, dR, dB, the gradients of the initial states, and dP; zeros for operands that are absent."""
        wanted = requests.recurrent_shapes(self.gates, X.shape, R.shape, len(W), batch_major=self.batch_major)
        named = {"W": W, "R": R, "B": B, "sequence_lens": sequence_lens, "P": P, "Y": dY}
        named |= dict(zip(("initial_h", "initial_c"), initial, strict=False))
        for name, array in named.items():
            require_shape(name, array, wanted[name])
        for array in d_last:
            require_shape("the gradient of a last state", array, wanted["initial_h"])
        dtype = X.dtype
        if dtype.itemsize < 4:
            narrow = (X, W, R, B, P, dY, *initial, *d_last)
            wide = [None if a is None else a.astype(np.float32) for a in narrow]
            X, W, R, B, P, dY = wide[:6]  # type: ignore[assignment]
            initial, d_last = wide[6 : 6 + len(initial)], wide[6 + len(initial) :]
        if self.batch_major:
            X = X.swapaxes(0, 1)
            dY = None if dY is None else dY.transpose(1, 2, 0, 3)
            initial = [None if a is None else a.swapaxes(0, 1) for a in initial]
            d_last = [None if a is None else a.swapaxes(0, 1) for a in d_last]
        time, batch, features = X.shape
        directions, size = len(W), R.shape[-1]
        width = self.gates * size
        zeros = np.zeros((directions, batch, size), X.dtype)
        activations = self.bound_activations(directions)
        forward = self.forward()
        dX, dW, dR = np.zeros_like(X), np.zeros_like(W), np.zeros_like(R)
        dB, dP = (np.zeros((directions, n), X.dtype) for n in (2 * width, 3 * size))
        d_initial = [np.zeros_like(zeros) for _ in initial]
        for d in range(directions):
            bias = np.zeros(2 * width, X.dtype) if B is None else B[d]
            w = Weights(R[d], bias[:width], bias[width:], None if P is None else P[d])
            given = [(zeros if a is None else a)[d] for a in initial]
            empty = None if sequence_lens is None else (sequence_lens == 0)[:, None]
            states = tuple(a if empty is None else np.where(empty, 0, a) for a in given)
            xs = (X.reshape(time * batch, features) @ W[d].T).reshape(time, batch, width)
            before: list[tuple[Array, ...]] = []
            for t in self.times(time, d):
                before.append(states)
                new = forward.cell(activations[d], xs[t], states, w)
                states = _alive(sequence_lens, t, new, states)
            ds = tuple((zeros if a is None else a)[d] for a in d_last)
            if empty is not None:
                ds = tuple(np.where(empty, 0, a) for a in ds)
            dxs = np.zeros_like(xs)
            for t in reversed(self.times(time, d)):
                arriving = ds if dY is None else (ds[0] + dY[t, d], *ds[1:])
                zero = tuple(np.zeros_like(a) for a in ds)
                states = before.pop()
                found = self.cell_gradient(
                    activations[d], xs[t], states, w, _alive(sequence_lens, t, arriving, zero)
                )
                waiting = _alive(sequence_lens, t, zero, ds)
                ds = found.states if sequence_lens is None else tuple(map(np.add, found.states, waiting))
                dxs[t] = found.x
                dR[d] += found.R
                dB[d, width:] += found.Rb
                if found.P is not None:
                    dP[d] += found.P
            flat = dxs.reshape(time * batch, width)
            dX += (flat @ W[d]).reshape(X.shape)
            dW[d] = flat.T @ X.reshape(time * batch, features)
            dB[d, :width] = flat.sum(axis=0)
            for store, a in zip(d_initial, ds, strict=True):
                store[d] = a if empty is None else np.where(empty, 0, a)
        if self.batch_major:
            dX = dX.swapaxes(0, 1)
            d_initial = [a.swapaxes(0, 1) for a in d_initial]
        results = (dX, dW, dR, dB, *d_initial, dP)
        return tuple(np.ascontiguousarray(a).astype(dtype, copy=False) for a in results)

    def lower(self, static: Static, outputs: Values, *inputs: ir.Value | None) -> requests.RecurrentGradient:
        dY, *rest = inputs
        of = recurrence(self, static, rest[self.states :])
        return requests.RecurrentGradient(outputs, of, dY, tuple(rest[: self.states]))

    def infer(self, *inputs: ir.Value | None) -> list[Returned]:
        """The types of X, W, R, B, initial states and P, where these are given."""
        operands = inputs[1 + self.states :]
        absent = (ir.DataType.FLOAT, None)
        return [absent if v is None else (dtype_of(v), dims_of(v)) for v in (*operands[:4], *operands[5:])]

    def expand(self, g: Builder, *inputs: ir.Value | None) -> tuple[ir.Value | None, ...]:
        """The gradient in standard operators, one group for each time step."""
        dY, *rest = inputs
        return unrolled_gradient(g, self.forward(), dY, rest[: self.states], rest[self.states :])


@dataclass(frozen=True, kw_only=True)
class HiddenStateGrad(RecurrentGrad):
    """The gradient of an operator whose only state is H: of GRU and RNN."""

    def kernel(
        self,
        dY: Array | None,
        dY_h: Array | None,
        X: Array,
        W: Array,
        R: Array,
        B: Array | None = None,
        sequence_lens: Array | None = None,
        initial_h: Array | None = None,
    ) -> tuple[Array, ...]:
        return self.run(dY, (dY_h,), X, W, R, B, sequence_lens, (initial_h,))[:5]


def _alive(
    sequence_lens: Array | None, t: int, new: tuple[Array, ...], old: tuple[Array, ...]
) -> tuple[Array, ...]:
    """The new ones for sequences that reach to position t, the old ones for others."""
    if sequence_lens is None:
        return new
    alive: Any = (t < sequence_lens)[:, None]
    return tuple(np.where(alive, n, o) for n, o in zip(new, old, strict=True))
