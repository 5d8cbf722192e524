"""From what a client asks for to a run that is safe to do: the configuration, and where data may lie."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, final

from onward.errors import ConfigError
from onward.nn import zoo
from onward.runs.config import RunConfig, run_of
from onward_server.errors import RequestError
from onward_server.settings import TrainingSettings

__all__ = ["DATA_FILE", "DataPlace", "Start", "configuration_of", "data_place", "run_to_do"]

DATA_FILE = "data.npz"
"""What data that a client sends are called in the job's folder."""

_BUNDLED = ("digits", "iris", "wine", "breast_cancer", "diabetes")
_FILES = ("csv", "npz", "text")
_FOLDERS = ("idx", "images")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_SPEC = 1024
_SERVERS = (("output",), ("overwrite",), ("checkpoint", "path"), ("log",), ("distillation", "teacher"))
"""What the server decides."""


@final
@dataclass(frozen=True, slots=True)
class Start:
    """A job that a client asks for.

    Attributes:
        configuration: JSON values of a RunConfig.
        model, version: of the repository; empty: a network of the zoo, and the newest.
        title: for people.
    """

    configuration: Mapping[str, Any]
    model: str = ""
    version: str = ""
    title: str = ""


@final
@dataclass(frozen=True, slots=True)
class DataPlace:
    """Where a job's data are.

    Attributes:
        spec: as the run has it, relative to the job's folder.
        link: path in the job's folder that leads to `target`; empty: none.
        target: a file or folder below a root.
        url: what has to be fetched to `link`; empty: nothing.
    """

    spec: str
    link: str = ""
    target: Path | None = None
    url: str = ""


def configuration_of(text: str, form: str) -> dict[str, Any]:
    """The values of a configuration's text, `json` or `toml`.

    Raises:
        RequestError: it is not of that form, or no object.
    """
    try:
        found = json.loads(text) if form == "json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"configuration: not {form.upper()}: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise RequestError("configuration: give an object")
    return found


def run_to_do(
    start: Start, settings: TrainingSettings, base: str, *, sent: bool
) -> tuple[RunConfig, DataPlace]:
    """The run of a job, with paths relative to its folder.

    Args:
        start: what is asked for.
        settings: bounds.
        base: the file in the job's folder that is trained further; empty: a network of the zoo.
        sent: whether the client sends the data.

    Raises:
        RequestError: names the field and says what to do.
    """
    values = dict(start.configuration)
    for path in _SERVERS:
        table: Any = values
        for key in path[:-1]:
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and path[-1] in table:
            raise RequestError(f"configuration: leave {'.'.join(path)} out: the server decides it")
    model = values.get("model")
    table = {"name": model} if isinstance(model, str) else model
    if base:
        if isinstance(table, dict) and "name" in table:
            raise RequestError(
                "configuration: leave model.name out where `model` names one of the repository"
            )
        values["model"] = {**(table if isinstance(table, dict) else {}), "name": base}
    elif isinstance(table, dict) and table.get("name") not in zoo.names():
        name = str(table.get("name"))[:128]
        raise RequestError(
            f"configuration: model {name!r} is no network of the zoo ({', '.join(zoo.names())}); "
            "a model of the repository is named by `model`"
        )
    if sent:
        data = values.get("data", {})
        if not isinstance(data, dict) or "spec" in data:
            raise RequestError("configuration: leave data.spec out where batches are sent")
        values["data"] = {**data, "spec": f"npz:{DATA_FILE}"}
    try:
        run = run_of(values)
    except ConfigError as error:
        raise RequestError(str(error)) from None
    place = DataPlace(run.data.spec) if sent else data_place(run.data.spec, settings.data_roots)
    if run.threads is not None and run.threads > settings.threads:
        raise RequestError(f"configuration: threads is {run.threads}; a job may have {settings.threads}")
    changes = {
        "data": run.data.model_copy(update={"spec": place.spec}),
        "threads": run.threads or settings.threads,
    }
    return run.model_copy(update=changes), place


def data_place(spec: str, roots: Sequence[str]) -> DataPlace:
    """Where data lie that a client names.

    Args:
        spec: a bundled data set, `KIND:PATH` or `KIND:URL`; a path is absolute or relative to a root.
        roots: folders and URLs below which it has to be.

    Raises:
        RequestError: the form is unknown, or it is below none of them; nothing else is told.
    """
    if spec in _BUNDLED:
        return DataPlace(spec)
    kind, _, path = spec.partition(":")
    if len(spec) > _MAX_SPEC or kind not in (*_FILES, *_FOLDERS) or not path or "\0" in path or "\\" in path:
        raise RequestError(
            f"data {spec[:128]!r}: give {', '.join(_BUNDLED)}, "
            "or csv:, npz:, text:, idx: or images: and a path"
        )
    refusal = RequestError(
        f"data {spec[:128]!r}: there is nothing of that name below the server's data_roots"
    )
    if "://" in path:
        return _at_url(spec, kind, path, roots, refusal)
    pure = PurePosixPath(path)
    if ".." in pure.parts:
        raise refusal
    for root in (Path(root) for root in roots if "://" not in root):
        try:
            home = root.resolve(strict=True)
            found = (home / pure).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            continue
        if found.is_relative_to(home) and (found.is_dir() if kind in _FOLDERS else found.is_file()):
            if pure.is_absolute():
                return DataPlace(spec)
            return DataPlace(f"{kind}:{pure}", str(pure), found)
    raise refusal


def _at_url(spec: str, kind: str, url: str, roots: Sequence[str], refusal: RequestError) -> DataPlace:
    if kind in _FOLDERS:
        raise RequestError(f"data {spec[:128]!r}: a folder cannot be fetched; give a file")
    inside = [url.removeprefix(root) for root in roots if "://" in root and url.startswith(root)]
    if not inside or "::" in url or "%" in url or "?" in url or "#" in url:
        raise refusal
    parts = inside[0].split("/")
    if not all(_PLAIN.fullmatch(part) for part in parts):
        raise refusal
    return DataPlace(f"{kind}:fetched/{parts[-1]}", f"fetched/{parts[-1]}", None, url)
