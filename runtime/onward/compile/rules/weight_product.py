"""Products with quantised weights: kernels read the integers, and widen them in registers or caches."""

from __future__ import annotations

import functools
from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from onward.compile.codegen.target import has_byte_dots
from onward.compile.context import Context, Queries
from onward.compile.items import Slot
from onward.compile.kernels import integer_dots, integer_rows, packed
from onward.compile.kernels import integer_weights as kernels
from onward.compile.kernels.gemm import Gemm
from onward.compile.kernels.integer_dots import dots_bytes, suits_dots
from onward.compile.kernels.integer_weights import IntegerWeights
from onward.compile.kernels.product_blocking import needs_partial
from onward.compile.registry import lowers
from onward.compile.rules.integer_product import LEAST_DEPTH, LEAST_WIDTH
from onward.compile.tensors import Buffer, Tensor, gapless, reshaped
from onward.graph.requests import RoundedProduct, WeightProduct

__all__ = ["rounded_product", "weight_product"]

_rows = functools.lru_cache(256)(integer_rows.integer_rows)
_packed_gemm = functools.lru_cache(256)(packed.packed_gemm)
_dots = functools.lru_cache(256)(integer_dots.integer_dots)
_pack = functools.lru_cache(256)(kernels.pack_weights)
_pack_dots = functools.lru_cache(256)(integer_dots.pack_dots)

_INT8 = 4
"""The accuracy level that lets left sides be rounded to 8 bits."""


def _unsuited(q: Queries, request: WeightProduct) -> str | None:
    if q.dtype(request.left) != np.float32:
        return f"{request.left.name} is {q.dtype(request.left)}"
    if reason := q.empty(request.left, request.right):
        return reason
    if request.block % 2 and request.block < request.depth:
        return f"blocks of {request.block}"
    return None


@lowers(WeightProduct, suits=_unsuited)
def weight_product(c: Context, request: WeightProduct) -> None:
    """One matrix for all leading axes, whose rows count together."""
    k, n = request.depth, c.shape(request.right)[-1]
    rows = _rows_of(c, request.left, k)
    m = rows.shape[0]
    back = c.write_back(request.y, image=False)
    target = reshaped(back.target, (m, n))
    assert target is not None, "rows of results have no gaps"
    weights = IntegerWeights(n, k, request.bits, min(request.block, k), request.zero_point is not None)
    epilogue, operands = back.epilogue(None)
    spec = Gemm(None, n, k, rows.strides[0], 1, n, target.strides[0], epilogue=epilogue, weights=weights)
    slots: dict[str, Slot] = {"a": rows, "c": target, "batch": m, "scale": c.plain(request.scale)}
    if request.zero_point is not None:
        slots["zero"] = c.plain(request.zero_point)
    slots |= {f"e{i}": t for i, t in enumerate(operands)}
    if _in_bytes(c, weights):
        packed_bytes, sums = _groups(c, request.right, weights)
        slots |= {"b": packed_bytes, "sums": sums}
        c.call(_dots(spec, c.target), slots, batch=m)
        return
    slots["b"] = _integers(c, request, weights)
    if m <= c.target.tuning.product_widened:
        c.call(_rows(spec, c.target), slots, batch=m)
        return
    if needs_partial(k, c.target) and any(t.buffer is target.buffer for t in operands):
        spec = replace(spec, partial=True)
        slots["p"] = c.scratch(m * n, np.dtype(np.float32))
    c.call(_packed_gemm(spec, c.target), slots, batch=m)


def _not_in_bytes(q: Queries, request: RoundedProduct) -> str | None:
    if q.dtype(request.left) != np.float32:
        return f"{request.left.name} is {q.dtype(request.left)}"
    if not has_byte_dots(q.target):
        return "the processor does not multiply bytes"
    k, n = q.shape(request.right)
    if not suits_dots(IntegerWeights(n, k, 8, k, zeros=False)):
        return f"int32 does not hold sums of {k} products"
    return q.empty(request.left, request.right)


@lowers(RoundedProduct, suits=_not_in_bytes)
def rounded_product(c: Context, request: RoundedProduct) -> None:
    """Sums of bytes, exact in int32."""
    k, n = c.shape(request.right)
    rows = _rows_of(c, request.left, k)
    back = c.write_back(request.y, image=False)
    target = reshaped(back.target, (rows.shape[0], n))
    assert target is not None, "rows of results have no gaps"
    weights = IntegerWeights(n, k, 8, k, zeros=False)
    epilogue, operands = back.epilogue(None)
    spec = Gemm(None, n, k, rows.strides[0], 1, n, target.strides[0], epilogue=epilogue, weights=weights)
    packed_bytes, sums = _groups(c, request.right, weights)
    slots: dict[str, Slot] = {"a": rows, "b": packed_bytes, "sums": sums, "c": target}
    slots |= {"a_scale": c.plain(request.scale), "a_zero": c.plain(request.zero_point)}
    slots |= {f"e{i}": t for i, t in enumerate(operands)}
    m = rows.shape[0]
    c.call(_dots(spec, c.target, by_tensor=True), {**slots, "batch": m}, batch=m)


def _rows_of(c: Context, left: ir.Value, k: int) -> Tensor:
    """A left side as one matrix, rows without gaps inside."""
    shape = prod(c.shape(left)[:-1]), k
    rows = reshaped(c.present(left), shape)
    return gapless(c.plain(left), shape) if rows is None or rows.strides[1] != 1 else rows


def _in_bytes(q: Queries, weights: IntegerWeights) -> bool:
    """Whether the user lets the left side be rounded, and that pays."""
    if q.options.accuracy_level != _INT8 or not has_byte_dots(q.target):
        return False
    return suits_dots(weights) and weights.k >= LEAST_DEPTH and weights.n >= LEAST_WIDTH


def _groups(c: Context, right: ir.Value, weights: IntegerWeights) -> tuple[Buffer, Tensor]:
    """The weight in groups of four rows, and what A's shift adds to sums."""
    key = ("groups", right, weights)
    found: tuple[Buffer, Tensor] | None = c.kept(key)
    if found is None:
        made = c.scratch(dots_bytes(weights), np.dtype(np.int8))
        sums = c.vector(weights.blocks * weights.n, np.dtype(np.int32))
        slots: dict[str, Slot] = {"b": c.plain(right), "packed": made, "sums": sums}
        c.call(_pack_dots(weights, c.target), slots, label="pack bytes")
        found = made, sums
        c.keep(key, found)
    return found


def _integers(c: Context, request: WeightProduct, weights: IntegerWeights) -> Buffer:
    """The weight in blocks of columns, packed once for all products that read it."""

    def make() -> Buffer:
        made = c.scratch(kernels.packed_weight_bytes(weights), np.dtype(np.int8))
        source: Tensor = c.plain(request.right)
        c.call(_pack(weights, c.target), {"b": source, "packed": made}, label="pack integers")
        return made

    return c.once(("integers", request.right, weights), make)
