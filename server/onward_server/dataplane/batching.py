"""Joining requests along the first dimension, and splitting the answer; everything here is pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onward.errors import ConfigError
from onward.graph import Array, TensorSpec
from onward_server.errors import ExecutionError

__all__ = ["BatchKey", "batch_key", "check_batchable", "filled_size", "joined", "probe", "rows_of", "split"]

BatchKey = tuple[tuple[str, str, tuple[int, ...]], ...]


def rows_of(inputs: Mapping[str, Array]) -> int:
    """Rows of a request to a batched model."""
    return int(next(iter(inputs.values())).shape[0])


def batch_key(inputs: Mapping[str, Array]) -> BatchKey:
    """What has to be equal for two requests to be joined: names, types and every extent but the first."""
    return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items()))


def filled_size(rows: int, largest: int) -> int:
    """The size that a batch of `rows` is filled up to: a power of two, or the largest."""
    return min(1 << max(rows - 1, 0).bit_length(), largest)


def joined(requests: Sequence[Mapping[str, Array]], size: int) -> dict[str, Array]:
    """The requests' rows behind each other, filled up to `size` with copies of the last row."""
    rows = sum(map(rows_of, requests))
    batch: dict[str, Array] = {}
    for name in requests[0]:
        parts = [request[name] for request in requests]
        if size > rows:
            last = next(part for part in reversed(parts) if len(part))
            parts.append(np.repeat(last[-1:], size - rows, axis=0))
        batch[name] = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return batch


def split(outputs: Mapping[str, Array], rows: Sequence[int], size: int) -> list[dict[str, Array]]:
    """The outputs of each request, given how many rows it brought.

    Raises:
        ExecutionError: an output does not have the batch's size as its first dimension.
    """
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != size:
            raise ExecutionError(f"output {name!r} has shape {list(array.shape)} for a batch of {size} rows")
    answers: list[dict[str, Array]] = []
    start = 0
    for count in rows:
        answers.append({name: array[start : start + count] for name, array in outputs.items()})
        start += count
    return answers


def check_batchable(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Refuse batching for a model whose tensors have no free first dimension.

    Raises:
        ConfigError: names the input or output.
    """
    for kind, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            if spec.shape is None or not spec.shape or isinstance(spec.shape[0], int):
                raise ConfigError(f"batching: {kind} {spec} has no first dimension that varies")
    if not inputs:
        raise ConfigError("batching: the model has no inputs")


def probe(inputs: Sequence[TensorSpec], rows: int, free: int = 2) -> dict[str, Array]:
    """Rows that differ, for a look at whether a model treats each by itself; free dimensions are `free`."""
    generator = np.random.default_rng(rows)
    arrays: dict[str, Array] = {}
    for spec in inputs:
        shape = (rows, *(dim if isinstance(dim, int) else free for dim in (spec.shape or (rows,))[1:]))
        if spec.dtype == object:
            array = np.empty(shape, dtype=object)
            array[...] = "a"
        elif spec.dtype.kind in "iub":
            array = generator.integers(0, 2, shape).astype(spec.dtype)
        else:
            array = generator.uniform(-1, 1, shape).astype(spec.dtype)
        arrays[spec.name] = array
    return arrays
