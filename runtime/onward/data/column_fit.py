"""Decides what becomes of each column of a table, and measures it on the training part."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final, get_args

import numpy as np

from onward.data._files import optional_module
from onward.data.column_graph import DATE_PARTS, date_pattern
from onward.data.columns import (
    CategoryColumn,
    ColumnPlan,
    DateColumn,
    DateOrder,
    DroppedColumn,
    Encoding,
    NumberColumn,
    Scale,
)
from onward.data.dataset import Array
from onward.data.frame import is_missing
from onward.errors import ConfigError

__all__ = ["ColumnOptions", "date_order", "fit_column"]

Impute = str
_SKEWED = 2.0
_MANY_LEVELS = 255
_PIECES = 8
_QUANTILES = 64
_EXTREME = 200
"""Numbers beyond 2 to the power of this are scaled before they are squared."""
_ROW_NUMBER = re.compile(
    r"(^|.*[_ ])(id|index|idx|row|nr|no|key|unnamed.*)$|.*[a-z](Id|ID|Index)$", re.IGNORECASE
)


@final
@dataclass(frozen=True)
class ColumnOptions:
    """What is asked for a column; None: what its values suggest.

    Attributes:
        kind: number, category, date; or drop, keep (whatever would speak against it).
        impute: mean, median, mode, or a number, for what is missing; "none" adds no indicator.
        indicator: whether a feature says what was missing.
        scale: of a number: standard, log, quantile, yeo-johnson, none.
        pieces: into how many a number is divided besides; 0: none.
        encode: of a category: one-hot, ordinal, hashing, embedding.
        size: buckets of hashing, length of an embedding.
        levels: at most so many texts are known, the most frequent.
        order: of a date's fields.
        parts: of a date.
    """

    kind: Literal["number", "category", "date", "drop", "keep"] | None = None
    impute: str | None = None
    indicator: bool | None = None
    scale: Scale | None = None
    pieces: int | None = None
    encode: Encoding | None = None
    size: int | None = None
    levels: int | None = None
    order: DateOrder | None = None
    parts: tuple[str, ...] | None = None

    @staticmethod
    def of(name: str, content: Mapping[str, Any]) -> ColumnOptions:
        """Read and check options by name.

        Raises:
            ConfigError: an option is unknown, or its value is none of it.
        """
        known = {
            "kind": ("number", "category", "date", "drop", "keep"),
            "scale": get_args(Scale),
            "encode": get_args(Encoding),
            "order": get_args(DateOrder),
        }
        fields: dict[str, Any] = {}
        for key, value in content.items():
            if key not in ColumnOptions.__dataclass_fields__:
                raise ConfigError(
                    f"column {name!r} has no option {key!r}; there are "
                    f"{', '.join(ColumnOptions.__dataclass_fields__)}"
                )
            if key in known and value not in known[key]:
                raise ConfigError(f"column {name!r}: {key} {value!r} is none of {', '.join(known[key])}")
            if key in ("pieces", "size", "levels"):
                low = 0 if key == "pieces" else 1
                if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 1_000_000:
                    raise ConfigError(
                        f"column {name!r}: {key} {value!r} must be a whole number from {low} on"
                    )
            if key == "indicator" and not isinstance(value, bool):
                raise ConfigError(f"column {name!r}: indicator {value!r} must be true or false")
            if key == "parts":
                value = tuple([value] if isinstance(value, str) else value)
                if not value or not set(value) <= set(DATE_PARTS):
                    raise ConfigError(f"column {name!r}: parts are of {', '.join(DATE_PARTS)}, not {value}")
            if key == "impute":
                value = str(value)
                if value not in ("mean", "median", "mode"):
                    _as_number(name, value)
            fields[key] = value
        return ColumnOptions(**fields)


def fit_column(name: str, values: Array, options: ColumnOptions) -> ColumnPlan:
    """The plan of a column.

    Args:
        name: of the column.
        values: of the training part: float64 [N], NaN where missing; or str objects [N].
        options: what is asked for.
    """
    if options.kind == "drop":
        return DroppedColumn(name, "as asked")
    if values.dtype.kind == "f":
        return _number(name, values, options)
    order = options.order
    if options.kind in (None, "date") and order is None:
        order = date_order(values)
    if options.kind == "date" or (options.kind is None and order is not None):
        if order is None:
            raise ConfigError(
                f"column {name!r} holds no dates that are read; they are {', '.join(get_args(DateOrder))}, "
                "a time after them"
            )
        return _date(name, values, order, options)
    return _category(name, values, options)


def date_order(texts: Array) -> DateOrder | None:
    """In which order the digits of dates stand; None where the texts are none.

    Where day and month cannot be told apart, the day comes first with dots, the month with slashes.
    """
    found = [text for text in texts if not is_missing(text)]
    if not found:
        return None
    orders: tuple[DateOrder, ...] = ("y-m-d", "y/m/d", "d.m.y", "m/d/y", "d/m/y")
    for order in orders:
        pattern = re.compile(date_pattern(order), re.ASCII)
        if all(pattern.fullmatch(text) for text in found):
            return order
    return None


def _number(name: str, values: Array, options: ColumnOptions, *, part: bool = False) -> ColumnPlan:
    missing = np.isnan(values)
    there = values[~missing]
    distinct = np.unique(there)
    kept = options.kind in ("keep", "number") or part
    if not there.size:
        return DroppedColumn(name, "every value is missing")
    if len(distinct) == 1 and not missing.any() and options.kind != "keep":
        return DroppedColumn(name, f"constant, always {distinct[0]:.6g}")
    if not kept and _numbers_rows(name, there, len(distinct)) and not missing.any():
        return DroppedColumn(name, f"numbers the rows (--column {name}:keep takes it)")
    fill = _fill(name, there, options.impute)
    indicator = bool(missing.any()) if options.indicator is None else options.indicator
    notes = []
    if missing.any():
        told = options.impute or "median"
        told = told if told in ("mean", "median", "mode") else "constant"
        notes.append(
            f"{_share(missing)} missing: {told} {fill:.6g}" + (" and indicator" if indicator else "")
        )
    filled = np.where(missing, fill, values)
    wide = _needs_float64(filled)
    if not wide:
        filled = filled.astype(np.float32).astype(np.float64)
    scale, told = options.scale, ""
    if scale is None:
        scale, told = _scale_for(filled)
    plan = NumberColumn(name, fill, indicator, scale, wide=wide)
    if told:
        notes.append(told)
    plan = _measured(plan, filled)
    pieces = _PIECES if options.pieces is None else options.pieces
    if len(distinct) > 2 and pieces:
        plan = replace(plan, edges=_edges(filled, pieces, wide))
    return replace(plan, note="; ".join(notes))


def _measured(plan: NumberColumn, filled: Array) -> NumberColumn:
    if plan.scale == "log":
        shift = float(filled.min())
        plan, scaled = replace(plan, shift=shift), np.log1p(np.maximum(filled - shift, 0))
    elif plan.scale == "yeo-johnson":
        preprocessing = optional_module("sklearn.preprocessing", "scikit-learn", "the scale yeo-johnson")
        power = preprocessing.PowerTransformer("yeo-johnson", standardize=False)
        scaled = power.fit_transform(filled[:, None])[:, 0]
        plan = replace(plan, power=float(power.lambdas_[0]))
    elif plan.scale == "quantile":
        edges = _edges(filled, _QUANTILES, plan.wide)
        plan, scaled = replace(plan, quantiles=edges), np.interp(filled, edges, np.linspace(0, 1, len(edges)))
    elif plan.scale == "none":
        return plan
    else:
        scaled = filled
    size = _size(scaled)
    std = size * float((scaled / size).std())
    return replace(
        plan,
        mean=size * float((scaled / size).mean()),
        std=std if std > 0 and scaled.min() < scaled.max() else 1.0,
    )


def _size(values: Array) -> float:
    """A power of two that values are divided by where their squares or sums would be infinite or 0."""
    largest = float(np.abs(values).max())
    exponent = int(np.frexp(largest)[1])
    return 2.0**exponent if abs(exponent) > _EXTREME else 1.0


def _scale_for(values: Array) -> tuple[Scale, str]:
    """Logarithms where they make a long tail shorter."""
    skew = _skew(values)
    if skew > _SKEWED and values.min() >= 0 and len(np.unique(values)) > 10:
        shorter = _skew(np.log1p(values - values.min()))
        if abs(shorter) < skew / 2:
            return "log", f"skew {skew:.1f}, with log {shorter:.1f}"
    return "standard", ""


def _skew(values: Array) -> float:
    values = values / _size(values)
    centred = values - values.mean()
    spread = np.sqrt(np.square(centred).mean())
    return float(np.power(centred / spread, 3).mean()) if spread > 0 else 0.0


def _edges(values: Array, pieces: int, wide: bool) -> tuple[float, ...]:
    distinct, counts = np.unique(values, return_counts=True)
    most, others = distinct[counts.argmax()], values
    if counts.max() * pieces > len(values):
        # most rows are alike, such as 0: what the others are is told apart
        others = values[values != most]
    found = np.unique([most, *np.quantile(others, np.linspace(0, 1, pieces + 1))])
    if len(distinct) <= pieces + 1:
        found = distinct
    if not wide:
        found = np.unique(found.astype(np.float32)).astype(np.float64)
    return tuple(found.tolist()) if len(found) > 1 else ()


def _needs_float64(values: Array) -> bool:
    """Whether float32 would move values by a thousandth of how far they are spread."""
    with np.errstate(over="ignore"):
        moved = np.abs(values.astype(np.float32).astype(np.float64) - values).max()
    spread = np.subtract(*np.quantile(values, (0.75, 0.25))) or values.std()
    return bool(not np.isfinite(moved) or moved > 1e-3 * spread)


def _fill(name: str, there: Array, how: str | None) -> float:
    match how:
        case None | "median":
            return float(np.median(there))
        case "mean":
            return float(there.mean())
        case "mode":
            found, counts = np.unique(there, return_counts=True)
            return float(found[counts.argmax()])
    return _as_number(name, how)


def _as_number(name: str, text: str) -> float:
    try:
        value = float(text.removeprefix("constant="))
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ConfigError(f"column {name!r}: impute {text!r} is neither mean, median, mode nor a number")
    return value


def _numbers_rows(name: str, there: Array, distinct: int) -> bool:
    if len(there) < 20 or distinct < len(there) or not _ROW_NUMBER.match(name):
        return False
    return bool((there == np.floor(there)).all() and (np.diff(there) > 0).all())


def _share(missing: Array) -> str:
    share = 100 * missing.mean()
    return f"{share:.0f} %" if share >= 1 else f"{share:.1g} %"


def _category(name: str, values: Array, options: ColumnOptions) -> ColumnPlan:
    counts = Counter(values.tolist())
    nothing = tuple(sorted(text for text in counts if is_missing(text)))
    absent = sum(counts.pop(text) for text in nothing)
    kept = options.kind in ("keep", "category") or options.encode is not None
    if not counts:
        return DroppedColumn(name, "every value is missing")
    if len(counts) == 1 and not nothing and options.kind != "keep":
        return DroppedColumn(name, f"constant, always {_shown(next(iter(counts)))}")
    if not kept and len(counts) > 50 and len(counts) > 0.5 * (len(values) - absent):
        return DroppedColumn(
            name, f"{len(counts):,} texts in {len(values):,} rows (--column {name}:encode=hashing takes it)"
        )
    rare = 1 if kept else max(2, len(values) // 2000)
    ranked = sorted(counts, key=lambda text: (-counts[text], text))
    most = options.levels or (_MANY_LEVELS if options.encode in (None, "one-hot") else 4096)
    levels = tuple(sorted((t for t in ranked[:most] if counts[t] >= rare), key=_level_order(ranked)))
    if not levels:
        return DroppedColumn(name, f"{len(counts):,} texts, each but once")
    notes = []
    if pooled := len(counts) - len(levels):
        notes.append(f"{pooled:,} rare ones are one")
    if absent:
        notes.append(f"{_share(np.array([absent / len(values)]))} missing: a level")
    encoding: Encoding = options.encode or "one-hot"
    size = options.size or {"hashing": 16, "embedding": min(32, round(1.6 * len(levels) ** 0.56))}.get(
        encoding, 0
    )
    missing = tuple(dict.fromkeys(("", *nothing))) if nothing else ()
    return CategoryColumn(name, levels, encoding, bool(pooled), missing, max(size, 0), "; ".join(notes))


def _level_order(levels: Sequence[str]) -> Any:
    try:
        for level in levels:
            float(level)
    except ValueError:
        return lambda text: (0.0, text)
    return lambda text: (float(text), text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 20 else text[:19] + "…")


def _date(name: str, values: Array, order: DateOrder, options: ColumnOptions) -> ColumnPlan:
    pattern = re.compile(date_pattern(order), re.ASCII)
    matched = [pattern.fullmatch(text) for text in values]
    if not any(matched):
        return DroppedColumn(name, "every value is missing")
    parts: dict[str, Array] = {part: np.full(len(values), np.nan) for part in DATE_PARTS}
    for row, (text, found) in enumerate(zip(values, matched, strict=True)):
        if found is None:
            continue
        day, _, clock = text.replace("T", " ").partition(" ")
        fields = dict(zip(order[::2], map(int, day.split(order[1])), strict=True))
        julian = _julian(fields["y"], fields["m"], fields["d"])
        hour = int(clock.partition(":")[0]) if clock else 0
        for part, value in zip(
            DATE_PARTS, (fields["y"], fields["m"], fields["d"], julian % 7, hour, julian), strict=True
        ):
            parts[part][row] = value
    origin = int(np.nanmin(parts["elapsed"]))
    parts["elapsed"] -= origin
    plans: list[NumberColumn] = []
    for part in options.parts or DATE_PARTS:
        plan = _number(f"{name}.{part}", parts[part], replace(options, kind=None), part=True)
        if isinstance(plan, NumberColumn):
            plans.append(replace(plan, indicator=plan.indicator and not plans, wide=False))
    if not plans:
        return DroppedColumn(name, f"constant, always {_shown(values[0])}")
    absent = np.array([found is None for found in matched])
    notes = [] if not absent.any() else [f"{_share(absent)} missing: median and indicator"]
    if order in ("m/d/y", "d/m/y") and all(
        p.fullmatch(t) for p in _both() for t in values if not is_missing(t)
    ):
        notes.append(f"day or month first is not certain (--column {name}:order=d/m/y)")
    return DateColumn(name, order, origin, tuple(plans), "; ".join(notes))


def _both() -> tuple[re.Pattern[str], re.Pattern[str]]:
    return re.compile(date_pattern("m/d/y"), re.ASCII), re.compile(date_pattern("d/m/y"), re.ASCII)


def _julian(year: int, month: int, day: int) -> int:
    early = (14 - month) // 12
    years, months = year + 4800 - early, month + 12 * early - 3
    return day + (153 * months + 2) // 5 + 365 * years + years // 4 - years // 100 + years // 400 - 32045
