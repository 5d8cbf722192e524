"""Data sets by a short text: what a command line says after --data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from onward.data.builtin import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from onward.data.dataset import Dataset
from onward.data.idx import load_idx_folder
from onward.data.images import load_image_folder
from onward.data.npz import load_npz
from onward.data.split import Splits, split
from onward.data.table import load_csv
from onward.data.text import load_text_csv
from onward.errors import ConfigError

__all__ = ["Source", "available", "resolve"]

_BUILTIN: dict[str, Callable[..., Dataset]] = {
    "digits": load_digits,
    "iris": load_iris,
    "wine": load_wine,
    "breast_cancer": load_breast_cancer,
    "diabetes": load_diabetes,
}

_READERS: dict[str, tuple[str, Callable[..., Dataset | tuple[Dataset, Dataset | None]]]] = {
    "idx": ("idx:FOLDER", load_idx_folder),
    "csv": ("csv:FILE", load_csv),
    "npz": ("npz:FILE", load_npz),
    "images": ("images:FOLDER", load_image_folder),
    "text": ("text:FILE", load_text_csv),
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
    kind, colon, path = spec.partition(":")
    given = {name: value for name, value in options.items() if value is not None}
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
