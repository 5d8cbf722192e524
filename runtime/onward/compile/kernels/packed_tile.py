"""What a packed product is made of: copies of slabs of A, and register tiles on slabs and panels."""

from __future__ import annotations

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.values import Int, Value
from onward.compile.kernels.expression import emit
from onward.compile.kernels.gemm import Gemm
from onward.compile.kernels.product_blocking import ProductBlocking
from onward.compile.kernels.tile import IDENTITY

__all__ = ["define_slab", "define_tile"]


def define_slab(module: Module, spec: Gemm, blocking: ProductBlocking) -> Function:
    """Write a function of (a, slabs, rows, k): rows of A into slabs."""
    f = module.function("slab", (("a", "ptr"), ("slab", "ptr"), ("rows", "i64"), ("k", "i64")))
    a, slab, rows, k = f.arguments
    lanes, most = f.lanes, blocking.rows[0]
    if blocking.transposed:
        whole = rows // most
        starts = range(0, most, lanes)

        def line(source: Value, sink: Value, masks: list[Value | None]) -> None:
            # What the last vector stores past a slab's row, the next one overwrites.
            for start, mask in zip(starts, masks, strict=True):
                f.vstore(f.vload(source, start, mask), sink, start)

        if not blocking.in_place:
            masks = [f.mask(most - start) for start in starts]
            with f.range(0, k) as i, f.range(0, whole) as s:
                line(f.at(a, i * spec.a_k + s * most), f.at(slab, s * blocking.slab + i * most), masks)
        over = rows - whole * most
        with f.when(f.compare("sgt", over, 0)):
            masks = [f.mask(over - start) for start in starts]
            a, slab = f.at(a, whole * most), f.at(slab, whole * blocking.slab)
            with f.range(0, k) as i:
                line(f.at(a, i * spec.a_k), f.at(slab, i * most), masks)
    else:
        with f.range(0, rows) as i:
            source, sink = f.at(a, i * spec.a_row), f.at(slab, i * blocking.a_row)
            if spec.a_k == 1:
                even = k // lanes * lanes
                with f.range(0, even, lanes) as j:
                    f.vstore(f.vload(source, j), sink, j)
                with f.when(f.compare("slt", even, k)):
                    f.vstore(f.vload(source, even, f.mask(k - even)), sink, even)
            else:
                with f.range(0, k) as j:
                    f.store(f.load(source, None, j * spec.a_k), f.at(sink, j))
    f.ret()
    return f


def define_tile(
    module: Module, name: str, spec: Gemm, blocking: ProductBlocking, size: int, columns: int
) -> Function:
    """Write a function of (a, b, ahead, c, p with `partial`, e0, ..., step, k, rows): `rows` rows of `size`.

    `step` is A's for each k; what is `ahead` is fetched. With several blocks of k also of two flags: whether
    to add to the sum so far, which is in p or c, and whether this is the last block.
    """
    epilogue = spec.epilogue
    names = [
        "a",
        "b",
        "ahead",
        "c",
        *(["p"] if spec.partial else []),
        *(f"e{i}" for i in range(len(epilogue.operands))),
    ]
    counts = ["step", "k", "rows", *([] if blocking.blocks == 1 else ["more", "last"])]
    f = module.function(name, [(n, "ptr") for n in names] + [(n, "i64") for n in counts])
    given = dict(zip((*names, *counts), f.arguments, strict=True))
    lanes = f.lanes
    vectors = -(-columns // lanes)
    masks = [f.mask(columns - v * lanes) for v in range(vectors)]
    more: Int = given.get("more", int(spec.accumulate))
    last: Int = given.get("last", 1)
    so_far = given.get("p", given["c"])
    for i in range(size):
        for v in range(vectors):
            f.prefetch(so_far, i * spec.c_row + v * lanes, level=1, write=True)

    def add(_: Value, carry: list[Value]) -> list[Value]:
        b = [f.vload(carry[1], v * lanes) for v in range(vectors)]
        out = [f.at(carry[0], given["step"]), f.at(carry[1], blocking.width)]
        if blocking.in_place and not blocking.dense:
            f.prefetch(carry[0], 2 * blocking.rows[0] - 1, level=1)
        for i in range(blocking.fetched):
            f.prefetch(carry[2], i * spec.a_row, level=1)
        out.append(f.at(carry[2], blocking.walk))
        for i in range(size):
            scalar = f.broadcast(carry[0], i * blocking.a_row)
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
        tile = f.local(f.float, size * vectors * lanes)
        if isinstance(last, int):
            finished()
        else:
            with f.when(f.compare("ne", last, 0)):
                finished()
            with f.when(f.compare("eq", last, 0)):
                stored()
    f.ret()
    return f
