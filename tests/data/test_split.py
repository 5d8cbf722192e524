from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.data import Dataset, Splits, folds, load_digits, split
from onward.data.split import stratified_sample
from onward.errors import ConfigError, DataError


def numbered(labels: np.ndarray, **options: object) -> Dataset:
    return Dataset({"x": np.arange(len(labels))}, labels, **options)  # type: ignore[arg-type]


def parts_of(splits: Splits) -> list[list[int]]:
    return [
        [] if part is None else part.inputs["x"].tolist()
        for part in (splits.train, splits.validation, splits.test)
    ]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(3, 60), min_size=1, max_size=6),
    test=st.integers(0, 40),
    validation=st.integers(0, 40),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_sample_once_in_proportion(counts: list[int], test: int, validation: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    count, shares = len(labels), (1 - (test + validation) / 100, validation / 100, test / 100)
    wanted = [np.floor(count * share + 0.5) for share in shares]
    if any(share > 0 and size == 0 for share, size in zip(shares, wanted, strict=True)):
        return
    parts = parts_of(split(numbered(labels), shares, seed))
    assert sorted(parts[0] + parts[1] + parts[2]) == list(range(count))
    assert (len(parts[1]), len(parts[2])) == (wanted[1], wanted[2])
    for label, total in enumerate(counts):
        for part, share in zip(parts, shares, strict=True):
            assert abs((labels[part] == label).sum() - total * share) < 3 if part else share == 0
    assert set(labels[parts[0]]) == set(labels)


def test_exact_proportions_of_balanced_classes() -> None:
    labels = np.tile(np.arange(10), 1000)
    train, validation, test = parts_of(split(numbered(labels), (0.8, 0.0, 0.2), 7))
    assert np.bincount(labels[train]).tolist() == [800] * 10
    assert np.bincount(labels[test]).tolist() == [200] * 10
    assert validation == []


def test_seed_decides() -> None:
    data = load_digits(8)
    first, again, other = (split(data, seed=s) for s in (1, 1, 2))
    assert first.train.digest() == again.train.digest()
    assert first.test is not None
    assert again.test is not None
    assert first.test.digest() == again.test.digest()
    assert first.train.digest() != other.train.digest()


def test_split_is_the_same_on_every_machine_and_version() -> None:
    train, validation, test = parts_of(split(numbered(np.tile([0, 1], 10)), (0.6, 0.2, 0.2), 42))
    assert (validation, test) == ([7, 10, 15, 18], [0, 5, 6, 13])
    assert len(train) == 12


def test_class_with_one_sample_goes_to_train() -> None:
    labels = np.array([0] * 20 + [1])
    for seed in range(10):
        assert 20 in parts_of(split(numbered(labels), (0.5, 0.25, 0.25), seed))[0]


def test_without_stratification_and_for_regression() -> None:
    labels = np.repeat([0, 1], 50)
    counts = {
        int((labels[parts_of(split(numbered(labels), (0.8, 0.0, 0.2), s, stratify=False))[2]]).sum())
        for s in range(8)
    }
    assert len(counts) > 1
    regression = numbered(np.linspace(0, 1, 50), task="regression")
    assert [len(p) for p in parts_of(split(regression))] == [40, 5, 5]


def test_equal_texts_stay_together() -> None:
    texts = np.array([f"text {i % 20}" for i in range(60)], dtype=object)
    data = Dataset({"text": texts}, np.arange(60) % 2)
    parts = split(data, (0.5, 0.25, 0.25), 0)
    sets = [set(p.inputs["text"]) for p in (parts.train, parts.validation, parts.test) if p is not None]
    assert sum(len(s) for s in sets) == 20
    assert sum(len(p) for p in (parts.train, parts.validation, parts.test) if p is not None) == 60


@pytest.mark.parametrize(
    "fractions", [(0.5, 0.2, 0.2), (1.2, -0.1, -0.1), (0.0, 0.5, 0.5), (0.5, 0.5), (float("nan"), 0.5, 0.5)]
)
def test_bad_fractions(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="sum"):
        split(numbered(np.zeros(10, int)), fractions)


def test_bad_seeds() -> None:
    for seed in (-1, 2**64, 0.5):
        with pytest.raises(ConfigError, match="seed"):
            split(numbered(np.zeros(10, int)), seed=seed)  # type: ignore[arg-type]


def test_too_few_samples() -> None:
    with pytest.raises(DataError, match=r"too few for a test part of 0\.1"):
        split(numbered(np.zeros(3, int)), (0.5, 0.4, 0.1))
    with pytest.raises(DataError, match="train"):
        split(numbered(np.zeros(2, int)), (0.1, 0.45, 0.45))
    one_group = numbered(np.zeros(9, int), groups=np.zeros(9, int))
    with pytest.raises(DataError, match="1 groups are too few"):
        split(one_group)


def test_map_changes_every_part() -> None:
    splits = split(numbered(np.zeros(10, int)), (0.8, 0.0, 0.2))
    mapped = splits.map(lambda part: part.with_inputs({"x": part.inputs["x"] + 100}))
    assert mapped.validation is None
    assert min(min(part) for part in parts_of(mapped) if part) >= 100


def test_stratified_sample() -> None:
    labels = np.array([5] * 30 + [7] * 10)
    chosen = stratified_sample(labels, 8, 0)
    assert (labels[chosen] == 5).sum() == 6
    assert (np.diff(chosen) > 0).all()


def test_folds_share_nothing_and_keep_classes() -> None:
    data = Dataset({"x": np.arange(103.0)[:, None]}, (np.arange(103) % 4 == 0).astype(int))
    found = list(folds(data, 5, seed=1, validation=0.2))
    tests = np.concatenate([part.test.inputs["x"][:, 0] for part in found])  # type: ignore[union-attr]
    assert sorted(tests) == list(range(103))
    for part in found:
        assert part.test is not None
        assert part.validation is not None
        assert part.test.targets is not None
        assert abs(part.test.targets.sum() - 26 / 5) <= 1
        everything = [p.inputs["x"][:, 0] for p in (part.train, part.validation, part.test)]
        assert len(set(np.concatenate(everything))) == 103


def test_folds_keep_groups_together() -> None:
    data = Dataset({"x": np.arange(60.0)[:, None]}, np.zeros(60, int), groups=np.arange(60) // 6)
    for part in folds(data, 5, validation=0):
        assert part.test is not None
        assert not set(part.train.groups) & set(part.test.groups)  # type: ignore[arg-type]


def test_time_orders_parts() -> None:
    times = np.random.default_rng(0).permutation(50).astype(float) // 2
    data = Dataset({"x": times[:, None]}, np.zeros(50, int), times=times)
    parts = split(data, (0.6, 0.2, 0.2))
    assert parts.validation is not None
    assert parts.test is not None
    ends = [(p.inputs["x"].min(), p.inputs["x"].max()) for p in (parts.train, parts.validation, parts.test)]
    assert ends[0][1] < ends[1][0] <= ends[1][1] < ends[2][0]
    for part in folds(data, 4, validation=0):
        assert part.test is not None
        assert part.train.inputs["x"].max() <= part.test.inputs["x"].min()
    with pytest.raises(ConfigError, match="2 or more"):
        list(folds(data, 1))
