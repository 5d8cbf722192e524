"""What the commands of `onward client` share."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    import grpc

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
    "secure",
]

_FAILED = 2
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_CREDENTIALS: ContextVar[grpc.ChannelCredentials | None] = ContextVar("credentials", default=None)
"""Of the connection of this command; None: plain text."""
DEFAULT_ADDRESS = "127.0.0.1:8001"

Address = Annotated[str, typer.Option("--address", "-a", help="host:port, or unix:/path.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds that a call may take.")]
Version = Annotated[str, typer.Option("--model-version", help="The latest if not given.")]
Key = Annotated[
    str | None,
    typer.Option(envvar="ONWARD_CLIENT_KEY", help="Sent with each call.", show_default=False),
]


def secure(
    tls: Annotated[
        bool,
        typer.Option("--tls", help="Speak TLS; the server's certificate is one of the system's authorities."),
    ] = False,
    ca: Annotated[
        Path | None,
        typer.Option(
            envvar="ONWARD_CLIENT_CA", help="PEM of the server's authorities; TLS.", show_default=False
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            envvar="ONWARD_CLIENT_CERTIFICATE", help="PEM of a certificate of yours; TLS.", show_default=False
        ),
    ] = None,
    certificate_key: Annotated[
        Path | None,
        typer.Option(
            envvar="ONWARD_CLIENT_CERTIFICATE_KEY", help="PEM of its private key.", show_default=False
        ),
    ] = None,
) -> None:
    """Options before the command: how the connection is secured."""
    if (certificate is None) != (certificate_key is None):
        fail("--certificate and --certificate-key: give both")
    if not tls and ca is None and certificate is None:
        _CREDENTIALS.set(None)
        return
    import grpc

    files = [None if path is None else _read(path) for path in (ca, certificate_key, certificate)]
    _CREDENTIALS.set(grpc.ssl_channel_credentials(*files))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fail(f"{path}: cannot be read: {error.strerror or error}")


@contextmanager
def connected(address: str, timeout: float, key: str | None = None) -> Iterator[Client]:
    """A client whose errors end the command with one line."""
    from onward_client import Client
    from onward_client.errors import ClientError

    try:
        with Client(address, timeout=timeout, key=key, tls=_CREDENTIALS.get() or False) as client:
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
