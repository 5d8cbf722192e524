"""How a field of the configuration is given on a command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

__all__ = ["Option"]


@final
@dataclass(frozen=True)
class Option:
    """Marks a field as an option; written as `Annotated[type, Option(...)]`.

    Attributes:
        help: one line; the field's default is added to it.
        name: the option without its dashes; by default the field's name.
        short: further spellings, with their dashes.
        form: "value": one text. "list": texts with commas between them. "numbers": numbers with commas.
            "repeat": the option may be given again and again. "assignments": the same, each NAME=VALUE.
            "fields": KEY=VALUE with commas; several values of a key with | between them.
            "weights": numbers with commas, or "balanced". "columns": the same as "repeat", each
            NAME:WORD or NAME:KEY=VALUE,KEY=VALUE.
        argument: whether it stands on the command line without a name.
        only_on: a boolean without its opposite, `--name` but no `--no-name`.
    """

    help: str
    name: str | None = None
    short: tuple[str, ...] = ()
    form: Literal["value", "list", "numbers", "repeat", "assignments", "fields", "weights", "columns"] = (
        "value"
    )
    argument: bool = False
    only_on: bool = False
