"""What a training run is: a TOML file, and over it the command line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onward.engine.engines import EngineName
from onward.errors import ConfigError

__all__ = ["RunConfig", "read_run", "to_toml"]

_Positive = Field(default=None, gt=0)
_SHORT = {"model": "name", "data": "spec", "loss": "name", "optimizer": "name", "schedule": "name"}
"""Tables that a file may give as a text alone: `model = "lenet5"`."""
_REQUIRED = dict.fromkeys(("model", "model.name"), "a model") | dict.fromkeys(
    ("data", "data.spec"), "a data set (--data)"
)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def given(self) -> dict[str, Any]:
        """The fields that are set, as keyword arguments for what they describe; `name` left out."""
        return {key: value for key, value in self if value is not None and key != "name"}


@final
class ModelTable(_Table):
    """`[model]`: a name of the zoo with its options, or the path of an .onnx file."""

    name: str
    options: dict[str, Any] = {}
    trainable: tuple[str, ...] | None = None
    freeze: tuple[str, ...] = ()


@final
class DataTable(_Table):
    """`[data]`: where the samples come from, how they are divided and prepared."""

    spec: str
    target: str | None = None
    task: Literal["classification", "regression"] | None = None
    text: str | None = None
    image_size: int | None = _Positive
    channels: int | None = _Positive
    limit: int | None = _Positive
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    split_seed: int = Field(default=0, ge=0)
    normalise: bool = True
    augment: str | None = None
    tokens: int = Field(default=64, gt=0)
    vocabulary_size: int = Field(default=20_000, gt=1)
    min_count: int = Field(default=2, gt=0)


@final
class LossTable(_Table):
    """`[loss]`; without a name it follows from the task."""

    name: str | None = None
    label_smoothing: float | None = None
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    ignore_index: int | None = None
    positive_weight: float | None = None
    delta: float | None = None


@final
class GroupTable(_Table):
    """`[[optimizer.groups]]`: parameters with a rate factor or weight decay of their own."""

    pattern: str
    learning_rate: float = 1.0
    weight_decay: float | None = None


@final
class OptimizerTable(_Table):
    """`[optimizer]`; what is not set keeps the optimizer's own default."""

    name: str = "adam"
    learning_rate: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    alpha: float | None = None
    initial_accumulator: float | None = None
    groups: tuple[GroupTable, ...] | None = None


@final
class ScheduleTable(_Table):
    """`[schedule]` of the learning rate."""

    name: str = "constant"
    warmup: int | None = None
    every: int | None = None
    gamma: float | None = None
    minimum: float | None = None
    patience: int | None = None
    threshold: float | None = None


@final
class CheckpointTable(_Table):
    """`[checkpoint]`: the file, and after how many steps it is written (without: after each epoch)."""

    path: Path | None = None
    every: int | None = _Positive


@final
class StoppingTable(_Table):
    """`[early_stopping]`; off without a patience."""

    patience: int | None = Field(default=None, ge=0)
    monitor: str = "val_loss"


@final
class LogTable(_Table):
    """`[log]`: the history as a CSV file, and as TensorBoard events in a folder."""

    csv: Path | None = None
    tensorboard: Path | None = None


@final
class RunConfig(_Table):
    """A whole training run."""

    model: ModelTable
    data: DataTable
    output: Path | None = None
    epochs: int = Field(default=10, gt=0)
    batch_size: int = Field(default=32, gt=0)
    seed: int = Field(default=0, ge=0)
    metrics: tuple[str, ...] | None = None
    accumulate: int = Field(default=1, gt=0)
    clip_norm: float | None = _Positive
    clip_value: float | None = _Positive
    engine: EngineName = "auto"
    threads: int | None = _Positive
    winograd: Literal[2, 4] = 2
    loss: LossTable = LossTable()
    optimizer: OptimizerTable = OptimizerTable()
    schedule: ScheduleTable = ScheduleTable()
    checkpoint: CheckpointTable = CheckpointTable()
    early_stopping: StoppingTable = StoppingTable()
    log: LogTable = LogTable()

    def plain(self) -> dict[str, Any]:
        """The configuration as JSON values, without what is not set."""
        values: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        return {key: value for key, value in values.items() if value != {}}


def read_run(file: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """The run of a TOML file with the command line's options over it.

    Args:
        file: the TOML file; None: there is none.
        overrides: values by dotted key, such as `optimizer.learning_rate`; None counts as not given.

    Raises:
        ConfigError: the file cannot be read, a key is unknown or missing, or a value does not fit.
    """
    merged = {} if file is None else _read_toml(file)
    for table_name, key in _SHORT.items():
        if isinstance(merged.get(table_name), str):
            merged[table_name] = {key: merged[table_name]}
    for key, value in overrides.items():
        if value is None:
            continue
        *path, last = key.split(".")
        table = merged
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{file}: {part!r} must be a table")
        known = table.get(last)
        table[last] = {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(f"{file or 'options'}: {_problems(error)}") from None


def to_toml(run: RunConfig) -> str:
    """The run as a TOML file that `read_run` reads back."""
    lines: list[str] = []
    _write_table(lines, run.plain(), "")
    return "\n".join(lines) + "\n"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _problems(error: ValidationError) -> str:
    texts = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            texts.append(f"unknown key {key!r}")
        elif problem["type"] == "missing":
            what = _REQUIRED.get(key)
            texts.append(f"{what} is missing" if what else f"{key!r} is missing")
        else:
            texts.append(f"{key}: {problem['msg']}, got {problem['input']!r}")
    return "; ".join(dict.fromkeys(texts))


def _write_table(lines: list[str], table: Mapping[str, Any], name: str) -> None:
    scalars = {k: v for k, v in table.items() if not isinstance(v, dict) and not _is_tables(v)}
    if name and (scalars or not table):
        lines += ["", f"[{name}]"] if lines else [f"[{name}]"]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in scalars.items()]
    for key, value in table.items():
        full = f"{name}.{_key(key)}" if name else _key(key)
        if isinstance(value, dict):
            if value:
                _write_table(lines, value, full)
        elif _is_tables(value):
            for entry in value:
                lines += ["", f"[[{full}]]", *(f"{_key(k)} = {_value(v)}" for k, v in entry.items())]


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _key(name: str) -> str:
    return name if name.isidentifier() and name.isascii() else json.dumps(name, ensure_ascii=False)


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
