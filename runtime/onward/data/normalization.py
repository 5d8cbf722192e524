"""Zero mean and unit variance per channel or feature, measured on the training part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from onward.data.dataset import Array, Dataset
from onward.errors import ConfigError, DataError

__all__ = ["Normalization"]

_CHUNK_ROWS = 4096


@final
@dataclass(frozen=True, eq=False)
class Normalization:
    """(x - mean) / std along axis 1 of the input called `input`; mean, std: float32 of shape [C], std > 0."""

    input: str
    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise DataError(f"normalisation of {self.input!r}: mean and std must be two lists of one length")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and (self.std > 0).all()):
            raise DataError(f"normalisation of {self.input!r}: mean and std must be finite, std above 0")

    @staticmethod
    def fit(dataset: Dataset, input: str | None = None) -> Normalization:  # noqa: A002
        """Measure the float input (the only one, or `input`) of shape [N, C, ...] per channel C, in float64.

        A channel that never changes gets std 1, so that it becomes 0. Samples count by the data set's
        weights. Give it the training part only.
        """
        name = input if input is not None else _only_float_input(dataset)
        if name not in dataset.inputs:
            raise ConfigError(f"no input {name!r} to normalise; the inputs are {', '.join(dataset.inputs)}")
        array = dataset.inputs[name]
        if array.dtype.kind != "f" or array.ndim < 2:
            raise DataError(
                f"input {name!r} has {array.dtype} {list(array.shape)}: it must be floats [N, C, ...]"
            )
        if array.size == 0:
            raise DataError(f"input {name!r} has shape {list(array.shape)}: there is no number in it")
        axes = (0, *range(2, array.ndim))
        weights = dataset.weights
        if weights is not None:
            if not weights.any():
                raise DataError(
                    f"data set {dataset.name!r}: every sample weighs 0; there is nothing to measure"
                )
            array, weights = array[weights > 0], weights[weights > 0]
        samples = len(array) if weights is None else float(weights.sum(dtype=np.float64))
        count = array[0, 0].size * samples
        shape = (1, -1) + (1,) * (array.ndim - 2)
        mean = sum((c * w).sum(axis=axes) for c, w in _weighted_chunks(array, weights)) / count
        centre = mean.reshape(shape)
        squares = (np.square(c - centre) * w for c, w in _weighted_chunks(array, weights))
        variance = sum(s.sum(axis=axes) for s in squares) / count
        lowest, highest = array.min(axis=axes), array.max(axis=axes)
        std = np.where(lowest == highest, 1.0, np.sqrt(variance)).astype(np.float32)
        return Normalization(name, mean.astype(np.float32), np.where(std > 0, std, np.float32(1)))

    def apply(self, array: Array) -> Array:
        """Normalise an array of shape [N, C, ...]; its float dtype is kept."""
        if array.ndim < 2 or array.shape[1] != len(self.mean):
            raise DataError(
                f"normalisation of {self.input!r} is for {len(self.mean)} channels along axis 1, the array "
                f"has shape {list(array.shape)}"
            )
        shape = (1, -1) + (1,) * (array.ndim - 2)
        mean, std = (a.astype(array.dtype).reshape(shape) for a in (self.mean, self.std))
        result: Array = (array - mean) / std
        return result

    def apply_to(self, dataset: Dataset) -> Dataset:
        """The data set with its input `self.input` normalised."""
        if self.input not in dataset.inputs:
            raise DataError(
                f"data set {dataset.name!r} has no input {self.input!r}; it has {list(dataset.inputs)}"
            )
        return dataset.with_inputs(dataset.inputs | {self.input: self.apply(dataset.inputs[self.input])})

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON that `from_json` reads back without loss, for a model's metadata."""
        return {"input": self.input, "mean": self.mean.tolist(), "std": self.std.tolist()}

    @staticmethod
    def from_json(content: Any) -> Normalization:
        """The normalisation that `to_json` wrote; DataError for anything else."""
        try:
            name, mean, std = content["input"], content["mean"], content["std"]
            numbers = [float(x) for x in (*mean, *std)]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"normalisation: input, mean and std are needed ({error})") from error
        if not isinstance(name, str) or not all(math.isfinite(x) for x in numbers):
            raise DataError("normalisation: input must be a name, mean and std finite numbers")
        return Normalization(name, np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32))


def _weighted_chunks(array: Array, weights: Array | None) -> Iterator[tuple[Array, Array]]:
    """Rows in float64, some at a time, and their weights, shaped to multiply them."""
    for start in range(0, len(array), _CHUNK_ROWS):
        rows = array[start : start + _CHUNK_ROWS].astype(np.float64)
        if weights is None:
            yield rows, np.ones(())
        else:
            part = weights[start : start + _CHUNK_ROWS].astype(np.float64)
            yield rows, part.reshape(-1, *[1] * (rows.ndim - 1))


def _only_float_input(dataset: Dataset) -> str:
    names = [name for name, array in dataset.inputs.items() if array.dtype.kind == "f"]
    if len(names) != 1:
        raise ConfigError(f"data set {dataset.name!r} has float inputs {names}: name the one to normalise")
    return names[0]
