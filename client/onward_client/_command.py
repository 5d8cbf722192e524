"""What the commands of `onward client` share."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from onward_client import Client

__all__ = [
    "DEFAULT_ADDRESS",
    "Address",
    "Key",
    "Timeout",
    "Version",
    "add_verbosity",
    "connected",
    "fail",
    "is_quiet",
]

_FAILED = 2
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
DEFAULT_ADDRESS = "127.0.0.1:8001"

Address = Annotated[str, typer.Option("--address", "-a", help="host:port, or unix:/path.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds that a call may take.")]
Version = Annotated[str, typer.Option("--model-version", help="The latest if not given.")]
Key = Annotated[
    str | None,
    typer.Option(envvar="ONWARD_CLIENT_KEY", help="Sent with each call.", show_default=False),
]


@contextmanager
def connected(address: str, timeout: float, key: str | None = None) -> Iterator[Client]:
    """A client whose errors end the command with one line."""
    from onward_client import Client
    from onward_client.errors import ClientError

    try:
        with Client(address, timeout=timeout, key=key) as client:
            yield client
    except ClientError as error:
        fail(str(error))


def fail(text: str) -> NoReturn:
    """End the command with one line and exit code 2."""
    print(f"error: {text}", file=sys.stderr)
    raise typer.Exit(_FAILED)


def is_quiet() -> bool:
    """Whether the command under way says results and errors alone."""
    return _quiet.get()


def add_verbosity(app: typer.Typer) -> None:
    """Give each command of an application `-q`, and `-v`, which says how long it took."""
    for each in app.registered_commands:
        if each.callback is not None:
            each.callback = _with_verbosity(each.callback)


def _with_verbosity(command: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(command)
    def derived(*, quiet: bool, verbose: bool, **options: Any) -> None:
        if quiet and verbose:
            fail("--quiet and --verbose exclude each other: give one of them")
        token = _quiet.set(quiet)
        began = time.perf_counter()
        try:
            command(**options)
        finally:
            _quiet.reset(token)
            if verbose:
                where = f"{options['address']}: " if "address" in options else ""
                print(f"{where}took {time.perf_counter() - began:.3f} s", file=sys.stderr, flush=True)

    kind = inspect.Parameter.KEYWORD_ONLY
    own = [p.replace(kind=kind) for p in inspect.signature(command, eval_str=True).parameters.values()]
    for name, short, text in (
        ("quiet", "-q", "Say results and errors alone."),
        ("verbose", "-v", "Say how long it took."),
    ):
        option = Annotated[bool, typer.Option(f"--{name}", short, help=text)]
        own.append(inspect.Parameter(name, kind, default=False, annotation=option))
    derived.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    derived.__annotations__ = {p.name: p.annotation for p in own}
    return derived
