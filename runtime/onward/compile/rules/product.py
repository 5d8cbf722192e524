"""Matrix products: tiles on operands in place where these are small, on packed ones elsewhere.

Operands are views with any strides, so that transposes, splits into heads and broadcasts cost nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from math import prod

import onnx_ir as ir

from onward.compile.codegen.target import Target
from onward.compile.context import Context, Queries
from onward.compile.items import Slot
from onward.compile.kernels import dots, packed, panels
from onward.compile.kernels import gemm as kernels
from onward.compile.kernels.gemm import Gemm, Outer
from onward.compile.kernels.product_blocking import needs_partial
from onward.compile.kernels.tile import rows_for
from onward.compile.registry import lowers
from onward.compile.rules.integer_product import in_integers
from onward.compile.tensors import Buffer, Tensor, reshaped, row_major, swapped
from onward.compile.write_back import WriteBack
from onward.graph.requests import Product, Transpose

__all__ = ["product"]

_PASSES = 2
"""Products with a weight in a training step: forward, and backward to its input, which reads it as it is."""

_gemm = functools.lru_cache(512)(kernels.gemm)
_dots = functools.lru_cache(512)(dots.dots)
_packed_gemm = functools.lru_cache(512)(packed.packed_gemm)
_pack = functools.lru_cache(512)(panels.pack_columns)


def _unsuited(q: Queries, request: Product) -> str | None:
    if reason := q.not_floats(request.left, request.right, request.bias) or q.empty(
        request.left, request.right
    ):
        return reason
    n = q.shape(request.y)[-1:]
    if request.bias is not None and q.shape(request.bias) not in (n, (1, *n)):
        return "a bias that is not one row"
    return None


@lowers(Product, suits=_unsuited)
def multiply(c: Context, request: Product) -> None:
    """Products of the last two axes, for each position of the leading ones."""
    left, right = c.present(request.left), c.present(request.right)
    left = swapped(left, -2, -1) if request.transpose_left else left
    right = swapped(right, -2, -1) if request.transpose_right else right
    back = _destination(c, request)
    target = back.target
    if len(right.shape) == 1:
        right = replace(right, shape=(*right.shape, 1), strides=(*right.strides, 1), image=None)
        target = replace(target, shape=(*target.shape, 1), strides=(*target.strides, 1))
    if len(left.shape) == 1:
        left = replace(left, shape=(1, *left.shape), strides=(0, *left.strides), image=None)
        shape, strides = target.shape, target.strides
        target = replace(target, shape=(*shape[:-1], 1, shape[-1]), strides=(*strides[:-1], 0, strides[-1]))
    _multiply(c, replace(back, target=target), left, right, request)


def product(c: Context, target: Tensor, left: Tensor, right: Tensor, w: ir.Value) -> None:
    """target = left right, for matrices with any strides; a packed `right` is kept under the name of `w`."""
    _matrices(c, WriteBack(target), left, right, None, w)


def _destination(c: Context, request: Product) -> WriteBack:
    """Where a product goes: where a transposition that alone reads it wants it, if lines stay whole."""
    y = request.y
    reader = c.uses.sole_reader(y)
    if reader is not None and isinstance(reader.request, Transpose) and request.bias is None:
        shape, perm = c.shape(y), reader.request.perm
        strides = [0] * len(shape)
        for axis, step in zip(perm, row_major([shape[a] for a in perm]), strict=True):
            strides[axis] = step
        if len(shape) > 1 and 1 in strides[-2:]:
            view = Tensor(Buffer(c.dtype(y).itemsize * prod(shape)), shape, tuple(strides), c.dtype(y))
            c.alias(y, view)
            return WriteBack(view)
    return c.write_back(y, image=False)


def _multiply(c: Context, back: WriteBack, left: Tensor, right: Tensor, request: Product) -> None:
    """Products of the last two axes over leading axes that are broadcast."""
    target, w = back.target, request.right
    bias = None if request.bias is None else c.plain(request.bias)
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
            if in_integers(c, replace(back, target=place), rows, matrix, bias, request.left, w):
                return
            _matrices(c, replace(back, target=place), rows, matrix, bias, w)
            return
    if target.strides[-1] != 1 and target.shape[-1] > 1:
        left, right, target, w = (
            swapped(right, -2, -1),
            swapped(left, -2, -1),
            swapped(target, -2, -1),
            request.left,
        )
    outer = _outer(lead, left, right, target) or [(1, 0, 0, 0)]
    first, *others = outer
    loops = (Outer(None, *first[1:]), *(Outer(*o) for o in others))
    m, k, n = left.shape[-2], left.shape[-1], right.shape[-1]
    (a_row, a_k), (b_k, b_column) = left.strides[-2:], right.strides[-2:]
    epilogue, operands = back.epilogue(bias)
    spec = Gemm(
        *(m, n, k, a_row, a_k, b_k, target.strides[-2]),
        b_column=b_column if n > 1 else 1,
        epilogue=epilogue,
        dtype=target.dtype.name,
        outer=loops,
    )
    in_place = _in_place(spec, m, k, c.typed(left.dtype))
    source: Tensor | Buffer = right
    if not in_place and not any(step for _, _, step, _ in outer):
        # One right side for all: packing it again for each would cost as much as the products.
        matrix = replace(right, shape=right.shape[-2:], strides=right.strides[-2:], image=None)
        source, spec = _packed(c, w, matrix, spec)
    _product(c, spec, left, source, target, operands, first[0], in_place)


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
    c: Context, back: WriteBack, left: Tensor, right: Tensor, bias: Tensor | None, w: ir.Value
) -> None:
    """A product of two matrices in any layout, rows of the result without gaps."""
    (m, k), n = left.shape, right.shape[1]
    epilogue, operands = back.epilogue(bias)
    a_row, a_k = left.strides
    b_k, b_column = right.strides
    # The batch is m in a forward product and k in a weight gradient's: what weights do not fix.
    by_depth = k > 1 and a_k != 1 and (n == 1 or b_column == 1)
    spec = Gemm(
        *(m if by_depth else None, n, None if by_depth else k),
        *(a_row, a_k, b_k, back.target.strides[0]),
        b_column=b_column if n > 1 else 1,
        epilogue=epilogue,
        dtype=back.target.dtype.name,
    )
    if _by_dots(c, spec, m, w, right):
        slots: dict[str, Slot] = {"a": left, "b": right, "c": back.target, "batch": m}
        slots |= {f"e{i}": t for i, t in enumerate(operands)}
        c.call(_dots(spec, c.target), slots, batch=m)
        return
    in_place = _in_place(spec, m, k, c.typed(left.dtype))
    source: Tensor | Buffer = right
    if not by_depth and _shared(c, spec, w, right):
        source, spec = _packed(c, w, right, spec)
        in_place = _in_place(spec, m, k, c.typed(left.dtype))
    _product(c, spec, left, source, back.target, operands, k if by_depth else m, in_place)


def _by_dots(q: Queries, spec: Gemm, m: int, w: ir.Value, right: Tensor) -> bool:
    """Whether lines along k are multiplied in place on both sides, where the right one would be packed.

    It saves packing n k weights and costs the adding up of lanes for m n results, so it pays where m is small
    beside k, the sooner the fewer lanes there are. Results narrower than a vector gain always: tiles along n
    leave lanes empty. A side that is packed once for many products costs next to nothing.
    """
    k, machine = spec.k, q.typed(right.dtype)
    lanes, tuning, nbytes = machine.lanes, machine.tuning, right.dtype.itemsize
    if k is None or (spec.a_k, spec.b_k) != (1, 1) or (spec.b_column == 1 and spec.n > 1):
        return False
    if q.is_constant(right) or _products_by(q, w) > _PASSES:
        return False
    if k < tuning.dots_line or (k > tuning.dots_block and m > tuning.dots_few):
        return False
    if m * k * nbytes > tuning.product_in_place_right:
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
    if batched or short > target.tuning.product_short:
        return False
    left, right = m * k * target.nbytes, k * spec.n * target.nbytes
    return left <= target.tuning.product_in_place_left and right <= target.tuning.product_in_place_right


def _shared(q: Queries, spec: Gemm, w: ir.Value, right: Tensor) -> bool:
    """Whether a right side is packed once: a constant, or one that several products need transposed."""
    if q.is_constant(right):
        return spec.b_column != 1 or right.nbytes > q.target.tuning.product_in_place_right
    return spec.b_column != 1 and _products_by(q, w) > 1


def _products_by(q: Queries, w: ir.Value) -> int:
    """How many products have a value on their right side."""
    return sum(isinstance(r, Product) and r.right is w for r in q.requests)


def _product(
    c: Context,
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
    if in_place:
        c.call(_gemm(spec, c.target), slots, batch=batch)
        return
    if needs_partial(spec.k, c.target) and any(t.buffer is target.buffer for t in operands):
        # What the sums of the first blocks would be written over is still to be read.
        spec = replace(spec, partial=True)
        reach = 1 + sum((n - 1) * s for n, s in zip(target.shape, target.strides, strict=True))
        slots["p"] = c.scratch(reach, target.dtype)
    c.call(_packed_gemm(spec, c.target), slots, batch=batch)


def _packed(c: Context, w: ir.Value, right: Tensor, spec: Gemm) -> tuple[Buffer, Gemm]:
    """A right-hand matrix in blocks of columns, and the product that reads it; packed once for all alike."""
    (k, n), strides, machine = right.shape, right.strides, c.typed(right.dtype)

    def make() -> Buffer:
        packed = c.scratch(panels.packed_size(n, k, machine), right.dtype)
        slots: dict[str, Slot] = {"b": right, "packed": packed}
        c.call(_pack(n, k, strides[1], strides[0], machine), slots, label="pack columns")
        return packed

    found = c.once(("columns", w, right.dtype, n, k, strides, right.offset), make)
    width, size = panels.block_width(n, machine), panels.panel_size(n, k, machine)
    return found, replace(spec, b_k=width, b_column=1, b_block=size)
