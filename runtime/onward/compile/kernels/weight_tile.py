"""The register tile of a weight gradient: C[c[m]] += sum over pixels of A[pixel + a[m]] * B[pixel]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onward.compile.codegen.builder import Function, Module
from onward.compile.codegen.values import Value

__all__ = ["Loop", "WeightTile", "define_weight_tile"]


@dataclass(frozen=True)
class Loop:
    """A loop over pixels: its count (None: given at run time) and steps in elements of A and B."""

    count: int | None
    a: int
    b: int


@dataclass(frozen=True)
class WeightTile:
    """len(a) rows of broadcast elements by `vectors` vectors, of which the last has `tail` lanes.

    `loops` nest, outermost first, and go round at least once. Rows of C are at offsets `c`. With every step
    of the innermost loop one line from each of `ahead` addresses is fetched into the second-level cache.
    """

    a: tuple[int, ...]
    c: tuple[int, ...]
    vectors: int
    tail: int
    loops: tuple[Loop, ...]
    ahead: int


def define_weight_tile(module: Module, name: str, tile: WeightTile) -> Function:
    """Write the tile as a function of (A, B, C, run-time counts..., (address, bytes a step) ahead...)."""
    counts = sum(loop.count is None for loop in tile.loops)
    parameters = [("a", "ptr"), ("b", "ptr"), ("c", "ptr"), *((f"n{i}", "i64") for i in range(counts))]
    for i in range(tile.ahead):
        parameters += [(f"p{i}", "ptr"), (f"s{i}", "i64")]
    f = module.function(name, parameters)
    a, b, c = f.arguments[:3]
    given = iter(f.arguments[3 : 3 + counts])
    ahead, steps = f.arguments[3 + counts :: 2], f.arguments[4 + counts :: 2]
    lanes, vectors = f.lanes, tile.vectors
    masks = [None] * (vectors - 1) + [f.mask(tile.tail)]
    trips = [next(given) if loop.count is None else loop.count for loop in tile.loops]

    def innermost(a: Value, b: Value, acc: Sequence[Value]) -> list[Value]:
        columns = [f.vload(b, v * lanes, masks[v]) for v in range(vectors)]
        out = []
        for m, offset in enumerate(tile.a):
            scalar = f.broadcast(a, offset)
            out += [f.fma(scalar, column, acc[m * vectors + v]) for v, column in enumerate(columns)]
        return out

    def nest(level: int, a: Value, b: Value, far: Sequence[Value], acc: Sequence[Value]) -> list[Value]:
        """The addresses ahead and the sums after a loop."""
        if level == len(tile.loops):
            for address in far:
                f.prefetch(address)
            moved = [f.at(p, s, "i8") for p, s in zip(far, steps, strict=True)]
            return [*moved, *innermost(a, b, acc)]
        loop = tile.loops[level]

        def body(_: Value, carry: list[Value]) -> list[Value]:
            inner = nest(level + 1, carry[0], carry[1], carry[2 : 2 + len(far)], carry[2 + len(far) :])
            return [f.at(carry[0], loop.a), f.at(carry[1], loop.b), *inner]

        return f.loop(0, trips[level], carry=[a, b, *far, *acc], body=body, nonempty=True)[2:]

    places = [(row + v * lanes, masks[v]) for row in tile.c for v in range(vectors)]
    acc = nest(0, a, b, ahead, [f.vload(c, at, mask) for at, mask in places])[tile.ahead :]
    for (at, mask), total in zip(places, acc, strict=True):
        f.vstore(total, c, at, mask)
    f.ret()
    return f
