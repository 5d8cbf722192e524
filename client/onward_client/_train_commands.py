"""`onward client train`: training jobs of an Onward server."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onward_client._command import DEFAULT_ADDRESS, Address, Key, Timeout, Version, connected, fail, is_quiet

if TYPE_CHECKING:
    from onward_client import Client

__all__ = ["train"]

_ENDS = ("completed", "cancelled", "failed")

train = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="""Training jobs of an Onward server.

    \b
    Examples:
      onward client train start run.toml --watch
      onward client train promote job-1 --model digits --at-least test_accuracy=0.95
    """,
)

_Job = Annotated[str, typer.Argument(help="The job's id, such as job-1.", show_default=False)]


@train.command()
def start(
    config: Annotated[
        Path, typer.Argument(help="A TOML file, as `onward train --config` takes it.", show_default=False)
    ],
    model: Annotated[str, typer.Option(help="A model of the repository to train further.")] = "",
    model_version: Version = "",
    title: Annotated[str, typer.Option(help="A text for people.")] = "",
    data: Annotated[
        Path | None, typer.Option(help="Send this .npz file, in batches, as the data.", show_default=False)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it has ended.")] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    key: Key = None,
) -> None:
    """Put a job into the queue; prints it as JSON.

    \b
    Example:
      onward client train start run.toml --watch
    """
    try:
        text = config.read_text("utf-8")
    except OSError as error:
        fail(f"{config}: cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        fail(f"{config}: not TOML: it is not UTF-8")
    batches = None if data is None else _batches(data)
    with connected(address, timeout, key) as client:
        job = client.training.start(text, model=model, version=model_version, title=title, batches=batches)
        print(json.dumps(asdict(job)), flush=True)
        if watch:
            _watch(client, job.id)


@train.command()
def watch(
    job: _Job,
    after: Annotated[int, typer.Option(min=0, help="The last event that is known.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One event a line.")] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    key: Key = None,
) -> None:
    """Follow a job until it has ended; exit code 1 if it is not completed.

    \b
    Example:
      onward client train watch job-1
    """
    with connected(address, timeout, key) as client:
        _watch(client, job, after, as_json)


@train.command("list")
def list_jobs(
    state: Annotated[str, typer.Option(help="queued, running, completed, cancelled or failed.")] = "",
    limit: Annotated[int, typer.Option(min=1)] = 100,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    key: Key = None,
) -> None:
    """List jobs, the newest first.

    \b
    Example:
      onward client train list --state running
    """
    with connected(address, timeout, key) as client:
        found = client.training.list(state, limit)
    for job in found:
        done = f"{job.epoch}/{job.epochs}"
        print(f"{job.id:10} {job.state:10} {done:>9}  {_figures(job.figures)}  {job.title}".rstrip())


@train.command()
def get(job: _Job, address: Address = DEFAULT_ADDRESS, timeout: Timeout = 60.0, key: Key = None) -> None:
    """Show a job as JSON.

    \b
    Example:
      onward client train get job-1
    """
    with connected(address, timeout, key) as client:
        print(json.dumps(asdict(client.training.get(job))))


@train.command()
def cancel(job: _Job, address: Address = DEFAULT_ADDRESS, timeout: Timeout = 60.0, key: Key = None) -> None:
    """Ask a job to stop; it keeps a checkpoint.

    \b
    Example:
      onward client train cancel job-1
    """
    with connected(address, timeout, key) as client:
        print(json.dumps(asdict(client.training.cancel(job))))


@train.command()
def resume(job: _Job, address: Address = DEFAULT_ADDRESS, timeout: Timeout = 60.0, key: Key = None) -> None:
    """Queue a cancelled or failed job again, from its last checkpoint.

    \b
    Example:
      onward client train resume job-1
    """
    with connected(address, timeout, key) as client:
        print(json.dumps(asdict(client.training.resume(job))))


@train.command()
def evaluate(
    job: Annotated[str, typer.Argument(help="The job's id; or give --model.")] = "",
    model: Annotated[str, typer.Option(help="A model of the repository.")] = "",
    model_version: Version = "",
    data: Annotated[str, typer.Option(help="KIND:PATH on the server; else what it was trained on.")] = "",
    part: Annotated[str, typer.Option(help="test, validation, train or all.")] = "test",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 600.0,
    key: Key = None,
) -> None:
    """Measure a model on data of the server and compare it with onnxruntime; prints JSON.

    \b
    Example:
      onward client train evaluate job-1 --part validation
    """
    with connected(address, timeout, key) as client:
        found = client.training.evaluate(job, model=model, version=model_version, data=data, part=part)
    plain = {**asdict(found), "confusion": None if found.confusion is None else found.confusion.tolist()}
    print(json.dumps(plain))


@train.command()
def promote(
    job: _Job,
    model: Annotated[
        str, typer.Option(help="The name to serve it as; by default the model that was trained further.")
    ] = "",
    at_least: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE: a figure has to be at least that; repeatable.")
    ] = None,
    at_most: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE: a figure has to be at most that; repeatable.")
    ] = None,
    allow_other_interface: Annotated[
        bool, typer.Option("--allow-other-interface", help="Also with other inputs or outputs.")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 600.0,
    key: Key = None,
) -> None:
    """Serve what a job has trained as the newest version of a model; prints where it comes from as JSON.

    \b
    Example:
      onward client train promote job-1 --model digits --at-least test_accuracy=0.95
    """
    lower, upper = _bounds("--at-least", at_least), _bounds("--at-most", at_most)
    with connected(address, timeout, key) as client:
        found = client.training.promote(
            job, model, at_least=lower, at_most=upper, allow_other_interface=allow_other_interface
        )
    print(json.dumps(asdict(found)))


@train.command()
def rollback(
    model: Annotated[str, typer.Argument(help="The model's name.", show_default=False)],
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 600.0,
    key: Key = None,
) -> None:
    """Withdraw the newest version of a model; the one before answers.

    \b
    Example:
      onward client train rollback digits
    """
    with connected(address, timeout, key) as client:
        withdrawn, serving = client.training.rollback(model)
    print(json.dumps({"model": model, "withdrawn": withdrawn, "serving": serving}))


@train.command()
def lineage(
    model: Annotated[str, typer.Argument(help="The model's name.", show_default=False)],
    model_version: Annotated[str, typer.Option(help="One version; else all.")] = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    key: Key = None,
) -> None:
    """Show where the versions of a model come from, one JSON object a line.

    \b
    Example:
      onward client train lineage digits
    """
    with connected(address, timeout, key) as client:
        for entry in client.training.lineage(model, model_version):
            print(json.dumps(asdict(entry)))


def _watch(client: Client, job: str, after: int = 0, as_json: bool = False) -> None:
    """Print events: a line that changes on a terminal, a line an epoch elsewhere; quietly, how it ended."""
    live = sys.stderr.isatty() and not as_json and not is_quiet()
    kind = ""
    for event in client.training.watch(job, after):
        kind, fields = event.kind, event.fields
        if as_json:
            print(json.dumps(asdict(event)), flush=True)
            continue
        if live:
            print("\r\x1b[K", end="", file=sys.stderr)
        if kind == "progress":
            if live:
                text = (
                    f"epoch {fields['epoch']}  step {fields['step']:,}  {_figures({'loss': fields['loss']})}"
                )
                print(text, end="", file=sys.stderr, flush=True)
        elif kind == "epoch":
            if is_quiet():
                continue
            row = {name: value for name, value in fields["row"].items() if name != "epoch"}
            print(f"epoch {fields['epoch']}/{fields['epochs']}  {_figures(row)}", flush=True)
        elif kind == "measured":
            figures = {name: value for name, value in fields.items() if isinstance(value, float)}
            print(f"{fields['part']}  {_figures(figures)}", flush=True)
        elif kind == "warned":
            print(f"warning: {fields['text']}", file=sys.stderr)
        elif kind in _ENDS:
            print(f"{job} is {kind}" + (f": {fields['reason']}" if fields.get("reason") else ""), flush=True)
    if kind and kind != "completed":
        raise typer.Exit(1)


def _figures(figures: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{name} {'nan' if value is None else format(value, '.4g')}" for name, value in figures.items()
    )


def _bounds(option: str, texts: list[str] | None) -> dict[str, float]:
    found = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            fail(f"{option} {text}: give NAME=VALUE with a number")
    return found


def _batches(path: Path) -> Any:
    """The arrays of an .npz file, a thousand rows at a time."""
    import zipfile

    import numpy as np

    rows = 1000
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        fail(f"{path}: cannot be read: {error.strerror or error}")
    except (ValueError, AttributeError, EOFError, zipfile.BadZipFile):
        fail(f"{path}: not a readable .npz file without Python objects")
    if not arrays or any(array.ndim == 0 for array in arrays.values()):
        fail(f"{path}: give arrays of samples")
    count = max(len(array) for array in arrays.values())
    return [
        {name: array[i : i + rows] for name, array in arrays.items()} for i in range(0, max(count, 1), rows)
    ]
