"""The gradients of LSTM, GRU and RNN back through a sequence: each thread takes its rows through all steps.

Gradients of the gates' sums replace the activated gates that the forward pass left. The products of all steps
with W, with X and with the states are plain matrix products afterwards. Sums over steps and the batch, for
the biases and peepholes, are partial results of each thread.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.expression import constant
from onward.compile.kernels.kernel import Kernel, Parameter, integer, read, update, write
from onward.compile.kernels.recurrent_frame import GATES, Cell, RecurrentKernel, Units
from onward.compile.kernels.reduce import Columns

__all__ = ["CellGradient", "partial_sums", "recurrent_gradient"]


@dataclass(frozen=True)
class CellGradient:
    """The gradient of one direction.

    Attributes:
        cell: the direction, whose gates and states stay.
        sequence: whether a gradient of H of all steps arrives.
        last: which gradients of the last states arrive.
        sums: whether the sums over steps and the batch are wanted.
    """

    cell: Cell
    sequence: bool
    last: tuple[bool, ...]
    sums: bool


def partial_sums(spec: Cell) -> Columns:
    """What a thread sums: the gradients of the gates, of GRU's Ht₋₁ · Rhᵀ where that is another, and of P."""
    count = GATES[spec.kind] + (1 if spec.before_reset else 0) + (3 if spec.peepholes else 0)
    return Columns((spec.size,), (), (constant(0.0),) * count, ("sum",) * count, dtype=spec.dtype)


def recurrent_gradient(spec: CellGradient, target: Target) -> Kernel:
    """The backward pass of one direction.

    Slots: gates, h (for LSTM c), lens, p, time and batch as the forward kernel left them; dh and dc
    [N, size], the gradients of the initial states in the end; dh_last and dc_last with the rows of the
    initial states; dy with the steps y_time and y_row; r packed [gates · size, size], for GRU the gates z and
    r alone, and rh packed [size, size]; sums, twice the partial results. A GRU whose reset comes after the
    product has `extra` too, which becomes the gradient of Ht₋₁ · Rhᵀ + Rbh, another one back [N, size].
    """
    kernel = _CELLS[spec.cell.kind](spec, target)
    kernel.clear_sums(0)
    with kernel.own_rows():
        kernel.begin()
        for t in kernel.time_steps(backward=True):
            kernel.back(t)
        kernel.end()
    return kernel.finished(f"{spec.cell.kind} gradient")


def _slots(spec: CellGradient) -> list[Parameter]:
    cell = spec.cell
    gates = write("gates") if cell.kind == "RNN" else update("gates")
    parameters = [*gates, *read("r", cell.states[-1]), *write(*(f"d{s}" for s in cell.states))]
    parameters += read(*(f"d{s}_last" for s, given in zip(cell.states, spec.last, strict=True) if given))
    parameters += (*read("dy"), *integer("y_time", "y_row")) if spec.sequence else ()
    parameters += read("lens") if cell.lens else ()
    parameters += read("p") if cell.peepholes else ()
    if cell.kind == "GRU":
        parameters += read("rh")
        parameters += update("extra") if cell.before_reset else write("back")
    parameters += write("sums") if spec.sums else ()
    return parameters


class _Backward(RecurrentKernel, ABC):
    """What the operators' steps share."""

    def __init__(self, spec: CellGradient, target: Target) -> None:
        super().__init__(spec.cell, target, _slots(spec))
        self._whole = spec
        self._width = -(-self.size // self.f.lanes) * self.f.lanes
        self._count = len(partial_sums(self.spec).expressions)

    def begin(self) -> None:
        """The gradients of the last states, where they arrive; none for a sequence that is empty."""
        self.fill(self._gradients(), lambda u, name: u.given(f"{name}_last"))

    def end(self) -> None:
        """No gradient goes to the initial state of a sequence that is empty."""
        if self.spec.lens:
            places = self._gradients()
            self.fill(places, lambda u, name: u.load(places[name]))

    def _gradients(self) -> dict[str, Value]:
        """Where the gradients of the states are."""
        return {name: self.values[name] for name in (f"d{s}" for s in self.spec.states)}

    def back(self, t: Value) -> None:
        """Back through one step, whose sums are added to those of all steps: so rounding does not pile up."""
        f = self.f
        self.clear_sums(1)
        self.step(t)
        if self._whole.sums:
            with f.range(0, self._count * self._width, f.lanes) as i:
                f.vstore(f.vload(self._sums(0), i) + f.vload(self._sums(1), i), self._sums(0), i)

    def clear_sums(self, level: int) -> None:
        """Every thread's sums start at zero, also those of one without rows."""
        if self._whole.sums:
            with self.f.range(0, self._count * self._width, self.f.lanes) as i:
                self.f.vstore(self.f.zero(), self._sums(level), i)

    def _sums(self, level: int) -> Value:
        """This thread's sums over all steps (0), or over the rows of one step (1)."""
        _, thread, threads = self.f.arguments
        number = thread if level == 0 else threads + thread
        return self.f.at(self.values["sums"], number * (self._count * self._width))

    def sum(self, u: Units, values: Sequence[Value], first: int = 0) -> None:
        """Add to the sums of the step, from number `first` on."""
        if self._whole.sums:
            for e, value in enumerate(values):
                place = self.f.at(self._sums(1), u.j + (first + e) * self._width)
                self.f.vstore(self.f.vload(place) + value, place)

    def arriving(self, u: Units, t: Value) -> Value:
        """The gradient of H after a step."""
        dh = u.load(self.values["dh"])
        return dh + u.of_sequence("dy", t) if self._whole.sequence else dh

    def clear_ended(self, u: Units, t: Value) -> None:
        """0 for the gradient of H, to which the product with R adds, unless the sequence has ended."""
        if self.spec.lens:
            dh = self.values["dh"]
            (rest,) = self.hold(u, t, [self.f.zero()], [u.load(dh)])
            u.store(rest, dh)

    def slope(self, index: int, y: Value) -> Value:
        """The derivative of an activation, from its result."""
        f = self.f
        match self.spec.activations[index]:
            case "relu":
                return f.select(f.compare("ogt", y, 0.0), f.value(1.0, f.vector), f.zero())
            case "sigmoid":
                return y * (1.0 - y)
            case "softsign":
                rest = 1.0 - f.abs(y)
                return rest * rest
            case "tanh":
                return 1.0 - y * y
        raise ValueError(f"activation {self.spec.activations[index]!r} is not compiled")


class _LSTM(_Backward):
    def __init__(self, spec: CellGradient, target: Target) -> None:
        super().__init__(spec, target)
        self._by_r = self.product("dh", k=4 * self.size, a_row=self.spec.row, accumulate=self.spec.lens)

    def step(self, t: Value) -> None:
        f, spec = self.f, self.spec
        gates = self.gates_of(t)
        c_before, c_after = self.states("c", t)
        for u in self.units(gates):
            Pi, Po, Pf = (u.peephole(g) for g in range(3))
            i, o, forget, cand = (u.gate(g) for g in range(4))
            before, after = u.load(c_before), u.load(c_after)
            dH, dC_old = self.arriving(u, t), u.load(self.values["dc"])
            top = self.act(2, after)
            do = dH * top * self.slope(0, o)
            dC = f.fma(dH * o, self.slope(2, top), dC_old)
            dC = dC if Po is None else f.fma(do, Po, dC)
            d_forget = dC * before
            di, df = dC * cand, f.zero()
            if spec.input_forget:
                di = di - d_forget
            else:
                df = d_forget * self.slope(0, forget)
            di = di * self.slope(0, i)
            dc = dC * i * self.slope(1, cand)
            dC = dC * forget
            dC = dC if Pi is None else f.fma(di, Pi, dC)
            dC = dC if Pf is None else f.fma(df, Pf, dC)
            *d_gates, dC = self.hold(u, t, (di, do, df, dc, dC), (*[f.zero()] * 4, dC_old))
            for g, value in enumerate(d_gates):
                u.set_gate(g, value)
            u.store(dC, self.values["dc"])
            self.clear_ended(u, t)
            if spec.peepholes:
                di, do, df, _ = d_gates
                self.sum(u, (di * before, do * after, df * before), 4)
            self.sum(u, d_gates)
        self.multiply(self._by_r, gates, "r", self.values["dh"])


class _GRU(_Backward):
    def __init__(self, spec: CellGradient, target: Target) -> None:
        super().__init__(spec, target)
        size, row, before = self.size, self.spec.row, self.spec.before_reset
        self._by_r = self.product("dh", k=2 * size, a_row=row, accumulate=True)
        self._by_rh = self.product("back", a_row=size if before else row, accumulate=before)

    def step(self, t: Value) -> None:
        f, spec, size = self.f, self.spec, self.size
        gates = self.gates_of(t)
        extra = self.of_step("extra", t, size) if spec.before_reset else self.values["back"]
        h, _ = self.states("h", t)
        dh = self.values["dh"]
        for u in self.units(gates):
            z, cand, before, old = u.gate(0), u.gate(2), u.load(h), u.load(dh)
            dH = self.arriving(u, t)
            d_cand = dH * (1.0 - z) * self.slope(1, cand)
            dz = dH * (before - cand) * self.slope(0, z)
            found = [dz, d_cand]
            if spec.before_reset:
                r, linear = u.gate(1), u.load(extra)
                found = [dz, d_cand * linear * self.slope(0, r), d_cand, d_cand * r]
            *found, through = self.hold(u, t, (*found, dH * z), (*[f.zero()] * len(found), old))
            u.set_gate(0, found[0])
            if spec.before_reset:
                u.set_gate(1, found[1])
                u.store(found[3], extra)
            u.set_gate(2, found[2 if spec.before_reset else 1])
            u.store(through, dh)
            self.sum(u, found[:1])
            self.sum(u, found[1:], 1 if spec.before_reset else 2)
        if spec.before_reset:
            self.multiply(self._by_rh, extra, "rh", dh)
        else:
            self.multiply(self._by_rh, f.at(gates, 2 * size), "rh", extra)
            self._reset(gates, h)
        self.multiply(self._by_r, gates, "r", dh)

    def _reset(self, gates: Value, h: Value) -> None:
        """Through r ⊙ H, whose gradient is in `back`."""
        dh = self.values["dh"]
        for u in self.units(gates):
            r, back = u.gate(1), u.load(self.values["back"])
            dr = back * u.load(h) * self.slope(0, r)
            u.set_gate(1, dr)
            u.store(self.f.fma(back, r, u.load(dh)), dh)
            self.sum(u, (dr,), 1)


class _RNN(_Backward):
    def __init__(self, spec: CellGradient, target: Target) -> None:
        super().__init__(spec, target)
        self._by_r = self.product("dh", a_row=self.spec.row, accumulate=self.spec.lens)

    def step(self, t: Value) -> None:
        gates = self.gates_of(t)
        _, h = self.states("h", t)
        for u in self.units(gates):
            dx = self.arriving(u, t) * self.slope(0, u.load(h))
            (dx,) = self.hold(u, t, [dx], [self.f.zero()])
            u.set_gate(0, dx)
            self.clear_ended(u, t)
            self.sum(u, (dx,))
        self.multiply(self._by_r, gates, "r", self.values["dh"])


_CELLS: dict[str, Callable[[CellGradient, Target], _Backward]] = {"LSTM": _LSTM, "GRU": _GRU, "RNN": _RNN}
