"""Data sets by a short text: what a command line says after --data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from onward.data.array_rows import load_npy
from onward.data.audio import load_audio_folder
from onward.data.builtin import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from onward.data.dataset import Dataset
from onward.data.frame import TABLE_SUFFIXES
from onward.data.idx import load_idx_folder
from onward.data.images import load_image_folder
from onward.data.npz import load_npz
from onward.data.split import Splits, split
from onward.data.table import load_table
from onward.data.text import load_texts
from onward.errors import ConfigError

__all__ = ["Source", "available", "is_table", "resolve", "split_spec"]

_BUILTIN: dict[str, Callable[..., Dataset]] = {
    "digits": load_digits,
    "iris": load_iris,
    "wine": load_wine,
    "breast_cancer": load_breast_cancer,
    "diabetes": load_diabetes,
}


def _whole_batches(path: str) -> Dataset:
    """Batches that are given whole, such as graphs: an .npz file for each."""
    raise ConfigError(
        f"batches:{path}: whole batches have no samples of their own; `onward train` and `onward evaluate` "
        "take them, for .onnx files"
    )


_READERS: dict[str, tuple[str, Callable[..., Dataset | tuple[Dataset, Dataset | None]]]] = {
    "idx": ("idx:FOLDER", load_idx_folder),
    "table": ("table:FILE", load_table),
    "csv": ("csv:FILE", load_table),
    "sqlite": ("sqlite:FILE?query=SELECT…", load_table),
    "npy": ("npy:FOLDER", load_npy),
    "npz": ("npz:FILE", load_npz),
    "audio": ("audio:FOLDER", load_audio_folder),
    "images": ("images:FOLDER", load_image_folder),
    "text": ("text:FILE", load_texts),
    "batches": ("batches:FOLDER", _whole_batches),
}


@final
@dataclass(frozen=True, eq=False)
class Source:
    """A data set as found: the data, and the test part that came with it, or None."""

    dataset: Dataset
    test: Dataset | None = None

    def split(
        self,
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        stratify: bool = True,
    ) -> Splits:
        """`onward.data.split`, except that a test part that came with the data is used as it is.

        Then the data are divided in the proportion of the first two fractions, and the third is not used.
        """
        if self.test is None:
            return split(self.dataset, fractions, seed, stratify)
        train, validation, _ = fractions
        if train <= 0 or validation < 0:
            raise ConfigError(f"fractions {fractions}: train must be above 0, validation 0 or more")
        whole = train + validation
        parts = split(self.dataset, (train / whole, validation / whole, 0.0), seed, stratify)
        return Splits(parts.train, parts.validation, self.test)


def split_spec(spec: str) -> tuple[str, str]:
    """The kind of a data set and its path; a path alone has the kind of its name: "table" of data.csv."""
    kind, _, path = spec.partition(":")
    if kind in _READERS or kind in _BUILTIN:
        return kind, path
    if spec.lower().endswith(TABLE_SUFFIXES):
        return "table", spec
    return kind, path


def is_table(spec: str) -> bool:
    """Whether it names a table."""
    return split_spec(spec)[0] in ("table", "csv", "sqlite")


def _query(spec: str, path: str) -> tuple[str, str]:
    file, mark, query = path.partition("?")
    name, equals, text = query.partition("=")
    if not mark or name != "query" or not equals or not text.strip():
        raise ConfigError(f"data {spec!r}: sqlite:FILE?query=SELECT ... FROM ... is needed")
    return file, text


def available() -> dict[str, str]:
    """What `resolve` understands, each with one line about it."""
    forms = {**_BUILTIN, **dict(_READERS.values())}
    return {form: (inspect.getdoc(reader) or "").split("\n")[0] for form, reader in forms.items()}


def resolve(spec: str, **options: Any) -> Source:
    """Read the data set that `spec` names: a built-in one ("digits") or "kind:path" ("idx:mnist_10k").

    Options go to the reader (`target=` for csv, `image_size=` for digits and images, ...); one that is None
    counts as not given. Raises ConfigError for an unknown spec or option (it lists those there are), and what
    the reader raises.
    """
    kind, path = split_spec(spec)
    colon = bool(path)
    given = {name: value for name, value in options.items() if value is not None}
    if kind == "sqlite":
        path, given["query"] = _query(spec, path)
    arguments: tuple[str, ...]
    if not colon and kind in _BUILTIN:
        reader: Callable[..., Any] = _BUILTIN[kind]
        arguments = ()
    elif colon and kind in _READERS and path:
        reader = _READERS[kind][1]
        arguments = (path,)
    else:
        hint = " (a path needs its kind in front, such as idx:PATH)" if Path(spec).exists() else ""
        raise ConfigError(f"data {spec!r} is unknown{hint}; there are {', '.join(available())}")
    parameters = list(inspect.signature(reader).parameters.values())[len(arguments) :]
    known = [parameter.name for parameter in parameters]
    for name in given:
        if name not in known:
            raise ConfigError(f"data {spec!r} has no option {name!r}; it has {', '.join(known) or 'none'}")
    for parameter in parameters:
        if parameter.default is inspect.Parameter.empty and parameter.name not in given:
            raise ConfigError(f"data {spec!r} needs the option {parameter.name!r}")
    found = reader(*arguments, **given)
    return Source(*found) if isinstance(found, tuple) else Source(found)
