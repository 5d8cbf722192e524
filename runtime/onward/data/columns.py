"""What becomes of each column of a table: the plan, as data, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

import numpy as np

from onward.errors import DataError

__all__ = [
    "CategoryColumn",
    "ColumnPlan",
    "DateColumn",
    "DroppedColumn",
    "Encoding",
    "NumberColumn",
    "Scale",
    "column_from",
    "column_to",
]

Scale = Literal["standard", "log", "quantile", "yeo-johnson", "none"]
Encoding = Literal["one-hot", "ordinal", "hashing", "embedding"]
DateOrder = Literal["y-m-d", "y/m/d", "d.m.y", "d/m/y", "m/d/y"]


@final
@dataclass(frozen=True)
class NumberColumn:
    """A number → its imputed, scaled value; an indicator where it was missing; its pieces.

    Attributes:
        name: of the column; of a date's part DATE.PART.
        fill: what stands in for a missing number.
        indicator: whether a feature says that it was missing.
        scale: before the standardisation. "log": log(1 + max(x − shift, 0)). "quantile": the share of the
            training part that is smaller, between `quantiles` linearly. "yeo-johnson": with `power`.
        shift, power, quantiles: see `scale`.
        mean, std: of the training part after `scale`.
        edges: T + 1 ascending quantiles. Feature t is max(0, min(1, (x − e_t) / (e_t+1 − e_t))).
            Source: Gorishniy, Rubachev & Babenko, "On embeddings for numerical features in tabular deep
            learning", NeurIPS 2022, section 3.2.
        wide: whether float32 would lose what tells the values apart: the graph then takes float64.
        note: what was seen in the training part, for the report.
    """

    name: str
    fill: float = 0.0
    indicator: bool = False
    scale: Scale = "standard"
    shift: float = 0.0
    power: float = 1.0
    quantiles: tuple[float, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    edges: tuple[float, ...] = ()
    wide: bool = False
    note: str = ""

    @property
    def pieces(self) -> int:
        """How many features its edges make."""
        return max(len(self.edges) - 1, 0)

    def describe(self) -> tuple[str, str]:
        """Its kind, and what is done to it."""
        parts = [self.note] if self.note else []
        parts.append({"standard": "standardised", "none": "as it is"}.get(self.scale, self.scale))
        if self.pieces:
            parts.append(f"{self.pieces} pieces")
        if self.wide:
            parts.append("float64")
        return "number", "; ".join(parts)


@final
@dataclass(frozen=True)
class CategoryColumn:
    """A text → features.

    Attributes:
        levels: texts that are known, in order.
        encoding: "one-hot": a feature a level. "ordinal": the level's place. "hashing": a feature a bucket,
            of which each level has one. "embedding": the level's number, 0 for others, for a network that
            holds a vector for each.
        other: whether a feature says that it is a text that is not in `levels`.
        missing: the texts that count as missing, with a feature of their own; empty: none was missing.
        size: how many buckets, or how long a vector is.
        note: for the report.
    """

    name: str
    levels: tuple[str, ...]
    encoding: Encoding = "one-hot"
    other: bool = False
    missing: tuple[str, ...] = ()
    size: int = 0
    note: str = ""

    def describe(self) -> tuple[str, str]:
        """Its kind, and what is done to it."""
        text = f"{len(self.levels):,} levels, {self.encoding}"
        if self.encoding in ("hashing", "embedding"):
            text += f" of {self.size}"
        return "category", "; ".join(part for part in (text, self.note) if part)


@final
@dataclass(frozen=True)
class DateColumn:
    """A date as text → numbers.

    Attributes:
        order: of its digits; a time may follow after a space or T.
        origin: the day from which days are counted, as a Julian day number.
        parts: year, month, day, weekday (0: Monday), hour, elapsed (days since origin), as numbers.
        note: for the report.
    """

    name: str
    order: DateOrder
    origin: int
    parts: tuple[NumberColumn, ...]
    note: str = ""

    def describe(self) -> tuple[str, str]:
        """Its kind, and what is done to it."""
        names = ", ".join(part.name.rpartition(".")[2] for part in self.parts)
        return "date", "; ".join(part for part in (f"{self.order}: {names}", self.note) if part)


@final
@dataclass(frozen=True)
class DroppedColumn:
    """A column that says nothing."""

    name: str
    reason: str

    def describe(self) -> tuple[str, str]:
        """Its kind, and why."""
        return "left out", self.reason


ColumnPlan = NumberColumn | CategoryColumn | DateColumn | DroppedColumn

_KINDS: dict[str, type[ColumnPlan]] = {
    "number": NumberColumn,
    "category": CategoryColumn,
    "date": DateColumn,
    "dropped": DroppedColumn,
}


def column_to(plan: ColumnPlan) -> dict[str, Any]:
    """Plain JSON values that `column_from` reads back."""
    kind = next(name for name, each in _KINDS.items() if type(plan) is each)
    content = asdict(plan)
    if isinstance(plan, DateColumn):
        content["parts"] = [column_to(part) for part in plan.parts]
    return {"kind": kind, **content}


def column_from(content: Any) -> ColumnPlan:
    """The plan that `column_to` wrote.

    Raises:
        DataError: it is something else.
    """
    try:
        fields = dict(content)
        made = _KINDS[fields.pop("kind")](**{key: _frozen(key, value) for key, value in fields.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the plan of a column cannot be read ({error})") from error
    _check(made)
    return made


def _frozen(key: str, value: Any) -> Any:
    if key == "parts":
        return tuple(column_from(part) for part in value)
    return tuple(value) if isinstance(value, list) else value


def _check(plan: ColumnPlan) -> None:
    name = plan.name
    if not isinstance(name, str) or not name:
        raise DataError("the plan of a column has no name")
    if isinstance(plan, NumberColumn):
        numbers: Mapping[str, Any] = {
            "fill": plan.fill,
            "mean": plan.mean,
            "std": plan.std,
            "shift": plan.shift,
        }
        for key, value in numbers.items():
            if not isinstance(value, (int, float)) or not np.isfinite(value):
                raise DataError(f"column {name!r}: {key} is {value!r}, a finite number is needed")
        for edges in (plan.edges, plan.quantiles):
            if edges and (not np.isfinite(edges).all() or not (np.diff(edges) > 0).all()):
                raise DataError(f"column {name!r}: edges must ascend")
        if not plan.std > 0:
            raise DataError(f"column {name!r}: std must be above 0")
    elif isinstance(plan, CategoryColumn) and not all(isinstance(t, str) for t in plan.levels + plan.missing):
        raise DataError(f"column {name!r}: levels must be texts")
