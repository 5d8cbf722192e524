from __future__ import annotations

import re

import numpy as np

from onward.errors import InputError
from onward.graph import Array, Op, op


@op("RegexFullMatch", since=20)
class RegexFullMatch(Op):
    """Whether the whole of each text matches `pattern`, in what RE2 and Python's `re` have in common."""

    pattern: str | None = None

    def kernel(self, X: Array) -> Array:
        try:
            pattern = re.compile(self.pattern or "", re.ASCII)
        except re.error as error:
            raise InputError(f"RegexFullMatch: pattern {self.pattern!r}: {error}") from None
        found = [pattern.fullmatch(text) is not None for text in X.reshape(-1)]
        return np.array(found, dtype=np.bool_).reshape(X.shape)
