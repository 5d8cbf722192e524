from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from onward.errors import InvalidModelError, LimitError, ShapeError
from onward.graph import Array, Op, op
from onward.graph.memory import no_room


@op("TfIdfVectorizer", since=9)
class TfIdfVectorizer(Op):
    """How often each n-gram of a pool occurs in each row of X, or whether, times its weight.

    An n-gram's items may be 1 to max_skip_count + 1 places apart, evenly. The pool holds n-grams of one item
    from ngram_counts[0] on, of two from ngram_counts[1] on, and so forth; ngram_indexes says where in Y each
    is counted. Mode TF counts, IDF gives the weight of what occurs, TFIDF both.
    """

    max_gram_length: int
    max_skip_count: int
    min_gram_length: int
    mode: str
    ngram_counts: tuple[int, ...]
    ngram_indexes: tuple[int, ...]
    pool_int64s: tuple[int, ...] | None = None
    pool_strings: tuple[str, ...] | None = None
    weights: tuple[float, ...] | None = None

    def kernel(self, X: Array) -> Array:
        if X.ndim not in (1, 2):
            raise ShapeError(f"X has shape {list(X.shape)}; TfIdfVectorizer takes [C] or [N, C]")
        rows = X.reshape(1, -1) if X.ndim == 1 else X
        width = max(self.ngram_indexes, default=-1) + 1
        if (reason := no_room(4 * rows.shape[0] * width)) is not None:
            raise LimitError(reason)
        counts = np.zeros((rows.shape[0], width), np.float32)
        for row, count in zip(rows.tolist(), counts, strict=True):
            self._count(row, count)
        y = counts if X.ndim == 2 else counts[0]
        if self.mode == "TF":
            return y
        weights = np.ones(counts.shape[1], np.float32)
        if self.weights is not None:
            weights[list(self.ngram_indexes)] = self.weights
        return (y > 0) * weights if self.mode == "IDF" else y * weights

    def _count(self, row: list[int | str], count: Array) -> None:
        for length in range(max(1, self.min_gram_length), min(self.max_gram_length, len(row)) + 1):
            # grams of one item have no places between them; of others the last must lie in the row
            furthest = 1 if length == 1 else min(self.max_skip_count + 1, (len(row) - 1) // (length - 1))
            for step in range(1, furthest + 1):
                for start in range(len(row) - step * (length - 1)):
                    gram = tuple(row[start : start + step * length : step])
                    if (place := self._pool.get(gram)) is not None:
                        count[place] += 1

    @functools.cached_property
    def _pool(self) -> Mapping[tuple[int | str, ...], int]:
        items = self.pool_strings if self.pool_int64s is None else self.pool_int64s
        if items is None or self.mode not in ("TF", "IDF", "TFIDF"):
            raise InvalidModelError("TfIdfVectorizer needs a pool, and mode TF, IDF or TFIDF")
        found: dict[tuple[int | str, ...], int] = {}
        ends = (*self.ngram_counts[1:], len(items))
        number = 0
        for length, (start, end) in enumerate(zip(self.ngram_counts, ends, strict=True), 1):
            for at in range(start, end, length):
                if number >= len(self.ngram_indexes):
                    raise InvalidModelError("the pool has more n-grams than ngram_indexes")
                found[tuple(items[at : at + length])] = self.ngram_indexes[number]
                number += 1
        return found
