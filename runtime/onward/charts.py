"""Charts as SVG inside HTML: what reports and notebooks show; nothing to install, nothing to fetch."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from onward.errors import StorageError
from onward.graph import Array

__all__ = ["Chart", "Curve", "confusion_table", "history_charts", "line_chart", "page", "scatter_chart"]

_COLOURS = ("#3f51b5", "#e65100", "#00796b", "#c2185b", "#5d4037", "#455a64")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _RIGHT = 440, 260, 64, 34, 20
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: 0 0 1rem; } td, th { padding: .2rem .6rem; text-align: right; }
td:first-child, th:first-child { text-align: left; }
tr + tr { border-top: 1px solid #8884; }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top; }
figcaption { font-size: .85rem; max-width: 26rem; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
.grid { display: flex; flex-wrap: wrap; gap: .8rem; }
.sample { border: 1px solid #8884; border-radius: .3rem; padding: .5rem; max-width: 18rem; font-size: .85rem;
  overflow-wrap: anywhere; }
.sample img { image-rendering: pixelated; width: 7rem; display: block; margin-bottom: .3rem; }
.note { opacity: .75; }
"""

_CELL_STYLE = """
.onward-chart svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
.onward-chart figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top; }
.onward-chart .grid { display: flex; flex-wrap: wrap; gap: .8rem; }
.onward-chart .sample { border: 1px solid #8884; padding: .5rem; max-width: 18rem; overflow-wrap: anywhere; }
.onward-chart .sample img { image-rendering: pixelated; width: 7rem; display: block; }
"""


@final
@dataclass(frozen=True, repr=False)
class Chart:
    """Charts of one subject: a notebook shows them as the value of a cell, `save` writes them as a page.

    Attributes:
        title: of the page.
        content: HTML with SVG inside.
    """

    title: str
    content: str

    def save(self, path: str | Path) -> Path:
        """Write a page of its own that needs no network.

        Raises:
            StorageError: it cannot be written.
        """
        path = Path(path)
        try:
            path.write_text(page(self.title, self.content), "utf-8")
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror}") from None
        return path

    def _repr_html_(self) -> str:
        """What Jupyter shows; the style reaches nothing else of the notebook."""
        return f'<div class="onward-chart"><style>{_CELL_STYLE}</style>{self.content}</div>'

    def __repr__(self) -> str:
        return f"{self.title}: a chart; a notebook shows it, and .save('page.html') writes it"


@final
@dataclass(frozen=True, eq=False)
class Curve:
    """A line of a chart."""

    name: str
    x: Array
    y: Array


def page(title: str, content: str) -> str:
    """A whole HTML page around some content."""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body>",
        content,
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def history_charts(rows: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """A chart for each figure of a run, with the validation's beside the training's.

    Args:
        rows: one an epoch, with `epoch`. A learning rate that never changed has no chart.
    """
    epochs = np.array([row["epoch"] for row in rows])
    names = [name for name in dict.fromkeys(k for row in rows for k in row) if name != "epoch"]
    bases = list(dict.fromkeys(name.removeprefix("val_") for name in names))
    for base in sorted(bases, key=lambda name: name == "learning_rate"):
        if base == "learning_rate" and len({row.get(base) for row in rows}) == 1:
            continue
        curves = [
            Curve(name, epochs, np.array([row.get(name, np.nan) for row in rows]))
            for name in (base, f"val_{base}")
            if name in names
        ]
        yield line_chart(base.replace("_", " "), curves, "epoch")


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _limits(values: Sequence[Array]) -> tuple[float, float]:
    finite = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.zeros(0)
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


@dataclass(frozen=True)
class _Axes:
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: Array, y: Array) -> tuple[Array, Array]:
        across = (np.asarray(x) - self.x[0]) / (self.x[1] - self.x[0])
        up = (np.asarray(y) - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), 8 + (1 - up) * (_HEIGHT - _BOTTOM - 8)

    def frame(self, label: str) -> Iterator[str]:
        for share in (0.0, 0.5, 1.0):
            x, y = (low + share * (high - low) for low, high in (self.x, self.y))
            column, line = (float(v) for v in self.at(np.array(x), np.array(y)))
            yield f'<text x="{column:.1f}" y="{_HEIGHT - 18}" text-anchor="middle">{_number(x)}</text>'
            yield f'<text x="{_LEFT - 6}" y="{line + 4:.1f}" text-anchor="end">{_number(y)}</text>'
            yield (
                f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{line:.1f}" y2="{line:.1f}" '
                'stroke="currentColor" stroke-opacity=".15"/>'
            )
        middle, text = (_LEFT + _WIDTH) / 2, html.escape(label)
        yield f'<text x="{middle}" y="{_HEIGHT - 3}" text-anchor="middle">{text}</text>'


def line_chart(
    title: str,
    curves: Sequence[Curve],
    label: str,
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
) -> str:
    """Lines over common axes.

    Args:
        title: under the chart, before the names of the curves.
        curves: points that are not finite are left out.
        label: of the horizontal axis.
        x: its limits; None: those of the points.
        y: limits of the vertical axis.
    """
    axes = _Axes(x or _limits([c.x for c in curves]), y or _limits([c.y for c in curves]))
    parts = [f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">', *axes.frame(label)]
    keys = []
    for number, curve in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        finite = np.isfinite(curve.y)
        points = " ".join(
            f"{a:.1f},{b:.1f}" for a, b in zip(*axes.at(curve.x[finite], curve.y[finite]), strict=True)
        )
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{points}"/>')
        keys.append(f'<span style="color:{colour}">■</span> {html.escape(curve.name)}')
    caption = f"{html.escape(title)}: {', '.join(keys)}"
    return f"<figure>{''.join(parts)}</svg><figcaption>{caption}</figcaption></figure>"


def scatter_chart(title: str, targets: Array, answers: Array) -> str:
    """Answers [N] against targets [N], some thousands of them at most, and the line where both are equal."""
    limits = _limits([targets, answers])
    axes = _Axes(limits, limits)
    step = max(1, len(targets) // 2000)
    parts = [f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">', *axes.frame("target")]
    (x0, x1), (y0, y1) = axes.at(np.array(limits), np.array(limits))
    parts.append(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="currentColor" stroke-opacity=".4"/>')
    parts.extend(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2" fill="{_COLOURS[0]}" fill-opacity=".5"/>'
        for a, b in zip(*axes.at(targets[::step], answers[::step]), strict=True)
        if np.isfinite(b)
    )
    return f"<figure>{''.join(parts)}</svg><figcaption>{html.escape(title)}</figcaption></figure>"


def confusion_table(confusion: Array, classes: Sequence[str]) -> str:
    """Counts [true class, answer], each tinted by its share of the true class."""
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in classes)
    rows = [f"<tr><th>true ↓ answer →</th>{heads}</tr>"]
    for i, name in enumerate(classes):
        total = max(1, int(confusion[i].sum()))
        cells = []
        for j, count in enumerate(confusion[i].tolist()):
            tint = ("46,125,50" if i == j else "198,40,40") if count else "0,0,0"
            share = 0.55 * count / total
            cells.append(f'<td style="background:rgba({tint},{share:.2f})">{count or "·"}</td>')
        rows.append(f"<tr><td>{html.escape(name)}</td>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"
