"""The gradients of LSTM, GRU and RNN back through a sequence: each thread takes its rows through all steps.

Gradients of the gates' sums replace the activated gates that the forward pass left. The products of all steps
with W, with X and with the states are plain matrix products afterwards. Sums over steps and the batch, for
the biases and peepholes, are partial results of each thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onward.compile.codegen.builder import Value
from onward.compile.codegen.target import Target
from onward.compile.kernels.expression import constant
from onward.compile.kernels.kernel import Kernel, integer, read, update, write
from onward.compile.kernels.recurrent_frame import GATES, Cell, Frame, RowProduct
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
    cell = spec.cell
    states = ("h", "c")[: cell.states]
    kept = "c" if cell.kind == "LSTM" else "h"
    gates = write("gates") if cell.kind == "RNN" else update("gates")
    parameters = [*gates, *read("r", kept), *write(*(f"d{s}" for s in states))]
    parameters += read(*(f"d{s}_last" for s, given in zip(states, spec.last, strict=True) if given))
    parameters += (*read("dy"), *integer("y_time", "y_row")) if spec.sequence else ()
    parameters += read("lens") if cell.lens else ()
    parameters += read("p") if cell.peepholes else ()
    if cell.kind == "GRU":
        parameters += read("rh")
        parameters += update("extra") if cell.before_reset else write("back")
    parameters += write("sums") if spec.sums else ()
    frame = Frame(cell, target, [*parameters, *integer("time", "batch")])
    f = frame.f
    maker = _STEPS[cell.kind](frame, spec)
    maker.clear_sums(0)
    with f.when(f.compare("slt", frame.low, frame.high)):
        maker.begin()
        with f.range(0, frame.time) as step:
            maker.back(frame.position(frame.time - 1 - step))
        if cell.lens:
            maker.end()
    return frame.kernel(f"{cell.kind} gradient")


class _Backward(ABC):
    """What the operators' steps share."""

    def __init__(self, frame: Frame, spec: CellGradient) -> None:
        self.frame = frame
        self.f = frame.f
        self.whole = spec
        self.spec = frame.spec
        self.size = frame.spec.size
        self.width = -(-self.size // self.f.lanes) * self.f.lanes
        self.count = len(partial_sums(self.spec).expressions)

    @abstractmethod
    def step(self, t: Value) -> None:
        """Back through one step, at a place of the sequence."""

    def product(self, name: str, k: int, *, accumulate: bool, a_row: int) -> RowProduct:
        """Of gradients with a part of R."""
        return RowProduct(
            self.frame.module,
            self.frame.target,
            name,
            n=self.size,
            k=k,
            a_row=a_row,
            c_row=self.size,
            accumulate=accumulate,
        )

    def clear_sums(self, level: int) -> None:
        """Every thread's sums start at zero, also those of one without rows."""
        if self.whole.sums:
            with self.f.range(0, self.count * self.width, self.f.lanes) as i:
                self.f.vstore(self.f.zero(), self._sums(level), i)

    def _sums(self, level: int) -> Value:
        """This thread's sums over all steps (0), or over the rows of one step (1)."""
        _, thread, threads = self.f.arguments
        number = thread if level == 0 else threads + thread
        return self.f.at(self.frame.values["sums"], number * (self.count * self.width))

    def begin(self) -> None:
        """The gradients of the last states, where they arrive; none for a sequence that is empty."""
        self._edge(self._last)

    def end(self) -> None:
        """No gradient goes to the initial state of a sequence that is empty."""
        self._edge(lambda name, n, j, mask: self.f.vload(self.frame.values[name], n * self.size + j, mask))

    def _last(self, name: str, n: Value, j: Value, mask: Value | None) -> Value:
        if f"{name}_last" not in self.frame.values:
            return self.f.zero()
        return self.f.vload(self.frame.values[f"{name}_last"], n * self.spec.state_row + j, mask)

    def _edge(self, made: Callable[[str, Value, Value, Value | None], Value]) -> None:
        f, frame = self.f, self.frame

        def cell(n: Value, j: Value, mask: Value | None) -> None:
            for name in ("dh", "dc")[: self.spec.states]:
                value = made(name, n, j, mask)
                if self.spec.lens:
                    value = f.select(f.compare("sgt", frame.length(n), 0), value, f.zero())
                f.vstore(value, frame.values[name], n * self.size + j, mask)

        frame.cells(cell)

    def arriving(self, t: Value, n: Value, j: Value, mask: Value | None) -> Value:
        """The gradient of H after a step."""
        f, frame = self.f, self.frame
        dh = f.vload(frame.values["dh"], n * self.size + j, mask)
        if self.whole.sequence:
            at = t * frame.values["y_time"] + n * frame.values["y_row"] + j
            dh = dh + f.vload(frame.values["dy"], at, mask)
        return dh

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

    def hold(self, n: Value, t: Value, new: Sequence[Value], old: Sequence[Value]) -> list[Value]:
        """The new ones where the sequence reaches to t, the old ones beyond its end."""
        if not self.spec.lens:
            return list(new)
        alive = self.frame.alive(n, t)
        return [self.f.select(alive, a, b) for a, b in zip(new, old, strict=True)]

    def sum(self, j: Value, values: Sequence[Value], first: int = 0) -> None:
        """Add to the sums of the step, from number `first` on."""
        if self.whole.sums:
            for e, value in enumerate(values):
                place = self.f.at(self._sums(1), j + (first + e) * self.width)
                self.f.vstore(self.f.vload(place) + value, place)

    def back(self, t: Value) -> None:
        """Back through one step, whose sums are added to those of all steps: so rounding does not pile up."""
        f = self.f
        self.clear_sums(1)
        self.step(t)
        if self.whole.sums:
            with f.range(0, self.count * self.width, f.lanes) as i:
                f.vstore(f.vload(self._sums(0), i) + f.vload(self._sums(1), i), self._sums(0), i)


class _Long(_Backward):
    def __init__(self, frame: Frame, spec: CellGradient) -> None:
        super().__init__(frame, spec)
        self.by_r = self.product("dh", 4 * self.size, accumulate=self.spec.lens, a_row=self.spec.row)

    def step(self, t: Value) -> None:
        f, frame, spec, size = self.f, self.frame, self.spec, self.size
        gates = frame.step_of("gates", t, spec.row)
        c_before, c_after = frame.states("c", t)

        def cell(n: Value, j: Value, mask: Value | None) -> None:
            Pi, Po, Pf = (frame.peephole(g, j, mask) for g in range(3))
            at = n * size + j
            row = f.at(gates, n * spec.row + j)
            i, o, forget, cand = (f.vload(row, g * size, mask) for g in range(4))
            before, after = f.vload(c_before, at, mask), f.vload(c_after, at, mask)
            dH, dC_old = self.arriving(t, n, j, mask), f.vload(frame.values["dc"], at, mask)
            top = frame.act(2, after)
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
            zero = f.zero()
            *d_gates, dC = self.hold(n, t, (di, do, df, dc, dC), (zero, zero, zero, zero, dC_old))
            for g, value in enumerate(d_gates):
                f.vstore(value, row, g * size, mask)
            f.vstore(dC, frame.values["dc"], at, mask)
            if spec.lens:
                (rest,) = self.hold(n, t, (zero,), (f.vload(frame.values["dh"], at, mask),))
                f.vstore(rest, frame.values["dh"], at, mask)
            if spec.peepholes:
                di, do, df, _ = d_gates
                self.sum(j, (di * before, do * after, df * before), 4)
            self.sum(j, d_gates)

        frame.cells(cell)
        self.by_r.emit(f, frame.low, frame.high, gates, frame.values["r"], frame.values["dh"])


class _Gated(_Backward):
    def __init__(self, frame: Frame, spec: CellGradient) -> None:
        super().__init__(frame, spec)
        size, row, before = self.size, self.spec.row, self.spec.before_reset
        self.by_r = self.product("dh", 2 * size, accumulate=True, a_row=row)
        self.by_rh = self.product("back", size, accumulate=before, a_row=size if before else row)

    def step(self, t: Value) -> None:
        f, frame, spec, size = self.f, self.frame, self.spec, self.size
        gates = frame.step_of("gates", t, spec.row)
        extra = frame.step_of("extra", t, size) if spec.before_reset else frame.values["back"]
        h, _ = frame.states("h", t)
        dh = frame.values["dh"]
        ends = (frame.low, frame.high)

        def cell(n: Value, j: Value, mask: Value | None) -> None:
            at = n * size + j
            row = f.at(gates, n * spec.row + j)
            z, cand, before = f.vload(row, 0, mask), f.vload(row, 2 * size, mask), f.vload(h, at, mask)
            old = f.vload(dh, at, mask)
            dH = self.arriving(t, n, j, mask)
            d_cand = dH * (1.0 - z) * self.slope(1, cand)
            dz = dH * (before - cand) * self.slope(0, z)
            found = [dz, d_cand]
            if spec.before_reset:
                r, linear = f.vload(row, size, mask), f.vload(extra, at, mask)
                found = [dz, d_cand * linear * self.slope(0, r), d_cand, d_cand * r]
            zeros = [f.zero()] * len(found)
            *found, through = self.hold(n, t, (*found, dH * z), (*zeros, old))
            f.vstore(found[0], row, 0, mask)
            if spec.before_reset:
                f.vstore(found[1], row, size, mask)
                f.vstore(found[3], extra, at, mask)
            f.vstore(found[2 if spec.before_reset else 1], row, 2 * size, mask)
            f.vstore(through, dh, at, mask)
            self.sum(j, found[:1])
            self.sum(j, found[1:], 1 if spec.before_reset else 2)

        frame.cells(cell)
        if spec.before_reset:
            self.by_rh.emit(f, *ends, extra, frame.values["rh"], dh)
        else:
            self.by_rh.emit(f, *ends, f.at(gates, 2 * size), frame.values["rh"], extra)
            self._reset(gates, h)
        self.by_r.emit(f, *ends, gates, frame.values["r"], dh)

    def _reset(self, gates: Value, h: Value) -> None:
        """Through r ⊙ H, whose gradient is in `back`."""
        f, frame, size = self.f, self.frame, self.size

        def cell(n: Value, j: Value, mask: Value | None) -> None:
            at = n * size + j
            place = f.at(gates, n * self.spec.row + j + size)
            r, back = f.vload(place, 0, mask), f.vload(frame.values["back"], at, mask)
            dr = back * f.vload(h, at, mask) * self.slope(0, r)
            f.vstore(dr, place, 0, mask)
            f.vstore(f.fma(back, r, f.vload(frame.values["dh"], at, mask)), frame.values["dh"], at, mask)
            self.sum(j, (dr,), 1)

        frame.cells(cell)


class _Simple(_Backward):
    def __init__(self, frame: Frame, spec: CellGradient) -> None:
        super().__init__(frame, spec)
        self.by_r = self.product("dh", self.size, accumulate=self.spec.lens, a_row=self.spec.row)

    def step(self, t: Value) -> None:
        f, frame, spec, size = self.f, self.frame, self.spec, self.size
        gates = frame.step_of("gates", t, spec.row)
        _, h = frame.states("h", t)
        dh = frame.values["dh"]

        def cell(n: Value, j: Value, mask: Value | None) -> None:
            at = n * size + j
            dx = self.arriving(t, n, j, mask) * self.slope(0, f.vload(h, at, mask))
            (dx,) = self.hold(n, t, (dx,), (f.zero(),))
            f.vstore(dx, f.at(gates, n * spec.row + j), 0, mask)
            if spec.lens:
                (rest,) = self.hold(n, t, (f.zero(),), (f.vload(dh, at, mask),))
                f.vstore(rest, dh, at, mask)
            self.sum(j, (dx,))

        frame.cells(cell)
        self.by_r.emit(f, frame.low, frame.high, gates, frame.values["r"], dh)


_STEPS: dict[str, Callable[[Frame, CellGradient], _Backward]] = {
    "LSTM": _Long,
    "GRU": _Gated,
    "RNN": _Simple,
}
