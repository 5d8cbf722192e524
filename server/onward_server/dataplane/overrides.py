"""Settings and files that a client's load call gives in the place of the repository's."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import final

from onward_server.dataplane.model_configuration import settings_from
from onward_server.dataplane.repository import is_version
from onward_server.errors import RequestError
from onward_server.model_settings import ModelSettings

__all__ = ["Override", "Overrides", "override_from"]

_FILE = "file:"


@final
@dataclass(frozen=True, slots=True)
class Override:
    """What is served in the place of the repository's.

    Attributes:
        settings: in the place of config.toml; None: that.
        files: contents by `<version>/<file>`; given, nothing of the model's folder is used.
        repository: where the files were written; None: the server's repository.
    """

    settings: ModelSettings | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    repository: Path | None = None


def override_from(parameters: Mapping[str, bool | int | str | bytes]) -> Override | None:
    """What a load call's parameters ask for: `config` (Triton's JSON or ours), `file:<version>/<file>`.

    Raises:
        RequestError: names the parameter, or the field of `config`.
    """
    settings = None
    files: dict[str, bytes] = {}
    for name, value in parameters.items():
        if name == "config":
            if not isinstance(value, str):
                raise RequestError("parameters['config'] is not a string of JSON")
            settings = settings_from(value)
        elif name.startswith(_FILE):
            if not isinstance(value, bytes):
                raise RequestError(f"parameters[{name!r}] is not bytes")
            files[_checked(name)] = value
        else:
            raise RequestError(f"parameters[{name!r}] is unknown; load takes 'config' and 'file:...'")
    if files and settings is None:
        raise RequestError("parameters: 'file:...' needs 'config' beside it")
    return Override(settings, files) if settings is not None else None


def _checked(name: str) -> str:
    path = PurePosixPath(name.removeprefix(_FILE))
    parts = path.parts
    if len(parts) != 2 or not is_version(parts[0]) or parts[1] in (".", "..") or "\0" in parts[1]:
        raise RequestError(f"parameters[{name!r}]: give file:<version>/<file name>")
    return f"{parts[0]}/{parts[1]}"


@final
class Overrides:
    """The overrides in force, and their files."""

    def __init__(self) -> None:
        self._kept: dict[str, Override] = {}
        self._root: Path | None = None
        self._number = 0

    def of(self, name: str) -> Override | None:
        """The override of a model that is loaded with one."""
        return self._kept.get(name)

    def write(self, name: str, override: Override) -> Override:
        """Write the files into a repository of their own."""
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix="onward-models-"))
        self._number += 1
        repository = self._root / str(self._number)
        for path, content in override.files.items():
            target = repository / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return Override(override.settings, {}, repository)

    def keep(self, name: str, override: Override) -> None:
        """Remember what a model is loaded with."""
        before = self._kept.get(name)
        if before is not None and before.repository != override.repository:
            self.drop(name)
        self._kept[name] = override

    def drop(self, name: str) -> None:
        """Forget it."""
        kept = self._kept.pop(name, None)
        if kept is not None and kept.repository is not None:
            shutil.rmtree(kept.repository, ignore_errors=True)

    def close(self) -> None:
        """Delete the files."""
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None
