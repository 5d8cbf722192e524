from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from onward.data import load_image_folder
from onward.errors import ConfigError, DataError, StorageError

pillow = pytest.importorskip("PIL.Image")


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(pixels).save(path)


def colours(height: int = 4, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_class_per_folder(tmp_path: Path) -> None:
    image = colours()
    save(tmp_path / "dog" / "1.png", image)
    save(tmp_path / "cat" / "b.png", image[:, :, 0])
    save(tmp_path / "cat" / "a.bmp", image)
    (tmp_path / "cat" / ".hidden").write_text("")
    data = load_image_folder(tmp_path, (4, 6))
    assert data.classes == ("cat", "dog")
    assert data.targets is not None
    assert data.targets.tolist() == [0, 0, 1]
    assert data.inputs["image"].shape == (3, 3, 4, 6)
    expected = image.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(data.inputs["image"][2], expected)
    np.testing.assert_array_equal(data.inputs["image"][1], np.repeat(expected[:1], 3, axis=0))


def test_size_and_channels(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.png", np.full((10, 20, 3), 51, np.uint8))
    data = load_image_folder(tmp_path, 5, channels=1)
    np.testing.assert_array_equal(data.inputs["image"], np.full((1, 1, 5, 5), 0.2, np.float32))


def test_orientation_is_followed(tmp_path: Path) -> None:
    image = pillow.fromarray(colours(4, 6))
    exif = image.getexif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "x.png", exif=exif)
    turned = load_image_folder(tmp_path, (6, 4)).inputs["image"][0]
    expected = np.rot90(colours(4, 6), k=-1).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(turned, expected)


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    save(folder / "good.png", colours(40, 40))
    whole = (folder / "good.png").read_bytes()
    for content in (b"", b"not an image", whole[: len(whole) // 2]):
        (folder / "bad.png").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.png: the image cannot be decoded"):
            load_image_folder(tmp_path, 8)


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    save(tmp_path / "a" / "deep.png", np.full((4, 4), 200 * 257, np.uint16))
    found = load_image_folder(tmp_path, 4, channels=1, raw=True)
    assert (found.inputs["image"] == 200).all()
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a" / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif: F pixels"):
        load_image_folder(tmp_path, 4)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    save(tmp_path / "a" / "x.png", pixels)
    image = load_image_folder(tmp_path, 2, raw=True).inputs["image"][0]
    assert image[:, 0, 0].tolist() == [10, 20, 30]
    assert image[:, 1, 1].tolist() == [255, 255, 255]


def test_images_are_cropped_or_padded_without_changing_proportions(tmp_path: Path) -> None:
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6] = 100
    save(tmp_path / "a" / "x.png", wide)
    cropped = load_image_folder(tmp_path, 4, channels=1, raw=True, fit="crop").inputs["image"][0, 0]
    assert (cropped == 100).all()
    padded = load_image_folder(tmp_path, 8, channels=1, raw=True, fit="pad").inputs["image"][0, 0]
    assert (padded[:2] == 0).all()
    assert (padded[2:6] == wide).all()
    with pytest.raises(ConfigError, match="fit must be one of stretch, crop, pad"):
        load_image_folder(tmp_path, 8, fit="tile")  # type: ignore[arg-type]


def test_bad_files_are_left_out_and_strays_passed_over(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "a" / "broken.png").write_bytes(b"none")
    (tmp_path / "a" / "readme.txt").write_text("hello")
    with pytest.raises(DataError, match=r"broken\.png.*--skip-bad-files"):
        load_image_folder(tmp_path, 4)
    found = load_image_folder(tmp_path, 4, skip_bad_files=True)
    assert len(found) == 1
    stray, bad = found.notes
    assert stray.endswith("1 file (readme.txt) is not among the images, and not read")
    assert "1 of 2 files left out" in bad
    (tmp_path / "a" / "x.png").unlink()
    with pytest.raises(DataError, match="no image of the class can be read"):
        load_image_folder(tmp_path, 4, skip_bad_files=True)


def test_image_that_would_fill_memory_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 0, 0, 0, 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match=r"bomb\.png.*DecompressionBomb"):
        load_image_folder(tmp_path, 4)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        load_image_folder(tmp_path / "absent", 4)
    with pytest.raises(DataError, match="no sub-folders"):
        load_image_folder(tmp_path, 4)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"no images in its only folder \(.bmp"):
        load_image_folder(tmp_path, 4)
    (tmp_path / "a" / "notes.txt").write_text("")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="no images in any of its 2 folders"):
        load_image_folder(tmp_path, 4)


def test_a_folder_without_images_is_no_class(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        save(tmp_path / name / "1.png", colours())
    for name in ("another", "__pycache__"):
        (tmp_path / name).mkdir()
    (tmp_path / "another" / "notes.txt").write_text("")
    found = load_image_folder(tmp_path, 4)
    assert found.classes == ("cat", "dog")
    assert found.targets is not None
    assert found.targets.tolist() == [0, 1]
    assert found.notes == (f"{tmp_path}: no images in '__pycache__', 'another': no class of the data",)


def test_images_that_lie_deeper_are_no_class(tmp_path: Path) -> None:
    for part in ("test", "train"):
        save(tmp_path / part / "cat" / "1.png", colours())
    with pytest.raises(
        DataError, match=r"test: holds no images, but .*cat does: .* the data are images:.*test;"
    ):
        load_image_folder(tmp_path, 4)


def test_bad_options_and_missing_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"image_size": 0}, {"image_size": 4, "channels": 4}):
        with pytest.raises(ConfigError, match="image_size"):
            load_image_folder(tmp_path, **options)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigError, match=r"onward\[data\]"):
        load_image_folder(tmp_path, 4)
