"""Who reads what: each rank its part of the data, and what is measured is measured once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onward.data import (
    ArrayRows,
    Augmentation,
    StreamLoader,
    fit_in_one_pass,
    load_image_folder,
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
    """Rows that note which of them were read; 20 at a time where they are in blocks."""

    def __init__(self, blocks: bool, weights: Any = None) -> None:
        self.name = "counted"
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


@pytest.mark.parametrize("blocks", [False, True], ids=["single", "blocks"])
@pytest.mark.parametrize(("batch", "ranks"), [(16, 2), (50, 3), (3, 4), (67, 2)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_rank_reads_its_rows_alone(blocks: bool, batch: int, ranks: int, drop_last: bool) -> None:
    def loader() -> StreamLoader:
        made = StreamLoader(Counted(blocks), batch, 5, drop_last=drop_last)
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
