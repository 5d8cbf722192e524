"""Sums of products of several tensors, by matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onward.errors import LimitError
from onward.graph import Array, Builder
from onward.graph.memory import no_room

__all__ = ["contract", "contracted", "extents_of", "spelled_out"]

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def contract(equation: str, arrays: Sequence[Array]) -> Array:
    """`numpy.einsum(equation, *arrays)` by `numpy.matmul`, two operands at a time from the left."""
    terms, result = spelled_out(equation, [x.ndim for x in arrays])
    extents: dict[str, int] = {}
    for term, x in zip(terms, arrays, strict=True):
        for letter, extent in zip(term, x.shape, strict=True):
            if extents.setdefault(letter, extent) != extent:
                return np.einsum(equation.replace(" ", ""), *arrays)  # extents of 1 are broadcast
    pending = list(zip(terms, arrays, strict=True))
    term, x = pending.pop(0)
    while pending:
        other, y = pending.pop(0)
        later = set(result).union(*(t for t, _ in pending))
        term, x = _reduced(term, x, later | set(other))
        other, y = _reduced(other, y, later | set(term))
        term, x = _product(term, x, other, y, later)
    return np.einsum(f"{term}->{result}", x)


def spelled_out(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The terms and the result of an equation, with letters in place of each ellipsis."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    widths = [rank - len(t) + 3 if "..." in t else 0 for t, rank in zip(terms, ranks, strict=True)]
    widest = max(widths)
    free = "".join([c for c in _LETTERS if c not in equation][:widest])
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = "..." * ("..." in left) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    filled = [t.replace("...", free[widest - width :]) for t, width in zip(terms, widths, strict=True)]
    return filled, right.replace("...", free)


def _reduced(term: str, x: Array, needed: set[str]) -> tuple[str, Array]:
    """x with diagonals taken and the indices that nothing else needs summed."""
    kept = "".join(c for c in dict.fromkeys(term) if c in needed)
    return (term, x) if kept == term else (kept, np.einsum(f"{term}->{kept}", x))


def _product(s: str, x: Array, t: str, y: Array, needed: set[str]) -> tuple[str, Array]:
    batch = "".join(c for c in s if c in t and c in needed)
    summed = "".join(c for c in s if c in t and c not in needed)
    rows = "".join(c for c in s if c not in t)
    columns = "".join(c for c in t if c not in s)
    extents = {**dict(zip(s, x.shape, strict=True)), **dict(zip(t, y.shape, strict=True))}

    def size(letters: str) -> int:
        return math.prod(extents[c] for c in letters)

    elements = size(batch) * size(rows) * size(columns)
    if (reason := no_room(elements * np.result_type(x, y).itemsize)) is not None:
        raise LimitError(reason)
    a = np.einsum(f"{s}->{batch}{rows}{summed}", x).reshape(size(batch), size(rows), size(summed))
    b = np.einsum(f"{t}->{batch}{summed}{columns}", y).reshape(size(batch), size(summed), size(columns))
    found = batch + rows + columns
    return found, np.matmul(a, b).reshape([extents[c] for c in found])


def extents_of(terms: Sequence[str], shapes: Sequence[Sequence[int]]) -> dict[str, int] | None:
    """The extent of each index, where operands of extent 1 are broadcast; None where they do not agree."""
    extents: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        if len(term) != len(shape):
            return None
        own = dict(zip(term, shape, strict=True))
        if any(own[letter] != extent for letter, extent in zip(term, shape, strict=True)):
            return None  # a diagonal of what is not square
        for letter, extent in own.items():
            known = extents.get(letter, 1)
            if 1 not in (known, extent) and known != extent:
                return None
            extents[letter] = extent if known == 1 else known
    return extents


def contracted(
    g: Builder,
    terms: Sequence[str],
    result: str,
    operands: Sequence[ir.Value],
    shapes: Sequence[Sequence[int]],
) -> ir.Value:
    """`contract` in operators, for extents that `extents_of` knows."""
    extents = extents_of(terms, shapes)
    assert extents is not None
    pending = [
        _broadcast_apart(g, *_diagonal(g, term, x, shape), extents, dict(zip(term, shape, strict=True)))
        for term, x, shape in zip(terms, operands, shapes, strict=True)
    ]
    term, x = pending.pop(0)
    while pending:
        other, y = pending.pop(0)
        later = set(result).union(*(t for t, _ in pending))
        term, x = _summed(g, term, x, later | set(other))
        other, y = _summed(g, other, y, later | set(term))
        term, x = _multiplied(g, term, x, other, y, later, extents)
    return _ordered(g, *_summed(g, term, x, set(result)), result)


def _diagonal(g: Builder, term: str, x: ir.Value, shape: Sequence[int]) -> tuple[str, ir.Value]:
    """x with one axis for each of its indices: where one is repeated, the elements along the diagonal."""
    extents = dict(zip(term, shape, strict=True))
    for letter in dict.fromkeys(term):
        while term.count(letter) > 1:
            axes = [i for i, c in enumerate(term) if c == letter][:2]
            others = [i for i in range(len(term)) if i not in axes]
            n, rest = extents[letter], "".join(term[i] for i in others)
            rows = g.Transpose(x, perm=[*others, *axes])
            flat = g.Reshape(rows, g.const([*(extents[c] for c in rest), n * n], np.int64), allowzero=1)
            x = g.Slice(flat, [0], [n * n], [-1], [n + 1])
            term = rest + letter
    return term, x


def _broadcast_apart(
    g: Builder, term: str, x: ir.Value, extents: dict[str, int], own: dict[str, int]
) -> tuple[str, ir.Value]:
    """x without the indices along which it is broadcast."""
    axes = [i for i, c in enumerate(term) if own[c] != extents[c]]
    if not axes:
        return term, x
    return "".join(c for i, c in enumerate(term) if i not in axes), g.Squeeze(x, axes)


def _summed(g: Builder, term: str, x: ir.Value, needed: set[str]) -> tuple[str, ir.Value]:
    axes = [i for i, c in enumerate(term) if c not in needed]
    if not axes:
        return term, x
    return "".join(c for c in term if c in needed), g.ReduceSum(x, axes, keepdims=0)


def _ordered(g: Builder, term: str, x: ir.Value, wanted: str) -> ir.Value:
    return x if term == wanted else g.Transpose(x, perm=[term.index(c) for c in wanted])


def _multiplied(
    g: Builder, s: str, x: ir.Value, t: str, y: ir.Value, needed: set[str], extents: dict[str, int]
) -> tuple[str, ir.Value]:
    """The product of two operands, summed over the indices that nothing else needs."""
    batch = "".join(c for c in s if c in t and c in needed)
    summed = "".join(c for c in s if c in t and c not in needed)
    rows = "".join(c for c in s if c not in t)
    columns = "".join(c for c in t if c not in s)

    def sizes(*groups: str) -> ir.Value:
        return g.const([math.prod(extents[c] for c in letters) for letters in groups], np.int64)

    a = _ordered(g, s, x, batch + rows + summed)
    found = batch + rows + columns
    if summed and (rows or columns):
        b = _ordered(g, t, y, batch + summed + columns)
        product = g.MatMul(
            g.Reshape(a, sizes(batch, rows, summed), allowzero=1),
            g.Reshape(b, sizes(batch, summed, columns), allowzero=1),
        )
        return found, g.Reshape(product, sizes(*found), allowzero=1)
    # no matrix product: the operands one beside the other, or sums of products of their elements
    b = _ordered(g, t, y, batch + columns + summed)
    a = g.Reshape(a, sizes(*batch, *rows, *("" for _ in columns), *summed), allowzero=1)
    b = g.Reshape(b, sizes(*batch, *("" for _ in rows), *columns, *summed), allowzero=1)
    return _summed(g, found + summed, g.Mul(a, b), set(found))
