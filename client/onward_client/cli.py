"""`onward client`: the client as commands of the `onward` command line. Needs typer beside the library."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from onward_client._command import (
    DEFAULT_ADDRESS,
    Address,
    Key,
    Timeout,
    Version,
    add_verbosity,
    connected,
    fail,
    secure,
)
from onward_client._train_commands import train

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Call a server of the Open Inference Protocol.

    \b
    Examples:
      onward client ready --address 127.0.0.1:8001
      onward client predict lenet5 images.npz --output answers.npz
      onward client --ca server.pem metadata lenet5
    """,
)

app.callback()(secure)

app.add_typer(train, name="train")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="The model's name.", show_default=False)],
    inputs: Annotated[
        Path,
        typer.Argument(help=".npz with arrays by input name, or .npy for one input.", show_default=False),
    ],
    address: Address = DEFAULT_ADDRESS,
    model_version: Version = "",
    timeout: Timeout = 60.0,
    key: Key = None,
    output: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz file.")] = None,
) -> None:
    """Ask a model for its outputs; prints them as JSON, with what the server says of its cross-check.

    \b
    Examples:
      onward client predict lenet5 image.npy
      onward client predict lenet5 images.npz --output answers.npz
    """
    import numpy as np

    try:
        loaded = np.load(inputs, allow_pickle=False)
        arrays = loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except OSError as error:
        fail(f"{inputs}: cannot be read: {error.strerror or error}")
    except (ValueError, EOFError, zipfile.BadZipFile):
        fail(f"{inputs}: not a readable .npz or .npy file without Python objects")
    with connected(address, timeout, key) as client:
        result = client.infer(model, arrays, None, model_version)
    answer: dict[str, Any] = {"model": result.model, "version": result.version, **result.parameters}
    if output is not None:
        _write(output, result.outputs)
        answer["outputs"] = str(output)
    else:
        answer["outputs"] = {name: _plain(array) for name, array in result.outputs.items()}
    print(json.dumps(answer))


@app.command()
def metadata(
    model: Annotated[str, typer.Argument(help="A model's name; without it the server's.")] = "",
    address: Address = DEFAULT_ADDRESS,
    model_version: Version = "",
    timeout: Timeout = 60.0,
    key: Key = None,
) -> None:
    """Show a model's inputs, outputs and versions, or the server's name and extensions.

    \b
    Example:
      onward client metadata lenet5
    """
    with connected(address, timeout, key) as client:
        found = client.metadata(model, model_version) if model else client.server_metadata()
    print(json.dumps(asdict(found)))


@app.command()
def ready(
    model: Annotated[str, typer.Argument(help="A model's name; without it the server.")] = "",
    address: Address = DEFAULT_ADDRESS,
    model_version: Version = "",
    timeout: Timeout = 60.0,
    key: Key = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for a server that is not there yet.")] = False,
) -> None:
    """Tell whether a server or a model takes requests; exit code 1 if it does not.

    \b
    Example:
      onward client ready --wait --timeout 30
    """
    with connected(address, timeout, key) as client:
        if wait:
            client.wait_until_ready(timeout)
        answer = client.model_ready(model, model_version) if model else client.server_ready()
    print("ready" if answer else "not ready")
    if not answer:
        raise typer.Exit(1)


@app.command()
def statistics(
    model: Annotated[str, typer.Argument(help="A model's name; without it all models.")] = "",
    address: Address = DEFAULT_ADDRESS,
    model_version: Version = "",
    timeout: Timeout = 60.0,
    key: Key = None,
) -> None:
    """Show counts and times of requests, and what the cross-checks found.

    \b
    Example:
      onward client statistics lenet5
    """
    from onward_client.errors import UnsupportedRequestError

    with connected(address, timeout, key) as client:
        requests = [asdict(row) for row in client.statistics(model, model_version)]
        try:
            checks = [asdict(row) for row in client.cross_checks(model, model_version)]
        except UnsupportedRequestError:
            checks = []  # another server of the protocol
    print(json.dumps({"requests": requests, "cross_checks": checks}))


@app.command()
def repository(
    ready: Annotated[bool, typer.Option("--ready", help="Only versions that take requests.")] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    key: Key = None,
) -> None:
    """List the versions in the server's repository, one JSON object a line, and why one is not ready.

    \b
    Example:
      onward client repository
    """
    with connected(address, timeout, key) as client:
        for entry in client.repository(ready_only=ready):
            print(json.dumps(asdict(entry)))


@app.command()
def load(
    model: Annotated[str, typer.Argument(help="The model's name.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option(help="JSON in the place of the model's config.toml.", show_default=False)
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 600.0,
    key: Key = None,
) -> None:
    """Load a model, or load it again, where the server's model_control is explicit.

    \b
    Example:
      onward client load lenet5
    """
    settings = None
    if config is not None:
        try:
            settings = json.loads(config.read_text("utf-8"))
        except OSError as error:
            fail(f"{config}: cannot be read: {error.strerror}")
        except ValueError as error:
            fail(f"{config}: not JSON: {error}")
        if not isinstance(settings, dict):
            fail(f"{config}: not a JSON object")
    with connected(address, timeout, key) as client:
        client.load(model, config=settings)
    print("loaded")


@app.command()
def unload(
    model: Annotated[str, typer.Argument(help="The model's name.", show_default=False)],
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    key: Key = None,
) -> None:
    """Stop serving a model, where the server's model_control is explicit.

    \b
    Example:
      onward client unload lenet5
    """
    with connected(address, timeout, key) as client:
        client.unload(model)
    print("unloaded")


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz file; what was at the path before stays until the new file is whole."""
    import numpy as np

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                np.savez(file, **arrays)
            if path.exists() and not path.is_file():
                raise OSError(0, "it is not a file")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        fail(f"{path}: cannot be written: {error.strerror}")


def _plain(array: Any) -> Any:
    """Nested lists; bytes as text."""
    if array.dtype == object:
        if array.ndim > 1:
            return [_plain(row) for row in array]
        return [x.decode("utf-8", "replace") if isinstance(x, bytes) else x for x in array.reshape(-1)]
    return array.tolist()


add_verbosity(app)
add_verbosity(train)
