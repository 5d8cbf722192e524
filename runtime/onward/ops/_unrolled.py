"""The gradients of recurrent operators in standard operators: the states again, then back step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, dims_of
from onward.ops._recurrent import Activation, Recurrent

__all__ = ["unrolled_gradient"]

_Values = tuple[ir.Value, ...]


def unrolled_gradient(
    g: Builder,
    operator: Recurrent,
    dY: ir.Value | None,
    d_last: Sequence[ir.Value | None],
    inputs: Sequence[ir.Value | None],
) -> tuple[ir.Value | None, ...]:
    """dX, dW, dR, dB, the gradients of the initial states, and dP of LSTM; None for absent operands.

    Args:
        g: writes at opset 21.
        operator: the recurrent operator.
        dY, d_last: the gradients of its results.
        inputs: its operands, from X on.

    Raises:
        UnsupportedError: the length of the sequences is not static.
    """
    operands: list[ir.Value | None] = [*inputs, *[None] * (8 - len(inputs))]
    X, W, R, B, lens = operands[:5]
    rest = operands[5:]
    assert X is not None
    assert W is not None
    assert R is not None
    initial, P = rest[: len(d_last)], rest[len(d_last)] if operator.op_type == "LSTM" else None
    time_axis = 1 if operator.batch_major else 0
    length = (dims_of(X) or (None, None))[time_axis]
    if not isinstance(length, int) or length == 0:
        raise UnsupportedError(
            f"{operator.op_type}: the sequence length is not static; fix it in the shape of the model's "
            "input, so that the gradient can be written in standard operators"
        )
    directions = 2 if operator.direction == "bidirectional" else 1
    state_axis = 1 if operator.batch_major else 0
    activations = operator.bound_activations(directions)
    parts = [_apart(g, v, 0, directions) for v in (W, R, B, P)]
    states = [_apart(g, v, state_axis, directions) for v in (*initial, *d_last)]
    dYs = _apart(g, dY, time_axis + 1 if operator.batch_major else 1, directions)
    found: list[_Direction] = []
    for d in range(directions):
        w, r, b, p = (part[d] for part in parts)
        assert w is not None
        assert r is not None
        walk = _Walk(g, operator, activations[d], time_axis, length, operator.times(length, d), lens)
        edges = [s[d] for s in states]
        found.append(walk.run(X, w, r, b, p, dYs[d], edges[: len(initial)], edges[len(initial) :]))
    dX = found[0].dX
    for other in found[1:]:
        dX = g.Add(dX, other.dX)
    results: list[ir.Value | None] = [dX]
    columns = [[f.dW for f in found], [f.dR for f in found], [f.dB for f in found]]
    results += [_together(g, values, 0) for values in columns]
    results += [_together(g, [f.d_initial[i] for f in found], state_axis) for i in range(len(initial))]
    if operator.op_type == "LSTM":
        results.append(_together(g, [f.dP for f in found], 0))
    given = (X, W, R, B, *initial, P)
    return tuple(None if v is None else r for r, v in zip(results, given, strict=False))


def _apart(g: Builder, value: ir.Value | None, axis: int, count: int) -> Sequence[ir.Value | None]:
    """A value in `count` slices along an axis that is left out."""
    if value is None:
        return [None] * count
    return [g.Squeeze(part, [axis]) for part in _split(g, value, axis, count)]


def _together(g: Builder, values: Sequence[ir.Value | None], axis: int) -> ir.Value | None:
    """Values next to each other along a new axis; None if they are."""
    stacked = [g.Unsqueeze(v, [axis]) for v in values if v is not None]
    return _concat(g, stacked, axis) if stacked else None


def _split(g: Builder, x: ir.Value, axis: int, count: int) -> Sequence[ir.Value]:
    return [x] if count == 1 else g.emit("Split", x, outputs=count, axis=axis, num_outputs=count)


def _concat(g: Builder, parts: Sequence[ir.Value], axis: int) -> ir.Value:
    return parts[0] if len(parts) == 1 else g.Concat(*parts, axis=axis)


def _rows(g: Builder, parts: Sequence[ir.Value]) -> ir.Value:
    return _concat(g, parts, 0)


@dataclass(frozen=True)
class _Direction:
    """The gradients of one direction; dB and dP are of use where these operands are given."""

    dX: ir.Value
    dW: ir.Value
    dR: ir.Value
    dB: ir.Value
    d_initial: _Values
    dP: ir.Value | None


@dataclass(frozen=True)
class _Walk:
    """One direction of one operator, there and back."""

    g: Builder
    operator: Recurrent
    activations: Sequence[Activation]
    time_axis: int
    length: int
    times: range
    lens: ir.Value | None

    def run(
        self,
        X: ir.Value,
        W: ir.Value,
        R: ir.Value,
        B: ir.Value | None,
        P: ir.Value | None,
        dY: ir.Value | None,
        initial: Sequence[ir.Value | None],
        d_last: Sequence[ir.Value | None],
    ) -> _Direction:
        g, axis = self.g, self.time_axis
        Wb, Rb = (None, None) if B is None else _split(g, B, 0, 2)
        cell = _CELLS[self.operator.op_type](g, self.operator, self.activations, R, Wb, Rb, P)
        xs = _apart(g, g.MatMul(X, g.Transpose(W, perm=[1, 0])), axis, self.length)
        dYs = _apart(g, dY, axis, self.length)
        first = xs[0]
        assert first is not None
        zero = g.zeros_like(_split(g, first, 1, self.operator.gates)[0])
        empty = None if self.lens is None else self._column(g.Equal(self.lens, 0))
        states = tuple(zero if s is None else s if empty is None else g.Where(empty, 0.0, s) for s in initial)
        for t in self.times:
            x = xs[t]
            assert x is not None
            states = self._alive(t, cell.step(x, states), states)
        ds = tuple(zero if s is None else s if empty is None else g.Where(empty, 0.0, s) for s in d_last)
        dxs: dict[int, ir.Value] = {}
        for t in reversed(self.times):
            dy = dYs[t]
            arriving = ds if dy is None else (g.Add(ds[0], dy), *ds[1:])
            zeros = (zero,) * len(ds)
            dxs[t], before = cell.back(self._alive(t, arriving, zeros))
            if self.lens is not None:
                waiting = self._alive(t, zeros, ds)
                before = tuple(g.Add(a, b) for a, b in zip(before, waiting, strict=True))
            ds = before
        if empty is not None:
            ds = tuple(g.Where(empty, 0.0, s) for s in ds)
        whole = _concat(g, [g.Unsqueeze(dxs[t], [axis]) for t in range(self.length)], axis)
        flat = g.Flatten(whole, axis=2)
        dW = g.MatMul(g.Transpose(flat, perm=[1, 0]), g.Flatten(X, axis=2))
        dR, dRb = cell.weights()
        dB = g.Concat(g.ReduceSum(flat, [0], keepdims=0), dRb, axis=0)
        return _Direction(g.MatMul(whole, W), dW, dR, dB, ds, cell.peepholes())

    def _column(self, truth: ir.Value) -> ir.Value:
        """[N] as [N, 1]."""
        return self.g.Unsqueeze(truth, [1])

    def _alive(self, t: int, new: _Values, old: _Values) -> _Values:
        """The new ones for sequences that reach to position t, the old ones for others."""
        if self.lens is None:
            return new
        alive = self._column(self.g.Greater(self.lens, t))
        return tuple(self.g.Where(alive, n, o) for n, o in zip(new, old, strict=True))


class _Cell(ABC):
    """One operator's step and its gradient; steps are kept until their gradient is asked for."""

    def __init__(
        self,
        g: Builder,
        operator: Any,
        activations: Sequence[Activation],
        R: ir.Value,
        Wb: ir.Value | None,
        Rb: ir.Value | None,
        P: ir.Value | None,
    ) -> None:
        self.g = g
        self.operator = operator
        self.activations = activations
        self.R = R
        self.Wb = Wb
        self.Rb = Rb
        self.P = P
        self.kept: list[Any] = []
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """What all steps share."""

    @abstractmethod
    def step(self, x: ir.Value, states: _Values) -> _Values:
        """The states after a step."""

    @abstractmethod
    def back(self, d: _Values) -> tuple[ir.Value, _Values]:
        """The gradients of x and of the states before the last step that is kept, which is then given up."""

    @abstractmethod
    def weights(self) -> tuple[ir.Value, ir.Value]:
        """The gradients of R and of the second bias."""

    @abstractmethod
    def peepholes(self) -> ir.Value | None:
        """The gradient of P, where it is given."""

    def biased(self, x: ir.Value) -> ir.Value:
        """x and both biases."""
        if self.Wb is None or self.Rb is None:
            return x
        return self.g.Add(x, self.g.Add(self.Wb, self.Rb))

    def act(self, index: int, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """An activation and its slope."""
        g, activation = self.g, self.activations[index]
        clip = activation.clip
        clipped = x if clip is None else g.Clip(x, -clip, clip)
        name = activation.name.capitalize()
        y: ir.Value = getattr(g, name)(clipped)
        slope: ir.Value
        match name:
            case "Relu":
                slope = g.Where(g.Greater(y, 0.0), g.CastLike(1.0, y), 0.0)
            case "Sigmoid":
                slope = g.Mul(y, g.Sub(1.0, y))
            case "Softplus":
                slope = g.Sub(1.0, g.Exp(g.Neg(y)))
            case "Softsign":
                rest = g.Sub(1.0, g.Abs(y))
                slope = g.Mul(rest, rest)
            case "Tanh":
                slope = g.Sub(1.0, g.Mul(y, y))
            case _:
                raise UnsupportedError(f"activation {name} has no gradient")
        return y, slope if clip is None else g.Where(g.LessOrEqual(g.Abs(x), clip), slope, 0.0)

    def transposed_product(self, a: Sequence[ir.Value], b: Sequence[ir.Value]) -> ir.Value:
        """aᵀ · b over the rows of all steps."""
        return self.g.Gemm(_rows(self.g, a), _rows(self.g, b), transA=1)

    def sum_rows(self, parts: Sequence[ir.Value]) -> ir.Value:
        """The sum over the rows of all steps."""
        return self.g.ReduceSum(_rows(self.g, parts), [0], keepdims=0)


class _LSTM(_Cell):
    def prepare(self) -> None:
        self.peeps = (None, None, None) if self.P is None else _split(self.g, self.P, 0, 3)
        self.dx: list[ir.Value] = []
        self.H: list[ir.Value] = []
        self.dP: list[_Values] = []

    def _peeped(self, gate: ir.Value, weight: ir.Value | None, C: ir.Value) -> ir.Value:
        return gate if weight is None else self.g.Add(gate, self.g.Mul(weight, C))

    def step(self, x: ir.Value, states: _Values) -> _Values:
        g, (H, C), (Pi, Po, Pf) = self.g, states, self.peeps
        i, o, f, c = _split(g, g.Add(g.Gemm(H, self.R, transB=1), self.biased(x)), 1, 4)
        gate_i = self.act(0, self._peeped(i, Pi, C))
        gate_f = (
            (g.Sub(1.0, gate_i[0]), None)
            if self.operator.input_forget
            else self.act(0, self._peeped(f, Pf, C))
        )
        cand = self.act(1, c)
        new = g.Add(g.Mul(gate_f[0], C), g.Mul(gate_i[0], cand[0]))
        gate_o, top = self.act(0, self._peeped(o, Po, new)), self.act(2, new)
        self.kept.append((states, gate_i, gate_o, gate_f, cand, top, new))
        return g.Mul(gate_o[0], top[0]), new

    def back(self, d: _Values) -> tuple[ir.Value, _Values]:
        g, (dH, dC), (Pi, Po, Pf) = self.g, d, self.peeps
        (H, C), (i, i_slope), (o, o_slope), (f, f_slope), (c, c_slope), (top, top_slope), new = (
            self.kept.pop()
        )
        do = g.Mul(g.Mul(dH, top), o_slope)
        dC = self._peeped(g.Add(dC, g.Mul(g.Mul(dH, o), top_slope)), Po, do)
        di, d_forget = g.Mul(dC, c), g.Mul(dC, C)
        if f_slope is None:
            di, df = g.Sub(di, d_forget), g.zeros_like(di)
        else:
            df = g.Mul(d_forget, f_slope)
        di = g.Mul(di, i_slope)
        dc = g.Mul(g.Mul(dC, i), c_slope)
        dx = g.Concat(di, do, df, dc, axis=1)
        self.dx.append(dx)
        self.H.append(H)
        if self.P is not None:
            self.dP.append((g.Mul(di, C), g.Mul(do, new), g.Mul(df, C)))
        before = self._peeped(self._peeped(g.Mul(dC, f), Pi, di), Pf, df)
        return dx, (g.MatMul(dx, self.R), before)

    def weights(self) -> tuple[ir.Value, ir.Value]:
        return self.transposed_product(self.dx, self.H), self.sum_rows(self.dx)

    def peepholes(self) -> ir.Value | None:
        if self.P is None:
            return None
        return self.g.Concat(*(self.sum_rows([p[i] for p in self.dP]) for i in range(3)), axis=0)


class _GRU(_Cell):
    def prepare(self) -> None:
        g = self.g
        Rz, Rr, self.Rh = _split(g, self.R, 0, 3)
        self.R_gates = g.Concat(Rz, Rr, axis=0)
        self.before = bool(self.operator.linear_before_reset)
        self.Rbh = self.added = None
        if self.Wb is not None and self.Rb is not None:
            Rbz, Rbr, self.Rbh = _split(g, self.Rb, 0, 3)
            # with linear_before_reset the reset gate multiplies a part of the second bias
            rest = g.zeros_like(self.Rbh) if self.before else self.Rbh
            self.added = g.Add(self.Wb, g.Concat(Rbz, Rbr, rest, axis=0))
        self.d_gates: list[ir.Value] = []
        self.H: list[ir.Value] = []
        self.d_linear: list[ir.Value] = []
        self.into: list[ir.Value] = []

    def step(self, x: ir.Value, states: _Values) -> _Values:
        g, (H,) = self.g, states
        xz, xr, xh = _split(g, x if self.added is None else g.Add(x, self.added), 1, 3)
        hz, hr = _split(g, g.Gemm(H, self.R_gates, transB=1), 1, 2)
        (z, z_slope), (r, r_slope) = self.act(0, g.Add(xz, hz)), self.act(0, g.Add(xr, hr))
        into = H if self.before else g.Mul(r, H)
        linear = g.Gemm(into, self.Rh, self.Rbh if self.before else None, transB=1)
        h, h_slope = self.act(1, g.Add(xh, g.Mul(r, linear) if self.before else linear))
        self.kept.append((H, z, z_slope, r, r_slope, into, linear, h, h_slope))
        return (g.Add(g.Mul(g.Sub(1.0, z), h), g.Mul(z, H)),)

    def back(self, d: _Values) -> tuple[ir.Value, _Values]:
        g, (dH,) = self.g, d
        H, z, z_slope, r, r_slope, into, linear, h, h_slope = self.kept.pop()
        dh = g.Mul(g.Mul(dH, g.Sub(1.0, z)), h_slope)
        d_linear = g.Mul(dh, r) if self.before else dh
        back = g.MatMul(d_linear, self.Rh)
        dr = g.Mul(g.Mul(dh, linear) if self.before else g.Mul(back, H), r_slope)
        dz = g.Mul(g.Mul(dH, g.Sub(H, h)), z_slope)
        d_gates = g.Concat(dz, dr, axis=1)
        through = g.Add(g.MatMul(d_gates, self.R_gates), back if self.before else g.Mul(back, r))
        for store, value in (
            (self.d_gates, d_gates),
            (self.H, H),
            (self.d_linear, d_linear),
            (self.into, into),
        ):
            store.append(value)
        return g.Concat(d_gates, dh, axis=1), (g.Add(g.Mul(dH, z), through),)

    def weights(self) -> tuple[ir.Value, ir.Value]:
        g = self.g
        gates = self.transposed_product(self.d_gates, self.H)
        dR = g.Concat(gates, self.transposed_product(self.d_linear, self.into), axis=0)
        return dR, g.Concat(self.sum_rows(self.d_gates), self.sum_rows(self.d_linear), axis=0)

    def peepholes(self) -> ir.Value | None:
        return None


class _RNN(_Cell):
    def prepare(self) -> None:
        self.dx: list[ir.Value] = []
        self.H: list[ir.Value] = []

    def step(self, x: ir.Value, states: _Values) -> _Values:
        y, slope = self.act(0, self.g.Add(self.g.Gemm(states[0], self.R, transB=1), self.biased(x)))
        self.kept.append((states[0], slope))
        return (y,)

    def back(self, d: _Values) -> tuple[ir.Value, _Values]:
        H, slope = self.kept.pop()
        dx = self.g.Mul(d[0], slope)
        self.dx.append(dx)
        self.H.append(H)
        return dx, (self.g.MatMul(dx, self.R),)

    def weights(self) -> tuple[ir.Value, ir.Value]:
        return self.transposed_product(self.dx, self.H), self.sum_rows(self.dx)

    def peepholes(self) -> ir.Value | None:
        return None


_CELLS: dict[str, type[_Cell]] = {"LSTM": _LSTM, "GRU": _GRU, "RNN": _RNN}
