"""Texts in the place of the token numbers that a graph takes, encoded as the model's metadata say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, final

import numpy as np

from onward.errors import OnwardError
from onward.graph import Array, TensorSpec

if TYPE_CHECKING:
    from onward.data import TextPreparation

__all__ = ["Texts"]

_PREPARATION, _VOCABULARY = "onward.preparation", "onward.vocabulary"
_FIRST_WORD = 2
"""Of the words in the metadata; padding and unknown words stand before it."""


@final
class Texts:
    """The input of a model that takes texts besides token numbers.

    Attributes:
        name: of the input, int64 [N, tokens] in the graph; texts are [N] or [N, 1].
    """

    def __init__(self, name: str, preparation: TextPreparation) -> None:
        self.name = name
        self._preparation = preparation

    @classmethod
    def of(cls, metadata: Mapping[str, str], inputs: Sequence[TensorSpec]) -> Texts | None:
        """What a model's metadata say; None where it is nothing that makes one of the inputs from texts."""
        named = [each for each in inputs if each.dtype == np.int64 and each.shape and len(each.shape) == 2]
        if len(named) != 1 or _PREPARATION not in metadata:
            return None
        from onward.data import Preparation

        try:
            words = json.loads(metadata.get(_VOCABULARY, "null"))
            known = None if words is None else tuple(map(str, words[_FIRST_WORD:]))
            found = Preparation.from_json(json.loads(metadata[_PREPARATION]), known).text
        except (OnwardError, ValueError, TypeError, RecursionError):
            return None  # the graph runs without them
        return None if found is None else cls(named[0].name, found)

    def encoded(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The inputs with token numbers where there are texts."""
        array = inputs.get(self.name)
        if array is None or array.dtype != object:
            return inputs
        return {**inputs, self.name: self._preparation.encode(array.reshape(-1).tolist())}
