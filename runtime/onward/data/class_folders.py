"""Folders with a sub-folder a class: which files are in them, and what is passed over."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from onward.data._files import PathLike
from onward.errors import DataError, StorageError

__all__ = ["ClassFolders", "find_class_folders"]

_SHOWN = 3


@final
@dataclass(frozen=True)
class ClassFolders:
    """Files by class.

    Attributes:
        folders: of the classes, in order of their names.
        files: each with the number of its class.
        notes: what was passed over.
    """

    folders: tuple[Path, ...]
    files: tuple[tuple[int, Path], ...]
    notes: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(folder.name for folder in self.folders)


def find_class_folders(path: PathLike, suffixes: Collection[str], what: str, kind: str) -> ClassFolders:
    """The files with these suffixes in the sub-folders of `path`, hidden ones apart.

    A sub-folder without any is no class, which the notes say.

    Args:
        path: the folder.
        suffixes: in small letters.
        what: what the files are, in plural.
        kind: of `--data`.

    Raises:
        StorageError: there is no such folder.
        DataError: no sub-folder has such files, or they lie one level deeper.
    """
    root = Path(path)
    if not root.is_dir():
        raise StorageError(f"{path}: no such folder")
    below = _seen(f for f in root.iterdir() if f.is_dir())
    if not below:
        raise DataError(f"{path}: no sub-folders; put the {what} of each class into a folder of its own")
    folders: list[Path] = []
    files: list[tuple[int, Path]] = []
    without: list[str] = []
    stray: list[str] = []
    for folder in below:
        found = _seen(folder.iterdir())
        chosen = [f for f in found if f.is_file() and f.suffix.lower() in suffixes]
        if not chosen:
            _refuse_deeper(folder, suffixes, what, kind)
            without.append(repr(folder.name))
            continue
        stray += [f.name for f in found if f not in set(chosen)]
        files += [(len(folders), file) for file in chosen]
        folders.append(folder)
    if not files:
        where = "its only folder" if len(below) == 1 else f"any of its {len(below)} folders"
        raise DataError(f"{path}: there are no {what} in {where} ({' '.join(suffixes)})")
    notes = []
    if without:
        notes.append(f"{path}: no {what} in {_first(without)}: no class of the data")
    if stray:
        some = "1 file" if len(stray) == 1 else f"{len(stray):,} files"
        verb = "is" if len(stray) == 1 else "are"
        notes.append(f"{path}: {some} ({_first(stray)}) {verb} not among the {what}, and not read")
    return ClassFolders(tuple(folders), tuple(files), tuple(notes))


def _seen(found: Iterable[Path]) -> list[Path]:
    return sorted(f for f in found if not f.name.startswith("."))


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _refuse_deeper(folder: Path, suffixes: Collection[str], what: str, kind: str) -> None:
    """Refuse a folder such as train/, whose own sub-folders are the classes."""
    deeper = next((f for f in sorted(folder.glob("*/*")) if f.suffix.lower() in suffixes), None)
    if deeper is not None:
        raise DataError(
            f"{folder}: holds no {what}, but {deeper.parent} does: where its folders are the classes, the "
            f"data are {kind}:{folder}; else put the {what} into {folder} itself"
        )
