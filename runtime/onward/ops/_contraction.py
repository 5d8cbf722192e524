"""Sums of products of several tensors, by matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onward.graph import Array

__all__ = ["contract", "spelled_out"]

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

    a = np.einsum(f"{s}->{batch}{rows}{summed}", x).reshape(size(batch), size(rows), size(summed))
    b = np.einsum(f"{t}->{batch}{summed}{columns}", y).reshape(size(batch), size(summed), size(columns))
    found = batch + rows + columns
    return found, np.matmul(a, b).reshape([extents[c] for c in found])
