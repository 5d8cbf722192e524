"""Hugging Face data sets: what `datasets` writes to disk, which needs pyarrow alone, and its objects."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward import data
from onward.errors import DataError
from onward.nn import zoo
from onward.train import SGD, Trainer

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pillow = pytest.importorskip("PIL.Image")

NAMES = ["pos", "neg"]
COUNT = 40


def _png(number: int) -> bytes:
    file = io.BytesIO()
    pillow.fromarray(np.full((6, 5, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def _table(kind: str) -> Any:
    """As `datasets` makes it: names of classes and features stand in the schema."""
    labels = [i % 2 for i in range(COUNT)]
    if kind == "images":
        cells: list[Any] = [{"bytes": _png(i), "path": None} for i in range(COUNT)]
        column, feature = "image", {"_type": "Image"}
    elif kind == "texts":
        cells = [f"{NAMES[i % 2]} film number {i}" for i in range(COUNT)]
        column, feature = "text", {"dtype": "string", "_type": "Value"}
    else:
        cells = [i / 7 for i in range(COUNT)]
        column, feature = "size", {"dtype": "float64", "_type": "Value"}
    features = {column: feature, "label": {"names": NAMES, "_type": "ClassLabel"}}
    table = arrow.table({column: cells, "label": arrow.array(labels, arrow.int64())})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _saved(folder: Path, table: Any) -> Path:
    """What `save_to_disk` leaves."""
    folder.mkdir(parents=True)
    files = []
    for number, part in enumerate((table.slice(0, 25), table.slice(25))):
        files.append({"filename": f"data-0000{number}-of-00002.arrow"})
        path = str(folder / files[-1]["filename"])
        with arrow.OSFile(path, "wb") as file, arrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.fixture(params=["folder", "parquet"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def store(kind: str) -> Path:
        if request.param == "folder":
            return _saved(tmp_path / kind, _table(kind))
        parquet.write_table(_table(kind), tmp_path / f"{kind}.parquet")
        return tmp_path / f"{kind}.parquet"

    return store


def test_stored_images(stored: Any) -> None:
    found = data.resolve(f"images:{stored('images')}", image_size=6, channels=1, raw=True).dataset
    assert found.classes == ("pos", "neg")
    np.testing.assert_array_equal(found.targets, np.arange(COUNT) % 2)
    np.testing.assert_array_equal(found.inputs["image"][:, 0, 3, 3], np.arange(COUNT))


def test_stored_texts_and_tables_have_the_names_of_classes(stored: Any) -> None:
    texts = data.resolve(f"text:{stored('texts')}").dataset
    assert texts.classes == ("neg", "pos")
    wanted = [NAMES[i % 2] for i in range(COUNT)]
    assert [texts.classes[i] for i in texts.targets] == wanted
    table = data.resolve(f"table:{stored('numbers')}").dataset
    assert [table.classes[i] for i in table.targets] == wanted
    np.testing.assert_array_equal(table.inputs["features"][:, 0], np.arange(COUNT) / 7)


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    table = _table("images")
    cells = table.column("image").to_pylist()
    cells[3], cells[7] = {"bytes": b"no image", "path": None}, None
    labels = [-1 if i == 9 else i % 2 for i in range(COUNT)]
    broken = arrow.table(
        {"image": arrow.array(cells, table.schema.field("image").type), "label": labels}
    ).replace_schema_metadata(table.schema.metadata)
    folder = _saved(tmp_path / "broken", broken)
    with pytest.raises(DataError, match=r"row 3: the image cannot be decoded.*--skip-bad-files"):
        data.load_image_folder(folder, 6)
    found = data.load_image_folder(folder, 6, skip_bad_files=True)
    assert len(found) == COUNT - 3
    assert "3 of 40 rows left out" in found.notes[0]
    with pytest.raises(DataError, match="one column must hold encoded images"):
        data.load_image_folder(_saved(tmp_path / "numbers", _table("numbers")))
    with pytest.raises(DataError, match="images are read with images:FILE"):
        data.load_table(folder)


def test_a_folder_of_splits_names_them(tmp_path: Path) -> None:
    _saved(tmp_path / "both" / "train", _table("numbers"))
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(
        DataError, match=r"holds the data sets train, test: give one of them, such as .*train"
    ):
        data.load_table(tmp_path / "both")
    assert len(data.load_table(tmp_path / "both" / "train")) == COUNT
    (tmp_path / "both" / "train" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="not a readable folder of save_to_disk"):
        data.load_table(tmp_path / "both" / "train")


@pytest.fixture
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="Hugging Face's `datasets` is not installed")


def _object(datasets: Any, kind: str) -> Any:
    said = json.loads(_table(kind).schema.metadata[b"huggingface"])["info"]["features"]
    return datasets.Dataset.from_dict(_table(kind).to_pydict(), features=datasets.Features.from_dict(said))


def _fit(given: Any, channels: int = 0, **options: Any) -> dict[str, Any]:
    network = zoo.mlp(2, input_shape=(3, 6, 5) if channels else (4,), hidden=[8])
    trainer = Trainer(network, "cross_entropy", SGD(0.01))
    trainer.fit(given, epochs=2, batch_size=16, progress=False, **options)
    return {name: weight.copy() for name, weight in trainer.weights().items()}


def test_objects_train_as_arrays_do(datasets: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(COUNT, 4)).astype(np.float32), rng.integers(0, 2, COUNT)
    rows = datasets.Dataset.from_dict({"x": x.tolist(), "label": y.tolist()})
    wanted = _fit(x, targets=y)
    for given in (rows, rows.with_format("numpy")):
        for name, weight in _fit(given).items():
            np.testing.assert_array_equal(weight, wanted[name])
    in_order = _fit(data.Loader(data.Dataset({"x": x}, y), 16, shuffle=False))
    for name, weight in _fit(rows.to_iterable_dataset()).items():
        np.testing.assert_array_equal(weight, in_order[name])
    mixed = rows.to_iterable_dataset().shuffle(seed=1, buffer_size=COUNT)
    assert any((weight != in_order[name]).any() for name, weight in _fit(mixed).items())


def test_objects_of_images_texts_and_tables(datasets: Any) -> None:
    images = _object(datasets, "images")
    _fit(images, channels=3)
    some = images.shuffle(seed=2).select(range(12))
    found = data.load_image_folder(some, (6, 5), raw=True)
    assert found.classes == ("pos", "neg")
    np.testing.assert_array_equal(found.targets, some["label"][:])
    texts = _object(datasets, "texts").shuffle(seed=2)
    read = data.load_texts(texts)
    assert read.classes is not None
    assert [read.classes[i] for i in read.targets] == [NAMES[i] for i in texts["label"]]
    assert len(data.load_table(_object(datasets, "numbers").to_iterable_dataset())) == COUNT
    with pytest.raises(DataError, match="holds the data sets train: give one of them"):
        _fit(datasets.DatasetDict({"train": images}))
