"""Matrix products by register tiles that read small operands in place, and what all products share.

`kernels/packed.py` has the products whose operands are larger than what the nearest caches serve at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.types import element_type
from onward.compile.codegen.values import Int, Value
from onward.compile.kernels.integer_weights import IntegerWeights, packed_weight_bytes
from onward.compile.kernels.kernel import Affine, Kernel, Parameter, integer, read, slot_values, update, write
from onward.compile.kernels.tile import IDENTITY, Epilogue, Tile, define, rows_for, split, vectors_for

__all__ = [
    "Gemm",
    "Outer",
    "describe",
    "gemm",
    "result_of",
]


@dataclass(frozen=True)
class Outer:
    """A loop of `count` independent products (None: the batch), this many elements apart in a, b and c."""

    count: int | None
    a: int
    b: int
    c: int


@dataclass(frozen=True)
class Gemm:
    """C[m, n] (+)= A[m, k] B[k, n]. One of m, k or one outer count may be None: the batch, at run time.

    A's element (i, l) is at i * a_row + l * a_k, B's (l, j) at l * b_k + j * b_column, C's (i, j) at
    i * c_row + j. With b_block, B is packed (`kernels/panels.py`) in blocks that far apart. "full" epilogue
    operands have C's layout, "channel" ones are vectors along n. `partial` keeps sums over a part of k in
    memory of their own, laid out like C, because C is an epilogue operand too. `dtype` is that of
    all matrices. B may be `weights` in integers, packed by `kernels/integer_weights.py`.
    """

    m: int | None
    n: int
    k: int | None
    a_row: int
    a_k: int
    b_k: int
    c_row: int
    b_block: int = 0
    b_column: int = 1
    accumulate: bool = False
    partial: bool = False
    epilogue: Epilogue = IDENTITY
    outer: tuple[Outer, ...] = ()
    dtype: str = "float32"
    weights: IntegerWeights | None = None

    def __post_init__(self) -> None:
        unknown = [self.m, self.k, *(o.count for o in self.outer)].count(None)
        if unknown > 1:
            raise ValueError("only one size of a matrix product can be the batch")


def gemm(spec: Gemm, target: Target, name: str = "gemm") -> Kernel:
    """The kernel by tiles that read both sides in place. Slots: a, b, c, e0, ... (epilogue operands), batch.

    B's columns must be contiguous, or B packed.
    """
    if spec.b_column != 1 or spec.partial:
        raise ValueError("tiles read columns of B that are contiguous, and store C once")
    target = target.typed(spec.dtype)
    module = Module(target)
    f = module.entry()
    extra = tuple(f"e{i}" for i in range(len(spec.epilogue.operands)))
    parameters = (*read("a", "b"), *result_of(spec), *read(*extra), *integer("batch"))
    values = slot_values(f, parameters)
    _Product(f, spec, target, values).emit()
    f.ret()
    return describe(spec, name, module.text(), parameters)


def result_of(spec: Gemm) -> tuple[Parameter, ...]:
    """The slot of C."""
    return update("c") if spec.accumulate else write("c")


def describe(spec: Gemm, name: str, text: str, parameters: tuple[Parameter, ...], scratch: int = 0) -> Kernel:
    """A kernel that computes `spec`, with its costs."""
    sizes = [spec.m, spec.n, spec.k, *(o.count for o in spec.outer)]
    known = 1
    for size in sizes:
        known *= 1 if size is None else size
    flops = 2 * known + (known // (spec.k or 1)) * spec.epilogue.flops
    dynamic = None in sizes
    kind = "" if spec.weights is None else f" int{spec.weights.bits}"
    return Kernel(
        name=f"{name} {spec.m or 'batch'}x{spec.n}x{spec.k or 'batch'}{kind}",
        ir=text,
        parameters=parameters,
        flops=Affine(0, flops) if dynamic else Affine(flops),
        bytes=_moved(spec),
        units=Affine(0, 1) if dynamic else Affine(-(-known // (8 * spec.n * (spec.k or 1)))),
        scratch=scratch,
    )


def _moved(spec: Gemm) -> Affine:
    """Bytes of the three matrices, those that grow with the batch apart from those that do not."""
    m, n, k = spec.m, spec.n, spec.k
    outer = [o.count for o in spec.outer]
    nbytes = element_type(spec.dtype).nbytes
    times = math.prod(1 if count is None else count for count in outer)
    fixed = item = 0
    if spec.weights is not None:
        fixed = packed_weight_bytes(spec.weights) + 4 * spec.weights.blocks * n
    for sizes in ((m, k), (m, n)) if spec.weights is not None else ((m, k), (k, n), (m, n)):
        size = nbytes * times * math.prod(1 if s is None else s for s in sizes)
        if None in sizes or None in outer:
            item += size
        else:
            fixed += size
    return Affine(fixed, item)


class _Product:
    def __init__(self, f: Function, spec: Gemm, target: Target, values: dict[str, Value]) -> None:
        self.f = f
        self.spec = spec
        self.values = values
        lanes = target.lanes
        self.vectors = vectors_for(target, spec.n)
        self.width = self.vectors * lanes
        self.whole, rest = divmod(spec.n, self.width)
        self.blocks = self.whole + (rest > 0)
        self.rest_vectors = -(-rest // lanes)
        self.tail = rest - (self.rest_vectors - 1) * lanes
        most = rows_for(target, self.vectors)
        # (rows, first row, count); with m known at run time only, whole tiles and then leftovers.
        self.pieces = split(spec.m, most) if spec.m is not None else []
        self.sizes = [size for size, _, _ in self.pieces] or sorted({most, min(4, most), 1}, reverse=True)
        self.tiles = {
            (rows, whole): self._tile(rows, whole)
            for rows in self.sizes
            for whole in (True, False)
            if (self.whole if whole else rest)
        }

    def _tile(self, rows: int, whole: bool) -> Function:
        spec = self.spec
        tile = Tile(
            a=tuple(i * spec.a_row for i in range(rows)),
            c=tuple(i * spec.c_row for i in range(rows)),
            vectors=self.vectors,
            tail=self.f.lanes,
            k=spec.k,
            a_step=spec.a_k,
            b_step=spec.b_k,
            accumulate=spec.accumulate,
            b_masked=True,
            epilogue=spec.epilogue,
        )
        if not whole:
            tile = replace(tile, vectors=self.rest_vectors, tail=self.tail)
        return define(self.f.module, f"tile_{rows}_{'whole' if whole else 'rest'}", tile)

    def emit(self) -> None:
        f, spec, batch = self.f, self.spec, self.values["batch"]
        _, thread, threads = f.arguments
        m: Int = batch if spec.m is None else spec.m
        most = self.sizes[0]
        row_tiles: Int = (
            sum(c for _, _, c in self.pieces) if spec.m is not None else (batch + (most - 1)) // most
        )
        units = f.value(row_tiles) * self.blocks
        for outer in spec.outer:
            units = units * (batch if outer.count is None else outer.count)
        if spec.k is None:
            # Nothing to add up: an empty sum is not what a tile, which goes round at least once, computes.
            with f.when(f.compare("sgt", batch, 0)):
                self._units(units, row_tiles, m, thread, threads)
            with f.when(f.compare("sle", batch, 0)):
                self._nothing(thread)
        else:
            self._units(units, row_tiles, m, thread, threads)

    def _units(self, units: Value, row_tiles: Int, m: Int, thread: Value, threads: Value) -> None:
        f, spec = self.f, self.spec
        if (
            spec.k is None
            and not spec.outer
            and sum(c for _, _, c in self.pieces) >= f.module.target.tuning.product_shared_rows
        ):
            low, high = f.share(row_tiles, thread, threads)
            with f.range(0, self.blocks) as block, f.range(low, high) as place:
                self._tiles(place, block, [f.value(0)] * 3, m)
            return
        low, high = f.share(units, thread, threads)
        with f.range(low, high) as unit:
            place, rest = unit % row_tiles, unit // row_tiles
            block, rest = rest % self.blocks, rest // self.blocks
            offsets = [f.value(0)] * 3
            for level in range(len(spec.outer) - 1, -1, -1):
                outer = spec.outer[level]
                count: Int = self.values["batch"] if outer.count is None else outer.count
                index = rest if level == 0 else rest % count
                if level:
                    rest = rest // count
                steps = (outer.a, outer.b, outer.c)
                offsets = [o + index * s for o, s in zip(offsets, steps, strict=True)]
            self._tiles(place, block, offsets, m)

    def _tiles(self, place: Value, block: Value, offsets: list[Value], m: Int) -> None:
        """One row of tiles in one block of columns."""
        f = self.f
        if self.whole < self.blocks and self.whole:
            with f.when(f.compare("slt", block, self.whole)):
                self._rows(place, block, True, offsets, m)
            with f.when(f.compare("sge", block, self.whole)):
                self._rows(place, block, False, offsets, m)
        else:
            self._rows(place, block, bool(self.whole), offsets, m)

    def _rows(self, place: Value, block: Value, whole: bool, offsets: list[Value], m: Int) -> None:
        f = self.f
        if self.spec.m is not None:
            before = 0
            for rows, first, count in self.pieces:
                inside = f.binary(
                    "and", f.compare("sge", place, before), f.compare("slt", place, before + count)
                )
                if len(self.pieces) == 1:
                    self._call(rows, whole, place * rows, block, offsets)
                else:
                    with f.when(inside):
                        self._call(rows, whole, (place - before) * rows + first, block, offsets)
                before += count
            return
        most = self.sizes[0]
        row = place * most
        left = f.smin(most, f.value(m) - row)
        with f.when(f.compare("eq", left, most)):
            self._call(most, whole, row, block, offsets)
        with f.when(f.compare("slt", left, most)):
            end = row + left
            for rows in self.sizes[1:]:
                whole_end = row + (end - row) // rows * rows
                with f.range(row, whole_end, rows) as r:
                    self._call(rows, whole, r, block, offsets)
                row = whole_end

    def _call(self, rows: int, whole: bool, row: Value, block: Value, offsets: list[Value]) -> None:
        f, spec, values = self.f, self.spec, self.values
        a = offsets[0] + row * spec.a_row
        b = offsets[1] + block * (spec.b_block or self.width)
        c = offsets[2] + row * spec.c_row + block * self.width
        operands = [
            f.at(values[f"e{i}"], block * self.width if kind == "channel" else c)
            for i, kind in enumerate(spec.epilogue.operands)
        ]
        counts = [values["batch"]] if spec.k is None else []
        f.invoke(
            self.tiles[rows, whole],
            [f.at(values["a"], a), f.at(values["b"], b), f.at(values["c"], c), *operands, *counts],
        )

    def _nothing(self, thread: Value) -> None:
        """C of an empty sum, by one thread: zeros, or as it is when accumulating."""
        f, spec = self.f, self.spec
        if spec.accumulate or spec.m is None:
            return
        with f.when(f.compare("eq", thread, 0)), f.range(0, spec.m) as i, f.range(0, spec.n) as j:
            f.store(f.value(0.0, f.float), f.at(self.values["c"], i * spec.c_row + j))
