"""Parts of words to integers: byte-pair and WordPiece tokenizers of the `tokenizers` package."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from onward.data._files import optional_module
from onward.data.dataset import Array, Dataset
from onward.data.vocabulary import PADDING, UNKNOWN, encode_texts
from onward.errors import ConfigError, DataError

__all__ = ["SubwordKind", "Subwords"]

SubwordKind = Literal["bpe", "wordpiece"]

_SPECIAL = ("<padding>", "<unknown>")
_BYTES = 256


@final
@dataclass(frozen=True)
class Subwords:
    """A tokenizer of the `tokenizers` package as its JSON; token 0 is padding, 1 what is not known.

    Needs the extra `onward[text]`.
    """

    content: str

    def __post_init__(self) -> None:
        for number, token in enumerate(_SPECIAL):
            if self._tokenizer.token_to_id(token) != number:
                raise DataError(f"tokenizer: token {number} must be {token}")

    @staticmethod
    def fit(texts: Iterable[str], kind: SubwordKind = "bpe", size: int = 20_000) -> Subwords:
        """Learn the parts of words of `texts`: the training part only.

        kind: "bpe", byte pairs (Sennrich et al. 2016, arXiv:1508.07909) over the bytes of UTF-8, so that
        nothing is unknown; "wordpiece" (Schuster & Nakajima 2012), words as BERT divides them. Both take
        texts in lower case. size: at most this many tokens, padding and unknown included.
        """
        library = _library()
        if kind not in ("bpe", "wordpiece"):
            raise ConfigError(f"tokenizer {kind!r} must be bpe or wordpiece")
        least = len(_SPECIAL) + (_BYTES if kind == "bpe" else 1)
        if size < least:
            raise ConfigError(f"tokenizer {kind}: size {size} must be {least} or more")
        options = {"vocab_size": size, "special_tokens": list(_SPECIAL), "show_progress": False}
        if kind == "bpe":
            tokenizer = library.Tokenizer(library.models.BPE(unk_token=_SPECIAL[UNKNOWN]))
            tokenizer.normalizer = library.normalizers.Sequence(
                [library.normalizers.NFC(), library.normalizers.Lowercase()]
            )
            tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
            tokenizer.decoder = library.decoders.ByteLevel()
            alphabet = library.pre_tokenizers.ByteLevel.alphabet()
            trainer = library.trainers.BpeTrainer(initial_alphabet=alphabet, **options)
        else:
            tokenizer = library.Tokenizer(library.models.WordPiece(unk_token=_SPECIAL[UNKNOWN]))
            tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=True)
            tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
            tokenizer.decoder = library.decoders.WordPiece()
            texts, parts = _known_characters(tokenizer, texts, (size - len(_SPECIAL)) // 2)
            # parts that have numbers before training begins make its ties, and its result, the same each time
            options["special_tokens"] = [*_SPECIAL, *parts]
            trainer = library.trainers.WordPieceTrainer(**options)
        tokenizer.train_from_iterator(texts, trainer)
        content = json.loads(tokenizer.to_str())
        content["added_tokens"] = content["added_tokens"][: len(_SPECIAL)]
        return Subwords(json.dumps(content, ensure_ascii=False))

    def __len__(self) -> int:
        """The number of tokens, padding and unknown included: the rows an embedding needs."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Collection[str], tokens: int) -> NDArray[np.int64]:
        """int64 of shape [N, tokens]: the first `tokens` parts of each text, padded at the end with 0."""
        if tokens < 1:
            raise ConfigError(f"tokens {tokens} must be 1 or more")
        encoded = np.full((len(texts), tokens), PADDING, dtype=np.int64)
        for row, found in zip(
            encoded, self._tokenizer.encode_batch(list(texts), add_special_tokens=False), strict=True
        ):
            numbers = found.ids[:tokens]
            row[: len(numbers)] = numbers
        return encoded

    def decode(self, row: Sequence[int] | Array) -> list[str]:
        """The parts of words of one encoded row, as the tokenizer writes them; padding is left out."""
        return [str(self._tokenizer.id_to_token(int(number))) for number in row if int(number) != PADDING]

    def apply_to(self, dataset: Dataset, tokens: int) -> Dataset:
        """As `Vocabulary.apply_to`."""
        return encode_texts(dataset, lambda texts: self.encode(texts, tokens))

    def description(self) -> dict[str, Any]:
        """What metadata hold."""
        return {"tokenizer": self.content}

    @cached_property
    def _tokenizer(self) -> Any:
        library = _library()
        try:
            tokenizer = library.Tokenizer.from_str(self.content)
        except Exception as error:
            raise DataError(f"tokenizer: not the JSON of the tokenizers package ({error})") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer


def _known_characters(tokenizer: Any, texts: Iterable[str], most: int) -> tuple[list[str], list[str]]:
    """Texts of the words that the most frequent characters can write, and `##x` for each inside a word."""
    words = [
        [
            word
            for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        ]
        for text in texts
    ]
    counts = Counter(character for row in words for word in row for character in word)
    kept = {c for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]}
    known = [[word for word in row if kept.issuperset(word)] for row in words]
    inside = {character for row in known for word in row for character in word[1:]}
    return [" ".join(row) for row in known], [f"##{character}" for character in sorted(inside)]


def _library() -> Any:
    return optional_module(
        "tokenizers", "the tokenizers package", "a byte-pair or WordPiece tokenizer", "text"
    )
