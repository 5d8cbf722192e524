"""`onward train`: a configuration from options and a file, and what is shown of its run."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

from onward.cli.options import with_settings
from onward.cli.verbosity import console, level, note
from onward.runs.config import RunConfig

if TYPE_CHECKING:
    from rich.console import Console

    from onward.parallel import Times
    from onward.runs import (
        CancelToken,
        ColumnsPrepared,
        EpochEnded,
        Event,
        Finished,
        FoldMeasured,
        RanksTimed,
        Started,
        StepEnded,
    )

__all__ = ["PANELS", "RunView", "command", "interruptible"]

_INTERRUPTED = 130
_MISUSED = 2
_INTERNAL = 70
_RECORD = "Record"
_SHOWN_COLUMNS = 60
_EACH_SECONDS = 0.5
_ENDING = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
"""The latter two: as of `sbatch --signal`, and what Open MPI's mpirun hands on to its ranks."""
PANELS = {
    "data.": "Data",
    "prefetch": "Data",
    "workers": "Data",
    "model.": "Model and loss",
    "loss.": "Model and loss",
    "metrics": "Model and loss",
    "lora": "Model and loss",
    "distillation.": "Model and loss",
    "output": _RECORD,
    "overwrite": _RECORD,
    "preparation": _RECORD,
    "checkpoint.": _RECORD,
    "log.": _RECORD,
    "": "Optimisation",
}


def _command(
    values: Mapping[str, Any],
    config: Annotated[Path | None, typer.Option(help="A TOML file; options come before it.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show the whole configuration as TOML and stop.")
    ] = False,
    find_lr: Annotated[
        bool,
        typer.Option("--find-lr", help="Try learning rates from low to high, suggest one, and stop."),
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on from this checkpoint; auto: from --checkpoint's, if it is there.",
            rich_help_panel=_RECORD,
        ),
    ] = None,
    progress: Annotated[
        bool | None,
        typer.Option(help="A progress bar; by default on a terminal.", rich_help_panel=_RECORD),
    ] = None,
    per_rank: Annotated[
        bool,
        typer.Option("--per-rank", help="With ranks: end with a line for each.", rich_help_panel=_RECORD),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print each event as a line of JSON.", rich_help_panel=_RECORD),
    ] = False,
) -> None:
    """Train a network on a data set, measure it, and export it verified.

    Ends with figures on the part of the data that training never saw.

    The exported graph takes inputs as they are read (pixels of 0 … 255, numbers as in the table), and the
    file carries its classes and where it comes from. With --no-preparation it is the bare network.

    \b
    Examples:
      onward train lenet5 --data digits --epochs 12
      onward train lenet5 --data idx:mnist_10k --split 0.8,0,0.2 --schedule cosine
      onward train textcnn --data text:reviews.csv.gz --tokens 50 --epochs 4
      onward train mlp --data people.csv
      onward train mlp --data prices.parquet --target price --exclude id,agent
      onward train mlp --data "sqlite:shop.db?query=SELECT * FROM orders" --column city:encode=hashing
      onward train mlp --data csv:films.csv --target comedy,drama,crime
      onward train pretrained.onnx --data images:photos --freeze "features.*"
      onward train pretrained.onnx --data digits --lora rank=4,targets=dense* --lr 0.01
      onward train lenet5 --data digits --teacher big.onnx --sparsity 0.8 --averaging ema
      onward train lenet5 --data digits --find-lr
      onward train lenet5 --data digits --track tracked --mlflow sqlite:///mlflow.db
      onward train --config run.toml --checkpoint run.ckpt --resume run.ckpt
      onward train mlp --data iris --json | jq 'select(.event == "measured")'

    \b
    The same as a file:
      model = "lenet5"
      data = "digits"
      epochs = 12
      optimizer = { name = "adamw", learning_rate = 0.002 }
    """
    from onward.parallel import launched, stoppable, together
    from onward.runs import CancelToken, execute, read_run, to_toml

    with together(_exit_code):
        run = read_run(config, values)
    started = None if run.parallel == "none" else launched()
    first = started is None or started[0] == 0
    if print_config:
        print(to_toml(run) if first else "", end="")
        return
    ranks = contextlib.nullcontext() if started is None else together(_exit_code)
    if find_lr:
        with ranks:
            _find(run, as_json, first)
        return
    token = CancelToken()
    # launchers give ranks a terminal that is none
    shown = (sys.stdout.isatty() and started is None) if progress is None else progress and first
    with (
        ranks,
        RunView(shown and not as_json, per_rank) as view,
        interruptible(token),
        stoppable(1),
    ):
        result = execute(
            run,
            events=print_json if as_json else view,
            cancel=token,
            resume="auto" if resume == Path("auto") else resume,
        )
    if result.finished.status == "cancelled":
        raise typer.Exit(_INTERRUPTED)


def _find(run: RunConfig, as_json: bool, first: bool) -> None:
    """Show a search for the learning rate, on the first rank."""
    from onward.runs import find_learning_rate

    with RunView(False) as view:
        found = find_learning_rate(run, events=None if as_json else view)
    if not first:
        return
    if as_json:
        print(json.dumps(asdict(found)))
        return
    print(f"{'rate':>10} {'loss':>10} {'smoothed':>10}")
    for rate, loss, smoothed in found.table():
        print(f"{rate:>10.3g} {loss:>10.4g} {smoothed:>10.4g}")
    print(found.plot())
    print(found if found.suggestion is None else f"{found}: --lr {found.suggestion:.2g}")


command = with_settings(_command, RunConfig, PANELS)


@final
class RunView:
    """Shows a run's events: a line an epoch, or a progress bar.

    Args:
        bar: whether to show a progress bar.
        per_rank: whether to say of each rank where its time went.
    """

    def __init__(self, bar: bool, per_rank: bool = False) -> None:
        from onward.train.progress import ProgressBar

        self._quiet = level() == "quiet"
        self._shown = bar and not self._quiet
        self._bar = ProgressBar(self._shown)
        self._told = 0.0
        self._per_rank = per_rank
        self._started: Started | None = None
        self._epoch = 0
        self._title = ""
        self._folds: list[Mapping[str, float]] = []

    def __enter__(self) -> RunView:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def __call__(self, event: Event) -> None:
        """Show an event."""
        from onward import runs

        match event:
            case runs.DataRead():
                parts = [("training", event.train), ("validation", event.validation), ("test", event.test)]
                inputs = ", ".join(f"{name} {what}".strip() for name, what in event.inputs.items())
                sizes = " + ".join(f"{size:,} {name}" for name, size in parts if size)
                self._say(f"data: {event.spec}: {sizes} samples; {inputs}")
                for text in event.notes:
                    note(text)
                self._title = event.spec
            case runs.ColumnsPrepared():
                if not self._quiet:
                    self._columns(event)
            case runs.FoldMeasured():
                self._fold(event)
            case runs.Started():
                self._started = event
                self._say(f"model: {event.model}, {event.weights:,} weights")
                if event.half_types:
                    names = " and ".join(event.half_types)
                    self._say(f"types: {names}, trained with float32 weights and written in {names} again")
                if event.head:
                    self._say(event.head)
                self._say(event.task)
            case runs.StepEnded():
                self._step(event.epoch, event.batch, event.samples)
                if level() == "verbose" and not self._shown:
                    self._each(event)
            case runs.MetricsSoFar():
                self._bar.figures(event.figures)
            case runs.EpochEnded():
                self._epoch_ended(event)
            case runs.CheckpointWritten() if level() == "verbose":
                print(f"checkpoint: {event.path}, step {event.step}", flush=True)
            case runs.Measured():
                self._bar.__exit__(None, None, None)
                model = "" if self._started is None else self._started.model
                event.measures.show(_console(), f"{model} on {self._title}, {event.part} part")
            case runs.Exported():
                print(f"{event.path}: written, takes {', '.join(event.takes)}; {event.report}")
                for text in event.notes:
                    self._say(f"note: {text}")
            case runs.RanksTimed():
                self._say(_times(event))
                if self._per_rank:
                    print(*map(_rank, range(len(event.ranks)), event.ranks), sep="\n", flush=True)
            case runs.Pruned():
                print(
                    f"pruned: {event.zeros:,} of {event.weights:,} weights are 0 "
                    f"({event.zeros / event.weights:.1%}): "
                    + ", ".join(f"{name} {share:.1%}" for name, share in event.shares.items()),
                    flush=True,
                )
            case runs.Warned():
                print(f"warning: {event.text}", file=sys.stderr, flush=True)
            case runs.Finished():
                self._finished(event)

    def _columns(self, event: ColumnsPrepared) -> None:
        """One line a column, cut at nothing: long plans go on below their beginning."""
        from rich.table import Table

        from onward.runs.tables import columns_text

        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(max_width=24, overflow="fold")
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for row in event.rows[:_SHOWN_COLUMNS]:
            table.add_row(*row)
        _console().print(table)
        if (more := len(event.rows) - _SHOWN_COLUMNS) > 0:
            print(f"... and {more} columns more")
        print(f"features: {event.features:,} of {columns_text(len(event.rows))}", flush=True)

    def _fold(self, event: FoldMeasured) -> None:
        import statistics

        self._folds.append(event.figures)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in event.figures.items())
        print(f"fold {event.number}/{event.count}  {shown}", flush=True)
        if event.number == event.count:
            for name in event.figures:
                values = [figures[name] for figures in self._folds]
                print(
                    f"{event.count} folds: {name} {statistics.mean(values):.4f}, deviation "
                    f"{statistics.stdev(values):.4f}"
                )
            print("the model is trained on the usual division:", flush=True)

    def _step(self, epoch: int, batch: int, samples: int) -> None:
        assert self._started is not None
        if epoch != self._epoch:
            self._epoch = epoch
            self._bar.epoch(epoch, self._started.epochs, self._started.batches, batch - 1)
        self._bar.advance(samples)

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)

    def _each(self, event: StepEnded) -> None:
        """A line a step, at most two a second."""
        if (now := time.monotonic()) - self._told >= _EACH_SECONDS:
            self._told = now
            print(
                f"step {event.step}  loss {event.loss:.4g}  learning_rate {event.learning_rate:.4g}",
                flush=True,
            )

    def _epoch_ended(self, event: EpochEnded) -> None:
        self._bar.close_epoch(event.row)
        if not self._shown and not self._quiet:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in event.row.items() if name != "epoch")
            print(f"epoch {event.epoch}/{event.epochs}  {figures}", flush=True)

    def _finished(self, event: Finished) -> None:
        if event.status == "stopped":
            print(f"stopped early: {event.reason}")
        elif event.status == "cancelled":
            if event.checkpoint is None:
                print("interrupted; there is no checkpoint (--checkpoint FILE keeps one)", file=sys.stderr)
            else:
                print(f"interrupted; go on with --resume {event.checkpoint}", file=sys.stderr)


def _console() -> Console:
    """Of standard output, without a terminal's codes where a launcher of ranks collects it."""
    from onward.parallel import launched

    return console(plain=launched() is not None)


def _times(event: RanksTimed) -> str:
    ranks = event.ranks
    computing = [t.steps - t.waiting for t in ranks]
    waiting = [t.waiting for t in ranks]
    spent = max(t.communicating for t in ranks)
    behind = max(0.0, 1 - sum(waiting) / total) if (total := sum(t.communicating for t in ranks)) else 0.0
    state, most = [t.optimizer_bytes / 1e6 for t in ranks], max(t.peak_bytes for t in ranks) / 1e6
    return (
        f"{len(ranks)} ranks: computing {_range(computing)} s, waiting for sums {_range(waiting)} s; "
        f"{ranks[0].exchanged / 1e6:,.1f} MB sent by each in {spent:.2f} s, {behind:.0%} of it behind "
        f"computing; optimizer state {_range(state)} MB a rank, memory at most {most:,.0f} MB"
    )


def _rank(number: int, times: Times) -> str:
    seconds = f"computing {times.steps - times.waiting:.2f} s, waiting {times.waiting:.2f} s"
    memory = f"{times.exchanged / 1e6:,.1f} MB sent, memory at most {times.peak_bytes / 1e6:,.0f} MB"
    return f"rank {number}: {times.host}, process {times.process}: {seconds}, {memory}"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} … {high}"


def _exit_code(error: BaseException) -> int:
    from onward.errors import OnwardError

    return _MISUSED if isinstance(error, OnwardError) else _INTERNAL


def print_json(event: Event) -> None:
    """Print an event as a line of JSON: its name as `event`, and its fields. Steps are left out."""
    from onward import runs
    from onward.parallel import Times
    from onward.runs.measures import Measures
    from onward.verify import Report

    if isinstance(event, runs.StepEnded | runs.MetricsSoFar):
        return

    def plain(value: Any) -> Any:
        if isinstance(value, Measures):
            return value.as_dict()
        if isinstance(value, Report):
            return value.to_dict()
        return asdict(value) if isinstance(value, Times) else str(value)

    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower()
    content = {field.name: getattr(event, field.name) for field in fields(event)}
    rows = {key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    print(json.dumps({"event": name, **rows}, default=plain), flush=True)


@contextlib.contextmanager
def interruptible(token: CancelToken) -> Iterator[None]:
    """Let the first Ctrl-C stop the run after its step, and the second at once; so do other signals by which
    terminals, launchers and schedulers tell a program to end, or that it soon will be ended.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if token.cancelled:
            raise KeyboardInterrupt
        token.cancel("interrupted")
        print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    def end(number: int, frame: FrameType | None) -> None:
        token.cancel("terminated")

    named = [getattr(signal, name, None) for name in _ENDING]
    heard = {s: end for s in named if s is not None and signal.getsignal(s) != signal.SIG_IGN}
    try:
        before = {s: signal.signal(s, f) for s, f in {**heard, signal.SIGINT: stop}.items()}
    except ValueError:  # not the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
