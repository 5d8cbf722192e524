"""Settings and files that a client's load call gives in the place of the repository's."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, final

from pydantic import ValidationError

from onward_server.dataplane.repository import is_version
from onward_server.errors import RequestError
from onward_server.settings import ModelSettings, problems

__all__ = ["Override", "Overrides", "override_from"]

_IGNORED = frozenset(
    (
        *("name", "platform", "backend", "input", "output", "default_model_filename", "metric_tags"),
        *("runtime", "model_transaction_policy", "optimization"),
    )
)
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
            settings = _settings(value)
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


def _settings(text: str) -> ModelSettings:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("parameters['config'] is not JSON") from None
    if not isinstance(given, dict):
        raise RequestError("parameters['config'] is not a JSON object")
    ours: dict[str, Any] = {}
    for key, value in given.items():
        try:
            _translate(key, value, ours)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError):
            raise RequestError(f"parameters['config']: {key} has an unexpected form") from None
    largest = ours.pop("max_batch_size", 0)
    delay = ours.pop("dynamic_batching", None)
    if delay is not None and largest > 1:
        ours["batching"] = {"max_batch": largest, **delay}
    try:
        return ModelSettings.model_validate(ours)
    except ValidationError as error:
        raise RequestError(f"parameters['config']: {problems(error, ModelSettings)}") from None


def _translate(key: str, value: Any, ours: dict[str, Any]) -> None:
    """One field of Triton's model configuration in our words; fields of ours are taken as they are."""
    if key in _IGNORED:
        return
    if key == "max_batch_size":
        ours[key] = int(value)
    elif key == "dynamic_batching":
        ours[key] = {
            "preferred": tuple(value.get("preferred_batch_size", ())),
            "max_delay_ms": int(value.get("max_queue_delay_microseconds", 0)) / 1e3,
        }
    elif key == "instance_group":
        ours["instances"] = sum(int(group.get("count", 1)) for group in value) or 1
    elif key == "version_policy":
        policy: dict[str, Any] = {}
        if "latest" in value:
            policy["latest"] = int(value["latest"].get("num_versions", 1))
        elif "specific" in value:
            policy["specific"] = tuple(int(version) for version in value["specific"]["versions"])
        ours["versions"] = policy
    else:
        ours[key] = value


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
