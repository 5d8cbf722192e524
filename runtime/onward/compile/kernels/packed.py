"""Large matrix products: what a tile reads is first put where the caches serve it best.

C is computed block by block of k. For each block, panels of B (`kernels/panels.py`) stay in the second-level
cache while slabs of A, as many rows as a tile has, are copied to a piece of memory that stays in the first:
rows that are a power of two apart would fall on the same cache lines. Tiles fetch the next slab while they
compute. Each thread packs what it reads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import final

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Int, Value
from onward.compile.kernels.gemm import Gemm, describe, result_of
from onward.compile.kernels.integer_weights import define_dequantise, scale_slots
from onward.compile.kernels.kernel import Kernel, integer, read, slot_values, write
from onward.compile.kernels.packed_tile import define_slab, define_tile
from onward.compile.kernels.panels import define_pack
from onward.compile.kernels.product_blocking import ProductBlocking, product_blocking

__all__ = ["packed_gemm"]


def packed_gemm(spec: Gemm, target: Target, name: str = "packed_gemm") -> Kernel:
    """The kernel. Slots: a, b, c, e0, ... (epilogue operands), p with `partial`, scratch, batch.

    With `weights` also: scale, zero where there are zero points.
    """
    if spec.accumulate and spec.partial:
        raise ValueError("what is added to must be C, not sums that are kept elsewhere")
    target = target.typed(spec.dtype)
    module = Module(target)
    f = module.entry()
    extra = tuple(f"e{i}" for i in range(len(spec.epilogue.operands)))
    parameters = (
        *read("a", "b"),
        *read(*scale_slots(spec.weights)),
        *result_of(spec),
        *read(*extra),
        *write(*["p"] * spec.partial, "scratch"),
        *integer("batch"),
    )
    values = slot_values(f, parameters)
    blocking = product_blocking(spec, target)
    _Driver(f, spec, blocking, values).emit()
    f.ret()
    return describe(spec, name, module.text(), parameters, scratch=target.nbytes * blocking.scratch)


@final
class _Driver:
    def __init__(self, f: Function, spec: Gemm, blocking: ProductBlocking, values: dict[str, Value]) -> None:
        self.f = f
        self.spec = spec
        self.blocking = blocking
        self.values = values
        self.m: Int = values["batch"] if spec.m is None else spec.m
        self.k: Int = values["batch"] if spec.k is None else spec.k
        rest = spec.n % blocking.width
        columns = {True: blocking.width if spec.n >= blocking.width else 0, False: rest}
        self.kinds = {whole: count for whole, count in columns.items() if count}
        names = {True: "whole", False: "rest"}
        self.pack = (
            define_pack(f.module, blocking.width, blocking.panel, spec.b_column, spec.b_k)
            if blocking.own and spec.weights is None
            else None
        )
        self.dequantise = (
            None
            if spec.weights is None
            else define_dequantise(f.module, spec.weights, blocking.width, blocking.panel)
        )
        self.tiles = {
            (size, whole): define_tile(f.module, f"tile_{size}_{names[whole]}", spec, blocking, size, count)
            for size in blocking.rows
            for whole, count in self.kinds.items()
        }
        self.copy = define_slab(f.module, spec, blocking)
        _, thread, _ = f.arguments
        self.panels = f.at(values["scratch"], thread * blocking.scratch)
        self.slab = f.at(self.panels, blocking.packed)

    # -- who computes what ---------------------------------------------------------------------------------

    def emit(self) -> None:
        f, spec, blocking = self.f, self.spec, self.blocking
        _, thread, threads = f.arguments
        grain = blocking.rows[-1]
        m = f.value(self.m)
        parts = (m + (grain - 1)) // grain
        if not spec.outer:
            by_rows = self._by_rows(parts * grain, threads)
            low, high = f.share(parts, thread, threads)
            left, right = f.share(blocking.panels, thread, threads)
            nothing, everything = f.value(0), f.value(blocking.panels)
            self._matrix(
                (nothing, nothing, nothing),
                f.select(by_rows, low * grain, nothing),
                f.select(by_rows, f.smin(high * grain, m), m),
                f.select(by_rows, nothing, left),
                f.select(by_rows, everything, right),
            )
            return
        total = parts
        for outer in spec.outer:
            total = total * (self.values["batch"] if outer.count is None else outer.count)
        low, high = f.share(total, thread, threads)
        # The matrices that have rows of this thread; the first and the last of them perhaps not all.
        with f.range(low // parts, (high + (parts - 1)) // parts) as index:
            before = index * parts
            first = f.smax(0, low - before) * grain
            last = f.smin(f.smin(high - before, parts) * grain, m)
            self._matrix(self._offsets(index), first, last, 0, blocking.panels)

    def _by_rows(self, rows: Value, threads: Value) -> Value:
        """Whether threads share C's rows; else its columns.

        What costs less in rows x columns of a thread, where copying a row of B or a column of A costs about
        as much as multiplying it by `product_copy` others.
        """
        f, blocking = self.f, self.blocking
        copy = f.module.target.tuning.product_copy
        copy_b = copy if blocking.own else 0
        columns = blocking.panels * blocking.width
        grain = blocking.rows[-1]
        share = (rows + (threads * grain - 1)) // (threads * grain) * grain
        panels = (threads + (blocking.panels - 1)) // threads * blocking.width
        by_rows = share * (columns + copy) + copy_b * columns
        by_columns = rows * (panels + copy) + panels * copy_b
        return f.compare("sle", by_rows, by_columns)

    def _offsets(self, index: Value) -> tuple[Value, Value, Value]:
        f, spec = self.f, self.spec
        offsets = [f.value(0)] * 3
        rest = index
        for level in range(len(spec.outer) - 1, -1, -1):
            outer = spec.outer[level]
            count: Int = self.values["batch"] if outer.count is None else outer.count
            place = rest % count if level else rest
            rest = rest // count if level else rest
            offsets = [o + place * s for o, s in zip(offsets, (outer.a, outer.b, outer.c), strict=True)]
        return offsets[0], offsets[1], offsets[2]

    # -- one matrix ----------------------------------------------------------------------------------------

    def _matrix(
        self, at: tuple[Value, Value, Value], first: Value, last: Value, left: Int, right: Int
    ) -> None:
        """Rows [first, last) of panels [left, right) of the product whose operands start at `at`."""
        f, blocking = self.f, self.blocking
        with f.range(first, last, blocking.tall) as top, f.range(left, right, blocking.chunk) as start:
            bottom = f.smin(top + blocking.tall, last)
            end = f.smin(start + blocking.chunk, f.value(right))
            if blocking.blocks == 1:
                self._block(at, top, bottom, start, end, f.value(0), f.value(self.k))
            else:
                depth: Int = blocking.depth
                if blocking.blocks is None:
                    # Blocks of equal size; an empty sum has one too, so that C is stored.
                    count = f.smax(1, (f.value(self.k) + (blocking.depth - 1)) // blocking.depth)
                    depth = ((f.value(self.k) + (count - 1)) // count + (f.lanes - 1)) // f.lanes * f.lanes
                    depth = f.smax(f.lanes, depth)
                with f.range(0, f.smax(1, f.value(self.k)), depth) as k0:
                    self._block(at, top, bottom, start, end, k0, f.smin(depth, f.value(self.k) - k0))

    def _block(
        self,
        at: tuple[Value, Value, Value],
        first: Value,
        last: Value,
        start: Value,
        end: Value,
        k0: Value,
        count: Value,
    ) -> None:
        """The part of the sum from k0 on, for panels [start, end)."""
        f, blocking, spec = self.f, self.blocking, self.spec
        if self.pack is not None:
            b = at[1] + k0 * spec.b_k + start * (blocking.width * spec.b_column)
            columns = f.smin(end * blocking.width, spec.n) - start * blocking.width
            f.invoke(self.pack, [f.at(self.values["b"], b), self.panels, columns, count])
            panels, step = self.panels, blocking.panel
        elif self.dequantise is not None:
            scale, zero = self.values["scale"], self.values.get("zero", self.values["scale"])
            f.invoke(self.dequantise, [self.values["b"], scale, zero, self.panels, start, end, k0, count])
            panels, step = self.panels, blocking.panel
        else:
            panels = f.at(self.values["b"], at[1] + k0 * blocking.width + start * spec.b_block)
            step = spec.b_block
        most = blocking.rows[0]
        group = blocking.group * most
        with f.range(first, last, group) as base:
            above = f.smin(base + group, last)
            source = f.at(self.values["a"], at[0] + base * spec.a_row + k0 * spec.a_k)
            if not blocking.in_place:
                f.invoke(self.copy, [source, self.slab, above - base, count])
            with f.range(base, above, most) as row:
                rows = f.smin(most, last - row)
                step_a: Int = blocking.a_k
                slab = f.at(self.slab, (row - base) // most * blocking.slab)
                if blocking.in_place:
                    slab, step_a = self._read_in_place(source, rows, count)
                ahead = self._next_slab(at[0], first, last, row, k0, count)
                c = at[2] + row * spec.c_row
                self._slab(slab, step_a, panels, step, c, rows, start, end, k0, count, ahead)

    def _read_in_place(self, source: Value, rows: Value, count: Value) -> tuple[Value, Value]:
        """Where a slab of a transposed A is, and its step of k: a copy if a tile would read past it."""
        f, most = self.f, self.blocking.rows[0]
        part = f.compare("slt", rows, most)
        with f.when(part):
            f.invoke(self.copy, [source, self.slab, rows, count])
        return f.select(part, self.slab, source), f.select(part, f.value(most), f.value(self.spec.a_k))

    def _next_slab(self, a: Value, first: Value, last: Value, row: Value, k0: Value, count: Value) -> Value:
        """What is read after the slab that starts at `row`: of the next rows, or of the next block of k."""
        f, spec, most = self.f, self.spec, self.blocking.rows[0]
        if self.blocking.dense and spec.k is not None:
            # A transposed A is fetched a whole matrix ahead: a slab of it is spread over all of it.
            distance = spec.m if self.blocking.transposed and spec.m is not None else most
            return f.at(self.values["a"], a + (row + distance) * spec.k)
        more = f.compare("slt", row + most, last)
        after = f.select(more, row + most, first)
        depth = f.select(more, k0, k0 + count)
        return f.at(self.values["a"], a + after * spec.a_row + depth * spec.a_k)

    @contextlib.contextmanager
    def _kind(self, panel: Value, whole: bool) -> Iterator[None]:
        """Where a panel is a whole one, or the narrower last one."""
        if len(self.kinds) == 1:
            yield
            return
        with self.f.when(
            self.f.compare("slt" if whole else "sge", panel, self.spec.n // self.blocking.width)
        ):
            yield

    def _slab(
        self,
        slab: Value,
        a_step: Int,
        panels: Value,
        step: int,
        c: Value,
        rows: Value,
        start: Value,
        end: Value,
        k0: Value,
        count: Value,
        ahead: Value,
    ) -> None:
        """The tiles of one slab, by the smallest that has its rows."""
        f, blocking = self.f, self.blocking
        flags = []
        if blocking.blocks != 1:
            more = f.value(1) if self.spec.accumulate else f.cast("zext", f.compare("sgt", k0, 0), "i64")
            flags = [more, f.cast("zext", f.compare("sge", k0 + count, self.k), "i64")]
        for size, smaller in zip(blocking.rows, (*blocking.rows[1:], 0), strict=True):
            fits = f.binary("and", f.compare("sle", rows, size), f.compare("sgt", rows, smaller))
            with f.when(fits), f.range(start, end) as panel:
                line = f.at(ahead, (panel - start) * blocking.part)
                column = panel * blocking.width
                places = [
                    f.at(self.values[name], c + column)
                    for name in (("c", "p") if self.spec.partial else ("c",))
                ]
                places += [
                    f.at(self.values[f"e{i}"], column if kind == "channel" else c + column)
                    for i, kind in enumerate(self.spec.epilogue.operands)
                ]
                for whole in self.kinds:
                    with self._kind(panel, whole):
                        b = f.at(panels, (panel - start) * step)
                        f.invoke(
                            self.tiles[size, whole], [slab, b, line, *places, a_step, count, rows, *flags]
                        )
