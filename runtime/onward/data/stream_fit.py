"""Measures the inputs of data that are read once, in batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import Any, final

import numpy as np

from onward.data.batches import Batches
from onward.data.dataset import Array
from onward.data.normalization import Normalization
from onward.data.preparation import PIXEL, NumberPreparation, Preparation
from onward.errors import DataError

__all__ = ["fit_in_one_pass"]

_ROUND = 1024
"""About how many batches are measured before ranks tell each other what they found."""


def fit_in_one_pass(
    batches: Batches,
    *,
    normalise: bool = True,
    untouched: Collection[str] = (),
    columns: tuple[str, ...] | None = None,
    rank: int = 0,
    ranks: int = 1,
    gather: Callable[[Any], list[Any]] | None = None,
) -> Preparation:
    """What `Preparation.fit` measures, in one pass over the batches of epoch 0.

    Means and squared deviations of batches are joined in float64 as in Chan, Golub & LeVeque, "Updating
    formulae and a pairwise algorithm for computing sample variances", 1979. Samples count by their weights.

    Several ranks measure the batches in turn; what they found is joined in the order of the batches, so that
    their number changes no bit.

    Args:
        batches: of the training part alone.
        normalise: whether to normalise.
        untouched: inputs that the network takes as they are.
        columns: of a table of numbers, those behind axis 1.
        rank, ranks: of this process, and how many there are.
        gather: gives the values of all ranks in their order; needed where there are several.

    Raises:
        DataError: a batch cannot be read, or every sample weighs 0.
    """
    sample = batches.sample
    plain: dict[str, NumberPreparation] = {}
    moments: dict[str, _Moments] = {}
    for name, array in sample.inputs.items():
        if array.dtype.kind not in "biuf" or name in untouched or name.endswith(".target"):
            continue
        dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype
        plain[name] = NumberPreparation(dtype, PIXEL if dtype == np.uint8 and array.ndim == 4 else 1.0)
        if normalise and array.ndim > 1 and dtype.kind != "b":
            moments[name] = _Moments()
    with contextlib.closing(batches.dealt(rank, ranks)) as served:
        run = batches.run(ranks)
        turn = run * ranks
        size = turn * max(1, _ROUND // turn)
        for begin in range(0, len(batches), size):
            own = {}
            end = min(begin + size, len(batches))
            for number in range(begin, end):
                if number // run % ranks != rank:
                    continue
                batch = next(served)
                own[number] = {
                    name: _measured(plain[name].apply(batch.inputs[name]), batch.weights) for name in moments
                }
            everyone = [own] if gather is None else gather(own)
            found = {number: each for part in everyone for number, each in part.items()}
            for number in range(begin, end):
                for name, each in moments.items():
                    each.add(found[number][name])
    numbers = {
        name: NumberPreparation(
            each.dtype, each.divisor, moments[name].normalization(name) if name in moments else None
        )
        for name, each in plain.items()
    }
    return Preparation(numbers, None, columns)


def _measured(array: Array, weights: Array | None) -> tuple[float, Array, Array, Array, Array] | None:
    """What a batch has: count, mean, squared deviations, least and largest; None where all weigh 0."""
    if weights is not None:
        array, weights = array[weights > 0], weights[weights > 0].astype(np.float64)
        if not len(array):
            return None
    values = array.reshape(*array.shape[:2], -1).astype(np.float64)
    lowest, highest = values.min(axis=(0, 2)), values.max(axis=(0, 2))
    each = np.ones(len(values)) if weights is None else weights
    count = float(each.sum()) * values.shape[2]
    mean = np.einsum("n,ncs->c", each, values) / count
    values -= mean[:, None]
    return count, mean, np.einsum("n,ncs,ncs->c", each, values, values), lowest, highest


@final
class _Moments:
    """Mean, squared deviations and range along axis 1 of arrays [N, C, ...] that come in parts."""

    def __init__(self) -> None:
        self._count = 0.0
        self._mean: Array = np.zeros(0)
        self._squares: Array = np.zeros(0)
        self._lowest: Array = np.zeros(0)
        self._highest: Array = np.zeros(0)

    def add(self, part: tuple[float, Array, Array, Array, Array] | None) -> None:
        if part is None:
            return
        count, mean, squares, lowest, highest = part
        if not self._count:
            self._mean, self._squares, self._lowest, self._highest = mean, squares, lowest, highest
        else:
            both, apart = self._count + count, mean - self._mean
            self._squares = self._squares + squares + np.square(apart) * (self._count * count / both)
            self._mean = self._mean + apart * (count / both)
            self._lowest = np.minimum(self._lowest, lowest)
            self._highest = np.maximum(self._highest, highest)
        self._count += count

    def normalization(self, name: str) -> Normalization:
        if not self._count:
            raise DataError(f"input {name!r}: every sample weighs 0; there is nothing to measure")
        variance = self._squares / self._count
        std = np.where(self._lowest == self._highest, 1.0, np.sqrt(variance)).astype(np.float32)
        return Normalization(name, self._mean.astype(np.float32), np.where(std > 0, std, np.float32(1)))
