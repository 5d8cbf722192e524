from __future__ import annotations

import numpy as np

from onward.graph import Array, Op, op


@op("StringSplit", since=20)
class StringSplit(Op):
    """The parts of each string, filled up with empty ones on a last axis, and how many there are.

    Strings are split at `delimiter`, at runs of white space where that is absent or empty, at most `maxsplit`
    times.
    """

    delimiter: str | None = None
    maxsplit: int | None = None

    def kernel(self, X: Array) -> tuple[Array, Array]:
        separator = self.delimiter or None  # an empty one means white space
        limit = -1 if self.maxsplit is None else self.maxsplit
        parts = [str(text).split(separator, limit) for text in X.reshape(-1)]
        longest = max(map(len, parts), default=0)
        y = np.full((len(parts), longest), "", object)
        for row, found in zip(y, parts, strict=True):
            row[: len(found)] = found
        counts = np.array([len(found) for found in parts], np.int64)
        return y.reshape(*X.shape, longest), counts.reshape(X.shape)
