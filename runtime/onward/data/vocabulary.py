"""Words to integers: what a text model needs beside its weights."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal, final, get_args

import numpy as np
import regex
from numpy.typing import NDArray

from onward.data.dataset import Array, Dataset
from onward.errors import ConfigError, DataError

__all__ = ["PADDING", "UNKNOWN", "Vocabulary", "WordScheme", "encode_texts", "tokenize"]

WordScheme = Literal["unicode", "runs"]

PADDING = 0
UNKNOWN = 1

_RUN = re.compile(r"\w+(?:['’]\w+)*")
_BOUNDARY = regex.compile(r"\b", regex.WORD | regex.V1)
_WORD = re.compile(r"\w")
_FORMATS: dict[str, WordScheme | None] = {"onward.vocabulary.v1": "runs", "onward.vocabulary.v2": None}
_RESERVED = 2


def tokenize(text: str, limit: int | None = None, scheme: WordScheme = "unicode") -> list[str]:
    """The words of `text` in lower case, the first `limit` of them.

    scheme: "unicode" divides at the word boundaries of Unicode (UAX #29) and leaves out what has neither
        letter nor digit, so that scripts without spaces give several tokens: each ideograph, kana or Thai
        letter. "runs" is what files of Onward 0.1 were trained with: runs of letters and digits, inner
        apostrophes included.
    """
    found = _unicode_words(text) if scheme == "unicode" else (match.group() for match in _RUN.finditer(text))
    return [word.lower() for word in islice(found, limit)]


def _unicode_words(text: str) -> Iterator[str]:
    start = 0
    for boundary in _BOUNDARY.finditer(text):
        end = boundary.start()
        if _WORD.search(text, start, end):
            yield text[start:end]
        start = end
    if _WORD.search(text, start):
        yield text[start:]


def encode_texts(dataset: Dataset, encode: Callable[[Collection[str]], Array]) -> Dataset:
    """The data set with each text input encoded: the only one under the name "tokens", several under theirs.

    Raises DataError where there is no text.
    """
    names = dataset.text_inputs
    if not names:
        raise DataError(
            f"data set {dataset.name!r} has no text input to encode; it has {list(dataset.inputs)}"
        )
    return dataset.with_inputs(
        {
            ("tokens" if name in names and len(names) == 1 else name): (
                encode(array) if name in names else array
            )
            for name, array in dataset.inputs.items()
        }
    )


@final
@dataclass(frozen=True)
class Vocabulary:
    """Words by their number: `words[i]` is token i + 2; 0 is padding, 1 every word that is not here.

    scheme: how `tokenize` finds words.
    """

    words: tuple[str, ...]
    scheme: WordScheme = "unicode"

    def __post_init__(self) -> None:
        if self.scheme not in get_args(WordScheme):
            raise DataError(
                f"vocabulary: scheme {self.scheme!r} is none of {', '.join(get_args(WordScheme))}"
            )
        if len(set(self.words)) != len(self.words):
            repeated = next(word for word, count in Counter(self.words).items() if count > 1)
            raise DataError(f"vocabulary: the word {repeated!r} is there twice")

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: i + _RESERVED for i, word in enumerate(self.words)}

    @staticmethod
    def fit(texts: Iterable[str], size: int = 20_000, min_count: int = 2) -> Vocabulary:
        """The words of `texts` by falling count, equal counts in order of the word.

        size: at most this many tokens, padding and unknown included. min_count: leave rarer words out. Give
        it the training part only: words counted in other parts leak into the model.
        """
        if size < _RESERVED or min_count < 1:
            raise ConfigError(
                f"vocabulary: size {size} must be {_RESERVED} or more, min_count {min_count} 1 or more"
            )
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(tokenize(text))
        ranked = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return Vocabulary(tuple(word for _, word in ranked[: size - _RESERVED]))

    def __len__(self) -> int:
        """The number of tokens, padding and unknown included: the rows an embedding needs."""
        return len(self.words) + _RESERVED

    def encode(self, texts: Iterable[str], tokens: int) -> NDArray[np.int64]:
        """int64 of shape [N, tokens]: the first `tokens` words of each text, padded at the end with 0."""
        if tokens < 1:
            raise ConfigError(f"tokens {tokens} must be 1 or more")
        rows = [
            [self._numbers.get(word, UNKNOWN) for word in tokenize(text, tokens, self.scheme)]
            for text in texts
        ]
        encoded = np.full((len(rows), tokens), PADDING, dtype=np.int64)
        for row, values in zip(encoded, rows, strict=True):
            row[: len(values)] = values
        return encoded

    def decode(self, row: Sequence[int] | Array) -> list[str]:
        """The words of one encoded row; padding is left out, unknown words are "<unknown>"."""
        names = ("<padding>", "<unknown>", *self.words)
        return [names[int(number)] for number in row if int(number) != PADDING]

    def apply_to(self, dataset: Dataset, tokens: int) -> Dataset:
        """The data set with each text input encoded: int64 [N, tokens] under the name "tokens".

        With several text inputs, their own names are kept. Raises DataError where there is no text.
        """
        return encode_texts(dataset, lambda texts: self.encode(texts, tokens))

    def description(self) -> dict[str, Any]:
        """What metadata hold beside the words."""
        return {"words": self.scheme}

    def to_json(self) -> str:
        """A JSON text that `from_json` reads back, for a model's metadata."""
        content = {"format": "onward.vocabulary.v2", "scheme": self.scheme, "words": list(self.words)}
        return json.dumps(content, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Vocabulary:
        """The vocabulary that `to_json` wrote; DataError for anything else."""
        try:
            content = json.loads(text)
        except ValueError as error:
            raise DataError(f"vocabulary: not JSON ({error})") from error
        known = isinstance(content, dict) and content.get("format") in _FORMATS
        words = content.get("words") if known else None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"vocabulary: not in a format of {', '.join(_FORMATS)}")
        return Vocabulary(tuple(words), _FORMATS[content["format"]] or content.get("scheme"))
