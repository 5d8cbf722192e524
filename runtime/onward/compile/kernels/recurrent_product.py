"""Matrix products of a recurrent step: a thread's rows with packed weights, by register tiles."""

from __future__ import annotations

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.panels import block_width, panel_size
from onward.compile.kernels.tile import ACCUMULATOR, Epilogue, Tile, define, rows_for
from onward.graph.expression import operand

__all__ = ["RowProduct"]


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
