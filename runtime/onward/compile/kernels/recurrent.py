"""LSTM, GRU and RNN over a whole sequence: each thread takes its rows of the batch through all time steps.

A step takes the products of its input with W, which are in `gates` or made there, adds those of the states
with R, by register tiles from packed blocks, and computes the cell. What the gradient needs stays in memory:
activated gates over their sums, states with the initial one in a slot of its own. Threads never wait for
each other, as rows do not meet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from onward.compile.codegen.builder import Value
from onward.compile.codegen.target import Target
from onward.compile.kernels.kernel import Kernel, integer, read, update, write
from onward.compile.kernels.recurrent_frame import GATES, Cell, Frame, RowProduct

__all__ = ["recurrent"]


def recurrent(spec: Cell, target: Target) -> Kernel:
    """The forward pass of one direction.

    Slots: gates [T, N, ·] with Xt · Wᵀ of every step in, activated gates out, or x [T, N, features], w packed
    [features, gates · size] and gates, of one step where they do not stay; r packed [size, gates · size], for
    GRU the gates z and r alone, and rh packed [size, size]; bias [2 · gates · size]; p [3 · size]; lens
    int32 [N]; h0 and c0; h and c [T + 1, N, size], or [N, size] where they are not kept: the states before
    and after each step; extra [T, N, size], or [N, size], of GRU: rt ⊙ Ht₋₁, or Ht₋₁ · Rhᵀ + Rbh where the
    reset comes after the product; y, where H is also stored, with the steps y_time and y_row; time, batch.
    """
    states = ("h", "c")[: spec.states]
    parameters = [
        *(write("gates") if spec.features else update("gates")),
        *read("r"),
        *write(*states),
        *read(*(f"{s}0" for s, given in zip(states, spec.initial, strict=True) if given)),
    ]
    parameters += read("x", "w") if spec.features else ()
    parameters += read("bias") if spec.bias else ()
    parameters += read("p") if spec.peepholes else ()
    parameters += read("lens") if spec.lens else ()
    parameters += (*read("rh"), *write("extra")) if spec.kind == "GRU" else ()
    parameters += (*write("y"), *integer("y_time", "y_row")) if spec.sequence else ()
    frame = Frame(spec, target, [*parameters, *integer("time", "batch")])
    f = frame.f
    maker = _STEPS[spec.kind](frame)
    with f.when(f.compare("slt", frame.low, frame.high)):
        maker.begin()
        with f.range(0, frame.time) as step:
            maker.step(frame.position(step))
    return frame.kernel(f"{spec.kind}")


class _Forward(ABC):
    """What the operators' steps share."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.f = frame.f
        self.spec = frame.spec
        self.size = frame.spec.size
        features = frame.spec.features
        self._by_w = features and RowProduct(
            frame.module,
            frame.target,
            "inputs",
            n=GATES[frame.spec.kind] * self.size,
            k=features,
            a_row=features,
            c_row=frame.spec.row,
            accumulate=False,
        )

    def inputs(self, t: Value) -> Value:
        """The gates of a step with what comes from Xt."""
        frame, gates = self.frame, self.frame.gates(t)
        if self._by_w:
            x = frame.step_of("x", t, frame.spec.features)
            self._by_w.emit(self.f, frame.low, frame.high, x, frame.values["w"], gates)
        return gates

    @abstractmethod
    def step(self, t: Value) -> None:
        """One step, at a place of the sequence."""

    def product(self, name: str, n: int, *, accumulate: bool, c_row: int) -> RowProduct:
        """Of states with a part of R."""
        return RowProduct(
            self.frame.module,
            self.frame.target,
            name,
            n=n,
            k=self.size,
            a_row=self.size,
            c_row=c_row,
            accumulate=accumulate,
        )

    def begin(self) -> None:
        """Bring the initial states into their slots."""
        f, frame, spec = self.f, self.frame, self.spec

        def cell(n: Value, j: Value, mask: Value | None) -> None:
            for name, given in zip(("h", "c"), spec.initial, strict=False):
                value = f.zero()
                if given:
                    value = f.vload(frame.values[f"{name}0"], n * spec.state_row + j, mask)
                    if spec.lens:
                        value = f.select(f.compare("sgt", frame.length(n), 0), value, f.zero())
                f.vstore(value, frame.edge(name), n * self.size + j, mask)

        frame.cells(cell)

    def biases(self, j: Value, mask: Value | None) -> list[Value | None]:
        """For each gate the sum of both biases."""
        count = GATES[self.spec.kind]
        if not self.spec.bias:
            return [None] * count
        return [self.bias(g, j, mask) + self.bias(count + g, j, mask) for g in range(count)]

    def bias(self, index: int, j: Value, mask: Value | None) -> Value:
        """One vector of B."""
        return self.f.vload(self.frame.values["bias"], j + index * self.size, mask)

    def gate(self, row: Value, index: int, bias: Value | None, mask: Value | None) -> Value:
        """A gate's sum."""
        x = self.f.vload(row, index * self.size, mask)
        return x if bias is None else x + bias

    def keep(self, row: Value, gates: Sequence[Value], mask: Value | None) -> None:
        """Store activated gates over their sums."""
        if self.spec.trained:
            for g, value in enumerate(gates):
                self.f.vstore(value, row, g * self.size, mask)

    def store(
        self,
        t: Value,
        n: Value,
        j: Value,
        mask: Value | None,
        new: Sequence[Value],
        before: Sequence[Value],
        after: Sequence[Value],
    ) -> None:
        """Store the states after a step, H first; those of a sequence that has ended stay."""
        f, frame, spec = self.f, self.frame, self.spec
        alive = frame.alive(n, t) if spec.lens else None
        for value, old, place in zip(new, before, after, strict=True):
            held = value if alive is None else f.select(alive, value, old)
            f.vstore(held, place, n * self.size + j, mask)
        if spec.sequence:
            y = new[0] if alive is None else f.select(alive, new[0], f.zero())
            at = t * frame.values["y_time"] + n * frame.values["y_row"] + j
            f.vstore(y, frame.values["y"], at, mask)


class _Long(_Forward):
    def __init__(self, frame: Frame) -> None:
        super().__init__(frame)
        self.by_r = self.product("gates", 4 * self.size, accumulate=True, c_row=self.spec.row)

    def step(self, t: Value) -> None:
        f, frame, spec = self.f, self.frame, self.spec
        gates = self.inputs(t)
        (h, h_new), (c, c_new) = frame.states("h", t), frame.states("c", t)
        self.by_r.emit(f, frame.low, frame.high, h, frame.values["r"], gates)

        def cell(n: Value, j: Value, mask: Value | None) -> None:
            biases = self.biases(j, mask)
            Pi, Po, Pf = (frame.peephole(g, j, mask) for g in range(3))
            row = f.at(gates, n * spec.row + j)
            i, o, forget, cand = (self.gate(row, g, biases[g], mask) for g in range(4))
            before = f.vload(c, n * self.size + j, mask)
            i = i if Pi is None else f.fma(Pi, before, i)
            if spec.input_forget:
                i, cand = frame.acts((0, i), (1, cand))
                forget = 1.0 - i
            else:
                forget = forget if Pf is None else f.fma(Pf, before, forget)
                i, forget, cand = frame.acts((0, i), (0, forget), (1, cand))
            new = f.fma(forget, before, i * cand)
            o, top = frame.acts((0, o if Po is None else f.fma(Po, new, o)), (2, new))
            self.keep(row, (i, o, forget, cand), mask)
            H = o * top
            olds = [f.vload(h, n * self.size + j, mask), before] if spec.lens else [H, before]
            self.store(t, n, j, mask, (H, new), olds, (h_new, c_new))

        frame.cells(cell)


class _Gated(_Forward):
    def __init__(self, frame: Frame) -> None:
        super().__init__(frame)
        row = self.spec.row
        self.by_r = self.product("gates", 2 * self.size, accumulate=True, c_row=row)
        self.by_rh = (
            self.product("linear", self.size, accumulate=False, c_row=self.size)
            if self.spec.before_reset
            else self.product("linear", self.size, accumulate=True, c_row=row)
        )

    def step(self, t: Value) -> None:
        f, frame, spec, size = self.f, self.frame, self.spec, self.size
        gates = self.inputs(t)
        extra = frame.step_of("extra", t, size, kept=spec.trained)
        h, h_new = frame.states("h", t)
        ends = (frame.low, frame.high)
        self.by_r.emit(f, *ends, h, frame.values["r"], gates)
        if spec.before_reset:
            self.by_rh.emit(f, *ends, h, frame.values["rh"], extra)
        else:
            self._reset(gates, h, extra)
            self.by_rh.emit(f, *ends, extra, frame.values["rh"], f.at(gates, 2 * size))

        def cell(n: Value, j: Value, mask: Value | None) -> None:
            biases = self.biases(j, mask)
            Wbh, Rbh = (self.bias(g, j, mask) for g in (2, 5)) if spec.bias else (None, None)
            row = f.at(gates, n * spec.row + j)
            before = f.vload(h, n * size + j, mask)
            if spec.before_reset:
                z, r = frame.acts(*((0, self.gate(row, g, biases[g], mask)) for g in range(2)))
                linear = f.vload(extra, n * size + j, mask)
                linear = linear if Rbh is None else linear + Rbh
                cand = frame.act(1, f.fma(r, linear, self.gate(row, 2, Wbh, mask)))
                self.keep(row, (z, r, cand), mask)
                if spec.trained:
                    f.vstore(linear, extra, n * size + j, mask)
            else:
                z = f.vload(row, 0, mask)
                cand = frame.act(1, self.gate(row, 2, biases[2], mask))
                if spec.trained:
                    f.vstore(cand, row, 2 * size, mask)
            H = f.fma(z, before, (1.0 - z) * cand)
            self.store(t, n, j, mask, (H,), (before,), (h_new,))

        frame.cells(cell)

    def _reset(self, gates: Value, h: Value, extra: Value) -> None:
        """z and r, and r ⊙ H, which the second product takes."""
        f, frame, spec, size = self.f, self.frame, self.spec, self.size

        def cell(n: Value, j: Value, mask: Value | None) -> None:
            biases = self.biases(j, mask)
            row = f.at(gates, n * spec.row + j)
            z, r = frame.acts(*((0, self.gate(row, g, biases[g], mask)) for g in range(2)))
            f.vstore(z, row, 0, mask)
            if spec.trained:
                f.vstore(r, row, size, mask)
            f.vstore(r * f.vload(h, n * size + j, mask), extra, n * size + j, mask)

        frame.cells(cell)


class _Simple(_Forward):
    def __init__(self, frame: Frame) -> None:
        super().__init__(frame)
        self.by_r = self.product("gates", self.size, accumulate=True, c_row=self.spec.row)

    def step(self, t: Value) -> None:
        f, frame, spec = self.f, self.frame, self.spec
        gates = self.inputs(t)
        h, h_new = frame.states("h", t)
        self.by_r.emit(f, frame.low, frame.high, h, frame.values["r"], gates)

        def cell(n: Value, j: Value, mask: Value | None) -> None:
            (bias,) = self.biases(j, mask)
            H = frame.act(0, self.gate(f.at(gates, n * spec.row + j), 0, bias, mask))
            old = f.vload(h, n * self.size + j, mask) if spec.lens else H
            self.store(t, n, j, mask, (H,), (old,), (h_new,))

        frame.cells(cell)


_STEPS: dict[str, Callable[[Frame], _Forward]] = {"LSTM": _Long, "GRU": _Gated, "RNN": _Simple}
