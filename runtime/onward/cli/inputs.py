"""What a user gives to a model on the command line: files, texts, numbers → arrays."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np

from onward.cli.verbosity import note
from onward.data import NumberPreparation, TablePreparation, as_dtype, read_image, read_wav
from onward.data._files import open_text, reading
from onward.data.frame import TABLE_SUFFIXES, Frame, read_frame, texts_of
from onward.data.images import Fit
from onward.data.table import extra_columns, find_columns, read_columns
from onward.errors import ConfigError, DataError, InputError, OnwardError
from onward.graph import Array, TensorSpec
from onward.runs.preparation import Prepared

__all__ = ["Reader", "extents", "read_arrays", "without_metadata"]

_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SPACE = re.compile(r"\s")
_LONGEST_PATH = 1024
_MAX_EXTENT = 2**63


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file by name, or of an .npy file under the name "".

    Raises:
        StorageError: the file cannot be read.
        DataError: it is not such a file, or holds Python objects.
    """
    with reading(path):
        try:
            found = np.load(path, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return {"": found}
            with found:
                return {name: found[name] for name in found.files}
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not a readable .npz or .npy file ({error})") from None


def extents(options: Sequence[str] | None) -> dict[str, int]:
    """Extents by dimension, of options NAME=NUMBER.

    Raises:
        ConfigError: an option is written otherwise.
    """
    found: dict[str, int] = {}
    for text in options or ():
        name, equals, value = text.rpartition("=")
        if not equals or not (value.isascii() and value.isdecimal()) or not 1 <= int(value) < _MAX_EXTENT:
            raise ConfigError(f"--dim {text!r}: NAME=NUMBER is needed, the number at least 1 and below 2**63")
        found[name] = int(value)
    return found


@final
@dataclass(frozen=True)
class Reader:
    """Reads arguments for one model.

    Attributes:
        specs: the model's inputs.
        prepared: what its metadata say about them.
        text_column: of CSV files with texts.
        image_fit: how an image is brought to the model's size.
        left_out: columns of other CSV files that are no features, such as the target.
    """

    specs: Sequence[TensorSpec]
    prepared: Prepared
    text_column: str = "text"
    left_out: tuple[str, ...] = ()
    image_fit: Fit = "stretch"

    def read(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, Array]]:
        """Labels [N] and arrays [N, ...] by input name, as the graph takes them.

        Raises:
            ConfigError: an argument is nothing that the model takes.
            DataError, StorageError, InputError: a file cannot be read, or does not fit the model.
        """
        parts = [self._one(argument) for argument in arguments]
        labels = [label for names, _ in parts for label in names]
        try:
            arrays = {
                spec.name: np.concatenate([arrays[spec.name] for _, arrays in parts]) for spec in self.specs
            }
        except ValueError as error:
            raise InputError(f"the inputs do not go together in one batch: {error}") from None
        return labels, arrays

    def _one(self, argument: str) -> tuple[list[str], dict[str, Array]]:
        name = argument.lower()
        if self.prepared.preparation.table is not None and not name.endswith((".npz", ".npy")):
            return self._mixed_table(argument, self.prepared.preparation.table)
        if name.endswith((".npz", ".npy")):
            arrays = self._named(argument, read_arrays(Path(argument)))
            count = len(next(iter(arrays.values())))
            return [f"{argument}[{i}]" for i in range(count)], arrays
        spec = self._only(argument)
        if self.prepared.preparation.text is not None:
            return self._texts(argument, spec)
        if name.endswith(_IMAGES):
            return [argument], {spec.name: self._finished(argument, spec, self._image(argument, spec)[None])}
        if name.endswith(".wav"):
            return [argument], {spec.name: self._finished(argument, spec, self._sound(argument)[None])}
        labels, rows = self._rows(argument, spec)
        return labels, {spec.name: self._finished(argument, spec, rows)}

    def _mixed_table(self, argument: str, table: TablePreparation) -> tuple[list[str], dict[str, Array]]:
        """A table's columns by name: of a file, of a JSON object, or of cells with commas between them."""
        labels: list[str] = []
        if _names_file(argument, TABLE_SUFFIXES):
            frame = _read_table(argument, table.names)
            labels = [f"{argument}[{i}]" for i in range(len(frame))]
        else:
            frame, labels = _one_row(argument, table), [argument]
        raw = table.raw_columns(read_columns(frame, table.kinds), frame.name)
        known = (*(plan.name for plan in table.columns), *self.left_out)
        if extra := [c for c in frame.columns if c not in known]:
            note(f"{argument}: {extra_columns(extra)}")
        for doubt in table.doubts(raw):
            note(f"{argument}: {doubt}")
        if self.prepared.inside:
            return labels, raw
        return labels, {self.specs[0].name: table.features(raw)}

    def _only(self, argument: str) -> TensorSpec:
        if len(self.specs) != 1:
            names = ", ".join(str(spec) for spec in self.specs)
            raise ConfigError(f"{argument!r}: a model with the inputs {names} takes .npz files")
        return self.specs[0]

    def _named(self, path: str, arrays: dict[str, Array]) -> dict[str, Array]:
        if len(self.specs) == 1 and len(arrays) == 1:
            arrays = {self.specs[0].name: next(iter(arrays.values()))}
        for spec in self.specs:
            if spec.name not in arrays:
                have = ", ".join(name for name in arrays if name) or "one unnamed array"
                raise InputError(f"{path}: no array {spec.name!r} for the model's input; there is {have}")
            if arrays[spec.name].ndim == 0:
                raise InputError(f"{path}: array {spec.name!r} is a scalar; the first axis counts samples")
            if len(arrays[spec.name]) == 0:
                raise InputError(f"{path}: array {spec.name!r} holds no samples")
        return {spec.name: self._finished(path, spec, arrays[spec.name]) for spec in self.specs}

    def _before(self, spec: TensorSpec) -> NumberPreparation | None:
        """What has to be done to an input before the graph takes it."""
        numbers = self.prepared.outside.numbers
        if len(numbers) == 1 and len(self.specs) == 1:
            return next(iter(numbers.values()))
        return numbers.get(spec.name)

    def _finished(self, argument: str, spec: TensorSpec, array: Array) -> Array:
        before = self._before(spec)
        what = f"{argument}: input {spec.name!r}"
        return as_dtype(array if before is None else before.apply(array, what), spec.dtype, what)

    def _texts(self, argument: str, spec: TensorSpec) -> tuple[list[str], dict[str, Array]]:
        name = argument.lower()
        if _names_file(argument, (*TABLE_SUFFIXES, ".txt", ".txt.gz")):
            if name.endswith((".txt", ".txt.gz")):
                with open_text(argument) as file:
                    texts = [line.strip() for line in file if line.strip()]
            else:
                frame = read_frame(argument)
                find_columns(argument, list(frame.columns), [self.text_column])
                texts = texts_of(frame.columns[self.text_column]).tolist()
        else:
            texts = [argument]
        if not texts:
            raise DataError(f"{argument}: there are no texts in it")
        if empty := [row for row, text in enumerate(texts, start=1) if not text.strip()]:
            where = f"{argument}: row {empty[0]}" if len(texts) > 1 else "an input"
            raise DataError(f"{where}: the text is empty; repair or remove it")
        text = self.prepared.preparation.text
        assert text is not None
        return [_short(t) for t in texts], {spec.name: text.encode(texts).astype(spec.dtype)}

    def _image(self, argument: str, spec: TensorSpec) -> Array:
        if spec.shape is None or len(spec.shape) != 4:
            raise ConfigError(f"{argument!r}: the model does not take images, its input is {spec}")
        _, channels, height, width = spec.shape
        if not (isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)):
            raise ConfigError(
                f"{argument!r}: the model's images have no fixed size ({spec}); give a .npy file"
            )
        before = self._before(spec)
        taken = spec.dtype if before is None else before.dtype
        return read_image(argument, (height, width), channels, raw=taken.kind in "iu", fit=self.image_fit)

    def _sound(self, argument: str) -> Array:
        numbers = self.prepared.preparation.numbers.values()
        sound = next((each.spectrogram for each in numbers if each.spectrogram is not None), None)
        if sound is None:
            raise ConfigError(f"{argument!r}: the model does not say that it takes sounds")
        return read_wav(argument, sound.rate, sound.samples)

    def _rows(self, argument: str, spec: TensorSpec) -> tuple[list[str], Array]:
        if spec.shape is None or len(spec.shape) != 2:
            raise ConfigError(f"{argument!r}: not an input for {spec}; give a .npy or .npz file, or an image")
        if _names_file(argument, TABLE_SUFFIXES):
            return self._table(argument)
        return [argument], np.array([_numbers(argument, argument.split(","))], dtype=np.float64)

    def _table(self, path: str) -> tuple[list[str], Array]:
        columns = self.prepared.preparation.columns
        frame = _read_table(path, columns)
        if columns is not None:
            if extra := [c for c in frame.columns if c not in columns and c not in self.left_out]:
                note(f"{path}: {extra_columns(extra)}")
        else:
            columns = tuple(c for c in frame.columns if c not in self.left_out)
            note(f"{path}: the model names no columns; these are taken in the file's order")
        found = read_columns(frame, dict.fromkeys(columns, "number"))
        values = np.stack([found[c] for c in columns], axis=1)
        if np.isnan(values).any():
            row, place = np.argwhere(np.isnan(values))[0]
            raise DataError(
                f"{path}: row {row + 1}, column {columns[place]!r}: the value is missing, and the model does "
                "not say what stands in for it"
            )
        return [f"{path}[{i}]" for i in range(len(values))], values


def without_metadata(prepared: Prepared) -> Prepared:
    """For arrays that go to the graph as they are: nothing is done before it."""
    return replace(prepared, preparation=replace(prepared.preparation, numbers={}, text=None, table=None))


def _names_file(argument: str, suffixes: tuple[str, ...]) -> bool:
    """Whether an argument is a file of these kinds, which may be missing, rather than a text.

    Raises:
        ConfigError: it is a file of another kind.
    """
    if argument.lower().endswith(suffixes) and (not _SPACE.search(argument) or Path(argument).is_file()):
        return True
    if len(argument) < _LONGEST_PATH and "\0" not in argument and Path(argument).is_file():
        raise ConfigError(f"{argument}: the model takes {', '.join(suffixes)} files, or what is in them")
    return False


def _read_table(path: str, names: Sequence[str] | None) -> Frame:
    """A table of a file; what stands first may be a row of the model's columns by their places."""
    frame = read_frame(path, names=names)
    if frame.headless:
        note(f"{path}: no header row; its columns are taken as {', '.join(names or ())}")
    return frame


def _one_row(argument: str, table: TablePreparation) -> Frame:
    """A row that is written on the command line."""
    if argument.lstrip().startswith("{"):
        try:
            found = json.loads(argument)
        except ValueError as error:
            raise ConfigError(f"{argument!r}: not JSON: {error}") from None
        return replace(read_frame([found]), name=argument) if found else Frame(argument, {}, {})
    (cells,) = csv.reader([argument], skipinitialspace=True)
    if len(cells) != len(table.names):
        raise ConfigError(
            f"{argument!r}: {len(cells)} value{'s' if len(cells) != 1 else ''}, the model takes "
            f"{len(table.names)}: {', '.join(table.names)}; a file, a JSON object or all of them with commas "
            "are needed"
        )
    columns = {
        name: np.array([cell.strip()], dtype=object) for name, cell in zip(table.names, cells, strict=True)
    }
    return Frame("the command line", columns, {})


def _numbers(where: str, texts: Sequence[str]) -> list[float]:
    try:
        return [float(text) for text in texts]
    except ValueError as error:
        problem: type[OnwardError] = DataError if "row" in where else ConfigError
        raise problem(f"{where}: {error}; a file or numbers with commas between them are needed") from None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:59] + "…"
