"""What recurrent kernels go by: a direction as a `Cell`, products with packed weights, a thread's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onward.compile.codegen import math
from onward.compile.codegen.builder import Function, Module, Value
from onward.compile.codegen.target import Target
from onward.compile.kernels.kernel import Affine, Kernel, Parameter, slot_values
from onward.compile.kernels.panels import block_width, panel_size
from onward.compile.kernels.tile import ACCUMULATOR, Epilogue, Tile, define, rows_for
from onward.graph.expression import operand

__all__ = ["ACTIVATIONS", "GATES", "Cell", "Frame", "RowProduct", "cell_flops"]

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
