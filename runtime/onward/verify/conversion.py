"""How far a converted model is from the one that it was made of, on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir

from onward.engine import Session
from onward.engine.engines import EngineName
from onward.errors import DataError
from onward.graph import Array

__all__ = ["ConvertedTensor", "compare_models"]


@final
@dataclass(frozen=True, slots=True)
class ConvertedTensor:
    """One output of the model, before and after.

    Attributes:
        name: the output's.
        elements: how many were compared.
        max_abs: the largest |after − before|; infinite where shapes differ or only one is a number.
        error: ‖after − before‖₂ / ‖before‖₂ over all samples, 0 where nothing differs; of integers, booleans
            and strings the share of elements that differ.
    """

    name: str
    elements: int
    max_abs: float
    error: float


def compare_models(
    before: ir.Model,
    after: ir.Model,
    batches: Sequence[Mapping[str, Array]],
    *,
    engine: EngineName = "auto",
) -> tuple[ConvertedTensor, ...]:
    """Run two models of one surface on the same inputs and measure how far their outputs are apart.

    Args:
        before: the original.
        after: what it was converted to; its inputs may be floats of another width.
        batches: arrays by input name, as the original takes them.
        engine: which of our engines runs both.

    Raises:
        DataError: there are no batches.
        InputError, ShapeError: they do not fit the models.
    """
    if not batches:
        raise DataError("there are no inputs to compare the models on")
    first, second = Session(before, engine=engine), Session(after, engine=engine)
    types = {spec.name: spec.dtype for spec in second.inputs}
    totals: dict[str, _Total] = {spec.name: _Total() for spec in first.outputs}
    for batch in batches:
        old = first.run(batch)
        with np.errstate(over="ignore"):
            cast = {n: np.asarray(a).astype(types.get(n, np.asarray(a).dtype)) for n, a in batch.items()}
        new = second.run(cast)
        for name, total in totals.items():
            total.add(old[name], new[name])
    return tuple(total.row(name) for name, total in totals.items())


class _Total:
    """Sums over batches."""

    def __init__(self) -> None:
        self.elements, self.largest = 0, 0.0
        self.squares, self.reference = 0.0, 0.0

    def add(self, old: object, new: object) -> None:
        pairs = zip(old, new, strict=False) if isinstance(old, list) and isinstance(new, list) else None
        if pairs is not None:
            for a, b in pairs:
                self.add(a, b)
            return
        a, b = np.asarray(old), np.asarray(new)
        self.elements += a.size
        if a.shape != b.shape:
            self.largest = self.squares = np.inf
        elif a.dtype.kind in "OUSTb" or a.dtype.kind in "iu":
            apart = np.asarray(a != b)
            self.squares += float(apart.sum())
            self.reference += a.size
            self.largest = max(self.largest, _largest(a, b, apart))
        elif a.size:
            x, y = a.astype(np.float64), b.astype(np.float64)
            same = (x == y) | (np.isnan(x) & np.isnan(y))
            with np.errstate(invalid="ignore"):
                apart = np.where(same, 0.0, np.abs(y - x))
            apart[np.isnan(apart)] = np.inf
            self.squares += float(np.square(apart).sum())
            self.reference += float(np.square(x[np.isfinite(x)]).sum())
            self.largest = max(self.largest, float(apart.max()))
            self.floats = True

    floats = False

    def row(self, name: str) -> ConvertedTensor:
        if self.squares == 0:
            error = 0.0
        elif not np.isfinite(self.squares) or self.reference == 0:
            error = np.inf
        else:
            error = self.squares / self.reference
            error = float(np.sqrt(error)) if self.floats else error
        return ConvertedTensor(name, self.elements, self.largest, error)


def _largest(a: Array, b: Array, apart: Array) -> float:
    if not apart.any():
        return 0.0
    return float(np.abs(a[apart].astype(np.float64) - b[apart]).max()) if a.dtype.kind in "iu" else 1.0
