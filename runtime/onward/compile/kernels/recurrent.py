"""LSTM, GRU and RNN over a whole sequence: each thread takes its rows of the batch through all time steps.

A step takes the products of its input with W, which are in `gates` or made there, adds those of the states
with R, by register tiles from packed blocks, and computes the cell. What the gradient needs stays in memory:
activated gates over their sums, states with the initial one in a slot of its own. Threads never wait for
each other, as rows do not meet.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence

from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.kernel import Kernel, Parameter, integer, read, update, write
from onward.compile.kernels.recurrent_frame import GATES, Cell, RecurrentKernel, Units

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
    kernel = _CELLS[spec.kind](spec, target)
    with kernel.own_rows():
        kernel.begin()
        for t in kernel.time_steps():
            kernel.step(t)
    return kernel.finished(spec.kind)


def _slots(spec: Cell) -> list[Parameter]:
    parameters = [
        *(write("gates") if spec.features else update("gates")),
        *read("r"),
        *write(*spec.states),
        *read(*(f"{s}0" for s, given in zip(spec.states, spec.initial, strict=True) if given)),
    ]
    parameters += read("x", "w") if spec.features else ()
    parameters += read("bias") if spec.bias else ()
    parameters += read("p") if spec.peepholes else ()
    parameters += read("lens") if spec.lens else ()
    parameters += (*read("rh"), *write("extra")) if spec.kind == "GRU" else ()
    parameters += (*write("y"), *integer("y_time", "y_row")) if spec.sequence else ()
    return parameters


class _Forward(RecurrentKernel, ABC):
    """What the operators' steps share."""

    def __init__(self, spec: Cell, target: Target) -> None:
        super().__init__(spec, target, _slots(spec))
        self._width = GATES[spec.kind] * self.size
        self._by_w = spec.features and self.product(
            "inputs", n=self._width, k=spec.features, a_row=spec.features, c_row=spec.row, accumulate=False
        )

    def begin(self) -> None:
        """Bring the initial states into their slots."""
        places = {name: self.initial(name) for name in self.spec.states}
        self.fill(places, lambda u, name: u.given(f"{name}0"))

    def inputs(self, t: Value) -> Value:
        """The gates of a step with what comes from Xt."""
        gates = self.gates_of(t)
        if self._by_w:
            self.multiply(self._by_w, self.of_step("x", t, self.spec.features), "w", gates)
        return gates

    def gates(self, u: Units, *numbers: int) -> list[Value]:
        """Gates' sums with both biases."""
        found = [u.gate(g) for g in numbers]
        if not self.spec.bias:
            return found
        count = GATES[self.spec.kind]
        return [
            x + (u.vector("bias", g) + u.vector("bias", count + g))
            for g, x in zip(numbers, found, strict=True)
        ]

    def keep(self, u: Units, gates: Sequence[Value]) -> None:
        """Store activated gates over their sums."""
        if self.spec.trained:
            for g, value in enumerate(gates):
                u.set_gate(g, value)

    def store(
        self, u: Units, t: Value, new: Sequence[Value], old: Sequence[Value], places: Sequence[Value]
    ) -> None:
        """Store the states after a step, H first; those of a sequence that has ended stay."""
        *held, y = self.hold(u, t, (*new, new[0]), (*old, self.f.zero()))
        for value, place in zip(held, places, strict=True):
            u.store(value, place)
        if self.spec.sequence:
            u.set_of_sequence("y", t, y)


class _LSTM(_Forward):
    def __init__(self, spec: Cell, target: Target) -> None:
        super().__init__(spec, target)
        self._by_r = self.product("gates", n=4 * self.size, c_row=spec.row, accumulate=True)

    def step(self, t: Value) -> None:
        f = self.f
        gates = self.inputs(t)
        (h, h_new), (c, c_new) = self.states("h", t), self.states("c", t)
        self.multiply(self._by_r, h, "r", gates)
        for u in self.units(gates):
            Pi, Po, Pf = (u.peephole(g) for g in range(3))
            i, o, forget, cand = self.gates(u, 0, 1, 2, 3)
            before = u.load(c)
            i = i if Pi is None else f.fma(Pi, before, i)
            if self.spec.input_forget:
                i, cand = self.acts((0, i), (1, cand))
                forget = 1.0 - i
            else:
                forget = forget if Pf is None else f.fma(Pf, before, forget)
                i, forget, cand = self.acts((0, i), (0, forget), (1, cand))
            new = f.fma(forget, before, i * cand)
            o, top = self.acts((0, o if Po is None else f.fma(Po, new, o)), (2, new))
            self.keep(u, (i, o, forget, cand))
            self.store(u, t, (o * top, new), (u.load(h), before), (h_new, c_new))


class _GRU(_Forward):
    def __init__(self, spec: Cell, target: Target) -> None:
        super().__init__(spec, target)
        self._by_r = self.product("gates", n=2 * self.size, c_row=spec.row, accumulate=True)
        after = not spec.before_reset
        self._by_rh = self.product("linear", c_row=spec.row if after else self.size, accumulate=after)

    def step(self, t: Value) -> None:
        f, spec = self.f, self.spec
        gates = self.inputs(t)
        extra = self.of_step("extra", t, self.size, kept=spec.trained)
        h, h_new = self.states("h", t)
        self.multiply(self._by_r, h, "r", gates)
        if spec.before_reset:
            self.multiply(self._by_rh, h, "rh", extra)
        else:
            self._reset(gates, h, extra)
            self.multiply(self._by_rh, extra, "rh", f.at(gates, 2 * self.size))
        for u in self.units(gates):
            before = u.load(h)
            if spec.before_reset:
                z, r = self.acts(*((0, x) for x in self.gates(u, 0, 1)))
                linear, cand = u.load(extra), u.gate(2)
                if spec.bias:
                    linear, cand = linear + u.vector("bias", 5), cand + u.vector("bias", 2)
                cand = self.act(1, f.fma(r, linear, cand))
                self.keep(u, (z, r, cand))
                if spec.trained:
                    u.store(linear, extra)
            else:
                z = u.gate(0)
                cand = self.act(1, *self.gates(u, 2))
                if spec.trained:
                    u.set_gate(2, cand)
            self.store(u, t, (f.fma(z, before, (1.0 - z) * cand),), (before,), (h_new,))

    def _reset(self, gates: Value, h: Value, extra: Value) -> None:
        """z and r, and r ⊙ H, which the second product takes."""
        for u in self.units(gates):
            z, r = self.acts(*((0, x) for x in self.gates(u, 0, 1)))
            u.set_gate(0, z)
            if self.spec.trained:
                u.set_gate(1, r)
            u.store(r * u.load(h), extra)


class _RNN(_Forward):
    def __init__(self, spec: Cell, target: Target) -> None:
        super().__init__(spec, target)
        self._by_r = self.product("gates", n=self.size, c_row=spec.row, accumulate=True)

    def step(self, t: Value) -> None:
        gates = self.inputs(t)
        h, h_new = self.states("h", t)
        self.multiply(self._by_r, h, "r", gates)
        for u in self.units(gates):
            H = self.act(0, *self.gates(u, 0))
            self.store(u, t, (H,), (u.load(h),), (h_new,))


_CELLS: dict[str, Callable[[Cell, Target], _Forward]] = {"LSTM": _LSTM, "GRU": _GRU, "RNN": _RNN}
