"""Hugging Face's data sets: objects of `datasets`, the folders and files that it writes, and what these say.

Objects are known by what they have, and files are read by pyarrow: `datasets` is never imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onward.data._files import PathLike, optional_module, reading
from onward.data.dataset import Array
from onward.errors import DataError

__all__ = [
    "arrow_table",
    "batches",
    "class_names",
    "is_data_set",
    "is_iterable",
    "is_saved",
    "names_of_classes",
    "pixels",
    "read_saved",
    "refuse_splits",
    "splits_of",
]

_BATCH = 1024


def is_data_set(source: Any) -> bool:
    """Whether an object is a `Dataset` or an `IterableDataset`."""
    return hasattr(source, "column_names") and hasattr(source, "features") and hasattr(source, "with_format")


def is_iterable(source: Any) -> bool:
    """Whether an object is an `IterableDataset`: samples one after the other, of an unknown number."""
    return is_data_set(source) and not hasattr(source, "__len__")


def refuse_splits(source: Any) -> None:
    """Refuse a `DatasetDict`, which is several data sets.

    Raises:
        DataError: names them.
    """
    if isinstance(source, Mapping) and source and all(is_data_set(each) for each in source.values()):
        names = list(source)
        raise DataError(
            f"this {type(source).__name__} holds the data sets {', '.join(map(str, names))}: give one of "
            f"them, such as data[{names[0]!r}]"
        )


def arrow_table(source: Any) -> Any:
    """The rows of an object as a pyarrow table: images and sounds as their bytes and paths."""
    arrow = optional_module("pyarrow", "pyarrow", "reading Hugging Face data sets")
    plain = source.with_format("arrow")
    if not is_iterable(source):
        return plain[:]
    tables = list(plain.iter(batch_size=_BATCH))
    if not tables:
        raise DataError("the data set is empty")
    return arrow.concat_tables(tables)


def is_saved(path: PathLike) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json"))


def read_saved(path: PathLike) -> Any:
    """The rows of a folder that `Dataset.save_to_disk` wrote, as a pyarrow table.

    Raises:
        DataError: it is damaged, or has splits, which it names.
        StorageError: it cannot be read.
    """
    root = Path(path)
    arrow = optional_module("pyarrow", "pyarrow", "reading Hugging Face data sets")
    with reading(root):
        if splits := splits_of(root):
            raise DataError(
                f"{path}: the folder holds the data sets {', '.join(splits)}: give one of them, such as "
                f"{root / splits[0]}"
            )
        try:
            files = [
                each["filename"] for each in json.loads((root / "state.json").read_text())["_data_files"]
            ]
            tables = []
            for file in files:
                with arrow.memory_map(str(root / file)) as mapped:
                    tables.append(arrow.ipc.open_stream(mapped).read_all())
        except (ValueError, KeyError, TypeError, arrow.ArrowException) as error:
            raise DataError(f"{path}: not a readable folder of save_to_disk ({error})") from None
    if not tables:
        raise DataError(f"{path}: the data set is empty")
    return arrow.concat_tables(tables)


def splits_of(path: PathLike) -> list[str]:
    """The splits in a folder that `DatasetDict.save_to_disk` wrote; of another folder none."""
    file = Path(path) / "dataset_dict.json"
    if not file.is_file():
        return []
    try:
        return [str(name) for name in json.loads(file.read_text())["splits"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not readable ({error})") from None


def class_names(table: Any) -> dict[str, list[str]]:
    """The names of classes 0, 1, ... of the columns that have them (`ClassLabel`), by column.

    Args:
        table: a pyarrow table, whose schema says so where `datasets` wrote it.
    """
    said = (table.schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(said)["info"]["features"] if said else {}
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def names_of_classes(source: Any) -> dict[str, list[str]]:
    """The same of an object."""
    features = source.features or {}
    return {name: list(each.names) for name, each in features.items() if getattr(each, "names", None)}


def pixels(value: Any) -> Array:
    """A sample's value as an array; of a Pillow image float32 [C, H, W] of 0 … 1, as of `load_image_folder`.

    Grey images have one channel, others are turned into RGB.
    """
    if not (hasattr(value, "getbands") and hasattr(value, "convert")):
        return np.asarray(value)
    grey = value.mode in ("1", "L")
    image = np.asarray(value.convert("L" if grey else "RGB"), dtype=np.float32) / np.float32(255)
    return image[None] if grey else image.transpose(2, 0, 1)


def batches(source: Any, size: int, epoch: int) -> Iterator[Mapping[str, Any]]:
    """The columns of batches of an `IterableDataset`; one that is shuffled has another order each epoch."""
    if hasattr(source, "set_epoch"):
        source.set_epoch(epoch)
    yield from source.iter(batch_size=size)
