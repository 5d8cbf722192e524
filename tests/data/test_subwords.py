from __future__ import annotations

import json

import numpy as np
import pytest

from onward.data import Dataset, Preparation, Subwords, TextPreparation
from onward.data.subwords import SubwordKind
from onward.errors import ConfigError, DataError

pytest.importorskip("tokenizers")

TEXTS = ["Low lower lowest", "new newer newest", "我喜欢这部电影", "wide wider widest"] * 5


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_texts_become_numbers_that_json_carries(kind: SubwordKind) -> None:
    tokenizer = Subwords.fit(TEXTS, kind, 300)
    encoded = tokenizer.encode(["LOWER", "lower", "", "newest wide 电影 and much more than fits"], 6)
    assert encoded.dtype == np.int64
    assert encoded.shape == (4, 6)
    np.testing.assert_array_equal(encoded[0], encoded[1])
    assert not encoded[2].any()
    assert encoded.max() < len(tokenizer) <= 300
    assert (encoded[3] > 0).all()
    preparation = Preparation(text=TextPreparation(tokenizer, 6))
    again = Preparation.from_json(json.loads(json.dumps(preparation.to_json())))
    found = Dataset({"text": np.array(TEXTS, dtype=object)}, np.arange(20) % 2)
    np.testing.assert_array_equal(
        again.apply(found).inputs["tokens"], preparation.apply(found).inputs["tokens"]
    )
    assert all(Subwords.fit(TEXTS, kind, 300) == tokenizer for _ in range(5))


def test_parts_of_words_are_shared() -> None:
    tokenizer = Subwords.fit(TEXTS, "wordpiece", 60)
    assert "".join(tokenizer.decode(tokenizer.encode(["widest"], 8)[0])).replace("##", "") == "widest"
    assert tokenizer.encode(["\u1234"], 1).tolist() == [[1]]
    # bytes know every character
    assert 1 not in Subwords.fit(TEXTS, "bpe", 300).encode(["\u1234 ☃"], 12)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="258 or more"):
        Subwords.fit(TEXTS, "bpe", 100)
    with pytest.raises(ConfigError, match="bpe or wordpiece"):
        Subwords.fit(TEXTS, "letters")  # type: ignore[arg-type]
    assert len(Subwords.fit(TEXTS, "wordpiece", 12)) <= 12
    with pytest.raises(DataError, match="not the JSON"):
        Subwords("{}")
    with pytest.raises(ConfigError, match="tokens 0"):
        Subwords.fit(TEXTS, "bpe", 300).encode(["a"], 0)
