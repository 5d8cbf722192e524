"""Matrix products: tiles on operands in place where these are small, on packed ones elsewhere.

Operands are windows with any strides, so that transposes, splits into heads and broadcasts cost nothing.
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
from onward.compile.kernels import dots, packed, panels
from onward.compile.kernels import gemm as kernels
from onward.compile.kernels.blocking import needs_partial
from onward.compile.kernels.gemm import Gemm, Outer
from onward.compile.kernels.tile import rows_for
from onward.compile.tensors import Buffer, Tensor, reshaped, row_major

if TYPE_CHECKING:
    from onward.compile.codegen.target import Target
    from onward.compile.lowering import Lowering, Slot

__all__ = ["gemm", "matmul", "product"]

_LEFT, _RIGHT = 1 << 16, 1 << 18
"""Floats of either side up to which tiles read it in place at full speed, from the second-level cache."""

_SHORT = 128
"""Rows, or terms of a sum over transposed rows, from which packing costs little beside the product."""

_LINE, _BLOCK, _FEW = 64, 1024, 16
"""Length of lines from which dot products along them pay, and up to which a block of them stays in the first
cache while rows pass; rows that are so few that packing longer lines, too, takes as long as the product."""

_PASSES = 2
"""Products with a weight in a training step: forward, and backward to its input, which reads it as it is."""

_gemm = functools.lru_cache(512)(kernels.gemm)
_dots = functools.lru_cache(512)(dots.dots)
_packed_gemm = functools.lru_cache(512)(packed.packed_gemm)
_pack = functools.lru_cache(512)(panels.pack_columns)


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
    _multiply(b, replace(finish, target=target), left, right, a, w)


def product(b: Lowering, target: Tensor, left: Tensor, right: Tensor, w: ir.Value) -> None:
    """target = left right, for matrices with any strides; a packed `right` is kept under the name of `w`."""
    _matrices(b, Finish(target), left, right, None, w)


def _turned(x: Tensor) -> Tensor:
    """The last two axes exchanged."""
    shape, strides = ((*s[:-2], s[-1], s[-2]) for s in (x.shape, x.strides))
    return replace(x, shape=shape, strides=strides, image=None)


def _destination(b: Lowering, y: ir.Value) -> Finish:
    """Where a product goes: where a Transpose that alone reads it wants it, if rows or columns stay whole."""
    reader = b.uses.sole_reader(y)
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


def _multiply(b: Lowering, finish: Finish, left: Tensor, right: Tensor, a: ir.Value, w: ir.Value) -> None:
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
        left, right, target, w = _turned(right), _turned(left), _turned(target), a
    outer = _outer(lead, left, right, target) or [(1, 0, 0, 0)]
    first, *others = outer
    loops = (Outer(None, *first[1:]), *(Outer(*o) for o in others))
    m, k, n = left.shape[-2], left.shape[-1], right.shape[-1]
    (a_row, a_k), (b_k, b_column) = left.strides[-2:], right.strides[-2:]
    epilogue, operands = finish.epilogue(None)
    spec = Gemm(
        *(m, n, k, a_row, a_k, b_k, target.strides[-2]),
        b_column=b_column if n > 1 else 1,
        epilogue=epilogue,
        outer=loops,
    )
    in_place = _in_place(spec, m, k, b.target)
    source: Tensor | Buffer = right
    if not in_place and not any(step for _, _, step, _ in outer):
        # One right side for all: packing it again for each would cost as much as the products.
        matrix = replace(right, shape=right.shape[-2:], strides=right.strides[-2:], image=None)
        source, spec = _packed(b, w, matrix, spec)
    _product(b, spec, left, source, target, operands, first[0], in_place)


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
    epilogue, operands = finish.epilogue(None if bias is None else b.plain(bias))
    a_row, a_k = left.strides
    b_k, b_column = right.strides
    # The batch is m in a forward product and k in a weight gradient's: what weights do not fix.
    by_depth = k > 1 and a_k != 1 and (n == 1 or b_column == 1)
    spec = Gemm(
        *(m if by_depth else None, n, None if by_depth else k),
        *(a_row, a_k, b_k, finish.target.strides[0]),
        b_column=b_column if n > 1 else 1,
        epilogue=epilogue,
    )
    if _by_dots(b, spec, m, w, right):
        slots: dict[str, Slot] = {"a": left, "b": right, "c": finish.target, "batch": m}
        slots |= {f"e{i}": t for i, t in enumerate(operands)}
        reads = [left, right, *operands]
        b.call(_dots(spec, b.target), slots, reads=reads, writes=[finish.target], batch=m)
        return
    in_place = _in_place(spec, m, k, b.target)
    source: Tensor | Buffer = right
    if not by_depth and _shared(b, spec, w, right):
        source, spec = _packed(b, w, right, spec)
        in_place = _in_place(spec, m, k, b.target)
    _product(b, spec, left, source, finish.target, operands, k if by_depth else m, in_place)


def _by_dots(b: Lowering, spec: Gemm, m: int, w: ir.Value, right: Tensor) -> bool:
    """Whether lines along k are multiplied in place on both sides, where the right one would be packed.

    It saves packing n k weights and costs the adding up of lanes for m n results, so it pays where m is small
    beside k, the sooner the fewer lanes there are. Results narrower than a vector gain always: tiles along n
    leave lanes empty. A side that is packed once for many products costs next to nothing.
    """
    k, lanes = spec.k, b.target.lanes
    if k is None or (spec.a_k, spec.b_k) != (1, 1) or (spec.b_column == 1 and spec.n > 1):
        return False
    if b.is_constant(right) or len(_readers(w)) > _PASSES:
        return False
    if k < _LINE or (k > _BLOCK and m > _FEW) or m * k > _RIGHT:
        return False
    return spec.n < lanes or m * lanes <= 8 * k


def _in_place(spec: Gemm, m: int, k: int, target: Target) -> bool:
    """Whether tiles should read both sides where they are, by what measured fastest for shapes of its kind.

    A right side that is read once, by one row of tiles, is never worth packing. Batches of small matrices
    are, as their operands come from memory: packing a slab fetches the next one meanwhile.
    """
    if spec.b_column != 1:
        return False
    if m <= rows_for(target, panels.block_width(spec.n, target) // target.lanes):
        return True
    short = k if spec.a_k != 1 else m
    batched = any(outer.b for outer in spec.outer)
    return not batched and short <= _SHORT and m * k <= _LEFT and k * spec.n <= _RIGHT


def _shared(b: Lowering, spec: Gemm, w: ir.Value, right: Tensor) -> bool:
    """Whether a right side is packed once for all: a constant, or one that several products need turned."""
    if b.is_constant(right):
        return spec.b_column != 1 or right.size > _RIGHT
    if spec.b_column == 1:
        return False
    readers = _readers(w)
    return any(readers.count(kind) > 1 for kind in ("Gemm", "MatMul"))


def _readers(w: ir.Value) -> list[str]:
    """The operators that have a value on their right side."""
    return [u.node.op_type for u in w.uses() if u.idx == 1]


def _product(
    b: Lowering,
    spec: Gemm,
    left: Tensor,
    right: Tensor | Buffer,
    target: Tensor,
    operands: Sequence[Tensor],
    batch: int,
    in_place: bool,
) -> None:
    """The call for one product or a batch of them."""
    slots: dict[str, Slot] = {"a": left, "b": right, "c": target, "batch": batch}
    slots |= {f"e{i}": t for i, t in enumerate(operands)}
    reads: list[Tensor | Buffer] = [left, right, *operands]
    writes: list[Tensor | Buffer] = [target]
    if in_place:
        b.call(_gemm(spec, b.target), slots, reads=reads, writes=writes, batch=batch)
        return
    if needs_partial(spec.k, b.target) and any(t.buffer is target.buffer for t in operands):
        # What the sums of the first blocks would be written over is still to be read.
        spec = replace(spec, partial=True)
        reach = 1 + sum((n - 1) * s for n, s in zip(target.shape, target.strides, strict=True))
        slots["p"] = partial = b.scratch(reach)
        writes.append(partial)
    b.call(_packed_gemm(spec, b.target), slots, reads=reads, writes=writes, batch=batch)


def _packed(b: Lowering, w: ir.Value, right: Tensor, spec: Gemm) -> tuple[Buffer, Gemm]:
    """A right-hand matrix in blocks of columns, and the product that reads it; packed once for all alike."""
    (k, n), strides = right.shape, right.strides
    key = ("columns", w, n, k, strides, right.offset)
    if (found := b.packed.get(key)) is None:
        found = b.packed[key] = b.scratch(panels.packed_size(n, k, b.target))
        kernel = _pack(n, k, strides[1], strides[0], b.target)
        slots: dict[str, Slot] = {"b": right, "packed": found}
        b.call(kernel, slots, reads=[right], writes=[found], label="pack columns")
    width, size = panels.block_width(n, b.target), panels.panel_size(n, k, b.target)
    return found, replace(spec, b_k=width, b_column=1, b_block=size)
