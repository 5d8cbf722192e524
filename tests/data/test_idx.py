from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onward.data import load_idx, load_idx_folder, read_idx
from onward.errors import ConfigError, DataError, StorageError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4) * 10
LABELS = np.array([1, 0], np.uint8)


def idx(array: np.ndarray, code: int = 8) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(folder: Path, part: str = "x", images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> None:
    (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))


def test_images_and_labels_plain_and_gzip(tmp_path: Path) -> None:
    write(tmp_path)
    data = load_idx(tmp_path / "x-images-idx3-ubyte.gz", tmp_path / "x-labels-idx1-ubyte")
    assert data.inputs["image"].shape == (2, 1, 3, 4)
    assert data.inputs["image"].dtype == np.float32
    np.testing.assert_array_equal(data.inputs["image"][:, 0], IMAGES.astype(np.float32) / np.float32(255))
    assert data.targets is not None
    assert data.targets.tolist() == [1, 0]
    assert data.classes == ("0", "1")
    assert data.name == "x-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("code", "dtype"), [(8, "u1"), (9, "i1"), (0xB, "i2"), (0xC, "i4"), (0xD, "f4"), (0xE, "f8")]
)
def test_every_element_type(tmp_path: Path, code: int, dtype: str) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)
    (tmp_path / "a").write_bytes(idx(array, code))
    read = read_idx(tmp_path / "a")
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


PACKED = gzip.compress(idx(IMAGES), mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\0\0\x08", "not an IDX file"),
        (b"\x89PNG and more", "89504e47"),
        (b"\0\0\x07\x01" + bytes(8), "00000701"),
        (b"\0\0\x08\x00", "not an IDX file"),
        (idx(LABELS)[:6], "truncated in the header"),
        (idx(LABELS)[:-1], "truncated: .* needs 2 bytes, the file has 1"),
        (idx(LABELS) + b"\0", "longer than its header"),
        (struct.pack(">BBBB4I", 0, 0, 8, 4, *[2**32 - 1] * 4), "truncated"),
        (PACKED[:-9], "gzip stream"),
        (PACKED[:-8] + bytes(4) + PACKED[-4:], "gzip stream"),
    ],
    ids=range(11),
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_idx(tmp_path / "bad")
    assert "bad" in str(error.value)


def test_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing"):
        read_idx(tmp_path / "nothing")


def test_images_and_labels_that_do_not_belong_together(tmp_path: Path) -> None:
    for name, array in {"images": IMAGES, "labels": LABELS, "three": np.zeros(3, np.uint8)}.items():
        (tmp_path / name).write_bytes(idx(array))
    (tmp_path / "none").write_bytes(idx(IMAGES[:0]))
    (tmp_path / "no_labels").write_bytes(idx(LABELS[:0]))
    for images, labels, message in [
        ("labels", "images", "exchanged"),
        ("images", "images", "exchanged"),
        ("images", "three", "2 images, .* 3 labels"),
        ("none", "no_labels", "empty"),
    ]:
        with pytest.raises(DataError, match=message):
            load_idx(tmp_path / images, tmp_path / labels)
    with pytest.raises(DataError, match="label 1 is out of range"):
        load_idx(tmp_path / "images", tmp_path / "labels", classes=["only"])


def test_folder_with_a_test_part(tmp_path: Path) -> None:
    write(tmp_path, "train")
    write(tmp_path, "t10k", IMAGES[:1], LABELS[:1])
    data, test = load_idx_folder(tmp_path)
    assert len(data) == 2
    assert test is not None
    assert len(test) == 1
    assert test.classes == data.classes


def test_folder_with_one_part(tmp_path: Path) -> None:
    write(tmp_path, "mnist10k")
    (tmp_path / "LICENSE").write_text("free")
    data, test = load_idx_folder(tmp_path)
    assert len(data) == 2
    assert test is None


def test_test_labels_unknown_in_training_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "train")
    write(tmp_path, "t10k", IMAGES, np.array([0, 9], np.uint8))
    with pytest.raises(DataError, match="label 9"):
        load_idx_folder(tmp_path)


@pytest.mark.parametrize(
    ("parts", "extra", "message"),
    [
        ([], [], "no files named"),
        (["a", "b"], [], "cannot tell"),
        (["train", "b"], [], "cannot tell"),
        (["t10k"], [], "cannot tell"),
        (["a"], ["b-images-idx3-ubyte"], "'b' has no labels"),
        (["a"], ["a-images-idx3-ubyte"], "two files hold the images"),
    ],
)
def test_folders_that_leave_a_doubt(tmp_path: Path, parts: list[str], extra: list[str], message: str) -> None:
    for part in parts:
        write(tmp_path, part)
    for name in extra:
        (tmp_path / name).write_bytes(idx(IMAGES))
    with pytest.raises(DataError, match=message):
        load_idx_folder(tmp_path)


@pytest.mark.data
def test_mnist_10k(real_data: Callable[[str], Path]) -> None:
    data, test = load_idx_folder(real_data("mnist_10k"))
    assert test is None
    assert data.inputs["image"].shape == (10_000, 1, 28, 28)
    assert data.class_count == 10
    assert data.targets is not None
    assert np.bincount(data.targets).min() > 800
    assert data.inputs["image"].max() == 1


@pytest.mark.data
def test_fashion_mnist(real_data: Callable[[str], Path]) -> None:
    data, test = load_idx_folder(real_data("fashion_mnist"))
    assert test is not None
    assert (len(data), len(test)) == (60_000, 10_000)
    assert data.targets is not None
    assert np.bincount(data.targets).tolist() == [6000] * 10


def test_images_as_a_network_takes_them(tmp_path: Path) -> None:
    images = np.repeat(np.arange(6, dtype=np.uint8)[:, None, None] * 40, 4, axis=1).repeat(4, axis=2)
    write(tmp_path, images=images, labels=np.array([0, 1] * 3, np.uint8))
    paths = tmp_path / "x-images-idx3-ubyte.gz", tmp_path / "x-labels-idx1-ubyte"
    data = load_idx(*paths, raw=True, image_size=8, channels=3)
    assert data.inputs["image"].dtype == np.uint8
    expected = np.broadcast_to((np.arange(6) * 40)[:, None, None, None], (6, 3, 8, 8))
    np.testing.assert_array_equal(data.inputs["image"], expected)
    padded = load_idx(*paths, raw=True, image_size=(4, 8), fit="pad").inputs["image"]
    assert (padded[5] > 0).any(axis=(0, 1)).tolist() == [False] * 2 + [True] * 4 + [False] * 2
    few = load_idx(*paths, limit=4, seed=3)
    assert len(few) == 4
    assert few.targets is not None
    assert sorted(few.targets.tolist()) == [0, 0, 1, 1]
    with pytest.raises(ConfigError, match="at least 1 image"):
        load_idx(*paths, limit=0)
    with pytest.raises(ConfigError, match="channels 1 or 3"):
        load_idx(*paths, channels=2)
    with pytest.raises(DataError, match=r"6 images of this size take 16 GiB.*--limit"):
        load_idx(*paths, image_size=54_000)


def test_a_folder_is_read_in_part(tmp_path: Path) -> None:
    for part in ("train", "t10k"):
        write(tmp_path, part, images=np.zeros((20, 3, 4), np.uint8), labels=np.arange(20, dtype=np.uint8) % 2)
    train, test = load_idx_folder(tmp_path, limit=6, image_size=5)
    assert test is not None
    assert train.inputs["image"].shape == test.inputs["image"].shape == (6, 1, 5, 5)
