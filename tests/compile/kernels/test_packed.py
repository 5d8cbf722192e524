from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from onward.compile.codegen.target import Target
from onward.compile.kernels.expression import operand
from onward.compile.kernels.gemm import Gemm, Outer
from onward.compile.kernels.packed import packed_gemm
from onward.compile.kernels.panels import block_width, pack_columns, packed_size, panel_size
from onward.compile.kernels.product_blocking import needs_partial
from onward.compile.kernels.tile import Epilogue

Array = npt.NDArray[np.float32]
Run = Callable[..., None]
SIZES = [((1, 1, 1), "m"), ((64, 33, 270), ""), ((131, 100, 520), "k")]


def random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def close(got: Array, want: npt.NDArray[np.float64], k: int) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6 * max(1, k) ** 0.5)


def strided(x: Array, order: str, gap: int) -> tuple[Array, int, int]:
    """The matrix in memory as `order` says, `gap` unused NaN after each line; its steps by row and column."""
    lines = x if order == "rows" else x.T
    store = np.full((lines.shape[0], lines.shape[1] + gap), np.nan, np.float32)
    store[:, : lines.shape[1]] = lines
    pitch = store.shape[1]
    if order == "spread":
        wide = np.full((*store.shape, 2), np.nan, np.float32)
        wide[..., 0] = store
        return wide, 2, 2 * pitch
    return (store, pitch, 1) if order == "rows" else (store, 1, pitch)


@pytest.mark.parametrize(("size", "unknown"), SIZES)
@pytest.mark.parametrize("a_order", ["rows", "columns", "spread"])
@pytest.mark.parametrize("b_order", ["rows", "columns", "spread", "panels"])
def test_every_layout(
    size: tuple[int, int, int], a_order: str, b_order: str, unknown: str, target: Target, run: Run
) -> None:
    m, n, k = size
    x, w = random(m, k), random(k, n)
    a, a_row, a_k = strided(x, a_order, 3)
    b, b_k, b_column = strided(w, "rows" if b_order == "panels" else b_order, 5)
    spec = Gemm(
        *(None if unknown == "m" else m, n, None if unknown == "k" else k),
        *(a_row, a_k, b_k, n + 2),
        b_column=b_column,
    )
    if b_order == "panels":
        panels = np.full(packed_size(n, k, target), np.nan, np.float32)
        run(pack_columns(n, k, b_column, b_k, target), target, {"b": b, "packed": panels}, 3)
        b, spec = panels, replace(spec, b_k=block_width(n, target), b_block=panel_size(n, k, target))
    kernel = packed_gemm(spec, target)
    found = []
    for threads in (1, 2, 3):
        c = np.full((m, n + 2), np.nan, np.float32)
        run(kernel, target, {"a": a, "b": b, "c": c, "batch": m if unknown == "m" else k}, threads)
        close(c[:, :n], x.astype(np.float64) @ w, k)
        assert np.isnan(c[:, n:]).all()
        found.append(c)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@pytest.mark.parametrize("accumulate", [False, True])
def test_an_empty_sum(accumulate: bool, target: Target, run: Run) -> None:
    m, n = 21, 50
    epilogue = Epilogue(operand(0) + operand(1), ("channel",))
    bias = random(n)
    kernel = packed_gemm(Gemm(m, n, None, 1, m, n, n, accumulate=accumulate, epilogue=epilogue), target)
    for k in (0, 1, 300):
        a, b, c = random(k, m), random(k, n), np.full((m, n), 2, np.float32)
        run(kernel, target, {"a": a, "b": b, "c": c, "e0": bias, "batch": k}, 2)
        close(c, a.T.astype(np.float64) @ b + bias + 2 * accumulate, k)


def test_rows_at_run_time(target: Target, run: Run) -> None:
    n, k = 70, 90
    kernel = packed_gemm(Gemm(None, n, k, k, 1, 1, n, b_column=k), target)
    w = random(n, k)
    for m in (0, 1, 5, 14, 15, 33, 128):
        x, c = random(m, k), np.full((m, n), np.nan, np.float32)
        for threads in (1, 2, 5):
            run(kernel, target, {"a": x, "b": w, "c": c, "batch": m}, threads)
            close(c, x.astype(np.float64) @ w.T, k)


@pytest.mark.parametrize("k", [40, 600, None])
@pytest.mark.parametrize("itself", [False, True])
def test_epilogues(k: int | None, itself: bool, target: Target, run: Run) -> None:
    """relu(2 product + bias) - full operand, which may be the result's own memory."""
    m, n, depth = 37, 45, k or 530
    expression = (operand(0) * 2.0 + operand(1)).apply("relu") - operand(2)
    spec = Gemm(m, n, k, depth, 1, n, n, epilogue=Epilogue(expression, ("channel", "full")))
    spec = replace(spec, partial=itself and needs_partial(k, target))
    x, w, bias, full = random(m, depth), random(depth, n), random(n), random(m, n)
    want = np.maximum(2 * (x.astype(np.float64) @ w) + bias, 0) - full
    for threads in (1, 3):
        c = full.copy() if itself else np.full((m, n), np.nan, np.float32)
        values = {"a": x, "b": w, "c": c, "e0": bias, "e1": c if itself else full, "batch": depth}
        if spec.partial:
            values["p"] = np.full((m, n), np.nan, np.float32)
        run(packed_gemm(spec, target), target, values, threads)
        close(c, want, 4 * depth)


def test_nan_and_infinity_stay_in_their_rows_and_columns(target: Target, run: Run) -> None:
    m, n, k = 40, 50, 300
    x, w = random(m, k), random(n, k)
    x[5, 299], w[7, 0], x[20, 100] = np.nan, np.inf, -np.inf
    c = np.zeros((m, n), np.float32)
    run(
        packed_gemm(Gemm(m, n, k, k, 1, 1, n, b_column=k), target),
        target,
        {"a": x, "b": w, "c": c, "batch": m},
    )
    with np.errstate(invalid="ignore"):
        want = x.astype(np.float64) @ w.T
    np.testing.assert_array_equal(np.isnan(c), np.isnan(want))
    np.testing.assert_array_equal(np.isinf(c), np.isinf(want))
    finite = np.isfinite(want)
    close(c[finite], want[finite], k)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_heads_of_attention(threads: int, target: Target, run: Run) -> None:
    batch, heads, t, d = 3, 3, 37, 20
    q, v = random(batch, t, heads, d), random(batch, t, heads, d)
    row = heads * d
    scores, out = np.full((batch, heads, t, t), np.nan, np.float32), np.full_like(v, np.nan)
    outer = (Outer(None, t * row, t * row, heads * t * t), Outer(heads, d, d, t * t))
    spec = Gemm(t, t, d, row, 1, 1, t, b_column=row, outer=outer)
    run(packed_gemm(spec, target), target, {"a": q, "b": v, "c": scores, "batch": batch}, threads)
    close(scores, np.einsum("bthd,bshd->bhts", q.astype(np.float64), v), d)
    outer = (Outer(None, heads * t * t, t * row, t * row), Outer(heads, t * t, d, d))
    for a_row, a_k, equation in ((t, 1, "bhts,bshd->bthd"), (1, t, "bhst,bshd->bthd")):
        spec = Gemm(t, d, t, a_row, a_k, row, row, outer=outer)
        run(packed_gemm(spec, target), target, {"a": scores, "b": v, "c": out, "batch": batch}, threads)
        close(out, np.einsum(equation, scores.astype(np.float64), v), t * 5)


def test_scratch_is_bounded(target: Target) -> None:
    for m, n, k, a_row in ((None, 4096, 9216, 9216), (4096, 9216, None, 1)):
        spec = Gemm(m, n, k, a_row, 1 if k else 4096, n, n)
        assert packed_gemm(spec, target).scratch <= 3 << 19
