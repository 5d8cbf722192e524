"""Settings of the server and of each model: defaults, a TOML file, the environment, the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from onward.errors import ConfigError

__all__ = [
    "CrossCheckSettings",
    "Engine",
    "ModelSettings",
    "OnMismatch",
    "Policy",
    "ServerSettings",
    "Tolerance",
    "load_model_settings",
    "load_settings",
]

Engine = Literal["onward", "onnxruntime"]
Policy = Literal["off", "sample", "every", "shadow"]
OnMismatch = Literal["log", "fail", "prefer-onnxruntime"]

MODEL_SETTINGS_FILE = "config.toml"


@final
class Tolerance(BaseModel):
    """Two elements a and b (b from onnxruntime) agree when |a - b| <= atol + rtol * |b|.

    NaN agrees with NaN and an infinity with the same infinity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rtol: float = Field(ge=0, allow_inf_nan=False)
    atol: float = Field(ge=0, allow_inf_nan=False)


DEFAULT_TOLERANCE: dict[str, Tolerance] = {
    "float16": Tolerance(rtol=1e-2, atol=1e-3),
    "bfloat16": Tolerance(rtol=4e-2, atol=1e-2),
    "float32": Tolerance(rtol=1e-4, atol=1e-5),
    "float64": Tolerance(rtol=1e-9, atol=1e-12),
}
"""Tolerances of the floating-point types; every other type has to agree exactly."""


@final
class CrossCheckSettings(BaseModel):
    """When a second engine computes the same request, and what happens when the two disagree.

    Attributes:
        policy: `off`; `sample` checks the fraction `rate` of the requests, evenly spread; `every` checks
            each before it is answered; `shadow` answers at once and checks afterwards.
        rate: fraction of requests that `sample` checks, in (0, 1].
        on_mismatch: `log` answers with the serving engine's outputs; `fail` refuses with an error;
            `prefer-onnxruntime` answers with onnxruntime's. `shadow` answers before it knows: only `log`.
        tolerance: replaces the default of a dtype, e.g. `{"float32": {"rtol": 1e-3, "atol": 1e-4}}`.
        shadow_queue: shadow checks that may wait; further ones are dropped and counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Policy = "sample"
    rate: float = Field(default=0.05, gt=0, le=1)
    on_mismatch: OnMismatch = "log"
    tolerance: dict[Literal["float16", "bfloat16", "float32", "float64"], Tolerance] = Field(
        default_factory=dict
    )
    shadow_queue: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _shadow_only_logs(self) -> Self:
        if self.policy == "shadow" and self.on_mismatch != "log":
            raise ValueError(f"policy 'shadow' cannot {self.on_mismatch!r}: it answers first; use 'log'")
        return self

    def tolerance_of(self, dtype: str) -> Tolerance | None:
        """The tolerance of a dtype name; None: the elements have to be equal."""
        own: Mapping[str, Tolerance] = {str(name): tolerance for name, tolerance in self.tolerance.items()}
        return own.get(dtype, DEFAULT_TOLERANCE.get(dtype))


@final
class ModelSettings(BaseModel):
    """How one model is served; unset fields follow the server's settings.

    Attributes:
        engine: the engine that answers; the other one is the cross-check's witness.
        cross_check: see CrossCheckSettings; replaces the server's as a whole.
        threads: threads of each engine in one request.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Engine | None = None
    cross_check: CrossCheckSettings | None = None
    threads: int | None = Field(default=None, ge=1)


@final
class ServerSettings(BaseSettings):
    """Settings of the whole server; `ONWARD_SERVER_<FIELD>` in the environment sets one.

    A field of a nested group is `ONWARD_SERVER_CROSS_CHECK__POLICY`.

    Attributes:
        repository: folder of `<name>/<version>/model.onnx`.
        listen: `host:port` (port 0: a free one), `[v6]:port` or `unix:/path`.
        engine: the engine that answers, unless a model's config.toml says otherwise.
        cross_check: the policy of models whose config.toml has none.
        threads: threads of each engine in one request.
        executor_threads: requests that are computed at the same time.
        queue_size: requests that may wait for an executor thread; further ones are refused.
        max_message_bytes: the largest request accepted.
        drain_timeout: seconds that running requests have to finish after SIGTERM.
    """

    model_config = SettingsConfigDict(
        env_prefix="ONWARD_SERVER_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
    )
    repository: Path
    listen: str = "127.0.0.1:8001"
    engine: Engine = "onward"
    cross_check: CrossCheckSettings = CrossCheckSettings()
    threads: int = Field(default=1, ge=1, le=1024)
    executor_threads: int = Field(default=2, ge=1, le=1024)
    queue_size: int = Field(default=256, ge=0)
    max_message_bytes: int = Field(default=64 * 2**20, ge=1024, lt=2**31)
    drain_timeout: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    log_level: Literal["debug", "info", "warning", "error"] = "info"


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
        raise ConfigError(f"environment: {error}") from error
    layers.append(options)
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merged(merged, layer)
    try:
        return ServerSettings(**merged)
    except ValidationError as error:
        raise ConfigError(f"settings: {_problems(error)}") from error


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
        raise ConfigError(f"{path}: {_problems(error)}") from error


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


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'value'}: {problem['msg']}"
        for problem in error.errors(include_url=False)
    )
