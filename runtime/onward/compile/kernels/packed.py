"""Large matrix products: what a tile reads is first put where the caches serve it best.

C is computed block by block of k. For each block, panels of B (`kernels/panels.py`) stay in the second-level
cache while slabs of A, as many rows as a tile has, are copied to a piece of memory that stays in the first:
rows that are a power of two apart would fall on the same cache lines. Each thread packs what it reads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from onward.compile.codegen.builder import Function, Int, Module, Value
from onward.compile.codegen.target import Target
from onward.compile.kernels.expression import emit
from onward.compile.kernels.gemm import Gemm, describe
from onward.compile.kernels.kernel import Kernel, slot_values
from onward.compile.kernels.panels import block_width, define_pack, whole_lanes
from onward.compile.kernels.tile import IDENTITY, rows_for

__all__ = ["needs_partial", "packed_gemm"]

_DEPTH = 256
"""Rows of a panel at most: a panel and a slab of A are to fit the first-level cache."""

_DEPTH_TURNED = 192
"""The same where A is transposed: a slab then takes a whole cache line for each row of B."""

_PANELS = 1 << 18
"""Floats of a thread's panels: half of a second-level cache."""

_AREA = 1 << 17
"""Floats of a piece of C that stays in the second-level cache beside the panels."""

_UNBOUNDED = 1 << 62

_GROUP = 16
"""Slabs of a transposed A that are copied together: whole cache lines then count once."""

_FAR = 1024
"""Floats between lines of a transposed A from which they fall on few sets of a cache: it is then copied."""

_FETCHED = 4
"""Rows of the next slab that a tile fetches at most while it computes, a line at a time."""

_COPY = 8
"""Multiplications by one element that take as long as copying it."""


def needs_partial(k: int | None) -> bool:
    """Whether C is stored more than once, so that an epilogue operand may not be C itself."""
    return k is None or k > _DEPTH_TURNED


def packed_gemm(spec: Gemm, target: Target, name: str = "packed_gemm") -> Kernel:
    """The kernel. Slots: a, b, c, e0, ... (epilogue operands), p with `partial`, scratch, batch."""
    module = Module(target)
    f = module.entry()
    extra = tuple(f"e{i}" for i in range(len(spec.epilogue.operands)))
    slots = ("a", "b", "c", *extra, *(("p",) if spec.partial else ()), "scratch", "batch")
    values = slot_values(f, slots, frozenset(("batch",)))
    plan = _plan(spec, target)
    _Driver(f, spec, plan, values).emit()
    f.ret()
    return describe(spec, name, module.text(), slots, scratch=4 * plan.scratch)


@dataclass(frozen=True)
class _Plan:
    """How a product is cut.

    Attributes:
        vectors: of a tile.
        rows: of a tile; then those of tiles for what is left, of which some rows may be idle.
        depth: of a block of k, at most.
        blocks: of k; None when k is known at run time only.
        panels: of C, the narrower last one included.
        chunk: panels that stay in the second-level cache while rows pass.
        own: whether the kernel packs them.
        tall: rows of C that pass at once.
        turned: whether A's rows, not its columns, are contiguous.
        in_place: whether slabs of a transposed A are read where they are.
        group: slabs of A that are copied together.
        slab: floats of a slab; `a_row` and `a_k` are the steps of its rows and of k in it.
        dense: whether A is one run of memory, so that the next slab follows at once.
        fetched: lines of the next slab that a tile fetches, `line` floats apart, `walk` floats for each k.
    """

    vectors: int
    width: int
    rows: tuple[int, ...]
    depth: int
    blocks: int | None
    panels: int
    chunk: int
    own: bool
    turned: bool
    tall: int
    in_place: bool
    group: int
    slab: int
    dense: bool
    fetched: int
    walk: int
    line: int
    a_row: int
    a_k: int

    @property
    def panel(self) -> int:
        """Floats from a panel of B to the next: not a power of two, or all would fall on the same sets."""
        return (self.depth + 1) * self.width

    @property
    def part(self) -> int:
        """Floats between what the tiles of neighbouring panels fetch."""
        return self.walk * self.line if self.dense else self.fetched * self.line

    @property
    def packed(self) -> int:
        """Floats of the panels packed together."""
        return self.chunk * self.panel if self.own else 0

    @property
    def scratch(self) -> int:
        """Floats a thread."""
        return self.packed + self.group * self.slab


def _even(total: int, most: int) -> int:
    """The size of nearly equal pieces of at most `most`."""
    pieces = -(-total // max(1, most))
    return -(-total // pieces)


def _plan(spec: Gemm, target: Target) -> _Plan:
    lanes = target.lanes
    width = block_width(spec.n, target)
    most = rows_for(target, width // lanes)
    rows = tuple(sorted({most, -(-most * 4 // 7), -(-most * 2 // 7)}, reverse=True))
    turned = spec.a_row == 1 and spec.a_k != 1
    most_depth = _DEPTH_TURNED if turned else _DEPTH
    if spec.k is None:
        depth, blocks = most_depth, None
    else:
        blocks = max(1, -(-spec.k // most_depth))
        depth = whole_lanes(max(1, -(-spec.k // blocks)), target)
        blocks = max(1, -(-spec.k // depth))
    panels = -(-spec.n // width)
    chunk, tall = panels, _UNBOUNDED
    if turned and blocks != 1 and spec.m is not None:
        # C stays in the cache while k passes: in pieces as square as its shape allows.
        side = int(_AREA**0.5)
        chunk = max(side, _AREA // spec.m) // width
        slabs = -(-spec.m // most)
        tall = most * _even(slabs, max(side, _AREA // spec.n) // most)
    chunk = _even(panels, min(chunk, _PANELS // ((depth + 1) * width)))
    in_place = turned and spec.a_k < _FAR
    dense = blocks == 1 and ((spec.a_row, spec.a_k) == (spec.k, 1) or (turned and spec.a_k == spec.m))
    pitch = depth + lanes
    return _Plan(
        vectors=width // lanes,
        width=width,
        rows=rows,
        depth=depth,
        blocks=blocks,
        panels=panels,
        chunk=chunk,
        own=not spec.b_block,
        turned=turned,
        tall=tall,
        in_place=in_place,
        group=_GROUP if turned and not in_place else 1,
        slab=whole_lanes(depth * most + lanes, target) if turned else pitch * most,
        dense=dense,
        fetched=1 if dense else 0 if turned else min(_FETCHED, -(-most // chunk)),
        walk=-(-most // chunk) if dense else 0 if turned else 1,
        line=spec.a_row,
        a_row=1 if turned else pitch,
        a_k=most if turned else 1,
    )


@final
class _Driver:
    def __init__(self, f: Function, spec: Gemm, plan: _Plan, values: dict[str, Value]) -> None:
        self.f = f
        self.spec = spec
        self.plan = plan
        self.values = values
        self.m: Int = values["batch"] if spec.m is None else spec.m
        self.k: Int = values["batch"] if spec.k is None else spec.k
        rest = spec.n % plan.width
        columns = {True: plan.width if spec.n >= plan.width else 0, False: rest}
        self.kinds = {whole: count for whole, count in columns.items() if count}
        names = {True: "whole", False: "rest"}
        self.pack = (
            define_pack(f.module, plan.width, plan.panel, spec.b_column, spec.b_k) if plan.own else None
        )
        self.tiles = {
            (size, whole): self._tile(size, count, names[whole])
            for size in plan.rows
            for whole, count in self.kinds.items()
        }
        self.copy = self._copy()
        _, thread, _ = f.arguments
        self.panels = f.at(values["scratch"], thread * plan.scratch)
        self.slab = f.at(self.panels, plan.packed)

    # -- who computes what ---------------------------------------------------------------------------------

    def emit(self) -> None:
        f, spec, plan = self.f, self.spec, self.plan
        _, thread, threads = f.arguments
        grain = plan.rows[-1]
        m = f.value(self.m)
        parts = (m + (grain - 1)) // grain
        if not spec.outer:
            by_rows = self._by_rows(parts * grain, threads)
            low, high = f.share(parts, thread, threads)
            left, right = f.share(plan.panels, thread, threads)
            nothing, everything = f.value(0), f.value(plan.panels)
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
            self._matrix(self._offsets(index), first, last, 0, plan.panels)

    def _by_rows(self, rows: Value, threads: Value) -> Value:
        """Whether threads share C's rows; else its columns.

        What costs less in rows x columns of a thread, where copying a row of B or a column of A costs about
        as much as multiplying it by `_COPY` others.
        """
        f, plan = self.f, self.plan
        copy_b = _COPY if plan.own else 0
        columns = plan.panels * plan.width
        grain = plan.rows[-1]
        share = (rows + (threads * grain - 1)) // (threads * grain) * grain
        panels = (threads + (plan.panels - 1)) // threads * plan.width
        by_rows = share * (columns + _COPY) + copy_b * columns
        by_columns = rows * (panels + _COPY) + panels * copy_b
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
        f, plan = self.f, self.plan
        with f.range(first, last, plan.tall) as top, f.range(left, right, plan.chunk) as start:
            bottom = f.smin(top + plan.tall, last)
            end = f.smin(start + plan.chunk, f.value(right))
            if plan.blocks == 1:
                self._block(at, top, bottom, start, end, f.value(0), f.value(self.k))
            else:
                depth: Int = plan.depth
                if plan.blocks is None:
                    # Blocks of equal size; an empty sum has one too, so that C is stored.
                    count = f.smax(1, (f.value(self.k) + (plan.depth - 1)) // plan.depth)
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
        f, plan, spec = self.f, self.plan, self.spec
        if self.pack is not None:
            b = at[1] + k0 * spec.b_k + start * (plan.width * spec.b_column)
            columns = f.smin(end * plan.width, spec.n) - start * plan.width
            f.invoke(self.pack, [f.at(self.values["b"], b), self.panels, columns, count])
            panels, step = f.at(self.panels, start * -plan.panel), plan.panel
        else:
            panels = f.at(self.values["b"], at[1] + k0 * plan.width)
            step = spec.b_block
        most = plan.rows[0]
        group = plan.group * most
        with f.range(first, last, group) as base:
            above = f.smin(base + group, last)
            source = f.at(self.values["a"], at[0] + base * spec.a_row + k0 * spec.a_k)
            if not plan.in_place:
                f.invoke(self.copy, [source, self.slab, above - base, count])
            with f.range(base, above, most) as row:
                rows = f.smin(most, last - row)
                step_a: Int = plan.a_k
                slab = f.at(self.slab, (row - base) // most * plan.slab)
                if plan.in_place:
                    slab, step_a = self._read_in_place(source, rows, count)
                ahead = self._next_slab(at[0], first, last, row, k0, count)
                c = at[2] + row * spec.c_row
                self._slab(slab, step_a, panels, step, c, rows, start, end, k0, count, ahead)

    def _read_in_place(self, source: Value, rows: Value, count: Value) -> tuple[Value, Value]:
        """Where a slab of a transposed A is, and its step of k: a copy if a tile would read past it."""
        f, most = self.f, self.plan.rows[0]
        part = f.compare("slt", rows, most)
        with f.when(part):
            f.invoke(self.copy, [source, self.slab, rows, count])
        return f.select(part, self.slab, source), f.select(part, f.value(most), f.value(self.spec.a_k))

    def _next_slab(self, a: Value, first: Value, last: Value, row: Value, k0: Value, count: Value) -> Value:
        """What is read after the slab that starts at `row`: of the next rows, or of the next block of k."""
        f, spec, most = self.f, self.spec, self.plan.rows[0]
        if self.plan.dense and spec.k is not None:
            # A transposed A is fetched a whole matrix ahead: a slab of it is spread over all of it.
            distance = spec.m if self.plan.turned and spec.m is not None else most
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
        with self.f.when(self.f.compare("slt" if whole else "sge", panel, self.spec.n // self.plan.width)):
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
        f, plan = self.f, self.plan
        flags = []
        if plan.blocks != 1:
            more = f.value(1) if self.spec.accumulate else f.cast("zext", f.compare("sgt", k0, 0), "i64")
            flags = [more, f.cast("zext", f.compare("sge", k0 + count, self.k), "i64")]
        for size, smaller in zip(plan.rows, (*plan.rows[1:], 0), strict=True):
            fits = f.binary("and", f.compare("sle", rows, size), f.compare("sgt", rows, smaller))
            with f.when(fits), f.range(start, end) as panel:
                line = f.at(ahead, (panel - start) * plan.part)
                column = panel * plan.width
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
                        b = f.at(panels, panel * step)
                        f.invoke(
                            self.tiles[size, whole], [slab, b, line, *places, a_step, count, rows, *flags]
                        )

    # -- functions -----------------------------------------------------------------------------------------

    def _copy(self) -> Function:
        """A function of (a, slabs, rows, k): rows of A into slabs."""
        plan, spec = self.plan, self.spec
        f = self.f.module.function("slab", (("a", "ptr"), ("slab", "ptr"), ("rows", "i64"), ("k", "i64")))
        a, slab, rows, k = f.arguments
        lanes, most = f.lanes, plan.rows[0]
        if plan.turned:
            whole = rows // most
            starts = range(0, most, lanes)

            def line(source: Value, sink: Value, masks: list[Value | None]) -> None:
                # What the last vector stores past a slab's row, the next one overwrites.
                for start, mask in zip(starts, masks, strict=True):
                    f.vstore(f.vload(source, start, mask), sink, start)

            if not plan.in_place:
                masks = [f.mask(most - start) for start in starts]
                with f.range(0, k) as i, f.range(0, whole) as s:
                    line(f.at(a, i * spec.a_k + s * most), f.at(slab, s * plan.slab + i * most), masks)
            over = rows - whole * most
            with f.when(f.compare("sgt", over, 0)):
                masks = [f.mask(over - start) for start in starts]
                a, slab = f.at(a, whole * most), f.at(slab, whole * plan.slab)
                with f.range(0, k) as i:
                    line(f.at(a, i * spec.a_k), f.at(slab, i * most), masks)
        else:
            with f.range(0, rows) as i:
                source, sink = f.at(a, i * spec.a_row), f.at(slab, i * plan.a_row)
                if spec.a_k == 1:
                    even = k // lanes * lanes
                    with f.range(0, even, lanes) as j:
                        f.vstore(f.vload(source, j), sink, j)
                    with f.when(f.compare("slt", even, k)):
                        f.vstore(f.vload(source, even, f.mask(k - even)), sink, even)
                else:
                    with f.range(0, k) as j:
                        f.store(f.load(source, "float", j * spec.a_k), f.at(sink, j))
        f.ret()
        return f

    def _tile(self, size: int, columns: int, name: str) -> Function:
        """A function of (slab, panel, c, p with `partial`, e0, ..., k, rows): `rows` of at most `size` rows.

        With several blocks of k also of two flags: whether to add to what is stored, and whether this is the
        last block. The sum so far is in p, or in c.
        """
        spec, plan = self.spec, self.plan
        epilogue = spec.epilogue
        names = [
            "a",
            "b",
            "ahead",
            "c",
            *(["p"] if spec.partial else []),
            *(f"e{i}" for i in range(len(epilogue.operands))),
        ]
        counts = ["step", "k", "rows", *([] if plan.blocks == 1 else ["more", "last"])]
        f = self.f.module.function(
            f"tile_{size}_{name}", [(n, "ptr") for n in names] + [(n, "i64") for n in counts]
        )
        given = dict(zip((*names, *counts), f.arguments, strict=True))
        lanes = f.lanes
        vectors = -(-columns // lanes)
        masks = [f.mask(columns - v * lanes) for v in range(vectors)]
        more: Int = given.get("more", int(spec.accumulate))
        last: Int = given.get("last", 1)
        so_far = given.get("p", given["c"])
        for i in range(size):
            for v in range(vectors):
                f.prefetch(so_far, i * spec.c_row + v * lanes, write=True)

        def add(_: Value, carry: list[Value]) -> list[Value]:
            b = [f.vload(carry[1], v * lanes) for v in range(vectors)]
            out = [f.at(carry[0], given["step"]), f.at(carry[1], plan.width)]
            if plan.in_place and not plan.dense:
                f.prefetch(carry[0], 2 * plan.rows[0] - 1)
            for i in range(plan.fetched):
                f.prefetch(carry[2], i * spec.a_row)
            out.append(f.at(carry[2], plan.walk))
            for i in range(size):
                scalar = f.broadcast(carry[0], i * plan.a_row)
                out += [f.fma(scalar, b[v], carry[3 + i * vectors + v]) for v in range(vectors)]
            return out

        start = [given["a"], given["b"], given["ahead"], *([f.zero()] * (size * vectors))]
        total = f.loop(0, given["k"], carry=start, body=add)[3:]

        # Idle rows read and write the last one that counts, before it does: rows are stored backwards.
        edge = given["rows"] - 1
        starts = [f.smin(i, edge) * spec.c_row for i in range(size)]
        places = [(i, v, i * vectors + v) for i in reversed(range(size)) for v in range(vectors)]

        def accumulated(_: Value, carry: list[Value]) -> list[Value]:
            out = list(carry)
            for i, v, at in places:
                out[at] = carry[at] + f.vload(so_far, starts[i] + v * lanes, masks[v])
            return out

        total = f.loop(0, more, carry=total, body=accumulated)

        def stored() -> None:
            for i, v, at in places:
                f.vstore(total[at], so_far, starts[i] + v * lanes, masks[v])

        def finished() -> None:
            for i, v, at in places:
                f.vstore(total[at], tile, (i * vectors + v) * lanes)
            with f.range(0, given["rows"]) as row:
                for v in range(vectors):
                    operands = [f.vload(tile, (row * vectors + v) * lanes)]
                    for n, kind in enumerate(epilogue.operands):
                        first = f.value(v * lanes) if kind == "channel" else row * spec.c_row + v * lanes
                        operands.append(f.vload(given[f"e{n}"], first, masks[v]))
                    (result,) = emit(f, [epilogue.expression], operands)
                    f.vstore(result, given["c"], row * spec.c_row + v * lanes, masks[v])

        if epilogue == IDENTITY and not spec.partial:
            stored()
        else:
            tile = f.local("float", size * vectors * lanes)
            if isinstance(last, int):
                finished()
            else:
                with f.when(f.compare("ne", last, 0)):
                    finished()
                with f.when(f.compare("eq", last, 0)):
                    stored()
        f.ret()
        return f
