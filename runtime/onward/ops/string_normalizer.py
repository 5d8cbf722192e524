from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onward.errors import ShapeError, UnsupportedError
from onward.graph import Array, Op, op

_CHANGES: Mapping[str, Callable[[str], str]] = {
    "NONE": lambda text: text,
    "LOWER": str.lower,
    "UPPER": str.upper,
}


@op("StringNormalizer", since=10)
class StringNormalizer(Op):
    """Strings without stopwords, in lower or upper case; one empty string where none is left.

    X is [C] or [1, C]. Case is changed after stopwords are dropped; without `is_case_sensitive` they are
    compared regardless of case. Case is Unicode's: `locale` makes no difference.
    """

    case_change_action: str = "NONE"
    is_case_sensitive: int = 0
    locale: str | None = None
    stopwords: tuple[str, ...] | None = None

    def kernel(self, X: Array) -> Array:
        if X.ndim not in (1, 2) or (X.ndim == 2 and X.shape[0] != 1):
            raise ShapeError(f"X has shape {list(X.shape)}; StringNormalizer takes [C] or [1, C]")
        if self.case_change_action not in _CHANGES:
            raise UnsupportedError(
                f"case_change_action {self.case_change_action!r}: choose NONE, LOWER or UPPER"
            )
        change = _CHANGES[self.case_change_action]
        fold = _CHANGES["NONE"] if self.is_case_sensitive else str.casefold
        stops = {fold(word) for word in self.stopwords or ()}
        kept = [change(text) for text in map(str, X.reshape(-1)) if fold(text) not in stops] or [""]
        y = np.array(kept, object)
        return y if X.ndim == 1 else y[None]
