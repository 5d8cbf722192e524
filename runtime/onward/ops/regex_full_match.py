from __future__ import annotations

import re

import numpy as np

from onward.errors import InvalidModelError
from onward.graph import Array, Op, op


@op("RegexFullMatch", since=20)
class RegexFullMatch(Op):
    """Whether the whole of each string matches the pattern.

    Patterns are Python's; of RE2's syntax, which the standard names, nearly everything means the same there.
    """

    pattern: str | None = None

    def kernel(self, X: Array) -> Array:
        try:
            matcher = re.compile(self.pattern or "")
        except re.error as error:
            raise InvalidModelError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
        found = [matcher.fullmatch(str(text)) is not None for text in X.reshape(-1)]
        return np.array(found, np.bool_).reshape(X.shape)
