from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from onward.data import Batch, Compose, Crop, Dataset, Flip, Loader, Noise
from onward.errors import ConfigError, DataError


def dataset(count: int = 23) -> Dataset:
    images = np.random.default_rng(0).random((count, 1, 6, 6), np.float32)
    return Dataset({"image": images, "id": np.arange(count)}, np.arange(count) % 3)


def content(batches: Iterable[Batch]) -> list[bytes]:
    return [
        b"".join(
            [
                batch.indices.tobytes(),
                b"" if batch.targets is None else batch.targets.tobytes(),
                *(array.tobytes() for array in batch.inputs.values()),
            ]
        )
        for batch in batches
    ]


AUGMENT = Compose((Flip(), Crop(1), Noise(0.1)))


def test_an_epoch_serves_every_sample_once_with_its_target() -> None:
    data = dataset()
    loader = Loader(data, 5, seed=1)
    batches = list(loader.epoch(0))
    assert len(loader) == len(batches) == 5
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    indices = np.concatenate([batch.indices for batch in batches])
    assert sorted(indices) == list(range(23))
    assert indices.tolist() == loader.order(0).tolist()
    for batch in batches:
        assert batch.targets is not None
        np.testing.assert_array_equal(batch.inputs["id"], batch.indices)
        np.testing.assert_array_equal(batch.inputs["image"], data.inputs["image"][batch.indices])
        np.testing.assert_array_equal(batch.targets, batch.indices % 3)


@pytest.mark.parametrize("augment", [None, AUGMENT])
@pytest.mark.parametrize("drop_last", [False, True])
def test_resuming_anywhere_equals_going_on(augment: Compose | None, drop_last: bool) -> None:
    def loader() -> Loader:
        return Loader(dataset(), 5, seed=9, augment=augment, drop_last=drop_last)

    for epoch in range(3):
        whole = content(loader().epoch(epoch))
        for start in range(len(whole) + 1):
            assert content(loader().epoch(epoch, start_batch=start)) == whole[start:]


def test_an_interrupted_epoch_leaves_no_trace() -> None:
    loader = Loader(dataset(), 5, seed=9, augment=AUGMENT)
    fresh = content(Loader(dataset(), 5, seed=9, augment=AUGMENT).epoch(1))
    next(loader.epoch(0))
    next(loader.epoch(1))
    assert content(loader.epoch(1)) == fresh


def test_augmentation_does_not_depend_on_the_batch_size() -> None:
    def images(batch_size: int) -> np.ndarray:
        batches = list(Loader(dataset(), batch_size, seed=2, augment=AUGMENT).epoch(4))
        return np.concatenate([batch.inputs["image"] for batch in batches])

    assert images(3).tobytes() == images(23).tobytes()


def test_orders_differ_by_epoch_and_seed() -> None:
    loader = Loader(dataset(), 5, seed=1)
    orders = [loader.order(0), loader.order(1), Loader(dataset(), 5, seed=2).order(0)]
    assert len({tuple(order) for order in orders}) == 3
    plain = Loader(dataset(), 5, shuffle=False)
    assert plain.order(0).tolist() == plain.order(7).tolist() == list(range(23))


def test_drop_last() -> None:
    loader = Loader(dataset(), 5, drop_last=True)
    assert len(loader) == len(list(loader.epoch(0))) == 4
    assert len(Loader(dataset(20), 5)) == len(Loader(dataset(20), 5, drop_last=True)) == 4
    with pytest.raises(ConfigError, match="drop_last"):
        Loader(dataset(), 24, drop_last=True)


def test_without_targets_and_from_a_memory_map(tmp_path: Path) -> None:
    array = np.arange(14, dtype=np.float32).reshape(7, 2)
    np.save(tmp_path / "x.npy", array)
    data = Dataset({"x": np.load(tmp_path / "x.npy", mmap_mode="r")})
    batches = list(Loader(data, 4, seed=3).epoch(0))
    assert batches[0].targets is None
    assert not isinstance(batches[0].inputs["x"], np.memmap)
    np.testing.assert_array_equal(batches[0].inputs["x"], array[batches[0].indices])


def test_the_input_to_augment_must_be_clear() -> None:
    images = np.zeros((4, 1, 5, 5), np.float32)
    two = Dataset({"a": images, "b": images})
    with pytest.raises(ConfigError, match="augment_input"):
        Loader(two, 2, augment=Noise(1))
    with pytest.raises(ConfigError, match="'c'"):
        Loader(two, 2, augment=Noise(1), augment_input="c")
    with pytest.raises(ConfigError, match=r"augmentation changes images, .* data set .data. has none"):
        Loader(Dataset({"x": np.zeros((4, 2))}), 2, augment=Noise(1))
    batch = next(Loader(two, 2, augment=Noise(1), augment_input="b").epoch(0))
    assert not batch.inputs["a"].any()
    assert batch.inputs["b"].all()


def test_bad_arguments() -> None:
    for options in ({"batch_size": 0}, {"batch_size": 2, "seed": -1}):
        with pytest.raises(ConfigError):
            Loader(dataset(), **options)
    loader = Loader(dataset(), 5)
    for position in ((-1, 0), (0, -1), (0, 6)):
        with pytest.raises(ConfigError, match="no batch"):
            loader.epoch(*position)
    with pytest.raises(DataError, match="raw text"):
        Loader(Dataset({"text": np.array(["a", "b"])}), 1)
