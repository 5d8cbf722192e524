"""Cross-checks: which requests a second engine computes too, and whether the two answers agree."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from typing import final

import numpy as np

from onward.graph import Array
from onward_server.model_settings import CrossCheckSettings, Tolerance

__all__ = ["CheckOutcome", "CheckRecorder", "CheckStatistics", "Comparison", "Sampler", "compare"]


@final
class CheckOutcome(Enum):
    """What became of a request's cross-check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    SHADOW = "shadow"


@final
@dataclass(frozen=True, slots=True)
class CheckStatistics:
    """Counts since the start, for one version of a model.

    Attributes:
        requests: requests that were computed.
        checks: requests that both engines computed; passed + failed.
        skipped: requests that the policy did not select, or that the witness could not compute within its
            limits.
        dropped: shadow checks given up because their queue was full or the server stopped.
        max_absolute_error: largest |a - b| between finite elements.
        max_relative_error: largest |a - b| / |b| between finite elements where b is not 0.
        last_mismatch: text of the latest mismatch, empty when there was none.
        first_difference: where the engines parted when a mismatch was computed again node by node; empty: it
            was not, or they agreed.
        unchecked: how many of those skipped the witness could not compute within its limits.
        last_unchecked: why, at the latest of them.
    """

    requests: int = 0
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    dropped: int = 0
    max_absolute_error: float = 0.0
    max_relative_error: float = 0.0
    last_mismatch: str = ""
    first_difference: str = ""
    unchecked: int = 0
    last_unchecked: str = ""

    @property
    def checks(self) -> int:
        """Requests that both engines computed."""
        return self.passed + self.failed


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of comparing the outputs of two engines.

    Attributes:
        mismatch: what differs first, in words; empty when everything agrees.
        max_absolute_error: over finite elements of all outputs.
        max_relative_error: over finite elements of all outputs whose reference is not 0.
    """

    mismatch: str
    max_absolute_error: float = 0.0
    max_relative_error: float = 0.0


@final
class Sampler:
    """Selects the fraction `rate` of a sequence of requests: evenly spread, the first one included."""

    def __init__(self, rate: float) -> None:
        exact = Fraction(str(rate))
        self._part, self._whole = exact.numerator, exact.denominator
        self._sum = self._whole - 1

    def select(self) -> bool:
        """Whether the next request is selected."""
        self._sum += self._part
        if self._sum < self._whole:
            return False
        self._sum -= self._whole
        return True


@final
class CheckRecorder:
    """Collects statistics from any thread."""

    def __init__(self) -> None:
        self._statistics = CheckStatistics()
        self._requests = self._skipped = self._dropped = 0
        self._lock = threading.Lock()

    @property
    def statistics(self) -> CheckStatistics:
        """A consistent snapshot."""
        with self._lock:
            return replace(
                self._statistics, requests=self._requests, skipped=self._skipped, dropped=self._dropped
            )

    def count(self, *, requests: int = 0, skipped: int = 0, dropped: int = 0) -> None:
        """Add to the counts of requests without a comparison."""
        with self._lock:
            self._requests += requests
            self._skipped += skipped
            self._dropped += dropped

    def leave_unchecked(self, reason: str) -> None:
        """Count a request that was selected, and that the witness could not compute within its limits."""
        with self._lock:
            self._skipped += 1
            old = self._statistics
            self._statistics = replace(old, unchecked=old.unchecked + 1, last_unchecked=reason)

    def locate(self, difference: str) -> None:
        """Note where the engines part."""
        with self._lock:
            self._statistics = replace(self._statistics, first_difference=difference)

    def record(self, comparison: Comparison) -> None:
        """Add one comparison."""
        failed = bool(comparison.mismatch)
        with self._lock:
            old = self._statistics
            self._statistics = replace(
                old,
                passed=old.passed + (not failed),
                failed=old.failed + failed,
                max_absolute_error=max(old.max_absolute_error, comparison.max_absolute_error),
                max_relative_error=max(old.max_relative_error, comparison.max_relative_error),
                last_mismatch=comparison.mismatch or old.last_mismatch,
            )


def compare(
    outputs: Mapping[str, Array], reference: Mapping[str, Array], settings: CrossCheckSettings
) -> Comparison:
    """Compare an engine's outputs with the reference's, output by output.

    Elements agree when |a - b| <= atol + rtol * |b|, with b from the reference; NaN agrees with NaN, an
    infinity with the same infinity; types without a tolerance have to be equal.
    """
    mismatch = ""
    absolute = relative = 0.0
    for name, wanted in reference.items():
        if name not in outputs:
            mismatch = mismatch or f"output {name!r} is missing"
            continue
        found = outputs[name]
        if found.dtype != wanted.dtype or found.shape != wanted.shape:
            mismatch = mismatch or (
                f"output {name!r} is {found.dtype}{list(found.shape)}, "
                f"the reference is {wanted.dtype}{list(wanted.shape)}"
            )
            continue
        tolerance = settings.tolerance_of(wanted.dtype.name)
        if tolerance is None:
            differs = np.asarray(found != wanted)
        else:
            differs, worst_absolute, worst_relative = _float_differences(found, wanted, tolerance)
            absolute, relative = max(absolute, worst_absolute), max(relative, worst_relative)
        if differs.any():
            mismatch = mismatch or _describe(name, found, wanted, differs)
    return Comparison(mismatch, absolute, relative)


def _float_differences(found: Array, wanted: Array, tolerance: Tolerance) -> tuple[Array, float, float]:
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(finite, np.abs(a - b), 0.0)
    size = np.where(finite, np.abs(b), 0.0)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    differs = np.where(finite, error > tolerance.atol + tolerance.rtol * size, ~same)
    scaled = np.divide(error, size, out=np.zeros_like(error), where=size > 0)
    return differs, float(error.max(initial=0.0)), float(scaled.max(initial=0.0))


def _describe(name: str, found: Array, wanted: Array, differs: Array) -> str:
    index = tuple(int(i) for i in np.argwhere(differs)[0]) if differs.ndim else ()
    return (
        f"output {name!r}: {int(np.count_nonzero(differs))} of {differs.size} elements differ, "
        f"first at {list(index)}: {found[index]!s} against {wanted[index]!s}"
    )
