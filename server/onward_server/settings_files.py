"""Settings from TOML files, the environment and options; what is said of those that do not fit."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource
from pydantic_settings.exceptions import SettingsError

from onward.errors import ConfigError
from onward_server.model_settings import MODEL_SETTINGS_FILE, ModelSettings
from onward_server.settings import ServerSettings

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["load_model_settings", "load_settings", "problems", "unknown_in_environment"]

_KUBERNETES = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?")


def load_settings(toml: Path | None = None, **options: Any) -> ServerSettings:
    """Settings from a TOML file, over them the environment, over both the options given here.

    Args:
        toml: file with the fields of ServerSettings; None: no file.
        options: fields of ServerSettings, nested groups as mappings.

    Raises:
        ConfigError: a file that cannot be read, an unknown field or a value that does not fit.
    """
    layers: list[dict[str, Any]] = [_read_toml(toml) if toml is not None else {}]
    try:
        layers.append(dict(EnvSettingsSource(ServerSettings)()))
    except SettingsError as error:
        raise ConfigError(f"environment: {_not_json(str(error), os.environ)}") from error
    layers.append(options)
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merged(merged, layer)
    try:
        return ServerSettings(**merged)
    except ValidationError as error:
        raise ConfigError(f"settings: {problems(error, ServerSettings)}") from error


def _not_json(text: str, names: Iterable[str]) -> str:
    """What is said of a variable that has to be JSON, in the place of the library's words."""
    found = re.search(r'field "(\w+)"', text)
    if found is None:
        return text
    variable = f"{ServerSettings.model_config['env_prefix']}{found[1]}".upper()
    given = [name for name in names if name.upper() == variable or name.upper().startswith(f"{variable}__")]
    which = " or ".join(sorted(given)) or variable
    return f'{which} is not JSON, as lists and tables have to be; ["a", "b"] is a list'


def unknown_in_environment(names: Iterable[str]) -> list[str]:
    """What is said of environment variables that look like settings and are none.

    Those that Kubernetes sets for a service named `onward-server` are left out.
    """
    prefix = str(ServerSettings.model_config["env_prefix"])
    known = {f"{prefix}{name}".upper() for name in ServerSettings.model_fields}
    found = []
    for name in names:
        first = name.upper().removeprefix(prefix).partition("__")[0]
        if not name.upper().startswith(prefix) or prefix + first in known or _KUBERNETES.fullmatch(first):
            continue
        near = difflib.get_close_matches(prefix + first, known, n=1)
        found.append(f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
    return sorted(found)


def load_model_settings(folder: Path) -> ModelSettings:
    """The settings in a model folder's config.toml; defaults when there is none.

    Raises:
        ConfigError: the file cannot be read, has an unknown field or a value that does not fit.
    """
    path = folder / MODEL_SETTINGS_FILE
    if not path.is_file():
        return ModelSettings()
    try:
        return ModelSettings.model_validate(_read_toml(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems(error, ModelSettings)}") from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        nested = isinstance(under, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(dict(under or {}), value) if nested else value
    return result


def problems(error: ValidationError, model: type[BaseModel]) -> str:
    """What does not fit in settings of a model class, field by field."""
    return "; ".join(_problem(problem, model) for problem in error.errors(include_url=False))


def _problem(problem: ErrorDetails, model: type[BaseModel]) -> str:
    where = [str(part) for part in problem["loc"]]
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        text = "it has to be given"
    if problem["type"] == "extra_forbidden":
        known = _fields(model, where[:-1])
        near = difflib.get_close_matches(where[-1], known, n=1)
        text = "there is no such setting" + (f"; did you mean {near[0]!r}?" if near else "")
    return f"{'.'.join(where) or 'value'}: {text}"


def _fields(model: type[BaseModel], where: Sequence[str]) -> Sequence[str]:
    """Names of the settings in the table at a path; none where that is no table of ours."""
    for name in where:
        if name.isdecimal():
            continue
        field = model.model_fields.get(name)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        below = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if below is None:
            return ()
        model = below
    return tuple(model.model_fields)
