"""Products with quantised weights in bytes: each row of A is rounded to 8 bits by its own largest magnitude.

With s = max |A[i]| / 127 and q = round(A[i] · 127 / max |A[i]|), C[i] is s times the sum over blocks of
scale · (Σ q · w), the inner sums in int32 and exact. That is what `accuracy_level` 4 of MatMulNBits allows
(onnxruntime rounds by blocks of a row). A row of zeros gives zeros; one with NaN or an infinity gives NaN.

Or all of A is rounded by one scale and zero point that are known when it runs, as DynamicQuantizeLinear does;
then C is the sums themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Value
from onward.compile.kernels.expression import emit
from onward.compile.kernels.gemm import Gemm, describe, result_of
from onward.compile.kernels.integer_weights import COLUMNS, IntegerWeights
from onward.compile.kernels.kernel import Affine, Kernel, integer, read, slot_values, write

__all__ = ["dots_bytes", "integer_dots", "pack_dots", "suits_dots"]

_GROUP = 4
"""Bytes of a lane, which one instruction multiplies and adds up."""

_ROUND = 16
"""Rows of B that are whole vectors of A's bytes."""

_VECTORS = 4
_ROWS = 6, 2, 1
_ROWS_OF_BLOCKS = 3, 1
"""Rows of tiles of four vectors: 24 sums, 4 vectors of B and one of A fit 32 registers; so do 12 sums of a
block and 12 of all."""

_HELD = 48
"""Rows of A that are turned into bytes at a time; tiles of all columns then read them from a near cache."""

_LIMIT = 127
_SHIFT = 128
"""A's integers reach up to one, and are stored as unsigned bytes with the other added."""

_DEEPEST = (1 << 31) // (255 * 128)
"""How deep products may be whose sums int32 surely holds."""


def suits_dots(weights: IntegerWeights) -> bool:
    """Whether sums of bytes are whole instructions, int32 holds them, and nothing is taken off integers."""
    whole = weights.blocks == 1 or weights.block % _ROUND == 0
    return whole and not weights.zeros and weights.k <= _DEEPEST


def _line(weights: IntegerWeights) -> int:
    """Bytes of a row of A."""
    return -(-weights.k // _ROUND) * _ROUND


def _groups(weights: IntegerWeights) -> int:
    """Groups of four lines of B."""
    return _line(weights) * weights.bits // 8 // _GROUP


def _block_groups(weights: IntegerWeights) -> int:
    """Those of a block of rows that share scales."""
    return _groups(weights) if weights.blocks == 1 else weights.block * weights.bits // 8 // _GROUP


def dots_bytes(weights: IntegerWeights) -> int:
    """Bytes of a weight in groups."""
    return -(-weights.n // COLUMNS) * COLUMNS * _GROUP * _groups(weights)


def pack_dots(weights: IntegerWeights, target: Target) -> Kernel:
    """Rows of bytes into groups of four, and what A's shift adds to sums. Slots: b, packed, sums.

    sums, [blocks, n] int32, is -128 times the sum of each block's integers. Those of 4 bits count
    sixteenfold, as they stand in the high bits of a byte.
    """
    module = Module(target)
    f = module.entry()
    parameters = (*read("b"), *write("packed", "sums"))
    values = slot_values(f, parameters)
    lanes, lines, groups = f.lanes, weights.lines, _groups(weights)
    whole, byte = f"<{lanes} x i32>", f.splat(f.value(255, "i32"))
    low, high = f.share(-(-weights.n // COLUMNS), *f.arguments[1:])
    with f.range(low, high) as block, f.range(0, COLUMNS, lanes) as start:
        column = block * COLUMNS + start
        left = f.smax(0, f.value(weights.n) - column)
        sink = f.at(values["packed"], block * (groups * COLUMNS) + start, "i32")

        def word(group: Value, carry: Sequence[Value]) -> list[Value]:
            bits, total = f.zero(whole), carry[0]
            for j in range(_GROUP):
                line = group * _GROUP + j
                mask = f.mask(f.select(f.compare("slt", line, lines), left, f.value(0)))
                x = f.cast("sext", f.vload(values["b"], line * weights.n + column, mask, "i8"), whole)
                bits = f.binary("or", bits, f.binary("shl", f.binary("and", x, byte), 8 * j))
                if weights.bits == 4:
                    total = total + f.binary("ashr", f.binary("shl", x, 28), 24)
                    x = f.binary("and", x, ~15)
                total = total + x
            f.store(bits, sink, group * (COLUMNS // lanes))
            return [total]

        with f.range(0, weights.blocks) as part:
            first = part * _block_groups(weights)
            last = f.smin(first + _block_groups(weights), groups)
            (total,) = f.loop(first, last, 1, [f.zero(whole)], body=word)
            place = part * weights.n + column
            f.vstore(total * f.value(-_SHIFT, whole), values["sums"], place, f.mask(left))
    f.ret()
    return Kernel(
        f"pack_dots {weights.k}x{weights.n} int{weights.bits}",
        module.text(),
        parameters,
        bytes=Affine(lines * weights.n + dots_bytes(weights)),
        units=Affine(-(-weights.n // COLUMNS)),
    )


def integer_dots(spec: Gemm, target: Target, *, by_tensor: bool = False) -> Kernel:
    """The product. Slots: a, b, sums, scale, c, e0, ... (epilogue operands), scratch, batch (m).

    A's rows are contiguous. `by_tensor`: A has one scale and zero point of uint8, in slots `a_scale` and
    `a_zero`, and there is no slot `scale`.
    """
    weights = spec.weights
    assert weights is not None
    module = Module(target)
    f = module.entry()
    extra = tuple(f"e{i}" for i in range(len(spec.epilogue.operands)))
    reads = read("a", "b", "sums", *(("a_scale", "a_zero") if by_tensor else ("scale",)))
    parameters = (*reads, *result_of(spec), *read(*extra), *write("scratch"), *integer("batch"))
    values = slot_values(f, parameters)
    line, groups = _line(weights), _groups(weights)
    held = _HELD * (line + _GROUP * _ROUND)
    m = values["batch"]
    _, thread, threads = f.arguments
    rounded = f.at(values["scratch"], thread * held, "i8")
    factors = f.at(rounded, _HELD * line, "i8")
    turn = (_define_rounding_by_tensor if by_tensor else _define_rounding)(module, spec)
    heights = _ROWS if weights.blocks == 1 else _ROWS_OF_BLOCKS
    tiles = {rows: _define_tile(module, spec, rows, by_tensor=by_tensor) for rows in heights}
    whole = (values["a_scale"], values["a_zero"]) if by_tensor else (factors,)
    # Few rows are shared by columns: every thread rounds all of them.
    parts = -(-weights.n // COLUMNS)
    few = f.compare("sle", m, _HELD)
    step = f.smax(1, f.smin(_HELD, (m + (threads - 1)) // threads))
    step = f.select(few, f.value(_HELD), step)
    count = (m + (step - 1)) // step
    low, high = f.share(count, thread, threads)
    left, right = f.share(parts, thread, threads)
    low, high = f.select(few, f.value(0), low), f.select(few, count, high)
    left, right = f.select(few, left, f.value(0)), f.select(few, right, f.value(parts))
    with f.range(low, high) as block:
        first = block * step
        rows = f.smin(step, m - first)
        f.invoke(turn, [f.at(values["a"], first * spec.a_row), rounded, *whole, rows])
        with f.range(left, right) as part:
            column = part * COLUMNS
            panel = f.at(values["b"], part * (groups * COLUMNS), "i32")
            done: Value = f.value(0)
            for height, tile in tiles.items():
                until = done + (rows - done) // height * height
                with f.range(done, until, height) as row:
                    c = (first + row) * spec.c_row + column
                    operands = [
                        f.at(values[f"e{i}"], column if kind == "channel" else c)
                        for i, kind in enumerate(spec.epilogue.operands)
                    ]
                    a, sums = f.at(rounded, row * line, "i8"), f.at(values["sums"], column, "i32")
                    # by tensor: the zero point, and nothing
                    factor = values["a_zero"] if by_tensor else f.at(factors, row)
                    scale = sums if by_tensor else f.at(values["scale"], column)
                    given = [a, factor, panel, sums, scale, f.at(values["c"], c), *operands]
                    f.invoke(tile, [*given, f.value(weights.n) - column])
                done = until
    f.ret()
    return describe(spec, "integer_dots", module.text(), parameters, scratch=held)


def _define_rounding(module: Module, spec: Gemm) -> Function:
    """Write a function of (a, bytes, factors, rows): rows of A as unsigned bytes, and what one is worth."""
    weights = spec.weights
    assert weights is not None
    f = module.function("rounding", [("a", "ptr"), ("bytes", "ptr"), ("factors", "ptr"), ("rows", "i64")])
    a, out, factors, rows = f.arguments
    lanes, k = f.lanes, weights.k
    tail = k % lanes
    even = k - tail
    turned = f"<{lanes} x i8>"
    # Rows of B of 4 bits share bytes: the even ones of eight come first.
    order = [8 * half + i for half in range(lanes // 8) for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    with f.range(0, rows) as row:
        source, sink = f.at(a, row * spec.a_row), f.at(out, row * _line(weights), "i8")

        def larger(i: Value, carry: Sequence[Value], source: Value = source) -> list[Value]:
            return [f.maximum(carry[0], f.abs(f.vload(source, i)))]

        (most,) = f.loop(0, even, lanes, [f.zero()], body=larger)
        if tail:
            most = f.maximum(most, f.abs(f.vload(source, even, f.mask(tail))))
        extent = f.reduce(most, f.maximum)
        limit = f.value(float(_LIMIT), f.float)
        inverse = f.select(f.compare("oeq", extent, 0.0), f.value(0.0, f.float), limit / extent)
        finite = f.compare("olt", extent, f.value(float("inf"), f.float))
        f.store(f.select(finite, extent / limit, f.value(float("nan"), f.float)), factors, row)
        spread = f.splat(inverse)
        magic = f.splat(f.value(float(3 * (1 << 22) + _SHIFT), f.float))

        def put(x: Value, place: Value | int, sink: Value = sink, spread: Value = spread) -> None:
            # Added to 1.5 * 2^23, a number is rounded to a whole one, which then is in the lowest bits.
            near = f.exact("fadd", f.exact("fmul", x, spread), magic)
            bits = f.cast("trunc", f.bitcast(near, f"<{lanes} x i32>"), turned)
            f.vstore(bits if weights.bits == 8 else f.shuffle(bits, bits, order), sink, place)

        with f.range(0, even, lanes) as i:
            put(f.vload(source, i), i)
        if tail:
            put(f.vload(source, even, f.mask(tail)), even)
    f.ret()
    return f


def _define_rounding_by_tensor(module: Module, spec: Gemm) -> Function:
    """Write a function of (a, bytes, scale, zero, rows): rows of A as DynamicQuantizeLinear's bytes."""
    weights = spec.weights
    assert weights is not None
    names = ("a", "bytes", "scale", "zero")
    f = module.function("rounding", [*((n, "ptr") for n in names), ("rows", "i64")])
    a, out, scale, zero, rows = f.arguments
    lanes, tail = f.lanes, weights.k % f.lanes
    divisor = f.broadcast(scale)
    shift = f.splat(f.cast("uitofp", f.load(zero, "i8"), f.float))

    def put(x: Value, sink: Value, place: Value | int) -> None:
        whole = f.intrinsic("nearbyint", x.type, (x / divisor,)) + shift
        above = f.select(f.compare("ogt", whole, 0.0), whole, 0.0)  # 0 for NaN too
        inside = f.select(f.compare("olt", above, 255.0), above, 255.0)
        q = f.cast("fptoui", inside, f"<{lanes} x i32>")
        f.vstore(f.cast("trunc", q, f"<{lanes} x i8>"), sink, place)

    with f.range(0, rows) as row:
        source, sink = f.at(a, row * spec.a_row), f.at(out, row * _line(weights), "i8")
        with f.range(0, weights.k - tail, lanes) as i:
            put(f.vload(source, i), sink, i)
        if tail:
            put(f.vload(source, weights.k - tail, f.mask(tail)), sink, weights.k - tail)
    f.ret()
    return f


def _define_tile(module: Module, spec: Gemm, rows: int, *, by_tensor: bool) -> Function:
    """Write a function of (A's bytes, factors, B, sums, scale, c, e0, ..., columns): a tile, finished."""
    weights, kinds = spec.weights, spec.epilogue.operands
    assert weights is not None
    names = ("a", "factors", "b", "sums", "scale", "c", *(f"e{i}" for i in range(len(kinds))))
    f = module.function(f"tile_{rows}", [*((n, "ptr") for n in names), ("columns", "i64")])
    a, factors, b, sums, scale, c, *sources, columns = f.arguments
    lanes, vectors = f.lanes, _VECTORS
    whole, packed = f"<{lanes} x i32>", f"<{lanes * _GROUP} x i8>"
    masks = [f.mask(columns - v * lanes) for v in range(vectors)]
    share = 8 // weights.bits
    unit = 1.0 if weights.bits == 8 else 1 / 16

    def step(group: Value, carry: Sequence[Value]) -> list[Value]:
        out = list(carry)
        stored = [f.vload(b, group * COLUMNS + v * lanes, element="i32") for v in range(vectors)]
        for half in range(share):
            right = stored
            if share == 2:
                high = f.value(-0x0F0F0F10, whole)  # 0xF0F0F0F0
                right = [f.binary("and", x if half else f.binary("shl", x, 4), high) for x in stored]
            columns_of_b = [f.bitcast(x, packed) for x in right]
            for r in range(rows):
                four = f.load(f.at(a, r * _line(weights), "i8"), "i32", group * share + half)
                row_of_a = f.bitcast(f.splat(four), packed)
                for v in range(vectors):
                    n = r * vectors + v
                    out[n] = f.call(
                        "llvm.x86.avx512.vpdpbusd.512", whole, (out[n], row_of_a, columns_of_b[v])
                    )
        return out

    def block_of(part: Value, first: Value, last: Value) -> list[Value]:
        """The sums of a block as floats, scaled."""
        row = part * weights.n
        start = [f.vload(sums, row + v * lanes, masks[v], "i32") for v in range(vectors)]
        if by_tensor:
            zero = f.splat(f.cast("zext", f.load(factors, "i8"), "i32"))
            start = [f.binary("ashr", x, _SHIFT.bit_length() - 1) * zero for x in start]
        total = f.loop(first, last, 1, start * rows, body=step, nonempty=True)
        if by_tensor:
            return [f.cast("sitofp", x, f.vector) for x in total]
        given = [f.vload(scale, row + v * lanes, masks[v]) for v in range(vectors)]
        return [f.cast("sitofp", x, f.vector) * given[i % vectors] for i, x in enumerate(total)]

    groups, every = _groups(weights), _block_groups(weights)
    if weights.blocks == 1:
        total = block_of(f.value(0), f.value(0), f.value(groups))
    else:

        def add(part: Value, carry: Sequence[Value]) -> list[Value]:
            first = part * every
            found = block_of(part, first, f.smin(first + every, groups))
            return [x + y for x, y in zip(carry, found, strict=True)]

        nothing = [f.zero()] * (rows * vectors)
        total = f.loop(0, weights.blocks, 1, nothing, body=add, nonempty=True)
    for r in range(rows):
        for v in range(vectors):
            result = total[r * vectors + v]
            operands = [result if by_tensor else result * (f.broadcast(factors, r) * unit)]
            for source, kind in zip(sources, kinds, strict=True):
                first = v * lanes if kind == "channel" else r * spec.c_row + v * lanes
                operands.append(f.vload(source, first, masks[v]))
            (result,) = emit(f, [spec.epilogue.expression], operands)
            f.vstore(result, c, r * spec.c_row + v * lanes, masks[v])
    f.ret()
    return f
