from __future__ import annotations

from typing import Any

import numpy as np
import regex

from onward.errors import InvalidModelError, LimitError
from onward.graph import Array, Op, op

_SECONDS = 2
"""For a text."""


@op("RegexFullMatch", since=20)
class RegexFullMatch(Op):
    """Whether the whole of each string matches the pattern.

    Patterns are Python's; of RE2's syntax, which the standard names, nearly everything means the same there.
    RE2 needs time in proportion to a text. A pattern that tries out many ways here is given up.
    """

    pattern: str | None = None

    def kernel(self, X: Array) -> Array:
        try:
            matcher = regex.compile(self.pattern or "")
        except regex.error as error:
            raise InvalidModelError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
        found = [self._matches(matcher, str(text)) for text in X.reshape(-1)]
        return np.array(found, np.bool_).reshape(X.shape)

    def _matches(self, matcher: Any, text: str) -> bool:
        try:
            return matcher.fullmatch(text, timeout=_SECONDS) is not None
        except TimeoutError:
            raise LimitError(
                f"pattern {self.pattern!r} has not been tried out on a text of {len(text):,} characters "
                f"after {_SECONDS} seconds: write it without repetitions in repetitions"
            ) from None
