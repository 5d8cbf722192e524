"""What LSTM, GRU and RNN share: attributes, activations, and the time loop over NumPy arrays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, ShapeError, UnsupportedError
from onward.graph import ONWARD_DOMAIN, Array, Builder, Op, attributes_of, requests
from onward.graph.requests import Static, Values
from onward.ops._shape import require_shape

__all__ = [
    "DEFAULT_ACTIVATIONS",
    "SMOOTH",
    "Activation",
    "Attributes",
    "Earlier",
    "HiddenState",
    "Recurrent",
    "Weights",
    "recurrence",
]

DEFAULT_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
"""Of one direction, by operator."""

SMOOTH = frozenset({"Relu", "Sigmoid", "Softplus", "Softsign", "Tanh"})
"""Activations that have gradients: those whose operator of the same name takes no parameters."""

Formula = Callable[[Array, float, float], Array]


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * np.tanh(0.5 * x) + 0.5, x.dtype)


_ACTIVATIONS: dict[str, Formula] = {
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
_SLOPES: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.asarray(x > 0, x.dtype),
    "sigmoid": lambda x: _sigmoid(x) * (1 - _sigmoid(x)),
    "softplus": _sigmoid,
    "softsign": lambda x: 1 / (1 + np.abs(x)) ** 2,
    "tanh": lambda x: 1 - np.tanh(x) ** 2,
}
"""Derivatives of the smooth activations; that of Relu at 0 is 0."""
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
class Activation:
    """An activation with its parameters; its operand is first clipped to [-clip, clip]."""

    name: str
    alpha: float
    beta: float
    clip: float | None

    def __call__(self, x: Array) -> Array:
        clipped = x if self.clip is None else np.clip(x, -self.clip, self.clip)
        return _ACTIVATIONS[self.name](clipped, self.alpha, self.beta)

    def slope(self, x: Array) -> Array:
        """The derivative of a smooth activation; 0 where the operand is clipped."""
        if self.clip is None:
            return _SLOPES[self.name](x)
        slope = _SLOPES[self.name](np.clip(x, -self.clip, self.clip))
        return np.where(np.abs(x) <= self.clip, slope, slope.dtype.type(0))


@dataclass(frozen=True, slots=True)
class Weights:
    """Of one direction: R [gates · H, H], the biases [gates · H] of both products, P [3 · H] of LSTM."""

    R: Array
    Wb: Array
    Rb: Array
    P: Array | None


@dataclass(frozen=True, kw_only=True)
class Attributes(Op):
    """Attributes of the recurrent operators and of their gradients."""

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

    def times(self, length: int, d: int) -> range:
        """The positions of a sequence in the order in which direction number d reads them."""
        backwards = self.direction == "reverse" or d == 1
        return range(length - 1, -1, -1) if backwards else range(length)

    def bound_activations(self, directions: int) -> list[list[Activation]]:
        """The activations of each direction, with their parameters."""
        defaults = DEFAULT_ACTIVATIONS[self.op_type.removesuffix("Grad")]
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
            if name not in _ACTIVATIONS:
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
            found.append(Activation(name, alpha, beta, clip))
        return [found[i : i + count] for i in range(0, len(found), count)]


@dataclass(frozen=True, kw_only=True)
class Recurrent(Attributes):
    """The time loop of the recurrent operators; `cell` is one step of one of them."""

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
        if X.ndim != 3 or R.ndim != 3:
            raise ShapeError(f"X {list(X.shape)} and R {list(R.shape)} are not of three axes")
        wanted = requests.recurrent_shapes(self.gates, X.shape, R.shape, len(W), batch_major=self.batch_major)
        named = {"W": W, "R": R, "B": B, "sequence_lens": sequence_lens, "P": P}
        named |= dict(zip(("initial_h", "initial_c"), initial, strict=False))
        for name, array in named.items():
            require_shape(name, array, wanted[name])
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
        activations = self.bound_activations(directions)
        for d in range(directions):
            bias = np.zeros(2 * self.gates * size, X.dtype) if B is None else B[d]
            Wb, Rb = np.split(bias, 2)
            w = Weights(R[d], Wb, Rb, None if P is None else P[d])
            states = tuple(z[d] if a is None else a[d] for a, z in zip(initial, last, strict=True))
            if sequence_lens is not None:
                states = tuple(np.where(sequence_lens[:, None] == 0, s.dtype.type(0), s) for s in states)
            xs = (X.reshape(time * batch, features) @ W[d].T).reshape(time, batch, W.shape[1])
            for t in self.times(time, d):
                new = self.cell(activations[d], xs[t], states, w)
                if sequence_lens is None:
                    states = new
                    Y[t, d] = new[0]
                else:
                    # read backwards, a sequence begins where it ends: until then its state waits
                    alive = (t < sequence_lens)[:, None]
                    states = tuple(np.where(alive, n, s) for n, s in zip(new, states, strict=True))
                    Y[t, d] = np.where(alive, new[0], 0)
            for store, state in zip(last, states, strict=True):
                store[d] = state
        results = (
            [Y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in last)] if self.batch_major else [Y, *last]
        )
        return tuple(np.ascontiguousarray(r).astype(dtype, copy=False) for r in results)

    def lower(self, static: Static, outputs: Values, *inputs: ir.Value | None) -> requests.Recurrent:
        return requests.Recurrent(outputs, recurrence(self, static, inputs))

    def gradient(
        self, g: Builder, dy: tuple[ir.Value | None, ...], y: tuple[ir.Value, ...], *inputs: ir.Value | None
    ) -> tuple[ir.Value | None, ...]:
        """By the operator's own in `ai.onward`, which computes the states again where they are not kept."""
        used = self.bound_activations(2 if self.direction == "bidirectional" else 1)
        if others := sorted({a.name for of in used for a in of} - {name.lower() for name in SMOOTH}):
            raise UnsupportedError(
                f"activation {others[0]!r} has no gradient; use one of {', '.join(sorted(SMOOTH))}"
            )
        states = 2 if self.op_type == "LSTM" else 1
        arriving = [*dy, None, None][: 1 + states]
        # dX, dW, dR, dB, the gradients of the initial states, and of LSTM's P
        operands = [*inputs[:4], *inputs[5:]]
        grads = g.emit(
            f"{self.op_type}Grad",
            *arriving,
            *inputs,
            domain=ONWARD_DOMAIN,
            outputs=["" if v is None else None for v in operands],
            **attributes_of(self),
        )
        found = [grad if grad.name else None for grad in grads]
        return (*found[:4], None, *found[4:])


@dataclass(frozen=True, kw_only=True)
class HiddenState(Recurrent):
    """A recurrent operator whose only state is H: GRU and RNN."""

    def kernel(
        self,
        X: Array,
        W: Array,
        R: Array,
        B: Array | None = None,
        sequence_lens: Array | None = None,
        initial_h: Array | None = None,
    ) -> tuple[Array, ...]:
        return self.run(X, W, R, B, sequence_lens, (initial_h,))


@dataclass(frozen=True, kw_only=True)
class Earlier(Attributes):
    """A version before 7, which says whether its first output is wanted; others see whether it has a name."""

    output_sequence: int = 0

    def canonical(self, g: Builder, *inputs: ir.Value | None) -> tuple[ir.Value, ...]:
        """The current version."""
        given = {**attributes_of(self), "output_sequence": None}
        given["direction"] = given["direction"].replace("foward", "forward")  # the default of GRU 1
        return g.emit(self.op_type, *inputs, outputs=self.output_count, **given)


def recurrence(
    operator: Attributes, static: Static, operands: Sequence[ir.Value | None]
) -> requests.Recurrence:
    """What an operator and its gradient have in common; `operands` are the operator's, from X on."""
    kind = operator.op_type.removesuffix("Grad")
    found: list[ir.Value | None] = [*operands, *[None] * (8 - len(operands))]
    X, W, R, B, lens, *rest = found
    assert X is not None
    assert W is not None
    assert R is not None
    directions = static.shape(R)[0]
    activations = operator.bound_activations(directions)
    return requests.Recurrence(
        kind,
        X,
        W,
        R,
        B,
        lens,
        tuple(rest[:2]) if kind == "LSTM" else (rest[0],),
        rest[2] if kind == "LSTM" else None,
        tuple(tuple(a.name for a in used) for used in activations),
        tuple(operator.times(2, d)[0] == 1 for d in range(directions)),
        batch_major=operator.batch_major,
        clip=operator.clip,
        before_reset=bool(getattr(operator, "linear_before_reset", 0)),
        input_forget=bool(getattr(operator, "input_forget", 0)),
    )
