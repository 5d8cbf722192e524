"""`onward tune`: a search over options of `onward train`."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onward.cli.options import with_settings
from onward.cli.train import PANELS, interruptible
from onward.cli.verbosity import console, level
from onward.errors import ConfigError
from onward.runs.config import RunConfig

if TYPE_CHECKING:
    from onward.runs import Trial, TuneResult

__all__ = ["command"]

_INTERRUPTED = 130
_SEARCH = "Search"
_PARTS = re.compile(r",(?![^\[]*\])")
"""Commas that stand in no list."""


def _command(
    values: Mapping[str, Any],
    config: Annotated[Path | None, typer.Option(help="A TOML file; options come before it.")] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            help="OPTION=LOW:HIGH, OPTION=LOW:HIGH:log or OPTION=A|B|C, with commas; repeatable. Also "
            "[search] of the file.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Of the whole search, earlier ones included.", rich_help_panel=_SEARCH)
    ] = 20,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="For study.db and the best run; by default tuned/DATA-MODEL.", rich_help_panel=_SEARCH
        ),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Another storage of Optuna, as a URL.", rich_help_panel=_SEARCH)
    ] = None,
    objective: Annotated[
        str, typer.Option(help="The figure to make best.", rich_help_panel=_SEARCH)
    ] = "val_loss",
    direction: Annotated[
        Literal["auto", "minimize", "maximize"],
        typer.Option(help="By default lower for losses and errors.", rich_help_panel=_SEARCH),
    ] = "auto",
    prune: Annotated[
        bool, typer.Option(help="End runs that fall behind others.", rich_help_panel=_SEARCH)
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Search for the options that train best, with Optuna (the extra onward[tune]).

    Each trial is a run of `onward train` with other values. The study is a file: interrupted or begun again
    with more trials, it goes on. The best run's model and run.toml are kept.

    \b
    Examples:
      onward tune mlp --data digits --search lr=1e-4:1e-1:log,hidden=32|64|128 --trials 20
      onward tune mlp --data iris --search "hidden=[16]|[32,32]" --objective val_accuracy
      onward tune --config run.toml --trials 50

    \b
    The search as a table of the file:
      [search]
      lr = "1e-4:1e-1:log"
      hidden = [32, 64, 128]
    """
    from onward.runs import CancelToken, read_run, search_space, tune
    from onward.runs.assembly import run_name

    run = read_run(config, values)
    if run.output is not None:
        raise ConfigError("a search writes into --folder; leave --output out")
    texts = {**run.search, **_searches(search or [])}
    space = search_space(texts, run.model.name)
    where = folder if folder is not None else Path("tuned") / run_name(run)
    token = CancelToken()

    def ended(trial: Trial) -> None:
        if as_json or level() == "quiet":
            return
        shown = "  ".join(f"{_short(key)} {_plain(value)}" for key, value in trial.values.items())
        figure = "" if trial.value is None else f"{objective} {trial.value:.5g}  "
        print(f"trial {trial.number}: {trial.state}  {figure}{shown}", flush=True)

    with interruptible(token):
        result = tune(
            run,
            space,
            folder=where,
            trials=trials,
            storage=storage,
            objective=objective,
            direction=direction,
            prune=prune,
            ended=ended,
            cancel=token,
        )
    if as_json:
        print(json.dumps(dataclasses.asdict(result), default=str))
    else:
        _show(result)
    if result.cancelled:
        print("interrupted; the same command goes on", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED)


command = with_settings(_command, RunConfig, PANELS)


def _searches(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in (part.strip() for text in texts for part in _PARTS.split(text)):
        name, equals, value = part.partition("=")
        if not equals or not name or not value:
            raise ConfigError(
                f"--search {part!r}: OPTION=LOW:HIGH, OPTION=LOW:HIGH:log or OPTION=A|B is needed"
            )
        found[name.strip()] = value.strip()
    return found


def _show(result: TuneResult) -> None:
    from rich.table import Table

    keys = list(dict.fromkeys(key for trial in result.trials for key in trial.values))
    table = Table(box=None, pad_edge=False)
    for name in ("trial", result.objective, *map(_short, keys), "epochs", "seconds", "state"):
        table.add_column(name, justify="left" if name == "state" else "right")
    order = sorted(result.trials, key=lambda t: (t is not result.best, t.number))
    for trial in order:
        table.add_row(
            f"{trial.number}{' *' if trial is result.best else ''}",
            "" if trial.value is None else f"{trial.value:.5g}",
            *(_plain(trial.values.get(key, "")) for key in keys),
            str(trial.epochs),
            f"{trial.seconds:.1f}",
            trial.state,
        )
    console().print(table)
    if result.best is None or result.config is None:
        print("no trial came to its end")
        return
    print(f"best: trial {result.best.number}, model {result.config.with_name('model.onnx')}")
    print(f"again: onward train --config {result.config}")


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
