"""The progress bar: loss, metrics, samples a second, time left; silent when nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, final

__all__ = ["ProgressBar"]

_EVERY_SECONDS = 0.2


@final
class ProgressBar:
    """A bar for the epoch under way, and a line for each that has ended; in a notebook lines alone.

    Args:
        show: None: only when standard output is a terminal or a notebook.
    """

    def __init__(self, show: bool | None = None) -> None:
        self._lines = not sys.stdout.isatty() and _in_notebook()
        self._show = (sys.stdout.isatty() or self._lines) if show is None else show
        self._batches = self._done = 0
        self._told = 0.0
        self._width = 0
        self._progress: Any = None
        self._task: Any = None
        self._name = ""
        self._began = 0.0
        self._figures: Mapping[str, float] = {}

    @property
    def shown(self) -> bool:
        """Whether anybody sees it."""
        return self._show

    def __enter__(self) -> ProgressBar:
        if self._show and not self._lines:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                Task,
                TextColumn,
                TimeRemainingColumn,
            )
            from rich.table import Column
            from rich.text import Text

            class Figures(TextColumn):
                """Cut first where the terminal is narrow: the column may wrap, its text does not."""

                def render(self, task: Task) -> Text:
                    text = super().render(task)
                    text.no_wrap, text.overflow = True, "ellipsis"
                    return text

            def fixed() -> Column:
                return Column(no_wrap=True)

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=12, table_column=fixed()),
                MofNCompleteColumn(table_column=fixed()),
                TimeRemainingColumn(table_column=fixed()),
                Figures("{task.fields[figures]}", table_column=Column(no_wrap=False)),
                refresh_per_second=5,
                console=Console(markup=False, emoji=False, highlight=False),
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def epoch(self, number: int, epochs: int, batches: int, done: int) -> None:
        """Begin an epoch's bar."""
        self._name, self._began = f"epoch {number}/{epochs}", time.perf_counter()
        self._batches, self._done = batches, done
        if self._progress is not None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(self._name, total=batches, completed=done, figures="")

    def step(self, figures: Mapping[str, float], samples: int) -> None:
        """Advance by one batch of this many samples; shows the figures of the epoch so far."""
        self.figures(figures)
        self.advance(samples)

    def figures(self, figures: Mapping[str, float]) -> None:
        """Show the figures of the epoch so far with the next step."""
        self._figures = figures

    def advance(self, samples: int) -> None:
        """Advance by one batch of this many samples."""
        self._done += 1
        if self._show and self._lines and (now := time.perf_counter()) - self._told > _EVERY_SECONDS:
            self._told = now
            self._rewrite(f"{self._name}  {self._done}/{self._batches}  {_text(self._figures)}", end="")
        if self._progress is not None:
            task = self._progress.tasks[-1]
            speed = f"  {task.speed * samples:,.0f} samples/s" if task.speed else ""
            self._progress.update(self._task, advance=1, figures=_text(self._figures) + speed)

    def close_epoch(self, figures: Mapping[str, float]) -> None:
        """Put a line with an epoch's final figures in place of its bar."""
        line = f"{self._name}  {time.perf_counter() - self._began:.1f} s  {_text(figures)}"
        if self._show and self._lines:
            self._rewrite(line, end="\n")
        if self._progress is not None:
            self._progress.update(self._task, visible=False)
            self._progress.console.print(line, soft_wrap=True)

    def _rewrite(self, line: str, end: str) -> None:
        print(f"\r{line.ljust(self._width)}", end=end, flush=True)
        self._width = 0 if end else len(line)


def _in_notebook() -> bool:
    """Whether a kernel of Jupyter's runs this."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _text(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items() if name != "epoch")
