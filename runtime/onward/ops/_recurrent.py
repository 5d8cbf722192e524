"""What LSTM, GRU and RNN share: directions, layouts, lengths of sequences, activations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onward.errors import InvalidModelError
from onward.graph import Array, Op

__all__ = ["DEFAULT_ACTIVATIONS", "Activation", "Recurrent", "Weights"]

DEFAULT_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
"""Of one direction, by operator."""

Activation = Callable[[Array], Array]


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * np.tanh(0.5 * x) + 0.5, x.dtype)


_ACTIVATIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "affine": lambda x, a, b: a * x + b,
    "elu": lambda x, a, _: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x),
    "hardsigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "leakyrelu": lambda x, a, _: np.where(x < 0, a * x, x),
    "relu": lambda x, _a, _b: np.maximum(x, 0),
    "scaledtanh": lambda x, a, b: a * np.tanh(b * x),
    "sigmoid": lambda x, _a, _b: _sigmoid(x),
    "softplus": lambda x, _a, _b: np.logaddexp(x, x.dtype.type(0)),
    "softsign": lambda x, _a, _b: x / (1 + np.abs(x)),
    "tanh": lambda x, _a, _b: np.tanh(x),
    "thresholdedrelu": lambda x, a, _: np.where(x < a, x.dtype.type(0), x),
}
_ALPHA = {
    "affine": None,
    "elu": 1.0,
    "hardsigmoid": 0.2,
    "leakyrelu": 0.01,
    "scaledtanh": None,
    "thresholdedrelu": 1.0,
}
_BETA = {"affine": None, "hardsigmoid": 0.5, "scaledtanh": None}
"""Defaults are those of the operators of these names; where the standard has no operator, there is none."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Of one direction: R [gates · H, H], the biases [gates · H] of both products, P [3 · H] of LSTM."""

    R: Array
    Wb: Array
    Rb: Array
    P: Array | None


@dataclass(frozen=True, kw_only=True)
class Recurrent(Op):
    """Attributes and time loop of the recurrent operators; `cell` is one step of one of them."""

    gates: ClassVar[int]

    activation_alpha: tuple[float, ...] | None = None
    activation_beta: tuple[float, ...] | None = None
    activations: tuple[str, ...] | None = None
    clip: float | None = None
    direction: str = "forward"
    hidden_size: int | None = None

    @property
    def batch_major(self) -> bool:
        """Whether the batch is the first axis: `layout` 1, from version 14 on."""
        return getattr(self, "layout", 0) == 1

    @abstractmethod
    def cell(
        self, activations: Sequence[Activation], x: Array, states: tuple[Array, ...], w: Weights
    ) -> tuple[Array, ...]:
        """The states after a step, H first.

        Args:
            activations: of the direction, clipping their input where the operator has `clip`.
            x: Xt · Wᵀ of all gates, [N, gates · H].
            states: before the step, each [N, H].
            w: of the direction.
        """

    def run(
        self,
        X: Array,
        W: Array,
        R: Array,
        B: Array | None,
        sequence_lens: Array | None,
        initial: Sequence[Array | None],
        P: Array | None = None,
    ) -> tuple[Array, ...]:
        """Y and the last states. Beyond the end of a sequence Y is 0, and so is the state of an empty one."""
        dtype = X.dtype
        if dtype.itemsize < 4:
            wide = [None if a is None else a.astype(np.float32) for a in (X, W, R, B, P, *initial)]
            X, W, R, B, P = wide[:5]  # type: ignore[assignment]
            initial = wide[5:]
        if self.batch_major:
            X = X.swapaxes(0, 1)
            initial = [None if a is None else a.swapaxes(0, 1) for a in initial]
        time, batch, features = X.shape
        directions, size = len(W), R.shape[-1]
        Y = np.zeros((time, directions, batch, size), X.dtype)
        last = [np.zeros((directions, batch, size), X.dtype) for _ in initial]
        activations = self._activations(directions)
        for d in range(directions):
            bias = np.zeros(2 * self.gates * size, X.dtype) if B is None else B[d]
            Wb, Rb = np.split(bias, 2)
            w = Weights(R[d], Wb, Rb, None if P is None else P[d])
            states = tuple(z[d] if a is None else a[d] for a, z in zip(initial, last, strict=True))
            if sequence_lens is not None:
                states = tuple(np.where(sequence_lens[:, None] == 0, s.dtype.type(0), s) for s in states)
            order = self._order(time, batch, sequence_lens, backward=self.direction == "reverse" or d == 1)
            columns = np.arange(batch)
            xs = (X[order, columns].reshape(time * batch, features) @ W[d].T).reshape(time, batch, W.shape[1])
            for t in range(time):
                new = self.cell(activations[d], xs[t], states, w)
                if sequence_lens is None:
                    states = new
                    Y[order[t], d, columns] = new[0]
                else:
                    alive = (t < sequence_lens)[:, None]
                    states = tuple(np.where(alive, n, s) for n, s in zip(new, states, strict=True))
                    Y[order[t], d, columns] = np.where(alive, new[0], 0)
            for store, state in zip(last, states, strict=True):
                store[d] = state
        results = (
            [Y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in last)] if self.batch_major else [Y, *last]
        )
        return tuple(np.ascontiguousarray(r).astype(dtype, copy=False) for r in results)

    @staticmethod
    def _order(time: int, batch: int, lens: Array | None, *, backward: bool) -> Array:
        """Which position each sequence reads at each step, [time, batch]."""
        steps = np.broadcast_to(np.arange(time)[:, None], (time, batch))
        if not backward:
            return steps
        if lens is None:
            return steps[::-1]
        return np.where(steps < lens, lens - 1 - steps, steps)

    def _activations(self, directions: int) -> list[list[Activation]]:
        defaults = DEFAULT_ACTIVATIONS[self.op_type]
        count = len(defaults)
        names = self.activations if self.activations is not None else defaults * directions
        if directions == 1 and len(names) == 2 * count:
            # the schema's own default of RNN names both directions
            names = names[:count]
        if len(names) != count * directions:
            raise InvalidModelError(
                f"operator {self.op_type}: {len(names)} activations for directions: {directions}; "
                f"{count * directions} are needed"
            )
        alphas, betas = list(self.activation_alpha or ()), list(self.activation_beta or ())
        found: list[Activation] = []
        for i, name in enumerate(map(str.lower, names)):
            if (function := _ACTIVATIONS.get(name)) is None:
                raise InvalidModelError(
                    f"operator {self.op_type}: no activation {name!r}; known: {', '.join(_ACTIVATIONS)}"
                )
            alpha = alphas.pop(0) if name in _ALPHA and alphas else _ALPHA.get(name, 0.0)
            beta = betas.pop(0) if name in _BETA and betas else _BETA.get(name, 0.0)
            if alpha is None or beta is None:
                raise InvalidModelError(
                    f"operator {self.op_type}: activation {name!r} has no defaults; "
                    "give its activation_alpha and activation_beta"
                )
            # h of LSTM takes the cell, which onnxruntime does not clip
            clip = self.clip if i % count < 2 else None
            found.append(_clipped(function, alpha, beta, clip))
        return [found[i : i + count] for i in range(0, len(found), count)]


def _clipped(
    function: Callable[[Array, float, float], Array], alpha: float, beta: float, clip: float | None
) -> Activation:
    if clip is None:
        return lambda x: function(x, alpha, beta)
    return lambda x: function(np.clip(x, -clip, clip), alpha, beta)
