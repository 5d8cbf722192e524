"""What recurrent kernels share, forward and backward: the loop through time over a thread's rows.

A kernel is one direction, described by a `Cell`. `RecurrentKernel` has its slots, the steps in their order,
the states before and after each, and walks over the units of the batch's rows, a vector at a time.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onward.compile.codegen import math
from onward.compile.codegen.builder import Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.kernel import Affine, Kernel, Parameter, integer, slot_values
from onward.compile.kernels.recurrent_product import RowProduct

__all__ = ["ACTIVATIONS", "GATES", "Cell", "RecurrentKernel", "Units", "cell_flops"]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

ACTIVATIONS = frozenset({"relu", "sigmoid", "softsign", "tanh"})
"""Those that are compiled: their derivatives follow from their results."""


@dataclass(frozen=True)
class Cell:
    """One direction of a recurrent operator.

    Attributes:
        kind: the operator.
        size: units.
        row: elements between rows of the batch in `gates`.
        state_row: elements between rows of the batch in the initial states.
        activations: of the direction, in the operator's order.
        reverse: whether it reads the sequence from its end.
        kept: whether the states of all steps stay.
        trained: whether the gates of all steps stay, for the gradient.
        features: of the input, where the kernel makes its products with W; 0 where they are given.
        bias, lens, peepholes: whether these operands are there.
        initial: which initial states are there.
        sequence: whether H of all steps is also stored apart; it is 0 beyond the end of a sequence.
        clip, before_reset, input_forget: the attributes.
        dtype: of everything but lens.
    """

    kind: str
    size: int
    row: int
    state_row: int
    activations: tuple[str, ...]
    reverse: bool = False
    kept: bool = True
    trained: bool = True
    features: int = 0
    bias: bool = True
    lens: bool = False
    peepholes: bool = False
    initial: tuple[bool, ...] = ()
    sequence: bool = False
    clip: float | None = None
    before_reset: bool = False
    input_forget: bool = False
    dtype: str = "float32"

    @property
    def states(self) -> tuple[str, ...]:
        """The states that a step takes and gives."""
        return ("h", "c") if self.kind == "LSTM" else ("h",)


def cell_flops(spec: Cell) -> int:
    """Arithmetic of one row in one step: the products with R, and with W where they are the kernel's."""
    return 2 * GATES[spec.kind] * spec.size * (spec.size + spec.features)


class RecurrentKernel(ABC):
    """One direction's kernel: each thread takes its rows of the batch through all time steps."""

    def __init__(self, spec: Cell, target: Target, parameters: Sequence[Parameter]) -> None:
        self.spec = spec
        self.size = spec.size
        self.target = target = target.typed(spec.dtype)
        self.module = Module(target)
        self.f = f = self.module.entry()
        self.parameters = (*parameters, *integer("time", "batch"))
        self.values = slot_values(f, self.parameters)
        self.batch, self.time = self.values["batch"], self.values["time"]
        self._low, self._high = f.share(self.batch, *f.arguments[1:])
        self._state = self.batch * spec.size
        """Elements of the states of one step."""

    @abstractmethod
    def step(self, t: Value) -> None:
        """One step, at a place of the sequence."""

    # The loops

    @contextlib.contextmanager
    def own_rows(self) -> Iterator[None]:
        """Where this thread has rows."""
        with self.f.when(self.f.compare("slt", self._low, self._high)):
            yield

    def time_steps(self, *, backward: bool = False) -> Iterator[Value]:
        """The places of the sequence in the order in which it is read, or from the last one back."""
        with self.f.range(0, self.time) as step:
            step = self.time - 1 - step if backward else step
            yield self.time - 1 - step if self.spec.reverse else step

    def units(self, gates: Value | None = None) -> Iterator[Units]:
        """Every vector of units of this thread's rows; `gates` are those of a step.

        Units are the inner loop: from row to row, addresses may be a multiple of 4 KiB apart, and loads would
        wait for stores of other rows.
        """
        f = self.f
        whole = self.size // f.lanes * f.lanes
        with f.range(self._low, self._high) as n:
            if whole:
                with f.range(0, whole, f.lanes) as j:
                    yield Units(self, n, j, None, gates)
            if self.size > whole:
                yield Units(self, n, f.value(whole), f.mask(self.size - whole), gates)

    # Products

    def product(
        self,
        name: str,
        *,
        accumulate: bool,
        n: int | None = None,
        k: int | None = None,
        a_row: int | None = None,
        c_row: int | None = None,
    ) -> RowProduct:
        """C (+)= A · B with packed B [k, n]; extents and steps from row to row are `size` unless given."""
        n, k, a_row, c_row = (self.size if v is None else v for v in (n, k, a_row, c_row))
        return RowProduct(
            self.module, self.target, name, n=n, k=k, a_row=a_row, c_row=c_row, accumulate=accumulate
        )

    def multiply(self, product: RowProduct, a: Value, packed: str, c: Value) -> None:
        """A product of this thread's rows with the weights in a slot."""
        product.emit(self.f, self._low, self._high, a, self.values[packed], c)

    # Tensors

    def of_step(self, name: str, t: Value, row: int, *, kept: bool = True) -> Value:
        """The rows of one step in a buffer that holds all steps, or one."""
        return self.f.at(self.values[name], t * (self.batch * row)) if kept else self.values[name]

    def gates_of(self, t: Value) -> Value:
        """The gates of a step."""
        return self.of_step("gates", t, self.spec.row, kept=self.spec.trained or not self.spec.features)

    def states(self, name: str, t: Value) -> tuple[Value, Value]:
        """The states before and after the step at a place: slots of their own where they are kept."""
        start = self.values[name]
        if not self.spec.kept:
            return start, start
        first, second = self.f.at(start, t * self._state), self.f.at(start, (t + 1) * self._state)
        return (second, first) if self.spec.reverse else (first, second)

    def initial(self, name: str) -> Value:
        """Where the states before the first step are."""
        start = self.values[name]
        return self.f.at(start, self.time * self._state) if self.spec.kept and self.spec.reverse else start

    def fill(self, places: Mapping[str, Value], made: Callable[[Units, str], Value | None]) -> None:
        """Write the states at an end of the sequence: what is made, or 0 for None or an empty sequence."""
        f = self.f
        for u in self.units():
            for name, place in places.items():
                value = made(u, name)
                if value is not None and self.spec.lens:
                    value = f.select(f.compare("sgt", u.length(), 0), value, f.zero())
                u.store(f.zero() if value is None else value, place)

    def hold(self, u: Units, t: Value, new: Sequence[Value], old: Sequence[Value]) -> list[Value]:
        """The new ones where the sequence reaches to t, the old ones beyond its end."""
        if not self.spec.lens:
            return list(new)
        alive = self.f.compare("sgt", u.length(), t)
        return [self.f.select(alive, a, b) for a, b in zip(new, old, strict=True)]

    # Activations

    def acts(self, *operands: tuple[int, Value]) -> list[Value]:
        """Activations by number, their operands clipped as the attributes say; they share a division."""
        f, clip = self.f, self.spec.clip
        found: list[Value | None] = []
        fractions: list[math.Fraction] = []
        for index, x in operands:
            if clip is not None and index < 2:
                x = f.maximum(f.minimum(x, clip), -clip)
            value = None
            match self.spec.activations[index]:
                case "relu":
                    value = f.relu(x)
                case "sigmoid":
                    fractions.append(math.sigmoid_fraction(f, x))
                case "softsign":
                    value = x / (f.abs(x) + 1.0)
                case "tanh":
                    fractions.append(math.tanh_fraction(f, x))
                case name:
                    raise ValueError(f"activation {name!r} is not compiled")
            found.append(value)
        shared = iter(math.quotients(f, fractions) if fractions else ())
        return [next(shared) if value is None else value for value in found]

    def act(self, index: int, x: Value) -> Value:
        """One activation."""
        return self.acts((index, x))[0]

    def finished(self, name: str) -> Kernel:
        """The finished kernel; costs are those of one row of the batch in one step."""
        self.f.ret()
        moved = self.target.nbytes * (2 * GATES[self.spec.kind] + 2 * len(self.spec.states)) * self.spec.size
        return Kernel(
            name=f"{name} {self.spec.size}",
            ir=self.module.text(),
            parameters=self.parameters,
            flops=Affine(0, cell_flops(self.spec)),
            bytes=Affine(0, moved),
        )


class Units:
    """A vector of units, from unit `j`, of row `n` of the batch: what a kernel's tensors hold for them."""

    def __init__(
        self, kernel: RecurrentKernel, n: Value, j: Value, mask: Value | None, gates: Value | None
    ) -> None:
        f, spec = kernel.f, kernel.spec
        self._f, self._spec, self._values = f, spec, kernel.values
        self.n, self.j, self._mask = n, j, mask
        self._state = n * spec.size + j
        self._gates = None if gates is None else f.at(gates, n * spec.row + j)

    def load(self, states: Value) -> Value:
        """Of states [N, size]."""
        return self._f.vload(states, self._state, self._mask)

    def store(self, x: Value, states: Value) -> None:
        """Into states [N, size]."""
        self._f.vstore(x, states, self._state, self._mask)

    def gate(self, number: int) -> Value:
        """A gate of the step, or its gradient."""
        assert self._gates is not None
        return self._f.vload(self._gates, number * self._spec.size, self._mask)

    def set_gate(self, number: int, x: Value) -> None:
        """Write over a gate of the step."""
        assert self._gates is not None
        self._f.vstore(x, self._gates, number * self._spec.size, self._mask)

    def vector(self, name: str, number: int) -> Value:
        """One of the vectors [size] that a slot holds one after another: of B, of P."""
        return self._f.vload(self._values[name], self.j + number * self._spec.size, self._mask)

    def peephole(self, number: int) -> Value | None:
        """A vector of P: 0 of the input gate, 1 of the output gate, 2 of the forget gate."""
        return self.vector("p", number) if self._spec.peepholes else None

    def given(self, name: str) -> Value | None:
        """Of states that a caller gives, in rows of `state_row`; None where there is no such slot."""
        if name not in self._values:
            return None
        return self._f.vload(self._values[name], self.n * self._spec.state_row + self.j, self._mask)

    def of_sequence(self, name: str, t: Value) -> Value:
        """One step of Y or its gradient, whose steps in memory are `y_time` and `y_row`."""
        return self._f.vload(self._values[name], self._at(t), self._mask)

    def set_of_sequence(self, name: str, t: Value, x: Value) -> None:
        """Write one step of Y."""
        self._f.vstore(x, self._values[name], self._at(t), self._mask)

    def _at(self, t: Value) -> Value:
        return t * self._values["y_time"] + self.n * self._values["y_row"] + self.j

    def length(self) -> Value:
        """Of the row's sequence."""
        return self._f.cast("sext", self._f.load(self._values["lens"], "i32", self.n), "i64")
