"""A first configuration for data that nobody has looked at yet: what they are, and a run.toml that fits."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from onward.data import Dataset
from onward.data.frame import TABLE_SUFFIXES
from onward.data.registry import available, split_spec
from onward.errors import ConfigError
from onward.runs.config import DataTable, RunConfig, run_of
from onward.runs.preparation import read_data
from onward.runs.tables import columns_text
from onward.train.task import Task, default_metrics, infer_task

__all__ = ["Draft", "draft", "spec_of"]

_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_LOOKED_AT = 2_000
"""Entries of a folder that are looked at."""
_PICTURES = 200
_SIDES = (28, 32, 64, 96, 128, 224)
_IMBALANCED = 5
_LARGE_IMAGE = 96


@final
@dataclass(frozen=True)
class Draft:
    """What was seen, and the configuration's text.

    Attributes:
        seen: one line each.
        text: of run.toml, with comments.
        config: what it says.
    """

    seen: tuple[str, ...]
    text: str
    config: RunConfig


def draft(spec: str, target: str | None = None, file: str = "run.toml") -> Draft:
    """Look at data and write a configuration for them.

    Args:
        spec: as `--data` takes it, or a file or folder alone.
        target: the column or array to predict; None: what the reader finds.
        file: where it is going to be written.

    Raises:
        ConfigError: nobody can say what is there.
        DataError: it cannot be read.
    """
    spec = spec_of(spec)
    table = DataTable(spec=spec, target=target)
    if spec.startswith("images:"):
        size, channels = _pictures(Path(spec.removeprefix("images:")))
        table = DataTable(spec=spec, target=target, image_size=size, channels=channels)
    dataset = read_data(table).dataset
    task = infer_task(dataset)
    seen = [_samples(dataset), f"task: {task}", *_classes(dataset), *dataset.notes]
    text = _text(spec, dataset, task, target, file)
    return Draft(tuple(seen), text, run_of(tomllib.loads(text), "the draft"))


def spec_of(text: str) -> str:
    """What `--data` takes for a file or folder.

    Raises:
        ConfigError: it is not there, or holds nothing that is known.
    """
    _, path = split_spec(text)
    if (path and path != text) or text in available():
        return text
    place = Path(text)
    if not place.exists():
        raise ConfigError(f"{place} is not there, nor is it a built-in data set")
    if place.is_file():
        return _file(place)
    found: Counter[str] = Counter()
    for number, entry in enumerate(sorted(place.rglob("*"))):
        if number == _LOOKED_AT:
            break
        if entry.is_file():
            found[entry.name.lower() if entry.parent == place else f"*/{entry.suffix.lower()}"] += 1
    below = {name[2:]: count for name, count in found.items() if name.startswith("*/")}
    here = [name for name in found if not name.startswith("*/")]
    if sum(below.get(each, 0) for each in _IMAGES):
        return f"images:{place}"
    if below.get(".wav"):
        return f"audio:{place}"
    if any("idx" in name and "ubyte" in name for name in here):
        return f"idx:{place}"
    tables = [e for e in sorted(place.iterdir()) if e.name.lower().endswith(TABLE_SUFFIXES)]
    if len(tables) == 1:
        return str(tables[0])
    if tables:
        raise ConfigError(
            f"{place} holds several tables: name one of {', '.join(t.name for t in tables[:9])}"
        )
    if any(name.endswith(".npy") for name in here):
        return f"npy:{place}"
    arrays = [e for e in sorted(place.iterdir()) if e.suffix.lower() == ".npz"]
    if len(arrays) == 1:
        return f"npz:{arrays[0]}"
    if any(name.endswith(_IMAGES) for name in here):
        raise ConfigError(f"{place} holds images, but no sub-folder for each class: put them into such")
    raise ConfigError(
        f"{place} holds nothing that is known: folders of images or .wav files by class, one table "
        f"({' '.join(TABLE_SUFFIXES)}), an .npz file, .npy arrays, or idx files"
    )


def _pictures(folder: Path) -> tuple[int, int]:
    """Side and channels for images: the largest usual side that half of them have, grey if all are."""
    from PIL import Image

    sides, modes = [], set()
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in _IMAGES)[:_PICTURES]:
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
                modes.add(image.mode)
        except OSError:
            continue
    half = float(np.median(sides)) if sides else 0.0
    side = max((each for each in _SIDES if each <= half), default=_SIDES[0])
    return side, 1 if modes and modes <= {"1", "L", "I;16"} else 3


def _file(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(".npz"):
        return f"npz:{path}"
    if name.endswith((".db", ".sqlite", ".sqlite3")):
        raise ConfigError(f'{path} is a data base: say which rows, "sqlite:{path}?query=SELECT * FROM ..."')
    if name.endswith(TABLE_SUFFIXES):
        return f"text:{path}" if _is_text(str(path)) else str(path)
    raise ConfigError(f"{path} is of no kind that is known; see the forms of --data in `onward train --help`")


def _is_text(path: str) -> bool:
    """Whether a table is of a long text and a label, rather than of columns."""
    try:
        dataset = read_data(DataTable(spec=path)).dataset
    except (ConfigError, ValueError):
        return False
    texts = [a for a in dataset.inputs.values() if a.dtype.kind in "OUT"]
    if len(dataset.inputs) != 1 or not texts:
        return False
    words = [len(str(value).split()) for value in texts[0].reshape(-1)[:200]]
    return float(np.mean(words)) > 3


def _samples(dataset: Dataset) -> str:
    if dataset.table:
        names = ", ".join((dataset.columns or ())[:8])
        more = ", ..." if len(dataset.columns or ()) > 8 else ""
        return f"{len(dataset):,} rows of {columns_text(len(dataset.columns or ()))}: {names}{more}"
    parts = [
        "texts" if a.dtype.kind == "O" else f"{name} {a.dtype} {list(a.shape[1:])}"
        for name, a in dataset.inputs.items()
    ]
    return f"{len(dataset):,} samples of {', '.join(parts)}"


def _counts(dataset: Dataset) -> dict[str, int]:
    if dataset.task != "classification" or dataset.targets is None or dataset.targets.ndim != 1:
        return {}
    labels = dataset.targets
    if dataset.ignore_index is not None:
        labels = labels[labels != dataset.ignore_index]
    counts = np.bincount(labels, minlength=dataset.class_count or 0)
    names = dataset.classes or tuple(map(str, range(len(counts))))
    return {name: int(n) for name, n in zip(names, counts, strict=False)}


def _classes(dataset: Dataset) -> list[str]:
    counts = _counts(dataset)
    if not counts:
        return []
    shown = ", ".join(f"{name} {n:,}" for name, n in list(counts.items())[:12])
    return [f"classes: {shown}{', ...' if len(counts) > 12 else ''}"]


def _further(task: Task) -> tuple[str, ...]:
    """Metrics beside the default ones that the task knows."""
    return ("mse", "rmse", "r2") if task.kind == "regression" else ("f1", "precision", "recall")


def _text(spec: str, dataset: Dataset, task: Task, target: str | None, file: str) -> str:
    """The file, a line with a comment for each choice that a person may want to make."""
    array = next(iter(dataset.inputs.values()))
    images = not dataset.table and array.ndim == 4
    counts = _counts(dataset)
    uneven = bool(counts) and max(counts.values()) > _IMBALANCED * max(min(counts.values()), 1)
    if dataset.table:
        model, why = "mlp", "a multilayer perceptron; its width, rate and epochs follow from the rows"
    elif array.dtype.kind == "O":
        model, why = "textcnn", "convolutions over words"
    elif dataset.rate is not None:
        model, why = "audiocnn", "convolutions over a log-mel spectrogram, which is part of the graph"
    elif images and array.shape[2] == array.shape[3]:
        small = array.shape[2] < _LARGE_IMAGE
        model, why = (
            ("lenet5", "small and quick; resnet20 is the next step")
            if small
            else ("resnet18", "or a pretrained .onnx file of your own, which needs fewer images")
        )
    else:
        model, why = "mlp", "on all numbers of a sample side by side"
    lines = [
        f"# {_samples(dataset)}",
        f"# {task}",
        f"# onward train --config {file}",
        "",
        f"model = {json.dumps(model)}  # {why}",
    ]
    if not dataset.table:
        lines.append("epochs = 20  # passes over the training part")
        lines.append("batch_size = 32  # samples a step; larger ones train faster and may want a larger rate")
    lines += [
        "seed = 0  # of first weights, order and dropout: the same seed gives the same model, to the byte",
        f"metrics = {json.dumps(list(default_metrics(task)))}  # also {', '.join(_further(task))}",
        "",
        "[data]",
        f"spec = {json.dumps(spec)}",
    ]
    goals = dataset.target_columns or ()
    found = target or (goals[0] if len(goals) == 1 else None)
    if found is not None:
        lines.append(f"target = {json.dumps(found)}  # the column to predict")
    lines.append("split = [0.8, 0.1, 0.1]  # training, validation, and the part that measures the result")
    if dataset.table:
        lines += [
            "# exclude = []  # columns that would not be known when it matters, such as an id",
            '# group = "..."  # a column whose equal values must not be in two parts, such as a patient',
            '# time = "..."  # a column that orders rows: the latest are the last part',
            "# skip_bad_rows = true  # leave out, and count, rows that cannot be read",
        ]
    if images:
        lines.append(
            '# augment = "flip,shift=2,rotate=10"  # more from few images; no flip where sides matter'
        )
    if spec.startswith("images:"):
        lines += [
            f"image_size = {array.shape[2]}  # larger ones show more and take longer",
            f"channels = {array.shape[1]}",
            '# fit = "crop"  # or "pad": how images of other shapes are brought to a square',
            "# skip_bad_files = true  # leave out, and count, files that cannot be decoded",
        ]
    if array.dtype.kind == "O" and not dataset.table:
        words = [len(str(value).split()) for value in array.reshape(-1)[:500]]
        length = int(max(8, min(256, np.quantile(words, 0.95))))
        lines.append(f"tokens = {length}  # longer texts are cut: 95 in 100 are shorter")
        lines.append('# tokenizer = "bpe"  # parts of words (needs onward[text])')
    if uneven:
        lines += ["", "[loss]", 'class_weights = "balanced"  # the classes are uneven: each counts the same']
    if not dataset.table:
        lines += [
            "",
            "[optimizer]",
            'name = "adam"',
            "learning_rate = 0.001  # onward train --find-lr suggests one",
        ]
        lines += ["", "[early_stopping]", "patience = 5  # epochs without a better val_loss"]
    lines += [
        "",
        "# [averaging]  # export an average of the weights, often better than the last",
        '# name = "ema"',
        "",
        f"# [search]  # onward tune --config {file}",
        '# lr = "1e-4:1e-2:log"',
    ]
    return "\n".join(lines) + "\n"
