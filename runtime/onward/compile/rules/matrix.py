"""Matrix products: register tiles for small and odd sizes, OpenBLAS for large ones.

Operands are windows with any strides, so that transposes, splits into heads and broadcasts cost nothing; what
a kernel cannot walk along is copied first.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onward.compile.finish import Finish
from onward.compile.kernels import gemm as kernels
from onward.compile.kernels.gemm import Gemm, Outer
from onward.compile.kernels.tile import IDENTITY
from onward.compile.tensors import Buffer, Tensor, reshaped, row_major

if TYPE_CHECKING:
    from onward.compile.lowering import Lowering, Slot

__all__ = ["gemm", "matmul", "product"]

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
    n = b.shape(y)[1]
    if bias is not None and b.shape(bias) not in ((n,), (1, n)):
        b.decline("a bias that is not one row")
    left, right = b.present(a), b.present(w)
    left = _turned(left) if transpose_a else left
    right = _turned(right) if transpose_b else right
    _matrices(b, b.finish(y, image=False), left, right, bias, w)


def matmul(b: Lowering, y: ir.Value, a: ir.Value, w: ir.Value) -> None:
    """y = a w as numpy.matmul: leading axes are broadcast, vectors are matrices of one row or column."""
    b.require_float(a, w)
    b.require_elements(a, w)
    left, right = b.present(a), b.present(w)
    finish = _destination(b, y)
    target = finish.target
    if len(right.shape) == 1:
        right = replace(right, shape=(*right.shape, 1), strides=(*right.strides, 1), image=None)
        target = replace(target, shape=(*target.shape, 1), strides=(*target.strides, 1))
    if len(left.shape) == 1:
        left = replace(left, shape=(1, *left.shape), strides=(0, *left.strides), image=None)
        shape, strides = target.shape, target.strides
        target = replace(target, shape=(*shape[:-1], 1, shape[-1]), strides=(*strides[:-1], 0, strides[-1]))
    _multiply(b, replace(finish, target=target), left, right, w)


def product(b: Lowering, target: Tensor, left: Tensor, right: Tensor, w: ir.Value) -> None:
    """target = left right, for matrices with any strides; a packed `right` is kept under the name of `w`."""
    _matrices(b, Finish(target), left, right, None, w)


def _turned(x: Tensor) -> Tensor:
    """The last two axes exchanged."""
    shape, strides = ((*s[:-2], s[-1], s[-2]) for s in (x.shape, x.strides))
    return replace(x, shape=shape, strides=strides, image=None)


def _destination(b: Lowering, y: ir.Value) -> Finish:
    """Where a product goes: where a Transpose that alone reads it wants it, if rows or columns stay whole."""
    reader = b.sole_reader(y)
    if reader is not None and reader.node.op_type == "Transpose":
        shape = b.shape(y)
        perm = getattr(reader.operator, "perm", None) or tuple(range(len(shape)))[::-1]
        strides = [0] * len(shape)
        for axis, step in zip(perm, row_major([shape[a] for a in perm]), strict=True):
            strides[axis] = step
        if len(shape) > 1 and 1 in strides[-2:]:
            window = Tensor(Buffer(4 * prod(shape)), shape, tuple(strides), np.dtype(np.float32))
            b.alias(y, window)
            return Finish(window)
    return b.finish(y, image=False)


def _multiply(b: Lowering, finish: Finish, left: Tensor, right: Tensor, w: ir.Value) -> None:
    """Products of the last two axes over leading axes that are broadcast."""
    target = finish.target
    lead = target.shape[:-2]
    if not any(_leading(right, lead)):
        # One matrix for all: its rows count together, where they do in memory.
        flat = (prod(target.shape[:-1]), target.shape[-1])
        rows, place = reshaped(left, (flat[0], left.shape[-1])), reshaped(target, flat)
        if (
            prod(left.shape[:-1]) == flat[0]
            and rows is not None
            and place is not None
            and place.strides[1] == 1
        ):
            matrix = replace(right, shape=right.shape[-2:], strides=right.strides[-2:], image=None)
            _matrices(b, replace(finish, target=place), rows, matrix, None, w)
            return
    if target.strides[-1] != 1 and target.shape[-1] > 1:
        left, right, target = _turned(right), _turned(left), _turned(target)
    outer = _outer(lead, left, right, target)
    m, k, n = left.shape[-2], left.shape[-1], right.shape[-1]
    if right.strides[-1] != 1 and n > 1:
        copied = Tensor(Buffer(right.nbytes), right.shape, row_major(right.shape), right.dtype)
        b.copy(right, copied)
        right = copied
        outer = _outer(lead, left, right, target)
    if not outer:
        outer = [(1, 0, 0, 0)]
    first, *others = outer
    loops = (Outer(None, *first[1:]), *(Outer(*o) for o in others))
    (a_row, a_k), b_k, c_row = left.strides[-2:], right.strides[-2], target.strides[-2]
    epilogue, operands = finish.epilogue(None)
    spec = Gemm(m, n, k, a_row, a_k, b_k, c_row, outer=loops, epilogue=epilogue)
    slots: dict[str, Slot] = {"a": left, "b": right, "c": target, "batch": first[0]}
    slots |= {f"e{i}": t for i, t in enumerate(operands)}
    reads = [left, right, *operands]
    b.call(_gemm(spec, b.target), slots, reads=reads, writes=[target], batch=first[0])


def _leading(x: Tensor, lead: Sequence[int]) -> list[int]:
    """Strides along the leading axes, 0 where x is broadcast."""
    shape, strides = x.shape[:-2], x.strides[:-2]
    found = [0 if n == 1 else s for n, s in zip(shape, strides, strict=True)]
    return [0] * (len(lead) - len(found)) + found


def _outer(lead: Sequence[int], *tensors: Tensor) -> list[tuple[int, int, int, int]]:
    """The leading axes as (count, steps in a, b and c), neighbours merged where all three have no gap."""
    loops: list[list[int]] = []
    for size, *steps in zip(lead, *(_leading(t, lead) for t in tensors), strict=True):
        if size == 1:
            continue
        if loops and all(outer == inner * size for outer, inner in zip(loops[-1][1:], steps, strict=True)):
            loops[-1] = [loops[-1][0] * size, *steps]
        else:
            loops.append([size, *steps])
    return [(count, a, b, c) for count, a, b, c in loops]


def _matrices(
    b: Lowering, finish: Finish, left: Tensor, right: Tensor, bias: ir.Value | None, w: ir.Value
) -> None:
    """A product of two matrices in any layout, rows of the result without gaps."""
    (m, k), n = left.shape, right.shape[1]
    target = finish.target
    epilogue, operands = finish.epilogue(None if bias is None else b.plain(bias))
    slots: dict[str, Slot]
    transpose_a = k > 1 and left.strides[1] != 1
    transpose_b = n > 1 and right.strides[1] != 1
    # The batch is m in a forward product and k in a weight gradient's: what weights do not fix.
    by_depth = transpose_a and not transpose_b
    batch = k if by_depth else m
    rows, depth = (m, None) if by_depth else (None, k)
    a_lead, b_lead = left.strides[0 if not transpose_a else 1], right.strides[0 if not transpose_b else 1]
    walkable = (
        (not transpose_a or left.strides[0] == 1)
        and (not transpose_b or right.strides[0] == 1)
        and a_lead >= (m if transpose_a else k)
        and b_lead >= (k if transpose_b else n)
    )
    if m * n * k >= _LARGE and min(m, n, k) >= _SHORT and walkable:
        kernel = _blas(
            rows,
            n,
            depth,
            a_lead,
            b_lead,
            target.strides[0],
            b.target,
            transpose_a=transpose_a,
            transpose_b=transpose_b,
        )
        place = replace(target, shape=(m, n), strides=(target.strides[0], 1))
        made = place
        if any(t.buffer is target.buffer for t in operands):
            # What the product would be written over is still to be read.
            made = Tensor(b.scratch(m * n), (m, n), (target.strides[0], 1), target.dtype)
        slots = {"sgemm": kernels.sgemm_address(), "a": left, "b": right, "c": made, "batch": batch}
        b.call(kernel, slots, reads=[left, right], writes=[made], batch=batch)
        if epilogue != IDENTITY:
            flat = [replace(t, shape=(m, n), strides=(n, 1)) if t.size == m * n else t for t in operands]
            b.elements((m, n), [made, *flat], [place], [epilogue.expression])
        return
    block, step = 0, right.strides[0]
    packed: Tensor | Buffer = right
    if transpose_b:
        width = kernels.block_width(n, b.target)
        block, step = k * width, width
        packed = _packed(b, w, right)
    slots = {"a": left, "b": packed, "c": target, "batch": batch}
    slots |= {f"e{i}": t for i, t in enumerate(operands)}
    a_row, a_k = left.strides
    spec = Gemm(rows, n, depth, a_row, a_k, step, target.strides[0], b_block=block, epilogue=epilogue)
    b.call(_gemm(spec, b.target), slots, reads=[left, packed, *operands], writes=[target], batch=batch)


def _packed(b: Lowering, w: ir.Value, right: Tensor) -> Buffer:
    """A right-hand matrix in blocks of columns, shared by the products that read it alike."""
    (k, n), strides = right.shape, right.strides
    key = ("columns", w, n, k, strides)
    if (found := b.packed.get(key)) is None:
        found = b.packed[key] = b.scratch(kernels.packed_size(n, k, b.target))
        kernel = _pack(n, k, strides[1], strides[0], b.target)
        slots: dict[str, Slot] = {"b": right, "packed": found}
        b.call(kernel, slots, reads=[right], writes=[found], label="pack columns")
    return found
