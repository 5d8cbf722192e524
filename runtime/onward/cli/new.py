"""`onward new`: looks at data and writes a first run.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onward.cli.verbosity import level
from onward.errors import ConfigError

__all__ = ["command"]


def command(
    data: Annotated[str, typer.Argument(help="A file, a folder, or what --data takes.", show_default=False)],
    file: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("run.toml"),
    target: Annotated[str | None, typer.Option(help="The column or array to predict.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Look at data, and write a commented run.toml that fits them.

    \b
    Examples:
      onward new people.csv
      onward new photos/
      onward new digits --output digits.toml
    """
    from onward.model import atomic_write
    from onward.runs.drafts import draft

    if file.exists() and not overwrite:
        raise ConfigError(f"{file} is there already: choose another --output, or say --overwrite")
    found = draft(data, target, str(file))
    with atomic_write(file) as stream:
        stream.write(found.text.encode())
    if level() != "quiet":
        print("\n".join(found.seen))
    print(f"{file}: written; next: onward train --config {file}")
