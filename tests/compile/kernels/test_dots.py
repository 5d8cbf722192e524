from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onward.compile.codegen.target import Target
from onward.compile.kernels.dots import dots
from onward.compile.kernels.expression import operand
from onward.compile.kernels.gemm import Gemm, Outer
from onward.compile.kernels.tile import Epilogue

Array = npt.NDArray[np.float32]
Run = Callable[..., None]
SIZES = [(1, 1), (1, 3), (3, 5), (10, 13), (17, 64), (84, 121), (33, 400)]


def random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def close(got: Array, want: npt.NDArray[np.float64], k: int) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6 * max(1, k) ** 0.5)


def spaced(x: Array, gap: int) -> Array:
    """The rows in memory with `gap` unused NaN after each."""
    store = np.full((x.shape[0], x.shape[1] + gap), np.nan, np.float32)
    store[:, : x.shape[1]] = x
    return store


@pytest.mark.parametrize("size", SIZES)
def test_any_number_of_rows_on_any_threads(size: tuple[int, int], target: Target, run: Run) -> None:
    n, k = size
    w = random(n, k)
    kernel = dots(Gemm(None, n, k, k + 3, 1, 1, n + 2, b_column=k + 5), target)
    for m in (0, 1, 2, 3, 4, 5, 7, 16, 23, 64):
        x = random(m, k)
        found = []
        for threads in (1, 2, 3):
            c = np.full((m, n + 2), np.nan, np.float32)
            values = {"a": spaced(x, 3), "b": spaced(w, 5), "c": c, "batch": m}
            run(kernel, target, values, threads)
            close(c[:, :n], x.astype(np.float64) @ w.T, k)
            assert np.isnan(c[:, n:]).all()
            found.append(c)
        for other in found[1:]:
            np.testing.assert_array_equal(found[0], other)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("itself", [False, True])
def test_epilogues(size: tuple[int, int], itself: bool, target: Target, run: Run) -> None:
    """relu(2 product + bias) - full operand, which may be the result's own memory."""
    n, k = size
    m = 23
    expression = (operand(0) * 2.0 + operand(1)).apply("relu") - operand(2)
    spec = Gemm(m, n, k, k, 1, 1, n, b_column=k, epilogue=Epilogue(expression, ("channel", "full")))
    x, w, bias, full = random(m, k), random(n, k), random(n), random(m, n)
    want = np.maximum(2 * (x.astype(np.float64) @ w.T) + bias, 0.0) - full.astype(np.float64)
    for threads in (1, 3):
        c = full.copy() if itself else np.full((m, n), np.nan, np.float32)
        values = {"a": x, "b": w, "c": c, "e0": bias, "e1": c if itself else full, "batch": m}
        run(dots(spec, target), target, values, threads)
        close(c, want, 4 * k)


def test_nan_and_infinity_stay_in_their_rows_and_columns(target: Target, run: Run) -> None:
    m, n, k = 40, 50, 301
    x, w = random(m, k), random(n, k)
    x[5, 300], w[7, 0], x[20, 100] = np.nan, np.inf, -np.inf
    c = np.zeros((m, n), np.float32)
    spec = Gemm(None, n, k, k, 1, 1, n, b_column=k)
    run(dots(spec, target), target, {"a": x, "b": w, "c": c, "batch": m})
    with np.errstate(invalid="ignore"):
        want = x.astype(np.float64) @ w.T
    np.testing.assert_array_equal(np.isnan(c), np.isnan(want))
    np.testing.assert_array_equal(np.isinf(c), np.isinf(want))
    finite = np.isfinite(want)
    close(c[finite], want[finite], k)


@pytest.mark.parametrize(
    "change",
    [{"a_k": 2}, {"b_k": 2}, {"k": None}, {"accumulate": True}, {"outer": (Outer(2, 1, 1, 1),)}],
)
def test_other_products_are_refused(change: dict[str, Any], target: Target) -> None:
    with pytest.raises(ValueError, match="dot products"):
        dots(replace(Gemm(8, 8, 8, 8, 1, 1, 8, b_column=8), **change), target)
