"""Command-line options derived from a configuration: one source of names, types, help and checks."""

from __future__ import annotations

import inspect
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, final, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from onward.errors import ConfigError
from onward.runs.options import Option

__all__ = ["Setting", "data_overrides", "listed", "numbers", "overrides", "settings", "with_settings"]


@final
@dataclass(frozen=True)
class Setting:
    """One option: which key it sets, and how its text is read.

    Attributes:
        key: dotted, such as `optimizer.learning_rate`.
        parameter: the option's name as a Python name.
        option: what the configuration says of it.
        panel: the group of options that help shows it in.
        type: of the value on the command line.
        default: of the field; None: none is shown.
    """

    key: str
    parameter: str
    option: Option
    panel: str
    type: Any
    default: Any


def settings(model: type[BaseModel], panels: Mapping[str, str]) -> list[Setting]:
    """Every field of a configuration that is an option, in its order.

    Args:
        model: the configuration; tables in it are searched too.
        panels: by the beginning of a key, the group it is shown in.
    """
    return list(_settings(model, "", panels))


def with_settings(
    command: Callable[..., None], model: type[BaseModel], panels: Mapping[str, str]
) -> Callable[..., None]:
    """A command that also takes every option of a configuration.

    Args:
        command: takes the options that are no part of the configuration by keyword, and those that are as
            `values`: what was given, by dotted key. Its documentation is the help.
        model, panels: see `settings`.
    """
    known = settings(model, panels)
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "values"]

    def derived(**options: Any) -> None:
        values = overrides(known, options)
        command(**{p.name: options[p.name] for p in own}, values=values)

    arguments = [_parameter(s) for s in known if s.option.argument]
    others = [_parameter(s) for s in known if not s.option.argument]
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    everything = [*arguments, *others, *keywords]
    derived.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
    derived.__annotations__ = {p.name: p.annotation for p in everything}
    derived.__doc__ = command.__doc__
    return derived


def overrides(known: Sequence[Setting], options: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line gave, by dotted key, for `onward.runs.read_run`.

    Raises:
        ConfigError: a text is not of the form that its option has.
    """
    values: dict[str, Any] = {}
    for setting in known:
        value = options.get(setting.parameter)
        if value is None or (setting.option.form in ("repeat", "assignments", "columns") and not value):
            continue
        if setting.option.only_on and value is False:
            continue
        values[setting.key] = _read(setting, value)
    return values


def listed(text: str) -> list[str]:
    """The parts of a text with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(option: str, text: str) -> list[float]:
    """The numbers of an option's text with commas.

    Raises:
        ConfigError: names the option.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r}: numbers with commas between them are needed") from None


def data_overrides(
    data: str | None,
    split: str | None,
    split_seed: int | None,
    target: str | None,
    task: str | None,
    text: str | None,
    image_size: int | None,
    channels: int | None,
) -> dict[str, Any]:
    """Fields of the `[data]` table, as commands that measure a model take them; None was not given.

    Raises:
        ConfigError: `split` is not numbers.
    """
    return {
        "spec": data,
        "split": None if split is None else numbers("--split", split),
        "split_seed": split_seed,
        "target": listed(target) if target is not None and "," in target else target,
        "task": task,
        "text": text,
        "image_size": image_size,
        "channels": channels,
    }


def _settings(model: type[BaseModel], prefix: str, panels: Mapping[str, str]) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{key}.", panels)
            continue
        option = next((m for m in field.metadata if isinstance(m, Option)), None)
        if option is None:
            continue
        panel = next(panel for start, panel in panels.items() if key.startswith(start))
        parameter = (option.name or name).replace("-", "_")
        yield Setting(key, parameter, option, panel, _type(field, option), _default(field))


def _type(field: FieldInfo, option: Option) -> Any:
    if option.form in ("repeat", "assignments", "columns"):
        return list[str] | None
    if option.form in ("list", "numbers", "weights", "fields"):
        return str | None
    found = [kind for kind in _kinds(field.annotation) if kind is not type(None)]
    literals = [kind for kind in found if get_origin(kind) is Literal]
    if literals:
        # numbers among them are texts on a command line; the configuration checks them
        values = [value for kind in literals for value in get_args(kind)]
        return int | None if all(isinstance(v, int) for v in values) else Literal[tuple(values)] | None
    for kind in (bool, int, float, Path, str):
        if kind in found:
            return kind | None
    raise TypeError(f"field of type {field.annotation} cannot be an option")


def _kinds(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    else:
        yield annotation


def _default(field: FieldInfo) -> Any:
    return None if field.default is PydanticUndefined else field.default


def _parameter(setting: Setting) -> inspect.Parameter:
    option = setting.option
    if option.argument:
        info: Any = typer.Argument(help=option.help, show_default=False)
    else:
        dashed = "--" + setting.parameter.replace("_", "-")
        names = [dashed, *option.short]
        if setting.type == (bool | None) and not option.only_on:
            names[0] = f"{dashed}/--no-{dashed[2:]}"
        info = typer.Option(*names, help=_help(setting), rich_help_panel=setting.panel, show_default=False)
    return inspect.Parameter(
        setting.parameter,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[setting.type, info],
    )


def _help(setting: Setting) -> str:
    default = setting.default
    if default is None or isinstance(default, bool) or default in ((), {}):
        return setting.option.help
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"{setting.option.help.removesuffix('.')} ({shown})."


def _read(setting: Setting, value: Any) -> Any:
    name = "--" + setting.parameter.replace("_", "-")
    match setting.option.form:
        case "list":
            return listed(value)
        case "numbers":
            return numbers(name, value)
        case "weights":
            if value != "balanced" and "=" in value:
                return {key: numbers(name, number)[0] for key, number in map(_halves(name), listed(value))}
            return value if value == "balanced" else numbers(name, value)
        case "assignments":
            return dict(_assignment(name, text) for text in value)
        case "fields":
            return dict(_field(name, text) for text in listed(value))
        case "columns":
            return dict(_column(name, text) for text in value)
    if setting.key == "data.target" and "," in value:
        return listed(value)
    return value


def _halves(option: str) -> Callable[[str], tuple[str, str]]:
    def halves(text: str) -> tuple[str, str]:
        name, equals, value = text.rpartition("=")
        if not equals or not name:
            raise ConfigError(f"{option} {text!r}: CLASS=NUMBER is needed")
        return name, value

    return halves


def _column(option: str, text: str) -> tuple[str, dict[str, Any]]:
    """`age:impute=mean,scale=log`, or `age:drop`, which is `age:kind=drop`."""
    name, colon, rest = text.rpartition(":")
    if not colon or not name or not rest:
        raise ConfigError(f"{option} {text!r}: NAME:KEY=VALUE,KEY=VALUE or NAME:drop is needed")
    fields: dict[str, Any] = {}
    for part in rest.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = "kind", key
        fields[key.strip()] = _assignment(option, f"{key}={value}")[1]
        if key.strip() == "parts":
            fields["parts"] = value.split("+")
    return name, fields


def _field(option: str, text: str) -> tuple[str, Any]:
    """`rank=8`, or `targets=first|second`."""
    name, value = _assignment(option, text)
    if isinstance(value, str) and (name == "targets" or "|" in value):
        return name, value.split("|")
    return name, value


def _assignment(option: str, text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{option} {text!r}: NAME=VALUE is needed")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()
