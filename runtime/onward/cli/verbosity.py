"""How much a command says: `-q` results and errors alone, `-v` more than usual."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onward.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Level", "console", "level", "note", "with_verbosity"]

Level = Literal["quiet", "usual", "verbose"]

_level: ContextVar[Level] = ContextVar("level", default="usual")


def level() -> Level:
    """How much the command under way says."""
    return _level.get()


def note(text: str) -> None:
    """Say something that is no result, on standard error; `-q` leaves it out."""
    if level() != "quiet":
        print(f"note: {text}", file=sys.stderr, flush=True)


def console(*, plain: bool = False) -> Console:
    """Of standard output; names of classes, columns and nodes are shown as they are, brackets included.

    plain: without a terminal's codes.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, force_terminal=False if plain else None)


def with_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """The command with options `-q` and `-v`; with `-v` it also says how long it took."""

    @functools.wraps(command)
    def derived(*, quiet: bool, verbose: bool, **options: Any) -> None:
        if quiet and verbose:
            raise ConfigError("--quiet and --verbose exclude each other: give one of them")
        token = _level.set("quiet" if quiet else "verbose" if verbose else "usual")
        began = time.perf_counter()
        try:
            command(**options)
        finally:
            if verbose:
                print(f"took {time.perf_counter() - began:.2f} s", file=sys.stderr, flush=True)
            _level.reset(token)

    own = inspect.signature(command, eval_str=True).parameters.values()
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option(f"--{name}", short, help=text)],
        )
        for name, short, text in (
            ("quiet", "-q", "Say results and errors alone."),
            ("verbose", "-v", "Say more, and how long it took."),
        )
    ]
    everything = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *added]
    derived.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
    derived.__annotations__ = {p.name: p.annotation for p in everything}
    return derived
