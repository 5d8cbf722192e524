"""Matrix products: register tiles for small and odd sizes, OpenBLAS for large ones."""

from __future__ import annotations

import functools
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import onnx_ir as ir

from onward.compile.kernels import gemm as kernels
from onward.compile.kernels.gemm import Gemm, Outer
from onward.compile.kernels.tile import IDENTITY
from onward.compile.tensors import Buffer, Tensor

if TYPE_CHECKING:
    from onward.compile.finish import Finish
    from onward.compile.lowering import Lowering, Slot

__all__ = ["gemm", "matmul"]

_LARGE = 1 << 22
"""Multiplications from which a product is OpenBLAS' if no side is short."""

_SHORT = 32

_gemm = functools.lru_cache(512)(kernels.gemm)
_pack = functools.lru_cache(512)(kernels.pack_columns)
_blas = functools.lru_cache(512)(kernels.blas_gemm)


def gemm(
    b: Lowering,
    y: ir.Value,
    a: ir.Value,
    w: ir.Value,
    bias: ir.Value | None,
    *,
    transpose_a: bool,
    transpose_b: bool,
) -> None:
    """y = op(a) op(w) + bias, for matrices."""
    b.require_float(a, w)
    b.require_elements(a, w)
    m, n = b.shape(y)
    k = b.shape(a)[0 if transpose_a else 1]
    if bias is not None and b.shape(bias) not in ((n,), (1, n)):
        b.decline("a bias that is not one row")
    left, right = b.plain(a), b.plain(w)
    _product(b, b.finish(y, image=False), left, right, bias, m, n, k, transpose_a, transpose_b, w)


def matmul(b: Lowering, y: ir.Value, a: ir.Value, w: ir.Value) -> None:
    """y = a w with leading axes that are equal, or absent in w."""
    b.require_float(a, w)
    b.require_elements(a, w)
    left_shape, right_shape = b.shape(a), b.shape(w)
    if len(left_shape) < 2 or len(right_shape) < 2:
        b.decline("a vector operand")
    k, n = right_shape[-2:]
    if len(right_shape) == 2:
        rows = prod(left_shape[:-1])
        left, right = b.plain(a), b.plain(w)
        _product(b, b.finish(y, image=False), left, right, None, rows, n, k, False, False, w)
        return
    if left_shape[:-2] != right_shape[:-2]:
        b.decline("leading axes that are broadcast")
    m = left_shape[-2]
    spec = Gemm(m, n, k, k, 1, n, n, outer=(Outer(None, m * k, k * n, m * n),))
    left, right = b.plain(a), b.plain(w)
    finish = b.finish(y, image=False)
    epilogue, operands = finish.epilogue(None)
    batch = prod(left_shape[:-2])
    slots: dict[str, Slot] = {"a": left, "b": right, "c": finish.target, "batch": batch}
    slots |= {f"e{i}": t for i, t in enumerate(operands)}
    kernel = _gemm(replace(spec, epilogue=epilogue), b.target)
    b.call(kernel, slots, reads=[left, right, *operands], writes=[finish.target], batch=batch)


def _product(
    b: Lowering,
    finish: Finish,
    left: Tensor,
    right: Tensor,
    bias: ir.Value | None,
    m: int,
    n: int,
    k: int,
    transpose_a: bool,
    transpose_b: bool,
    w: ir.Value,
) -> None:
    # The batch is m in a forward product and k in a weight gradient's: what weights do not fix.
    by_depth = transpose_a and not transpose_b
    batch = k if by_depth else m
    rows, depth = (m, None) if by_depth else (None, k)
    target = finish.target
    epilogue, operands = finish.epilogue(None if bias is None else b.plain(bias))
    slots: dict[str, Slot]
    if m * n * k >= _LARGE and min(m, n, k) >= _SHORT:
        kernel = _blas(
            rows,
            n,
            depth,
            m if transpose_a else k,
            k if transpose_b else n,
            n,
            b.target,
            transpose_a=transpose_a,
            transpose_b=transpose_b,
        )
        slots = {"sgemm": kernels.sgemm_address(), "a": left, "b": right, "c": target, "batch": batch}
        b.call(kernel, slots, reads=[left, right], writes=[target], batch=batch)
        if epilogue != IDENTITY:
            flat = [replace(t, shape=(m, n), strides=(n, 1)) if t.size == m * n else t for t in operands]
            place = replace(target, shape=(m, n), strides=(n, 1))
            b.elements((m, n), [place, *flat], [place], [epilogue.expression])
        return
    reads: list[Tensor | Buffer] = [left]
    block, step, source = 0, n, right
    packed: Tensor | Buffer = right
    if transpose_b:
        width = kernels.block_width(n, b.target)
        block, step = k * width, width
        packed = _packed(b, w, source, n, k)
    reads.append(packed)
    if transpose_a and not by_depth:
        b_row, b_k = 1, m
    else:
        b_row, b_k = (1, m) if transpose_a else (k, 1)
    slots = {"a": left, "b": packed, "c": target, "batch": batch}
    slots |= {f"e{i}": t for i, t in enumerate(operands)}
    spec = Gemm(rows, n, depth, b_row, b_k, step, n, b_block=block, epilogue=epilogue)
    b.call(_gemm(spec, b.target), slots, reads=[*reads, *operands], writes=[target], batch=batch)


def _packed(b: Lowering, w: ir.Value, right: Tensor, n: int, k: int) -> Buffer:
    """A transposed right-hand matrix in blocks of columns, shared by the products that read it."""
    key = ("columns", w, n, k)
    if (found := b.packed.get(key)) is None:
        found = b.packed[key] = b.scratch(kernels.packed_size(n, k, b.target))
        kernel = _pack(n, k, k, 1, b.target)
        slots: dict[str, Slot] = {"b": right, "packed": found}
        b.call(kernel, slots, reads=[right], writes=[found], label="pack columns")
    return found
