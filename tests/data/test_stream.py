"""Data that are read when they are needed: order, bytes, checks, and what works ahead of a run."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from onward.data import (
    ArrayRows,
    Batch,
    Dataset,
    IterableBatches,
    Kind,
    Loader,
    ParquetRows,
    PartRows,
    SampleRows,
    StreamLoader,
    open_npy,
)
from onward.errors import ConfigError, DataError, StorageError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((500, 4, 8)).astype(np.float32)
Y = RNG.integers(0, 3, 500)


class Pairs:
    """A map-style data set, which worker processes can import."""

    def __init__(self, bad: int | None = None) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if index == self.bad:
            raise RuntimeError(f"cannot decode {index}")
        return X[index], Y[index]


class Dies(Pairs):
    """Ends every process but the one that `bad` says."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if os.getpid() != self.bad:
            os._exit(3)
        return X[index], Y[index]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    return tmp_path


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 samples a block, 48 and more a window."""
    monkeypatch.setattr("onward.data.array_rows._BLOCK_BYTES", 16 * 136)
    monkeypatch.setattr("onward.data.stream._WINDOW_BYTES", 48 * 136)


def same(a: Batch, b: Batch) -> None:
    np.testing.assert_array_equal(a.indices, b.indices)
    for name in a.inputs:
        np.testing.assert_array_equal(a.inputs[name], b.inputs[name])
    np.testing.assert_array_equal(a.targets, b.targets)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_file_is_served_whole_in_a_seeded_order(folder: Path, small_blocks: None, prefetch: int) -> None:
    loader = StreamLoader(open_npy(folder), 30, seed=5, prefetch=prefetch)
    batches = list(loader.epoch(0))
    assert [len(b) for b in batches] == [30] * 16 + [20]
    seen = np.concatenate([b.indices for b in batches])
    np.testing.assert_array_equal(np.sort(seen), np.arange(500))
    np.testing.assert_array_equal(seen, loader.order(0))
    assert (np.diff(seen) == 1).sum() < 50
    for batch in batches:
        np.testing.assert_array_equal(batch.inputs["x"], X[batch.indices])
        np.testing.assert_array_equal(batch.targets, Y[batch.indices])
    assert not np.array_equal(loader.order(1), loader.order(0))
    assert not np.array_equal(StreamLoader(open_npy(folder), 30, seed=6).order(0), loader.order(0))


@pytest.mark.parametrize("short", [1 << 30, 5000, 700])
def test_large_rows_are_read_into_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    """Also where the system reads less at once than it was asked for, and where a part leaves rows out."""
    monkeypatch.setattr("onward.data.stream._WINDOW_BYTES", 40 * 4096)
    monkeypatch.setattr("onward.data.array_rows._BLOCK_BYTES", 8 * 4096)
    x = RNG.standard_normal((101, 4, 256)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.arange(101))

    def read(descriptor: int, buffers: list[memoryview], at: int) -> int:
        left, fitting = short, []
        for buffer in buffers:
            fitting.append(buffer[:left])
            left -= len(fitting[-1])
            if left <= 0:
                break
        return system(descriptor, fitting, at)

    system = os.preadv
    monkeypatch.setattr(os, "preadv", read)
    part = PartRows(open_npy(tmp_path), np.delete(np.arange(101), [3, 50, 51, 99]))
    batches = list(StreamLoader(part, 16, seed=2, prefetch=0).epoch(0))
    assert sum(map(len, batches)) == 97
    for batch in batches:
        np.testing.assert_array_equal(batch.targets, part.indices[batch.indices])
        np.testing.assert_array_equal(batch.inputs["x"], x[part.indices[batch.indices]])


def test_rows_are_read_into_memory_that_nobody_looks_at(tmp_path: Path) -> None:
    everything = np.arange(3000 * 1024, dtype=np.float32).reshape(3000, 1024)
    np.save(tmp_path / "x.npy", everything)
    np.save(tmp_path / "y.npy", np.zeros(3000, np.int64))
    rows = open_npy(tmp_path)

    def read(start: int) -> np.ndarray:
        found = rows.read_in_order(np.arange(start, start + 500), np.arange(500)[::-1]).inputs["x"]
        np.testing.assert_array_equal(found, everything[start : start + 500][::-1])
        return found

    held = read(0)[100:200]
    again = read(500)
    np.testing.assert_array_equal(held, everything[300:400][::-1], err_msg="a view lost its memory")
    place = again.__array_interface__["data"][0]
    del again
    assert read(1000).__array_interface__["data"][0] == place
    part = read(1500)[::7, 5].reshape(-1, 2)
    for start in range(0, 2500, 500):
        read(start)
    np.testing.assert_array_equal(part, everything[1500:2000][::-1][::7, 5].reshape(-1, 2))
    np.testing.assert_array_equal(held, everything[300:400][::-1])


@pytest.mark.parametrize("start", [0, 1, 7, 16, 17])
def test_an_epoch_goes_on_from_any_batch(folder: Path, small_blocks: None, start: int) -> None:
    loader = StreamLoader(open_npy(folder), 30, seed=5)
    rest = list(loader.epoch(2, start))
    for a, b in zip(list(loader.epoch(2))[start:], rest, strict=True):
        same(a, b)


def test_a_map_style_data_set_has_the_order_of_one_in_memory() -> None:
    memory = Loader(Dataset({"x": X}, Y), 32, seed=9)
    for a, b in zip(
        memory.epoch(3, 2), StreamLoader(SampleRows(Pairs(), "x"), 32, 9).epoch(3, 2), strict=True
    ):
        same(a, b)


@pytest.mark.slow
def test_worker_processes_change_neither_order_nor_bytes(folder: Path, small_blocks: None) -> None:
    alone = list(StreamLoader(SampleRows(Pairs(), "x"), 100, 1).epoch(0, 1))
    for a, b in zip(
        alone, StreamLoader(SampleRows(Pairs(), "x"), 100, 1, workers=2).epoch(0, 1), strict=True
    ):
        same(a, b)
    with pytest.raises(RuntimeError, match="cannot decode 77"):
        list(StreamLoader(SampleRows(Pairs(bad=77), "x"), 100, 1, workers=1).epoch(0))
    dying = StreamLoader(SampleRows(Dies(os.getpid()), "x"), 100, 1, workers=1)
    with pytest.raises(DataError, match="ended before its work was done"):
        list(dying.epoch(0))


def test_what_cannot_be_sent_to_workers_is_refused() -> None:
    class Local(Pairs):
        pass

    with pytest.raises(ConfigError, match="cannot be sent to worker processes"):
        list(StreamLoader(SampleRows(Local(), "x"), 100, workers=1).epoch(0))


def test_the_thread_ends_with_the_epoch_and_gives_its_error() -> None:
    before = threading.active_count()
    batches = StreamLoader(SampleRows(Pairs(), "x"), 10).epoch(0)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="cannot decode 400"):
        list(StreamLoader(SampleRows(Pairs(bad=400), "x"), 10).epoch(0))
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: x.__setitem__((321, 2, 3), np.nan), r"input 'x', row 321, element \[2, 3\]: nan"),
        (lambda x, y: y.__setitem__(321, -4), "row 321: label -4 is out of range"),
    ],
)
def test_a_bad_row_is_named(small_blocks: None, change, message: str) -> None:
    x, y = X.copy(), Y.copy()
    change(x, y)
    loader = StreamLoader(ArrayRows({"x": x}, y), 50)
    with pytest.raises(DataError, match=message):
        list(loader.epoch(0))


def test_a_mapped_array_is_read_from_its_file(folder: Path) -> None:
    mapped = np.load(folder / "x.npy", mmap_mode="r")
    rows = ArrayRows({"x": mapped[100:400]}, Y[100:400])
    np.testing.assert_array_equal(rows.read(np.array([0, 5, 6, 299])).inputs["x"], X[[100, 105, 106, 399]])
    part = PartRows(rows, np.arange(0, 300, 3))
    np.testing.assert_array_equal(part.read(np.array([1, 2])).inputs["x"], X[[103, 106]])


def test_files_that_are_not_what_they_say_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        open_npy(folder / "nowhere")
    (folder / "z.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"z\.npy: not a readable \.npy file"):
        open_npy(folder)
    np.save(folder / "z.npy", np.asfortranarray(X[:, 0]))
    with pytest.raises(DataError, match="Fortran"):
        open_npy(folder)
    np.save(folder / "z.npy", X[:7])
    with pytest.raises(DataError, match="numbers of samples differ"):
        open_npy(folder)
    (folder / "z.npy").unlink()
    content = (folder / "x.npy").read_bytes()
    (folder / "x.npy").write_bytes(content[:-1])
    with pytest.raises(DataError, match="truncated"):
        open_npy(folder)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_row_groups_are_read(tmp_path: Path, suffix: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = arrow.table(
        {
            "a": X[:, 0, 0],
            "b": Y * 2,
            "pixels": arrow.FixedSizeListArray.from_arrays(X[:, 1].reshape(-1), 8),
            "label": Y,
        }
    )
    path = tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=70)
    else:
        with arrow.ipc.new_file(path, table.schema) as file:
            for batch in table.to_batches(max_chunksize=70):
                file.write_batch(batch)
    rows = ParquetRows(path, "label")
    assert rows.blocks().tolist() == [0, 70, 140, 210, 280, 350, 420, 490, 500]
    for batch in StreamLoader(rows, 64, seed=2).epoch(0):
        np.testing.assert_array_equal(batch.inputs["features"][:, 0], X[batch.indices, 0, 0])
        np.testing.assert_array_equal(batch.inputs["features"][:, 1], Y[batch.indices] * 2)
        np.testing.assert_array_equal(batch.inputs["pixels"], X[batch.indices, 1])
        np.testing.assert_array_equal(batch.targets, Y[batch.indices])
    with pytest.raises(ConfigError, match="no column 'class'"):
        ParquetRows(path, "class")
    words = table.append_column("word", arrow.array(["a"] * 500))
    parquet.write_table(words, tmp_path / "words.parquet")
    with pytest.raises(DataError, match="column 'word' holds string"):
        StreamLoader(ParquetRows(tmp_path / "words.parquet", "label"), 64)


def test_a_hugging_face_data_set_is_asked_for_lists_of_rows() -> None:
    class Columns:
        column_names = ("image", "label")
        features = ("image", "label")

        def __len__(self) -> int:
            return 20

        def __getitem__(self, indices: list[int]) -> dict[str, list]:
            assert isinstance(indices, list)
            return {"image": [X[i].tolist() for i in indices], "label": [int(Y[i]) for i in indices]}

    (batch,) = StreamLoader(SampleRows(Columns(), "x"), 20, shuffle=False).epoch(0)
    np.testing.assert_allclose(batch.inputs["image"], X[:20])
    np.testing.assert_array_equal(batch.targets, Y[:20])


def test_a_generator_is_gone_through_once() -> None:
    def batches():
        for start in range(0, 500, 50):
            yield X[start : start + 50], Y[start : start + 50]

    with pytest.raises(ConfigError, match="give steps_per_epoch"):
        IterableBatches(batches(), "x")
    loader = IterableBatches(batches(), "x", steps=5)
    first = list(loader.epoch(0))
    np.testing.assert_array_equal(np.concatenate([b.targets for b in first]), Y[:250])
    with pytest.raises(ConfigError, match="cannot be resumed or repeated"):
        loader.epoch(0)
    np.testing.assert_array_equal(np.concatenate([b.targets for b in loader.epoch(1)]), Y[250:])
    with pytest.raises(DataError, match="ended after 0 batches of epoch 3"):
        list(loader.epoch(2))


def test_what_can_be_gone_through_again_is() -> None:
    pieces = [(X[i : i + 50], Y[i : i + 50]) for i in range(0, 500, 50)]
    listed = IterableBatches(pieces, "x", seed=4)
    starts = [b.targets for b in listed.epoch(0)]
    assert not np.array_equal(np.concatenate(starts), Y)
    for a, b in zip(starts[6:], listed.epoch(0, 6), strict=True):
        np.testing.assert_array_equal(a, b.targets)
    epochs = []

    def made(epoch: int):
        epochs.append(epoch)
        return iter(pieces[epoch:] + pieces[:epoch])

    loader = IterableBatches(made, "x")
    assert len(loader) == 10
    assert [int(b.indices[0]) for b in loader.epoch(1, 8)] == [400, 450]
    assert epochs[-1] == 1
    with pytest.raises(DataError, match="batch 1 of epoch 1: int where a batch is needed"):
        IterableBatches(lambda: iter([1, 2]), "x")
    with pytest.raises(DataError, match="batch 2 of epoch 1', targets, row 50: label -1"):
        list(IterableBatches(lambda: [pieces[0], (X[:2], np.array([-1, 0]))], "x").epoch(0))
    with pytest.raises(DataError, match="gives no batches"):
        IterableBatches(lambda: iter(()), "x")


def test_targets_mean_what_the_kind_says() -> None:
    rows = ArrayRows({"x": X}, Y)
    assert StreamLoader(rows, 10).sample.task == "classification"
    assert StreamLoader(rows, 10, kind=Kind("regression")).sample.targets.dtype == np.float32
