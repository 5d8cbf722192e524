"""Dividing a data set into training, validation and test parts that share nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from onward.data.counter import permutation
from onward.data.dataset import Array, Dataset
from onward.errors import ConfigError, DataError

__all__ = ["Splits", "folds", "split", "stratified_sample"]

_STREAM = 0x73706C6974  # "split": keeps a split's order apart from a loader's under the same seed

Indices = NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class Splits:
    """The parts of a data set; validation and test are None where their fraction is 0."""

    train: Dataset
    validation: Dataset | None
    test: Dataset | None

    def map(self, change: Callable[[Dataset], Dataset]) -> Splits:
        """The parts after `change`, such as `Normalization.apply_to` of one fitted on `train`."""
        return Splits(
            change(self.train),
            None if self.validation is None else change(self.validation),
            None if self.test is None else change(self.test),
        )


def split(
    dataset: Dataset,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    stratify: bool = True,
) -> Splits:
    """Divide `dataset` by (train, validation, test) fractions, which must sum to 1.

    Every sample goes to exactly one part. The order within a part is the data set's. Part sizes are the
    fractions of N, rounded, and with `stratify` every class is divided in the same proportions (each
    within two samples of its share; a class with one sample goes to train). Regression targets and
    targets of more than one dimension are not stratified. The same seed gives the same parts.

    Samples of one group (`Dataset.groups`; for raw text without groups, equal texts) stay in one part; sizes
    are then as near as whole groups allow.

    With `Dataset.times` the parts are in their order instead, the latest samples in the last part, and
    samples of one time in one part: `seed` and `stratify` then mean nothing.

    Raises ConfigError for bad fractions, DataError where a part that was asked for would be empty.
    """
    if dataset.times is not None:
        return _by_time(dataset, dataset.times, _checked_fractions(fractions))
    train_share, validation_share, test_share = _checked_fractions(fractions)
    units = _units(dataset)
    sizes = np.bincount(units)
    order = permutation(len(sizes), seed, _STREAM)
    labels = _unit_labels(dataset, units, stratify)
    count = len(dataset)
    part = np.zeros(len(sizes), dtype=np.int64)
    for number, share in ((2, test_share), (1, validation_share)):
        wanted = int(np.floor(count * share + 0.5))
        free = order[part[order] == 0]
        part[_choose(free, labels, sizes, wanted)] = number
    of_sample = part[units]
    names = ("train", "validation", "test")
    parts: list[Dataset | None] = []
    for number, share in enumerate((train_share, validation_share, test_share)):
        indices = np.flatnonzero(of_sample == number)
        if share > 0 and indices.size == 0:
            grouped = "" if len(sizes) == count else f" in {len(sizes)} {_unit_name(dataset)}"
            raise DataError(
                f"data set {dataset.name!r}: {count} samples{grouped} are too few for a "
                f"{names[number]} part of {share:g}; change the fractions or add data"
            )
        parts.append(dataset.take(indices) if indices.size else None)
    assert parts[0] is not None
    return Splits(parts[0], parts[1], parts[2])


def folds(
    dataset: Dataset, count: int, seed: int = 0, validation: float = 0.1, stratify: bool = True
) -> Iterator[Splits]:
    """`count` divisions of `dataset`, each sample in the test part of exactly one.

    Classes and groups are kept as `split` keeps them. With `Dataset.times` each test part follows what it is
    trained on: the samples are cut into `count` + 1 runs, and the first i train for the next.

    Args:
        dataset: what is divided.
        count: at least 2.
        seed: the same seed gives the same parts.
        validation: the share of the rest that becomes the validation part; 0: there is none.
        stratify: see `split`.

    Raises:
        ConfigError: count or validation is out of range.
        DataError: a part would be empty.
    """
    if count < 2 or not 0 <= validation < 1:
        raise ConfigError(f"folds: {count} must be 2 or more, validation {validation} from 0 to below 1")
    inner = (1 - validation, validation, 0.0)
    if dataset.times is not None:
        order = np.argsort(dataset.times, kind="stable")
        runs = np.array_split(order, count + 1)
        if not all(run.size for run in runs):
            raise DataError(
                f"data set {dataset.name!r}: {len(dataset)} samples are too few for {count} folds"
            )
        for number in range(count):
            rest = split(dataset.take(np.concatenate(runs[: number + 1])), inner, seed, stratify)
            yield Splits(rest.train, rest.validation, dataset.take(runs[number + 1]))
        return
    units = _units(dataset)
    sizes = np.bincount(units)
    labels = _unit_labels(dataset, units, stratify)
    free = permutation(len(sizes), seed, _STREAM)
    part = np.full(len(sizes), -1, dtype=np.int64)
    for number in range(count - 1):
        left = free[part[free] < 0]
        wanted = int(np.floor(sizes[left].sum() / (count - number) + 0.5))
        part[_choose(left, labels, sizes, wanted)] = number
    part[part < 0] = count - 1
    of_sample = part[units]
    for number in range(count):
        test, others = np.flatnonzero(of_sample == number), np.flatnonzero(of_sample != number)
        if not test.size or not others.size:
            raise DataError(
                f"data set {dataset.name!r}: {len(dataset)} samples in {len(sizes)} groups are too few for "
                f"{count} folds"
            )
        rest = split(dataset.take(others), inner, seed, stratify)
        yield Splits(rest.train, rest.validation, dataset.take(test))


def _by_time(dataset: Dataset, times: Array, shares: tuple[float, float, float]) -> Splits:
    order = np.argsort(times, kind="stable")
    count = len(order)
    ends = [int(np.floor(count * share + 0.5)) for share in (shares[0], shares[0] + shares[1])]
    for i, end in enumerate(ends):
        while 0 < end < count and times[order[end]] == times[order[end - 1]]:
            end += 1
        ends[i] = end
    parts: list[Dataset | None] = []
    names = ("train", "validation", "test")
    for name, share, start, end in zip(names, shares, (0, *ends), (*ends, count), strict=True):
        if share > 0 and end <= start:
            raise DataError(
                f"data set {dataset.name!r}: {count} samples of {len(np.unique(times))} times are too few "
                f"for a {name} part of {share:g}; change the fractions or add data"
            )
        parts.append(dataset.take(order[start:end]) if share > 0 else None)
    assert parts[0] is not None
    return Splits(parts[0], parts[1], parts[2])


def stratified_sample(labels: Array, count: int, seed: int) -> Indices:
    """Ascending indices of `count` samples whose classes are in proportion; labels: integers of shape [N]."""
    if count >= len(labels):
        return np.arange(len(labels))
    classes = np.unique(labels, return_inverse=True)[1]
    order = permutation(len(labels), seed, _STREAM)
    return np.sort(_choose(order, classes, np.ones(len(labels), dtype=np.int64), count))


def _checked_fractions(fractions: tuple[float, float, float]) -> tuple[float, float, float]:
    values = tuple(float(f) for f in fractions)
    if (
        len(values) != 3
        or not all(0 <= f <= 1 for f in values)
        or abs(sum(values) - 1) > 1e-6
        or values[0] == 0
    ):
        raise ConfigError(
            f"fractions {fractions} must be three numbers (train, validation, test) from 0 to 1 that sum "
            "to 1, train above 0"
        )
    return values[0], values[1], values[2]


def _units(dataset: Dataset) -> Indices:
    """For each sample the number of its group, groups numbered from 0 by first appearance."""
    if dataset.groups is not None:
        keys = [str(group) for group in dataset.groups]
    elif dataset.text_inputs:
        keys = [
            "\0".join(texts) for texts in zip(*(dataset.inputs[n] for n in dataset.text_inputs), strict=True)
        ]
    else:
        return np.arange(len(dataset))
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _unit_name(dataset: Dataset) -> str:
    """What `_units` numbers where they are fewer than samples."""
    texts = bool(dataset.text_inputs) and not dataset.table
    return "groups of equal texts" if texts else "groups"


def _unit_labels(dataset: Dataset, units: Indices, stratify: bool) -> Indices:
    """A stratum number per group: the class of its first sample, or 0 where nothing is stratified."""
    first = np.unique(units, return_index=True)[1]
    targets = dataset.targets
    if not stratify or dataset.task == "regression" or targets is None or targets.ndim != 1:
        return np.zeros(len(first), dtype=np.int64)
    inverse: Indices = np.unique(targets[first], return_inverse=True)[1]
    return inverse


def _choose(free: Indices, labels: Indices, sizes: Indices, wanted: int) -> Indices:
    """Of the groups `free` (in random order), those that make up `wanted` samples in class proportions."""
    wanted = min(wanted, int(sizes[free].sum()))
    if wanted == 0:
        return np.zeros(0, dtype=np.int64)
    by_class = free[np.argsort(labels[free], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[by_class], prepend=-1))
    strata = np.split(by_class, starts[1:])
    quotas = _quotas(np.array([sizes[s].sum() for s in strata], dtype=np.int64), wanted)
    chosen: list[Indices] = []
    for stratum, quota in zip(strata, quotas, strict=True):
        room = int(quota)
        for unit in stratum:
            if room == 0:
                break
            if sizes[unit] <= room:
                chosen.append(unit)
                room -= int(sizes[unit])
    return np.array(chosen, dtype=np.int64)


def _quotas(counts: Indices, wanted: int) -> Indices:
    """Integers that sum to `wanted`, proportional to `counts` by largest remainder.

    A class keeps at least one sample back as long as another can give one in its place.
    """
    total = int(counts.sum())
    quotas = counts * wanted // total
    remainders = counts * wanted % total
    ranking = np.argsort(-remainders, kind="stable")
    missing = wanted - int(quotas.sum())
    for kept_back in (1, 0):
        for index in ranking:
            if missing and quotas[index] + 1 <= counts[index] - kept_back:
                quotas[index] += 1
                missing -= 1
    return quotas
