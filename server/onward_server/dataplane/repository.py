"""The model repository: folders `<name>/<version>/model.onnx` on disk, listed and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from onward.errors import ConfigError, OnwardError
from onward_server.model_settings import ModelSettings
from onward_server.settings import NAME, VERSION
from onward_server.settings_files import load_model_settings

__all__ = ["MODEL_FILE", "Entry", "is_name", "is_version", "names", "scan", "scan_model"]

MODEL_FILE = "model.onnx"


def is_name(text: str) -> bool:
    """Whether a text can be a model's name; anything else never reaches a path."""
    return NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Whether a text can be a version."""
    return VERSION.fullmatch(text) is not None


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a model in the repository, or a folder that should have been one.

    Attributes:
        name: the model's folder name.
        version: 1 or more; 0 when the problem concerns the model as a whole.
        path: the model file.
        settings: from the model's config.toml.
        problem: why it cannot be served; empty when nothing was found so far.
        folder: the model's folder.
        unread: whether the problem is that settings or folder could not be read, so that nobody knows whether
            versions have gone.
    """

    name: str
    version: int
    path: Path
    settings: ModelSettings
    problem: str = ""
    folder: Path = Path()
    unread: bool = False


def names(repository: Path) -> list[str]:
    """The folders of a repository. Names that start with a dot are skipped, so are plain files.

    Raises:
        ConfigError: the repository is not a folder that can be read.
    """
    try:
        root = repository.resolve(strict=True)
        return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(
            f"repository {repository}: {error.strerror}; give a folder of <name>/<version>/{MODEL_FILE}"
        ) from error


def scan(repository: Path) -> list[Entry]:
    """List a repository by name and version; what is wrong with an entry is part of the list.

    Raises:
        ConfigError: the repository is not a folder that can be read.
    """
    return [entry for name in names(repository) for entry in scan_model(repository, name)]


def scan_model(repository: Path, name: str) -> list[Entry]:
    """The versions of one model that its policy chooses; empty where there is no such folder."""
    root = repository.resolve()
    folder = root / name
    if not is_name(name):
        problem = "the name has characters other than letters, digits, '.', '_' and '-', or is too long"
        return [Entry(name, 0, folder, ModelSettings(), problem, folder)]
    return _scan_model(root, folder) if folder.is_dir() else []


def _scan_model(root: Path, folder: Path) -> list[Entry]:
    def whole(problem: str, *, unread: bool = False) -> list[Entry]:
        return [Entry(folder.name, 0, folder, ModelSettings(), problem, folder, unread)]

    try:
        settings = load_model_settings(folder)
        found = {int(path.name): path for path in folder.iterdir() if path.is_dir() and is_version(path.name)}
    except OnwardError as error:
        return whole(str(error), unread=True)
    except OSError as error:
        return whole(f"{folder}: {error.strerror}", unread=True)
    if not found:
        return whole(
            f"{folder} has no version folder; versions are whole numbers from 1, without leading zeros"
        )
    versions = settings.versions.chosen(list(found))
    if not versions:
        return whole(f"{folder}: the version policy chooses none of {', '.join(map(str, sorted(found)))}")
    return [
        Entry(
            folder.name,
            version,
            found[version] / MODEL_FILE,
            settings,
            _problem(root, found[version] / MODEL_FILE),
            folder,
        )
        for version in versions
    ]


def _problem(root: Path, path: Path) -> str:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        return f"{path}: {error.strerror if isinstance(error, OSError) else error}"
    if not target.is_relative_to(root):
        return f"{path} leads out of the repository, to {target}"
    if not target.is_file():
        return f"{path} is not a file"
    return ""
