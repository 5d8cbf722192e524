"""Where a model comes from, kept inside the model file."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, final

import onnx_ir as ir

from onward.errors import ConfigError, InvalidModelError

__all__ = ["Provenance", "current_versions", "read_provenance", "write_provenance"]

_PREFIX = "onward."


@final
@dataclass(frozen=True, slots=True)
class Provenance:
    """What a model was trained from and how its inputs and outputs are to be read.

    Args:
        data_hash: hash of the training data, with its algorithm (`"sha256:…"`).
        created: when the model was made, with a time zone; kept in UTC.
        split_seed: seed that divided the data into training and validation parts.
        configuration: the training configuration, JSON values only.
        metrics: final metrics by name; NaN and infinities are kept.
        versions: versions of onward, onnx, numpy and python; see `current_versions`.
        preparation: how inputs as they are read become what the network takes, JSON values only. Its entry
            `inside` says whether the graph does that, so that nobody else may do it again; without this
            field, nothing is inside.
        normalisation: how inputs are to be normalised before the graph takes them, JSON values only: what
            files of Onward 0.1 say, which have no `preparation`.
        vocabulary: the tokens, by index.
        class_names: the names of the classes, by index.

    Raises:
        ConfigError: `created` has no time zone.
    """

    data_hash: str
    created: datetime
    split_seed: int | None = None
    configuration: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    preparation: Mapping[str, Any] | None = None
    normalisation: Mapping[str, Any] | None = None
    vocabulary: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.created.tzinfo is None:
            raise ConfigError("Provenance.created has no time zone: use datetime.now(UTC)")
        object.__setattr__(self, "created", self.created.astimezone(UTC))
        for name in ("vocabulary", "class_names"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))


def current_versions() -> dict[str, str]:
    """Versions of onward, onnx, numpy and python that are running now."""
    versions = {"python": platform.python_version()}
    for name in ("onward", "onnx", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def write_provenance(model: ir.Model, provenance: Provenance) -> None:
    """Store a provenance in the model's metadata, replacing any that is there.

    Each field becomes one `metadata_props` entry, `onward.<field>`, of JSON text; fields that are None
    are left out. Other metadata is untouched.

    Raises:
        ConfigError: a field holds something that JSON cannot express.
    """
    entries: dict[str, str] = {}
    for name in _CHECKS:
        value = getattr(provenance, name)
        if value is None:
            continue
        if name == "created":
            value = value.isoformat()
        elif name == "metrics":
            value = {key: _number_out(number) for key, number in value.items()}
        elif isinstance(value, Mapping):
            value = dict(value)
        try:
            entries[_PREFIX + name] = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"Provenance.{name} cannot be written as JSON: {error}") from error
    for name in _CHECKS:
        model.metadata_props.pop(_PREFIX + name, None)
    model.metadata_props.update(entries)


def read_provenance(model: ir.Model) -> Provenance | None:
    """The provenance that `write_provenance` stored; None when the model has none.

    Raises:
        InvalidModelError: an entry is missing, is not JSON, or has the wrong type; names its key.
    """
    values: dict[str, Any] = {}
    for name, (fits, expected) in _CHECKS.items():
        key = _PREFIX + name
        text = model.metadata_props.get(key)
        if text is None:
            continue
        try:
            value = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidModelError(
                f"metadata {key!r} is not JSON ({error}); remove it or write it again"
            ) from error
        if not fits(value):
            raise InvalidModelError(f"metadata {key!r} must be {expected}")
        values[name] = value
    if not values:
        return None
    for name in ("data_hash", "created"):
        if name not in values:
            raise InvalidModelError(f"metadata {_PREFIX + name!r} is missing, but other provenance is there")
    try:
        values["created"] = datetime.fromisoformat(values["created"])
        if values["created"].tzinfo is None:
            raise ValueError("no time zone")
    except ValueError as error:
        raise InvalidModelError(f"metadata {_PREFIX + 'created'!r} is not a UTC time: {error}") from error
    if "metrics" in values:
        values["metrics"] = {key: float(number) for key, number in values["metrics"].items()}
    return Provenance(**values)


def _number_out(value: float) -> float | str:
    """Numbers that JSON lacks travel as the strings that `float` reads back."""
    number = float(value)
    return number if math.isfinite(number) else repr(number)


def _is_number(value: object) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or value in ("nan", "inf", "-inf")


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data_hash": (lambda value: isinstance(value, str), "a string"),
    "created": (lambda value: isinstance(value, str), "a string with a time"),
    "split_seed": (lambda value: isinstance(value, int) and not isinstance(value, bool), "an integer"),
    "configuration": (_is_object, "an object"),
    "metrics": (
        lambda value: isinstance(value, dict) and all(_is_number(number) for number in value.values()),
        "an object of numbers",
    ),
    "versions": (
        lambda value: isinstance(value, dict) and all(isinstance(text, str) for text in value.values()),
        "an object of strings",
    ),
    "preparation": (
        lambda value: isinstance(value, dict) and isinstance(value.get("inside"), bool),
        "an object with an entry 'inside', true or false",
    ),
    "normalisation": (_is_object, "an object"),
    "vocabulary": (_is_names, "a list of strings"),
    "class_names": (_is_names, "a list of strings"),
}
