"""A table's preparation: the plans of its columns, and the graph of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.data.column_fit import ColumnOptions, fit_column
from onward.data.column_graph import date_pattern, feature_count, write_features
from onward.data.columns import (
    CategoryColumn,
    ColumnPlan,
    DateColumn,
    DroppedColumn,
    NumberColumn,
    column_from,
    column_to,
)
from onward.data.dataset import Array, Dataset
from onward.data.frame import is_missing
from onward.errors import DataError
from onward.graph import Builder, Evaluator, canonical_model

__all__ = ["TablePreparation"]

_ROWS = 8192
_OPSET = 21


@final
@dataclass(frozen=True, eq=False)
class TablePreparation:
    """Columns of a table as read → float32 [N, features].

    Attributes:
        columns: what becomes of each.
        matrix: whether the columns that are read come as one matrix [N, F]; else each is an input [N, 1]
            under its name.
        input: the network's input that it feeds, and the name of the matrix.
    """

    columns: tuple[ColumnPlan, ...]
    matrix: bool
    input: str = "features"

    @staticmethod
    def fit(
        train: Dataset, options: Mapping[str, Mapping[str, Any]] | None = None, *, scale: bool = True
    ) -> TablePreparation:
        """Measure the training part.

        Args:
            train: the training part alone, since other parts must not leak into a model.
            options: by column, the fields of `ColumnOptions`.
            scale: False: numbers stay as they are, but for what is missing.

        Raises:
            ConfigError: an option that does not exist, or names no column.
            DataError: no column is left.
        """
        given = dict(options or {})
        columns = _by_column(train)
        if unknown := [name for name in given if name not in columns]:
            raise DataError(
                f"data set {train.name!r} has no column {unknown[0]!r}; the columns are {', '.join(columns)}"
            )
        plans = []
        for name, values in columns.items():
            asked = ColumnOptions.of(name, given.get(name, {}))
            if not scale:
                asked = replace(asked, scale=asked.scale or "none", pieces=asked.pieces or 0)
            plans.append(fit_column(name, values, asked))
        matrix = len(train.inputs) == 1 and next(iter(train.inputs.values())).dtype.kind == "f"
        found = TablePreparation(tuple(plans), matrix)
        if not found.width:
            reasons = "; ".join(f"{plan.name}: {plan.describe()[1]}" for plan in plans)
            raise DataError(f"data set {train.name!r}: no column is left to learn from ({reasons})")
        return found

    @property
    def width(self) -> int:
        """How many features the network takes."""
        return feature_count(self.columns)

    @property
    def embedded(self) -> tuple[tuple[int, int], ...]:
        """Of the first features, which are numbers of levels: how many levels, and how long a vector."""
        return tuple(
            (len(plan.levels) + 1, plan.size)
            for plan in self.columns
            if isinstance(plan, CategoryColumn) and plan.encoding == "embedding"
        )

    @property
    def takes(self) -> dict[str, np.dtype[Any]]:
        """The element types of the inputs, by name; objects are strings."""
        if self.matrix:
            return {self.input: np.dtype(np.float64 if self._wide else np.float32)}
        return {
            plan.name: np.dtype(object if not isinstance(plan, NumberColumn) else _type(plan.wide))
            for plan in self.columns
            if not isinstance(plan, DroppedColumn)
        }

    @property
    def kinds(self) -> dict[str, str]:
        """What the columns that are read hold: "number" or "text"."""
        texts = {plan.name for plan in self.columns if not isinstance(plan, NumberColumn)}
        return {name: "text" if name in texts and not self.matrix else "number" for name in self.names}

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read, in order."""
        return tuple(plan.name for plan in self.columns if not isinstance(plan, DroppedColumn))

    def report(self) -> tuple[tuple[str, str, str], ...]:
        """For each column its name, what it is, and what is done to it."""
        return tuple((plan.name, *plan.describe()) for plan in self.columns)

    def write(self, g: Builder, inputs: Mapping[str, ir.Value]) -> ir.Value:
        """Write the preparation: float32 [N, width].

        Args:
            g: where.
            inputs: by the names of `takes`.
        """
        given = {"": inputs[self.input]} if self.matrix else inputs
        return write_features(g, self.columns, given)

    def raw(self, dataset: Dataset) -> dict[str, Array]:
        """What the graph takes, of a table as read.

        Raises:
            DataError: a column is missing, or is not of its kind.
        """
        return self.raw_columns(_by_column(dataset), f"data set {dataset.name!r}")

    def raw_columns(self, columns: Mapping[str, Array], where: str) -> dict[str, Array]:
        """What the graph takes, of columns [N]: float64, or str objects. `where` is for messages.

        Raises:
            DataError: a column is missing, or is not of its kind.
        """
        if missing := [name for name in self.names if name not in columns]:
            raise DataError(
                f"{where}: no column{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}; "
                f"the columns are {', '.join(columns)}"
            )
        arrays = {name: columns[name] for name in self.names}
        for name, kind in self.kinds.items():
            if (kind == "number") != (arrays[name].dtype.kind == "f"):
                raise DataError(f"{where}, column {name!r}: the model takes {kind}s")
        if self.matrix:
            dtype = self.takes[self.input]
            return {self.input: np.stack([arrays[name].astype(dtype) for name in self.names], axis=1)}
        return {name: arrays[name].astype(dtype)[:, None] for name, dtype in self.takes.items()}

    def doubts(self, raw: Mapping[str, Array]) -> tuple[str, ...]:
        """What in texts, as `raw` gives them, the graph takes as missing or as unknown."""
        found = []
        for plan in self.columns:
            if isinstance(plan, DateColumn):
                pattern = re.compile(date_pattern(plan.order), re.ASCII)
                unread = [t for t in raw[plan.name].flat if not is_missing(t) and not pattern.fullmatch(t)]
                what = f"no dates of the form {plan.order}, and taken as missing"
            elif isinstance(plan, CategoryColumn):
                known = {*plan.levels, *plan.missing}
                unread = [t for t in raw[plan.name].flat if t not in known and not is_missing(t)]
                what = "none of the levels that the model knows"
            else:
                continue
            if unread:
                shown = ", ".join(map(repr, list(dict.fromkeys(unread))[:3]))
                found.append(
                    f"column {plan.name!r}: {len(unread):,} of {len(raw[plan.name]):,} are {what} ({shown})"
                )
        return tuple(found)

    def apply(self, dataset: Dataset) -> Dataset:
        """The table as a network takes it: one input, float32 [N, width]."""
        features = self.features(self.raw(dataset))
        extra = {name: a for name, a in dataset.inputs.items() if name.endswith(".target")}
        return replace(dataset, inputs={self.input: features, **extra}, table=False, columns=None)

    def features(self, raw: Mapping[str, Array]) -> Array:
        """float32 [N, width] of what `raw` gives."""
        evaluator, names = self._evaluator
        parts = []
        for start in range(0, len(raw[names[0]]), _ROWS):
            feeds = [raw[name][start : start + _ROWS] for name in names]
            given = dict(zip(evaluator.inputs, feeds, strict=True))
            parts.append(evaluator.run(given, evaluator.outputs)[0])
        return np.concatenate(parts)

    def renamed(self, name: str) -> TablePreparation:
        """The same for a network whose input has another name."""
        return replace(self, input=name)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that `from_json` reads back."""
        return {
            "input": self.input,
            "matrix": self.matrix,
            "columns": [column_to(plan) for plan in self.columns],
        }

    @staticmethod
    def from_json(content: Any) -> TablePreparation:
        """The preparation that `to_json` wrote.

        Raises:
            DataError: it is something else.
        """
        try:
            plans = tuple(column_from(each) for each in content["columns"])
            return TablePreparation(plans, bool(content["matrix"]), str(content["input"]))
        except (KeyError, TypeError) as error:
            raise DataError(f"the preparation of a table cannot be read ({error})") from error

    @cached_property
    def _wide(self) -> bool:
        return any(isinstance(plan, NumberColumn) and plan.wide for plan in self.columns)

    @cached_property
    def _evaluator(self) -> tuple[Evaluator, list[str]]:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": _OPSET}, name="preparation")
        g = Builder(graph)
        inputs = {
            name: g.input(name, _element(dtype), ["N", len(self.names) if self.matrix else 1])
            for name, dtype in self.takes.items()
        }
        g.output(self.write(g, inputs), g.unique("features"))
        return Evaluator(canonical_model(ir.Model(graph, ir_version=10)).graph), list(inputs)


def _type(wide: bool) -> type:
    return np.float64 if wide else np.float32


def _element(dtype: np.dtype[Any]) -> ir.DataType:
    return ir.DataType.STRING if dtype.kind == "O" else ir.DataType.from_numpy(dtype)


def _by_column(dataset: Dataset) -> dict[str, Array]:
    """A table's columns, [N] each: float64, or str objects."""
    if len(dataset.inputs) == 1 and dataset.columns is not None:
        (matrix,) = dataset.inputs.values()
        if matrix.ndim == 2 and matrix.dtype.kind == "f" and matrix.shape[1] == len(dataset.columns):
            return {name: matrix[:, i].astype(np.float64) for i, name in enumerate(dataset.columns)}
    return {
        name: array.reshape(-1) if array.dtype.kind == "O" else array.reshape(-1).astype(np.float64)
        for name, array in dataset.inputs.items()
        if not name.endswith(".target")
    }
