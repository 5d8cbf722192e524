"""Who reads what: each rank its part of the data, and what is measured is measured once."""

from __future__ import annotations

import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onward.data import (
    ArrayRows,
    Augmentation,
    IterableBatches,
    StreamLoader,
    fit_in_one_pass,
    load_image_folder,
    open_parquet,
    parse_augmentation,
)
from onward.data.rows import Rows, Samples
from onward.errors import ConfigError, DataError
from onward.nn import zoo
from onward.parallel import Group, ThreadCommunicator, run_ranks
from onward.train import Trainer

COUNT = 403
X = np.random.default_rng(0).standard_normal((COUNT, 5)).astype(np.float32)
Y = np.arange(COUNT) % 3


class Counted(Rows):
    """Rows that note which of them were read; in blocks of 20, which may be read whole, or single."""

    def __init__(self, blocks: bool, weights: Any = None, *, whole: bool = False) -> None:
        self.name = "counted"
        self.whole_blocks = whole
        self.taken: list[int] = []
        self._rows = ArrayRows({"input": X}, Y, weights)
        self._blocks = np.append(np.arange(0, COUNT, 20), COUNT) if blocks else None

    def __len__(self) -> int:
        return COUNT

    def read(self, indices: NDArray[np.int64]) -> Samples:
        self.taken += indices.tolist()
        return self._rows.read(indices)

    def blocks(self) -> NDArray[np.int64] | None:
        return self._blocks


@pytest.mark.parametrize("kind", ["single", "blocks", "whole blocks"])
@pytest.mark.parametrize(("batch", "ranks"), [(16, 2), (50, 3), (3, 4), (67, 2), (17, 16)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_rank_reads_its_rows_alone(kind: str, batch: int, ranks: int, drop_last: bool) -> None:
    def loader() -> StreamLoader:
        rows = Counted(kind != "single", whole=kind == "whole blocks")
        made = StreamLoader(rows, batch, 5, drop_last=drop_last)
        made.rows.taken.clear()  # type: ignore[attr-defined]
        return made

    whole = list(loader().epoch(3, 1))
    read: list[int] = []
    parts = []
    for rank in range(ranks):
        own = loader()
        parts.append(list(own.shares(3, 1, rank, ranks)))
        mine = own.rows.taken  # type: ignore[attr-defined]
        assert sorted(mine) == sorted(int(i) for b in parts[-1] for i in b.indices)
        read += [int(i) for b in parts[-1] for i in b.indices[: b.share.count if b.share else 0]]
    assert sorted(read) == sorted(int(i) for b in whole for i in b.indices)
    for number, expected in enumerate(whole):
        shares = [part[number] for part in parts]
        assert [s.share for s in shares] == [expected.part(rank, ranks).share for rank in range(ranks)]
        for rank, own in enumerate(shares):
            wanted = expected.part(rank, ranks)
            np.testing.assert_array_equal(own.indices, wanted.indices)
            np.testing.assert_array_equal(own.inputs["input"], wanted.inputs["input"])
            np.testing.assert_array_equal(own.targets, wanted.targets)
    dealt = []
    for rank in range(ranks):
        own = loader()
        found = list(own.dealt(rank, ranks))
        assert sorted(own.rows.taken) == sorted(int(i) for b in found for i in b.indices)  # type: ignore[attr-defined]
        dealt += found
    every = loader().order(0)[: len(loader()) * batch]
    assert sorted(int(i) for b in dealt for i in b.indices) == sorted(every.tolist())


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("memory", [1, 4, 256])
def test_blocks_that_are_read_whole_are_divided(ranks: int, memory: int, monkeypatch: Any) -> None:
    """Read by two ranks are blocks that they share, and that of the last batch, of three samples."""
    block_bytes = 20 * (5 * 4 + 8)
    monkeypatch.setattr("onward.data.stream._LANES_BYTES", memory * block_bytes)
    monkeypatch.setattr("onward.data.stream._WINDOW_BYTES", 2 * block_bytes)
    side_by_side = min(ranks, memory, 16)

    def loader(shuffle: bool = True) -> StreamLoader:
        made = StreamLoader(Counted(True, whole=True), 16, 5, shuffle=shuffle, prefetch=0)
        made.rows.taken.clear()  # type: ignore[attr-defined]
        return made

    whole = loader()
    wanted = [batch.indices for batch in whole.epoch(2)]
    assert sorted(np.concatenate(wanted)) == list(range(COUNT))
    np.testing.assert_array_equal(np.concatenate(wanted), whole.order(2))
    blocks = -(-COUNT // 20)
    read = []
    for rank in range(ranks):
        own = loader()
        list(own.shares(2, 0, rank, ranks))
        read.append({row // 20 for row in own.rows.taken})  # type: ignore[attr-defined]
    assert set().union(*read) == set(range(blocks))
    assert sum(map(len, read)) <= (blocks + side_by_side) * (ranks // side_by_side) + ranks
    # an epoch goes on from anywhere with the same batches
    for start in (1, 7, 25):
        for found, rows in zip(loader().epoch(2, start), wanted[start:], strict=True):
            np.testing.assert_array_equal(found.indices, rows)
            np.testing.assert_array_equal(found.inputs["input"], X[rows])
    dealt = []
    for rank in range(ranks):
        own = loader(shuffle=False)
        list(own.dealt(rank, ranks))
        dealt += sorted({row // 20 for row in own.rows.taken})  # type: ignore[attr-defined]
    assert len(dealt) <= blocks + max(blocks // 4, ranks)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_rows_that_lie_together_are_of_one_rank(ranks: int, monkeypatch: Any) -> None:
    """Of a memory-mapped file whole pages are read, and more ahead: some of eight parts, besides blocks at
    their borders and those of the last batch.
    """
    monkeypatch.setattr("onward.data.stream._WINDOW_BYTES", 3 * 20 * (5 * 4 + 8))
    touched = []
    for rank in range(ranks):
        own = StreamLoader(Counted(True), 16, 5, prefetch=0)
        own.rows.taken.clear()  # type: ignore[attr-defined]
        list(own.shares(2, 0, rank, ranks))
        touched.append({row // 20 for row in own.rows.taken})  # type: ignore[attr-defined]
    blocks = -(-COUNT // 20)
    lanes = -(-8 // ranks) + (8 % ranks > 0)
    assert max(map(len, touched)) <= blocks * lanes / 8 + lanes + 3


@pytest.mark.parametrize(
    ("size", "ranks", "large"),
    [(403, 4, True), (100, 8, True), (100, 4, False), (100, 3, False), (20, 2, False), (20, 8, False)],
)
def test_what_ranks_read_of_blocks_is_foretold(size: int, ranks: int, large: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr("onward.data.stream._LANES_BYTES", COUNT * (5 * 4 + 8))
    rows = Counted(True, whole=True)
    rows._blocks = np.append(np.arange(0, COUNT, size), COUNT)
    read = []
    for rank in range(ranks):
        loader = StreamLoader(rows, 16, 5, prefetch=0)
        rows.taken.clear()
        list(loader.shares(0, 0, rank, ranks))
        mine = {row // size for row in rows.taken}
        read.append(sum(min(size, COUNT - block * size) for block in mine))
    # the share of the last batch, of three samples, may be of other lanes
    assert loader.part_read(ranks) * COUNT == pytest.approx(max(read), abs=size)
    advice = loader.advice(ranks)
    assert bool(advice) == large, advice


def test_large_row_groups_are_told_of_and_smaller_ones_are_not(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"a": X[:, 0], "b": X[:, 1], "y": Y})

    def told(ranks: ThreadCommunicator) -> list[str]:
        trainer = Trainer(zoo.mlp(input_shape=(2,), num_classes=3), threads=1, parallel=ranks)
        trainer.fit(open_parquet(tmp_path / "t.parquet", "y"), batch_size=64, progress=False)
        return []

    parquet.write_table(table, tmp_path / "t.parquet")
    text = r"some of 4 ranks read 100% .* row groups, here of 403 rows, .* groups have at most 25 rows"
    with pytest.warns(UserWarning, match=text):
        run_ranks(4, told)
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=25)
    run_ranks(4, told)  # warnings are errors


def test_a_group_of_a_parquet_file_is_read_by_one_rank(tmp_path: Path, monkeypatch: Any) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    columns = {"a": rng.standard_normal(4000), "b": rng.standard_normal(4000), "y": np.arange(4000) % 3}
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet", row_group_size=250)
    groups: list[tuple[int, int]] = []
    own = threading.local()
    read = parquet.ParquetFile.read_row_group

    def noted(self: Any, group: int, *args: Any, **options: Any) -> Any:
        groups.append((own.rank, group))
        return read(self, group, *args, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", noted)

    def trained(ranks: ThreadCommunicator | None) -> dict[str, float]:
        own.rank = 0 if ranks is None else ranks.rank
        trainer = Trainer(zoo.mlp(input_shape=(2,), num_classes=3), threads=1, parallel=ranks)
        rows = open_parquet(tmp_path / "t.parquet", "y")
        row = trainer.fit(StreamLoader(rows, 64, prefetch=0), progress=False).rows[0]
        own.rank += 10
        return {**row, **trainer.evaluate(StreamLoader(rows, 64, shuffle=False, prefetch=0))}

    found = run_ranks(4, trained)
    assert found[0] == found[3]
    # besides a quarter: the first and the last, of which probes are taken; to evaluate, one that two share
    for rank in range(4):
        assert len({group for who, group in groups if who == rank} - {0, 15}) <= 4
        assert len({group for who, group in groups if who == rank + 10} - {0}) <= 5
    assert {group for who, group in groups if who < 10} == set(range(16))
    for key, value in trained(None).items():
        np.testing.assert_allclose(found[0][key], value, rtol=2e-5, err_msg=key)


def test_batches_that_are_mixed_are_read_whole() -> None:
    mix: Augmentation = parse_augmentation("mixup=0.2")
    images = ArrayRows({"x": np.random.default_rng(0).random((9, 1, 2, 2)).astype(np.float32)}, Y[:9])
    whole = list(StreamLoader(images, 4, augment=mix).epoch(0))
    own = list(StreamLoader(images, 4, augment=mix).shares(0, 0, 1, 2))
    for each, expected in zip(own, whole, strict=True):
        np.testing.assert_array_equal(each.inputs["x"], expected.part(1, 2).inputs["x"])


@pytest.mark.parametrize("weights", [None, np.arange(COUNT) % 4], ids=["alike", "weights"])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_what_is_measured_does_not_depend_on_who_measures(ranks: int, weights: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("onward.data.stream_fit._ROUND", 4)
    options: dict[str, Any] = {"shuffle": False}
    wanted = fit_in_one_pass(StreamLoader(Counted(True, weights), 32, **options)).to_json()

    def work(communicator: ThreadCommunicator) -> tuple[Any, int]:
        group = Group(communicator)
        rows = Counted(True, weights)
        loader = StreamLoader(rows, 32, **options)
        rows.taken.clear()
        found = fit_in_one_pass(loader, rank=group.rank, ranks=group.size, gather=group.gather)
        group.close()
        return found.to_json(), len(rows.taken)

    results = run_ranks(ranks, work)
    assert [found for found, _ in results] == [wanted] * ranks
    assert sum(taken for _, taken in results) == COUNT
    assert max(taken for _, taken in results) <= -(-13 // ranks) * 32


def test_training_reads_each_row_once_an_epoch() -> None:
    def work(ranks: ThreadCommunicator) -> list[int]:
        rows = Counted(False)
        trainer = Trainer(zoo.mlp(input_shape=(5,), num_classes=3), threads=1, parallel=ranks)
        loader = StreamLoader(rows, 31, workers=0)
        rows.taken.clear()
        trainer.fit(loader, validation=loader, epochs=2, progress=False)
        return rows.taken

    first, second = run_ranks(2, work)
    probes = 2 * 64  # of the fingerprint, for the training and the validation part
    for taken in (first, second):
        assert len(taken) <= 4 * (COUNT // 2 + 31) + 3 * probes
    assert set(first) | set(second) == set(range(COUNT))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(9):
            pixels = rng.integers(0, 255, (6, 5, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    return tmp_path / "photos"


def test_images_are_decoded_by_one_rank_each(photos: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("onward.parallel.group._FILES", 2)
    wanted = load_image_folder(photos, 4)

    def work(communicator: ThreadCommunicator) -> tuple[str, list[Path]]:
        group = Group(communicator)
        read: list[Path] = []

        def files(paths: Any, function: Any) -> Any:
            return group.read_files(paths, lambda file: (read.append(file), function(file))[1])

        found = load_image_folder(photos, 4, read_files=files)
        group.close()
        return found.digest(), read

    results = run_ranks(3, work)
    assert [digest for digest, _ in results] == [wanted.digest()] * 3
    assert sorted(file for _, read in results for file in read) == sorted(photos.glob("*/*.png"))
    assert all(len(read) == 6 for _, read in results)


def test_files_that_cannot_be_decoded_are_everybodys(photos: Path) -> None:
    (photos / "b" / "8.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"8\.png: the image cannot be decoded .* --skip-bad-files"):
        run_ranks(2, lambda ranks: load_image_folder(photos, 4, read_files=Group(ranks).read_files))
    skipped = run_ranks(
        2,
        lambda ranks: load_image_folder(photos, 4, skip_bad_files=True, read_files=Group(ranks).read_files),
    )
    assert [each.notes for each in skipped] == [load_image_folder(photos, 4, skip_bad_files=True).notes] * 2


def test_ranks_that_see_other_files_are_named(photos: Path, tmp_path: Path) -> None:
    other = shutil.copytree(photos, tmp_path / "other")
    (other / "a" / "0.png").unlink()
    with pytest.raises(ConfigError, match="ranks disagree on the files of the data: rank 0 has '18 files"):
        run_ranks(
            2,
            lambda ranks: load_image_folder(
                (photos, other)[ranks.rank], 4, read_files=Group(ranks).read_files
            ),
        )


def pieces(count: int, size: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, count, size)]


def with_generator(ranks: ThreadCommunicator | None, data: Any, **fit: Any) -> tuple[Any, ...]:
    model = zoo.mlp(input_shape=(5,), num_classes=3)
    trainer = Trainer(model, metrics=["accuracy"], threads=1, parallel=ranks)
    rows = trainer.fit(data, validation=data, epochs=2, progress=False, **fit).rows
    return trainer.weights(), rows, trainer.evaluate(data)


def test_a_function_makes_the_batches_of_a_rank() -> None:
    """Rank 1 has the second half of each batch, one sample less of the last, and nothing of two batches."""
    whole = pieces(70, 10)
    taken: list[tuple[int, int]] = []

    def batches(rank: int, ranks: int) -> Any:
        assert ranks == 2
        for number, (x, y) in enumerate(whole[: 7 - 2 * rank]):
            taken.append((rank, number))
            yield (x[:6], y[:6]) if rank == 0 else (x[6:], y[6:])

    wanted = with_generator(None, lambda: iter([*whole[:5], *((x[:6], y[:6]) for x, y in whole[5:])]))
    results = run_ranks(2, lambda ranks: with_generator(ranks, batches))
    for weights, rows, measured in results:
        for key, array in wanted[0].items():
            np.testing.assert_allclose(weights[key], array, rtol=1e-4, atol=2e-6, err_msg=key)
        for row, expected in zip(rows, wanted[1], strict=True):
            assert row["val_accuracy"] == pytest.approx(expected["val_accuracy"], rel=1e-6)
            assert row["loss"] == pytest.approx(expected["loss"], rel=2e-5)
            assert row["accuracy"] == pytest.approx(expected["accuracy"], rel=1e-6)
        assert measured["loss"] == pytest.approx(wanted[2]["loss"], rel=2e-5)
    assert {number for rank, number in taken if rank == 1} == set(range(5))


def test_a_function_for_a_rank_is_told_the_epoch_and_works_alone() -> None:
    told: list[tuple[int, int, int]] = []

    def batches(epoch: int, *, rank: int, ranks: int) -> Any:
        told.append((epoch, rank, ranks))
        return pieces(20, 10)

    with_generator(None, batches, steps_per_epoch=2)
    assert set(told) == {(0, 0, 1), (1, 0, 1)}


def test_a_generator_for_all_ranks_is_warned_of() -> None:
    def work(ranks: ThreadCommunicator) -> list[str]:
        with warnings.catch_warnings(record=True) as found:
            if ranks.rank == 0:  # filters are of the process: only the rank that warns changes them
                warnings.simplefilter("always")
            trainer = Trainer(zoo.mlp(input_shape=(5,), num_classes=3), threads=1, parallel=ranks)
            trainer.fit(lambda: iter(pieces(20, 10)), progress=False)
        return [str(each.message) for each in found]

    told = [text for each in run_ranks(2, work) for text in each]
    assert len(told) == 1
    assert "each of 2 ranks goes through all batches of <lambda>" in told[0]
    assert "`rank` and `ranks`" in told[0]


def test_a_rank_without_batches_and_half_a_signature_are_refused() -> None:
    def none_for_one(rank: int, ranks: int) -> Any:
        return pieces(20, 10) if rank == 0 else []

    with pytest.raises(DataError, match=r"none_for_one \(rank 1 of 2\) gives no batches"):
        run_ranks(2, lambda ranks: with_generator(ranks, none_for_one))
    with pytest.raises(ConfigError, match="has a parameter 'rank' alone"):
        with_generator(None, lambda rank: pieces(20, 10))
    own = IterableBatches(lambda rank, ranks: pieces(20, 10), "input")
    with pytest.raises(ConfigError, match=r"batches of rank 0 of 1, on rank [01] of 2: give IterableBatches"):
        run_ranks(2, lambda ranks: with_generator(ranks, own))
