"""What the commands of `onward client` share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from onward_client import Client

__all__ = ["DEFAULT_ADDRESS", "Address", "Key", "Timeout", "Version", "connected", "fail"]

_FAILED = 2
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
