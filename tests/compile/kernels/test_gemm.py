from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from onward.compile.codegen.target import Target
from onward.compile.kernels.expression import operand
from onward.compile.kernels.gemm import Gemm, Outer, gemm
from onward.compile.kernels.panels import block_width, pack_columns, packed_size, panel_size
from onward.compile.kernels.tile import Epilogue

Array = npt.NDArray[np.float32]
Run = Callable[..., None]
SIZES = [(1, 1, 1), (7, 10, 13), (32, 64, 128), (15, 100, 9), (61, 33, 70)]


def random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def close(got: Array, want: npt.NDArray[np.float64], k: int) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6 * max(1, k) ** 0.5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_are_the_batch_with_bias_and_relu(
    size: tuple[int, int, int], threads: int, target: Target, run: Run
) -> None:
    m, n, k = size
    epilogue = Epilogue((operand(0) + operand(1)).apply("relu"), ("channel",))
    kernel = gemm(Gemm(None, n, k, k, 1, n, n + 3, epilogue=epilogue), target)
    b, bias = random(k, n), random(n)
    for batch in (m, 0, 1, 2 * m + 5):
        a, c = random(batch, k), np.full((batch, n + 3), 9, np.float32)
        run(kernel, target, {"a": a, "b": b, "c": c, "e0": bias, "batch": batch}, threads)
        close(c[:, :n], np.maximum(a.astype(np.float64) @ b + bias, 0), k)
        assert (c[:, n:] == 9).all()


@pytest.mark.parametrize("size", SIZES)
def test_the_sum_runs_over_the_batch(size: tuple[int, int, int], target: Target, run: Run) -> None:
    m, n, k = size
    for accumulate in (False, True):
        kernel = gemm(Gemm(m, n, None, 1, m, n, n, accumulate=accumulate), target)
        for batch in (k, 1, 0):
            a, b, c = random(batch, m), random(batch, n), np.full((m, n), 2, np.float32)
            run(kernel, target, {"a": a, "b": b, "c": c, "batch": batch}, 2)
            close(c, a.T.astype(np.float64) @ b + 2 * accumulate, k)


@pytest.mark.parametrize("size", SIZES)
def test_transposed_right_side_in_packed_blocks(size: tuple[int, int, int], target: Target, run: Run) -> None:
    m, n, k = size
    b, packed = random(n, k), np.full(packed_size(n, k, target), np.nan, np.float32)
    run(pack_columns(n, k, k, 1, target), target, {"b": b, "packed": packed}, 3)
    width = block_width(n, target)
    a, c = random(m, k), np.full((m, n), np.nan, np.float32)
    spec = Gemm(m, n, k, k, 1, width, n, b_block=panel_size(n, k, target))
    run(gemm(spec, target), target, {"a": a, "b": packed, "c": c, "batch": 1}, 2)
    close(c, a.astype(np.float64) @ b.T, k)
    again = np.full_like(packed, np.nan)
    run(pack_columns(n, k, 1, n, target), target, {"b": b.T.copy(), "packed": again}, 2)
    for panels in (packed, again):
        blocks = panels.reshape(-1, panel_size(n, k, target) // width, width)[:, :k]
        np.testing.assert_array_equal(blocks.transpose(1, 0, 2).reshape(k, -1)[:, :n], b.T)


def test_heads_of_attention(target: Target, run: Run) -> None:
    heads, t, d = 3, 11, 20
    q, v = random(4, t, heads, d), random(4, t, heads, d)
    scores, out = random(4, heads, t, t), np.full((4, t, heads, d), np.nan, np.float32)
    row = heads * d
    outer = (Outer(None, heads * t * t, t * row, t * row), Outer(heads, t * t, d, d))
    spec = Gemm(t, d, t, t, 1, row, row, outer=outer)
    run(gemm(spec, target), target, {"a": scores, "b": v, "c": out, "batch": 4}, 3)
    close(out, np.einsum("bhts,bshd->bthd", scores.astype(np.float64), v), t)
    spec = Gemm(t, d, t, 1, t, row, row, outer=outer)  # transposed left side
    run(gemm(spec, target), target, {"a": scores, "b": q, "c": out, "batch": 4}, 2)
    close(out, np.einsum("bhst,bshd->bthd", scores.astype(np.float64), q), t)


def test_two_unknown_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="only one"):
        Gemm(None, 3, None, 1, 1, 3, 3)
