from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import onward.data
from onward.data import Dataset, Source, available, resolve
from onward.errors import ConfigError


def test_built_in_sets_and_their_options() -> None:
    assert resolve("digits").dataset.inputs["image"].shape == (1797, 1, 28, 28)
    assert resolve("digits", image_size=8).dataset.inputs["image"].shape == (1797, 1, 8, 8)
    assert resolve("digits", image_size=None).dataset.inputs["image"].shape == (1797, 1, 28, 28)
    for name in ("iris", "wine", "breast_cancer", "diabetes"):
        assert resolve(name).dataset.name == name


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,0\n2,1\n")
    assert len(resolve(f"csv:{tmp_path / 'a.csv'}", target="y").dataset) == 2
    np.savez(tmp_path / "a.npz", x=np.ones(3), y=np.zeros(3, int))
    assert len(resolve(f"npz:{tmp_path / 'a.npz'}").dataset) == 3
    (tmp_path / "t.csv").write_text("text,label\ngood,1\nbad,0\n")
    assert resolve(f"text:{tmp_path / 't.csv'}").dataset.text_inputs == ("text",)
    image = pytest.importorskip("PIL.Image").fromarray(np.zeros((4, 4), np.uint8))
    (tmp_path / "images" / "a").mkdir(parents=True)
    image.save(tmp_path / "images" / "a" / "x.png")
    found = resolve(f"images:{tmp_path / 'images'}", image_size=2, channels=1)
    assert found.dataset.inputs["image"].shape == (1, 1, 2, 2)


def test_idx_folder_with_its_own_test_part(tmp_path: Path) -> None:
    for part, count in (("train", 20), ("t10k", 6)):
        images = struct.pack(">4B3I", 0, 0, 8, 3, count, 2, 2) + bytes(4 * count)
        labels = struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(i % 2 for i in range(count))
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    source = resolve(f"idx:{tmp_path}")
    assert source.test is not None
    splits = source.split((0.7, 0.1, 0.2), seed=1)
    assert splits.test is source.test
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation)) == (17, 3)
    assert source.split((0.8, 0.0, 0.2)).validation is None
    with pytest.raises(ConfigError, match="train"):
        source.split((0.0, 0.5, 0.5))


def test_source_without_a_test_part_is_split() -> None:
    data = Dataset({"x": np.arange(10)}, np.zeros(10, int))
    splits = Source(data).split((0.5, 0.2, 0.3))
    assert splits.test is not None
    assert len(splits.test) == 3


@pytest.mark.parametrize("spec", ["", "mnist", "idx:", "idx", "zip:a.zip", "digits:8", ":a"])
def test_unknown_specs_list_what_exists(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"digits, iris, .* idx:FOLDER, .*csv:FILE"):
        resolve(spec)


def test_a_bare_path_gets_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs its kind in front"):
        resolve(str(tmp_path))


def test_unknown_and_missing_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no option 'size'; it has image_size"):
        resolve("digits", size=8)
    with pytest.raises(ConfigError, match="no option 'target'; it has none"):
        resolve("iris", target="x")
    with pytest.raises(ConfigError, match=r"sqlite:FILE\?query=SELECT"):
        resolve("sqlite:a.db?select")
    with pytest.raises(ConfigError, match="no option 'path'"):
        resolve("csv:a.csv", target="y", path="b.csv")


def test_available_describes_each() -> None:
    forms = available()
    assert {"digits", "idx:FOLDER", "csv:FILE", "npz:FILE", "images:FOLDER", "text:FILE"} <= set(forms)
    assert all(len(line) > 20 for line in forms.values())


def test_public_names_exist_once() -> None:
    names = onward.data.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(onward.data, name) for name in names)


@pytest.mark.data
def test_mnist_10k_splits_8000_to_2000(real_data: Callable[[str], Path]) -> None:
    splits = resolve(f"idx:{real_data('mnist_10k')}").split((0.8, 0.0, 0.2), seed=0)
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (8000, 2000)
