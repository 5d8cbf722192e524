from __future__ import annotations

import numpy as np

from onward.graph import Array, Op, op


@op("StringSplit", since=20, multiple_outputs=True)
class StringSplit(Op):
    """The parts of each text between delimiters, filled up with empty texts, and how many there are.

    Without a delimiter, or with an empty one, runs of white space divide.
    """

    delimiter: str | None = None
    maxsplit: int | None = None

    def kernel(self, X: Array) -> tuple[Array, Array]:
        limit = -1 if self.maxsplit is None else self.maxsplit
        parts = [text.split(self.delimiter or None, limit) if text else [] for text in X.reshape(-1)]
        counts = np.array([len(each) for each in parts], dtype=np.int64).reshape(X.shape)
        width = int(counts.max(initial=0))
        filled = np.full((len(parts), width), "", dtype=object)
        for row, each in zip(filled, parts, strict=True):
            row[: len(each)] = each
        return filled.reshape((*X.shape, width)), counts
