from __future__ import annotations

import json

import numpy as np
import pytest

from onward.data import PADDING, UNKNOWN, Dataset, Vocabulary, split, tokenize
from onward.errors import ConfigError, DataError


def test_tokenize() -> None:
    assert tokenize("It's GOOD -- really, 10/10! Été") == ["it's", "good", "really", "10", "10", "été"]
    assert tokenize("a b c d", 2) == ["a", "b"]
    assert tokenize("...") == []


def test_fit_orders_by_count_then_word() -> None:
    vocabulary = Vocabulary.fit(["b a c", "b a", "b d"], min_count=1)
    assert vocabulary.words == ("b", "a", "c", "d")
    assert len(vocabulary) == 6
    assert Vocabulary.fit(["b a c", "b a", "b d"], min_count=2).words == ("b", "a")
    assert Vocabulary.fit(["b a c", "b a", "b d"], size=3, min_count=1).words == ("b",)


def test_encode_pads_cuts_and_marks_unknown_words() -> None:
    vocabulary = Vocabulary(("good", "bad"))
    encoded = vocabulary.encode(["Good film", "bad bad bad bad", ""], 3)
    assert encoded.dtype == np.int64
    assert encoded.tolist() == [[2, UNKNOWN, PADDING], [3, 3, 3], [PADDING] * 3]
    assert vocabulary.decode(encoded[0]) == ["good", "<unknown>"]


def test_json_round_trip() -> None:
    vocabulary = Vocabulary.fit(["l'été déjà vu", "été déjà"], min_count=1)
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"format": "onward.vocabulary.v1", "words": "abc"}),
        json.dumps({"format": "onward.vocabulary.v1", "words": [1]}),
        json.dumps({"format": "other", "words": []}),
        json.dumps({"format": "onward.vocabulary.v1", "words": ["a", "a"]}),
    ],
)
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="vocabulary"):
        Vocabulary.from_json(text)


def test_applied_to_all_parts_knows_the_training_words_only() -> None:
    texts = np.array([f"shared only{i}" for i in range(20)], dtype=object)
    splits = split(Dataset({"text": texts}, np.arange(20) % 2), (0.5, 0.25, 0.25))
    vocabulary = Vocabulary.fit(splits.train.inputs["text"], min_count=1)
    encoded = splits.map(lambda part: vocabulary.apply_to(part, 4))
    assert encoded.test is not None
    assert list(encoded.test.inputs) == ["tokens"]
    assert encoded.train.inputs["tokens"][:, 1].min() > UNKNOWN
    assert (encoded.test.inputs["tokens"] == [2, UNKNOWN, PADDING, PADDING]).all()
    with pytest.raises(DataError, match="no text input"):
        vocabulary.apply_to(encoded.train, 4)


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="size 1"):
        Vocabulary.fit([], size=1)
    with pytest.raises(ConfigError, match="min_count 0"):
        Vocabulary.fit([], min_count=0)
    with pytest.raises(ConfigError, match="tokens 0"):
        Vocabulary(()).encode(["a"], 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, it's 3.14!", ["don't", "stop", "it's", "3.14"]),
        ("我喜欢这部电影", list("我喜欢这部电影")),
        ("これは映画", ["こ", "れ", "は", "映", "画"]),
        ("이 영화 좋아요", ["이", "영화", "좋아요"]),
        ("खबर अच्छी", ["खबर", "अच्छी"]),
        ("naïve a\u0301b", ["naïve", "a\u0301b"]),
        ("— … !", []),
        ("", []),
    ],
)
def test_words_are_those_of_unicode(text: str, words: list[str]) -> None:
    assert tokenize(text) == words
    assert tokenize(text, 2) == words[:2]


def test_scripts_without_spaces_give_several_tokens() -> None:
    assert len(tokenize("ฉันชอบหนัง")) > 1


def test_what_older_files_say_is_read_as_they_wrote_it() -> None:
    assert tokenize("3.14 我喜欢 e.g.", scheme="runs") == ["3", "14", "我喜欢", "e", "g"]
    old = Vocabulary.from_json('{"format": "onward.vocabulary.v1", "words": ["14", "我喜欢"]}')
    assert old.scheme == "runs"
    assert old.encode(["3.14 我喜欢"], 4).tolist() == [[1, 2, 3, 0]]
    assert Vocabulary.from_json(old.to_json()) == old
    with pytest.raises(DataError, match="scheme"):
        Vocabulary(("a",), "letters")  # type: ignore[arg-type]
