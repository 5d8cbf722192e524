"""LSTM, GRU and RNN over a whole sequence: each thread takes its rows of the batch through all time steps.

A step takes the products of its input with W, which are in `gates` or made there, adds those of the states
with R, by register tiles from packed blocks, and computes the cell. What the gradient needs stays in memory:
activated gates over their sums, states with the initial one in a slot of its own. Threads never wait for
each other, as rows do not meet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onward.compile.codegen import math
from onward.compile.codegen.builder import Function, Module, Value
from onward.compile.codegen.target import Target
from onward.compile.kernels.kernel import Affine, Kernel, Parameter, integer, read, slot_values, update, write
from onward.compile.kernels.panels import block_width, panel_size
from onward.compile.kernels.tile import ACCUMULATOR, Epilogue, Tile, define, rows_for
from onward.graph.expression import operand

__all__ = ["ACTIVATIONS", "GATES", "Cell", "Frame", "RowProduct", "cell_flops", "recurrent"]

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
    def states(self) -> int:
        """How many states a step takes and gives."""
        return 2 if self.kind == "LSTM" else 1


def cell_flops(spec: Cell) -> int:
    """Arithmetic of one row in one step: the products with R, and with W where they are the kernel's."""
    return 2 * GATES[spec.kind] * spec.size * (spec.size + spec.features)


class RowProduct:
    """C[rows, n] (+)= A[rows, k] B, for a run-time range of rows; B is packed in blocks of `block_width`."""

    def __init__(
        self,
        module: Module,
        target: Target,
        name: str,
        *,
        n: int,
        k: int,
        a_row: int,
        c_row: int,
        accumulate: bool,
    ) -> None:
        self._a_row, self._c_row = a_row, c_row
        self._width = block_width(n, target)
        self._block = panel_size(n, k, target)
        lanes = target.lanes
        vectors = self._width // lanes
        self._whole, rest = divmod(n, self._width)
        # C is read when the sums are done, so that they need not wait for it
        epilogue = Epilogue(ACCUMULATOR + operand(1), ("full",)) if accumulate else Epilogue()
        self._extra = accumulate

        def tile(rows: int, columns: int, blocks: int = 1) -> Function:
            count = -(-columns // lanes)
            made = Tile(
                a=tuple(i * a_row for i in range(rows)),
                c=tuple(i * c_row for i in range(rows)),
                vectors=count,
                tail=columns - (count - 1) * lanes,
                k=k,
                a_step=1,
                b_step=self._width,
                epilogue=epilogue,
                b=tuple(v // vectors * self._block + v % vectors * lanes for v in range(count)),
            )
            return define(module, f"{name}_{rows}x{columns}x{blocks}", made)

        most = max(2, min(target.tuning.recurrent_rows, rows_for(target, vectors)) // 2 * 2)
        self._sizes = sorted({most, min(4, most), 2}, reverse=True)
        widths = [(self._width, self._whole), (rest, 1 if rest else 0)]
        self._tiles = {
            (rows, columns): tile(rows, columns)
            for columns, count in widths
            if count
            for rows in (*self._sizes, 1)
        }
        joined = target.tuning.recurrent_joined
        fits = self._whole >= joined and target.registers >= 2 * joined * vectors
        self._joined = joined if fits else 1
        if self._joined > 1:
            self._tiles[1, self._width * self._joined] = tile(1, self._width * self._joined, self._joined)
        self._rest = rest

    def emit(self, f: Function, low: Value, high: Value, a: Value, b: Value, c: Value) -> None:
        """Write the product of rows [low, high); pointers are those of row 0."""
        end = low + (high - low) // 2 * 2
        if self._whole:
            with f.range(0, self._whole) as block:
                self._pairs(f, low, end, a, b, c, block, self._width)
        if self._rest:
            self._pairs(f, low, end, a, b, c, f.value(self._whole), self._rest)
        with f.range(end, high) as row:
            joined = self._whole // self._joined * self._joined
            if self._joined > 1:
                with f.range(0, joined, self._joined) as block:
                    self._call(f, row, a, b, c, block, 1, self._width * self._joined)
            first = joined if self._joined > 1 else 0
            if first < self._whole:
                with f.range(first, self._whole) as block:
                    self._call(f, row, a, b, c, block, 1, self._width)
            if self._rest:
                self._call(f, row, a, b, c, f.value(self._whole), 1, self._rest)

    def _pairs(
        self, f: Function, low: Value, end: Value, a: Value, b: Value, c: Value, block: Value, columns: int
    ) -> None:
        row = low
        for size in self._sizes:
            until = row + (end - row) // size * size
            with f.range(row, until, size) as r:
                self._call(f, r, a, b, c, block, size, columns)
            row = until

    def _call(
        self, f: Function, row: Value, a: Value, b: Value, c: Value, block: Value, rows: int, columns: int
    ) -> None:
        sink = f.at(c, row * self._c_row + block * self._width)
        operands = [f.at(a, row * self._a_row), f.at(b, block * self._block), sink]
        f.invoke(self._tiles[rows, columns], [*operands, *([sink] if self._extra else [])])


class Frame:
    """What forward and backward kernels share: slots, a thread's rows, walks over columns."""

    def __init__(self, spec: Cell, target: Target, parameters: Sequence[Parameter]) -> None:
        self.spec = spec
        self.target = target = target.typed(spec.dtype)
        self.module = Module(target)
        self.f = f = self.module.entry()
        self.parameters = tuple(parameters)
        self.values = slot_values(f, self.parameters)
        self.batch, self.time = self.values["batch"], self.values["time"]
        self.low, self.high = f.share(self.batch, *f.arguments[1:])
        self.rows = self.batch * spec.size
        """Elements of the states of one step."""

    def position(self, step: Value) -> Value:
        """The place in the sequence of a step, counted in the order in which it is read."""
        return self.time - 1 - step if self.spec.reverse else step

    def gates(self, t: Value) -> Value:
        """The gates of a step."""
        return self.step_of("gates", t, self.spec.row, kept=self.spec.trained or not self.spec.features)

    def states(self, name: str, t: Value) -> tuple[Value, Value]:
        """The states before and after the step at a place: slots of their own where they are kept."""
        start = self.values[name]
        if not self.spec.kept:
            return start, start
        first, second = self.f.at(start, t * self.rows), self.f.at(start, (t + 1) * self.rows)
        return (second, first) if self.spec.reverse else (first, second)

    def edge(self, name: str) -> Value:
        """Where the initial states are."""
        start = self.values[name]
        return self.f.at(start, self.time * self.rows) if self.spec.kept and self.spec.reverse else start

    def step_of(self, name: str, t: Value, row: int, *, kept: bool = True) -> Value:
        """The rows of one step in a buffer that holds all steps, or one."""
        return self.f.at(self.values[name], t * (self.batch * row)) if kept else self.values[name]

    def cells(self, body: Callable[[Value, Value, Value | None], None]) -> None:
        """`body(row, first unit, mask)` for every vector of units of this thread's rows.

        Units are the inner loop: from row to row, addresses may be a multiple of 4 KiB apart, and loads would
        wait for stores of other rows.
        """
        f, size = self.f, self.spec.size
        whole = size // f.lanes * f.lanes
        with f.range(self.low, self.high) as n:
            if whole:
                with f.range(0, whole, f.lanes) as j:
                    body(n, j, None)
            if size > whole:
                body(n, f.value(whole), f.mask(size - whole))

    def alive(self, n: Value, t: Value) -> Value:
        """Whether the sequence of a row reaches to a place."""
        return self.f.compare("sgt", self.length(n), t)

    def length(self, n: Value) -> Value:
        """Of the sequence of a row."""
        return self.f.cast("sext", self.f.load(self.values["lens"], "i32", n), "i64")

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

    def peephole(self, index: int, j: Value, mask: Value | None) -> Value | None:
        """A vector of P: 0 of the input gate, 1 of the output gate, 2 of the forget gate."""
        if not self.spec.peepholes:
            return None
        return self.f.vload(self.values["p"], j + index * self.spec.size, mask)

    def kernel(self, name: str) -> Kernel:
        """The finished kernel; costs are those of one row of the batch in one step."""
        self.f.ret()
        moved = self.target.nbytes * (2 * GATES[self.spec.kind] + 2 * self.spec.states) * self.spec.size
        return Kernel(
            name=f"{name} {self.spec.size}",
            ir=self.module.text(),
            parameters=self.parameters,
            flops=Affine(0, cell_flops(self.spec)),
            bytes=Affine(0, moved),
        )


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
