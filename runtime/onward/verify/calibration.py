"""Ranges of a model's tensors on data: what quantisation and 16-bit types are decided by."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from onward.engine import Session
from onward.engine.engines import EngineName
from onward.errors import ConfigError, DataError
from onward.graph import Array

__all__ = ["CalibrationMethod", "calibrate"]

CalibrationMethod = Literal["minmax", "percentile", "entropy"]

_BINS = 2048
_LEVELS = 128
"""Of magnitudes: those of 8 bits with a sign."""


def calibrate(
    model: ir.Model,
    batches: Sequence[Mapping[str, Array]],
    tensors: Collection[str] | None = None,
    *,
    method: CalibrationMethod = "minmax",
    percentile: float = 99.99,
    engine: EngineName = "auto",
) -> dict[str, tuple[float, float]]:
    """The lowest and highest number of each tensor on data.

    Args:
        model: in inference form; it is not changed.
        batches: arrays by input name, as `Session.run` takes them.
        tensors: names of float tensors of the main graph; by default all float32 ones.
        method: minmax: of everything seen. percentile: what so many percent lie within, as many cut off at
            either end. entropy: the magnitude to cut off at whose histogram in 128 levels keeps the most
            information, the smallest Kullback-Leibler divergence (Migacz 2017, "8-bit inference with
            TensorRT"); zeros, which are exact at any scale, are not counted.
        percentile: above 50, at most 100.
        engine: which engine runs the model.

    Returns:
        Lowest and highest by tensor, as floats. Tensors that held no element have 0 and 0.

    Raises:
        ConfigError: an unknown method or tensor; the percentile is out of range.
        DataError: there are no batches, or a tensor becomes NaN or infinite on them; it is named.
        InputError, ShapeError: the batches do not fit the model.
    """
    if method not in ("minmax", "percentile", "entropy"):
        raise ConfigError(f"calibration is by minmax, percentile or entropy, not {method!r}")
    if not 50 < percentile <= 100:
        raise ConfigError(f"a percentile of calibration lies above 50 and is at most 100, got {percentile}")
    if not batches:
        raise DataError("there are no data to calibrate on")
    run = _Observed(model, tensors, engine)
    ranges: dict[str, tuple[float, float]] = {}
    for batch in batches:
        for name, array in run(batch):
            low, high = float(array.min()), float(array.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise DataError(f"tensor {name!r} is not finite on the calibration data")
            before = ranges.get(name, (low, high))
            ranges[name] = min(low, before[0]), max(high, before[1])
    if method != "minmax":
        ranges |= _narrowed(run, batches, ranges, method, percentile)
    return {name: ranges.get(name, (0.0, 0.0)) for name in run.names}


class _Observed:
    """A session of a copy of the model whose outputs are the tensors."""

    def __init__(self, model: ir.Model, tensors: Collection[str] | None, engine: EngineName) -> None:
        model = model.clone()
        values = {v.name or "": v for v in model.graph.inputs}
        values |= {v.name or "": v for node in model.graph for v in node.outputs if v.name}
        if tensors is None:
            tensors = [n for n, v in values.items() if v.dtype == ir.DataType.FLOAT and _is_plain(v)]
        for name in tensors:
            if name not in values:
                raise ConfigError(f"the model has no tensor {name!r} to calibrate")
        self.names = tuple(tensors)
        self._fed = [n for n in self.names if values[n].is_graph_input()]
        self._made = [n for n in self.names if not values[n].is_graph_input()]
        model.graph.outputs.clear()
        model.graph.outputs.extend(values[n] for n in self._made)
        self._session = Session(model, engine=engine) if self._made else None

    def __call__(self, batch: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        found = {} if self._session is None else self._session.run(batch)
        for name in self.names:
            array = found[name] if name in found else batch.get(name)
            if array is not None and array.size:
                yield name, array


def _is_plain(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType)


def _narrowed(
    run: _Observed,
    batches: Sequence[Mapping[str, Array]],
    ranges: Mapping[str, tuple[float, float]],
    method: CalibrationMethod,
    percentile: float,
) -> dict[str, tuple[float, float]]:
    """A second run over the data: histograms between the limits that the first one found."""
    limits = {
        name: (low, high) if method == "percentile" else (0.0, max(-low, high))
        for name, (low, high) in ranges.items()
        if low < high
    }
    counts = {name: np.zeros(_BINS, np.int64) for name in limits}
    for batch in batches:
        for name, array in run(batch):
            if name not in limits:
                continue
            flat = array.reshape(-1) if method == "percentile" else np.abs(array[array != 0])
            counts[name] += np.histogram(flat, _BINS, limits[name])[0]
    result = {}
    for name, (low, high) in limits.items():
        if method == "percentile":
            result[name] = _quantiles(counts[name], low, high, percentile)
        else:
            threshold = high * _least_divergence(counts[name]) / _BINS
            result[name] = max(ranges[name][0], -threshold), min(ranges[name][1], threshold)
    return result


def _quantiles(counts: Array, low: float, high: float, percentile: float) -> tuple[float, float]:
    cut = (1 - percentile / 100) * counts.sum()
    edges = np.linspace(low, high, _BINS + 1)
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])
    first = int(np.searchsorted(below, cut, side="right"))
    last = _BINS - int(np.searchsorted(above, cut, side="right"))
    return (float(edges[first]), float(edges[last])) if first < last else (low, high)


def _least_divergence(counts: Array) -> int:
    """How many of the bins to keep."""
    best, kept = np.inf, _BINS
    total = counts.sum()
    for bins in range(_LEVELS, _BINS + 1, _LEVELS // 8):
        inside = counts[:bins].astype(np.float64)
        p = inside.copy()
        p[-1] += total - inside.sum()  # what is cut off becomes the largest number
        starts = np.arange(_LEVELS) * bins // _LEVELS
        filled = (inside > 0).astype(np.float64)
        sums, ways = np.add.reduceat(inside, starts), np.add.reduceat(filled, starts)
        mean = np.divide(sums, ways, out=np.zeros(_LEVELS), where=ways > 0)
        q = np.repeat(mean, np.diff(np.append(starts, bins))) * filled
        if not q.any():
            continue
        p, q = p / p.sum(), q / q.sum()
        seen = p > 0
        # a bin that only numbers cut off fall into has no share of q: it counts as one of the smallest
        divergence = float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-9))).sum())
        if divergence < best:
            best, kept = divergence, bins
    return kept
