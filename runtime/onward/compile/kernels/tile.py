"""The one microkernel: C[c[m]] (+)= sum over k of A[a[m] + k * a_step] * B[k * b_step], in registers.

Rows are compile-time offsets, so the same form serves convolution in every direction and matrix products.
B and C are vectors along their last axis; A is broadcast. Reduction loops may nest around k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.target import Target
from onward.compile.codegen.values import Int, Value
from onward.compile.kernels.expression import Expression, emit, flops, inputs_of, operand

__all__ = ["ACCUMULATOR", "IDENTITY", "Epilogue", "Tile", "define", "rows_for", "split", "vectors_for"]


ACCUMULATOR = operand(0)
"""The tile's value in an epilogue expression."""


@dataclass(frozen=True)
class Epilogue:
    """What happens to a tile before it is stored: `expression` of operand 0, the accumulator, and others.

    `operands` gives the kind of operands 1, 2, ...: "channel" is a vector along C's last axis, "full" has C's
    own layout (it may be C itself).
    """

    expression: Expression = ACCUMULATOR
    operands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if inputs_of([self.expression]) > 1 + len(self.operands):
            raise ValueError(f"the epilogue uses more operands than the {len(self.operands)} it declares")

    @property
    def flops(self) -> int:
        """Arithmetic operations per element."""
        return flops([self.expression])


IDENTITY = Epilogue()
"""Store the tile as it is."""


@dataclass(frozen=True)
class Tile:
    """A register tile of len(a) rows by `vectors` vectors; offsets and steps count elements.

    `loops` are (count, a_step, b_step) around the innermost one, outermost first. A count of None, there or
    for `k`, is given at run time and must be at least 1. `tail` lanes of the last vector are valid; B must be
    readable past them unless `b_masked`. `accumulate` adds to what C holds. Vectors of B follow each other,
    or lie at the offsets `b`. With `prefetch`, each innermost step asks for the cache lines of that many more
    elements at another address.
    """

    a: tuple[int, ...]
    c: tuple[int, ...]
    vectors: int
    tail: int
    k: int | None
    a_step: int
    b_step: int
    loops: tuple[tuple[int | None, int, int], ...] = ()
    accumulate: bool = False
    b_masked: bool = False
    epilogue: Epilogue = IDENTITY
    prefetch: int = 0
    b: tuple[int, ...] = ()

    @property
    def runtime_counts(self) -> int:
        """How many loop counts are arguments."""
        return sum(count is None for count, _, _ in self.loops) + (self.k is None)


def rows_for(target: Target, vectors: int) -> int:
    """The most rows a tile of that many vectors can have without spilling."""
    reserved = vectors + 1
    if vectors == 1 and target.memory_broadcast:
        reserved = 1  # a scalar with one use is broadcast by the multiply-add itself
    if not target.fused:
        reserved += 1
    rows = (target.registers - reserved) // vectors
    return max(1, min(rows, target.tuning.tile_rows))


def vectors_for(target: Target, channels: int, most: int = 4) -> int:
    """How many vectors wide a tile should be for a last axis of `channels`; the rest gets a narrower one.

    Of widths that suit alike, the one whose tiles are highest; `most` bounds it.
    """
    whole, narrow = -(-channels // target.lanes), target.tuning.tile_narrow

    def cost(width: int) -> float:
        rest = whole % width
        return (whole - rest) * (narrow if width == 1 else 1) + rest * (narrow if rest == 1 else 1)

    widths = (2, 3, 4, 1) if target.registers == 32 else (2, 3, 1)
    return min((width for width in widths if width <= most), key=cost)


def split(total: int, most: int) -> list[tuple[int, int, int]]:
    """`total` in nearly equal pieces of at most `most`: (size, first, count), larger pieces first."""
    pieces = -(-total // most)
    size, larger = divmod(total, pieces)
    found = [(size + 1, 0, larger), (size, larger * (size + 1), pieces - larger)]
    return [piece for piece in found if piece[2]]


def define(module: Module, name: str, tile: Tile) -> Function:
    """Write the tile as a function of (A, B, C, epilogue addresses..., run-time counts...).

    With `tile.prefetch`, one more argument is the first address to ask for.
    """
    extra = len(tile.epilogue.operands)
    parameters = [("a", "ptr"), ("b", "ptr"), ("c", "ptr")]
    parameters += [(f"e{i}", "ptr") for i in range(extra)]
    parameters += [(f"n{i}", "i64") for i in range(tile.runtime_counts)]
    parameters += [("ahead", "ptr")] * bool(tile.prefetch)
    f = module.function(name, parameters)
    lanes = f.lanes
    a, b, c = f.arguments[:3]
    counts = iter(f.arguments[3 + extra :])
    masks = [None] * (tile.vectors - 1) + [f.mask(tile.tail)]
    sums = len(tile.a) * tile.vectors
    places = tile.b or tuple(v * lanes for v in range(tile.vectors))

    def innermost(a: Value, b: Value, acc: Sequence[Value]) -> list[Value]:
        ahead = list(acc[sums:])
        if ahead:
            for line in range(0, tile.prefetch, f.module.target.line):
                f.prefetch(ahead[0], line)
            ahead = [f.at(ahead[0], tile.prefetch)]
        columns = [
            f.vload(b, place, mask if tile.b_masked else None)
            for place, mask in zip(places, masks, strict=True)
        ]
        out = list(acc[:sums])
        for m, offset in enumerate(tile.a):
            scalar = f.broadcast(a, offset)
            for v, column in enumerate(columns):
                out[m * tile.vectors + v] = f.fma(scalar, column, acc[m * tile.vectors + v])
        return [*out, *ahead]

    levels: list[tuple[Int, int, int]] = [
        (next(counts) if count is None else count, da, db)
        for count, da, db in (*tile.loops, (tile.k, tile.a_step, tile.b_step))
    ]

    def nest(level: int, a: Value, b: Value, acc: Sequence[Value]) -> list[Value]:
        if level == len(levels):
            return innermost(a, b, acc)
        count, da, db = levels[level]

        def body(_: Value, carry: list[Value]) -> list[Value]:
            inner = nest(level + 1, carry[0], carry[1], carry[2:])
            return [f.at(carry[0], da), f.at(carry[1], db), *inner]

        return f.loop(0, count, carry=[a, b, *acc], body=body, nonempty=True)[2:]

    acc = [
        f.vload(c, row + v * lanes, masks[v]) if tile.accumulate else f.zero()
        for row in tile.c
        for v in range(tile.vectors)
    ]
    acc = nest(0, a, b, [*acc, *f.arguments[len(f.arguments) - bool(tile.prefetch) :]])
    sources = f.arguments[3 : 3 + extra]
    channel = {
        (i, v): f.vload(source, v * lanes, masks[v])
        for i, (source, kind) in enumerate(zip(sources, tile.epilogue.operands, strict=True))
        if kind == "channel"
        for v in range(tile.vectors)
    }
    for m, row in enumerate(tile.c):
        for v in range(tile.vectors):
            operands = [acc[m * tile.vectors + v]]
            for i, source in enumerate(sources):
                operands.append(
                    channel[i, v] if (i, v) in channel else f.vload(source, row + v * lanes, masks[v])
                )
            (result,) = emit(f, [tile.epilogue.expression], operands)
            f.vstore(result, c, row + v * lanes, masks[v])
    f.ret()
    return f
