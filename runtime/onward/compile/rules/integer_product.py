"""Products and convolutions of rounded values, in 8-bit integers where the machine multiplies bytes."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from onward.compile.codegen.target import has_byte_dots
from onward.compile.context import Context, Layout, Queries
from onward.compile.items import Slot
from onward.compile.kernels import integer_gemm as kernels
from onward.compile.kernels.integer_conv import IntegerConvolution, integer_convolution, suits_bytes
from onward.compile.kernels.integer_gemm import IntegerGemm
from onward.compile.kernels.layout import Convolution
from onward.compile.tensors import Buffer, Tensor, row_major
from onward.compile.write_back import WriteBack
from onward.graph import ONWARD_DOMAIN

__all__ = ["LEAST_DEPTH", "LEAST_WIDTH", "Rounded", "convolved_in_integers", "in_integers", "rounded"]

_gemm = functools.lru_cache(256)(kernels.integer_gemm)
_convolution = functools.lru_cache(256)(integer_convolution)
_pack = functools.lru_cache(256)(kernels.pack_integers)

LEAST_DEPTH, LEAST_WIDTH = 32, 16
"""Smaller products gain nothing by turning their left side into bytes."""

_SUMS = (1 << 31) // (255 * 128)
"""How deep products may be whose sums int32 surely holds."""


@dataclass(frozen=True, eq=False)
class Rounded:
    """What is known of a value that is whole numbers times a scale.

    Attributes:
        scale: one, or one a column of a matrix.
        low, high: the range of the whole numbers.
    """

    scale: ir.Value
    low: int
    high: int


def rounded(q: Queries, value: ir.Value) -> Rounded | None:
    """What FakeQuantize made of a value: None where something else made it, or it may be NaN."""
    node = value.producer()
    if node is None or (node.op_type, node.domain) != ("FakeQuantize", ONWARD_DOMAIN):
        return None
    if not node.attributes.get_int("nan_to_low", 0):
        return None
    _, scale, low, high = node.inputs
    assert scale is not None
    limits = [None if v is None else q.known(v) for v in (low, high)]
    if any(x is None or x.size != 1 for x in limits):
        return None
    least, largest = (int(np.asarray(x).reshape(())) for x in limits)
    return Rounded(scale, least, largest)


def in_integers(
    c: Context, back: WriteBack, left: Tensor, right: Tensor, bias: Tensor | None, x: ir.Value, w: ir.Value
) -> bool:
    """Emit a product of matrices in integers; False where it is none of those, and nothing is emitted."""
    if not has_byte_dots(c.target) or left.dtype != np.float32 or not c.is_constant(right):
        return False
    (_, k), n = left.shape, right.shape[1]
    a, b = rounded(c, x), rounded(c, w)
    if a is None or b is None or k < LEAST_DEPTH or n < LEAST_WIDTH or k > _SUMS:
        return False
    scale = c.known(a.scale)
    if scale is None or scale.size != 1 or a.high - a.low > 255 or b.low < -128 or b.high > 127:
        return False
    shape = c.shape(b.scale)
    columns = bool(shape) and int(np.prod(shape)) != 1
    if left.strides[1] != 1 or back.target.strides[1] != 1 or (columns and shape[-1:] != (n,)):
        return False
    if columns and int(np.prod(shape)) != n:
        return False
    epilogue, operands = back.epilogue(bias)
    one = float(np.asarray(scale, np.float32).reshape(()))
    spec = IntegerGemm(n, k, left.strides[0], back.target.strides[0], one, a.low, epilogue)
    packed, sums, factors = _packed(c, w, b, right, spec, columns=columns)
    m = left.shape[0]
    slots: dict[str, Slot] = {"a": left, "packed": packed, "sums": sums, "factors": factors}
    slots |= {"c": back.target, "batch": m}
    slots |= {f"e{i}": t for i, t in enumerate(operands)}
    c.call(_gemm(spec, c.target), slots, batch=m)
    return True


def convolved_in_integers(
    c: Context,
    back: WriteBack,
    conv: Convolution,
    source: Tensor,
    bias: Tensor | None,
    x: ir.Value,
    w: ir.Value,
) -> bool:
    """Emit a convolution in integers; False where it is none of those, and nothing is emitted."""
    depth, n = conv.inputs * prod(conv.kernel), conv.y.channels
    if not has_byte_dots(c.target) or source.dtype != np.float32 or not suits_bytes(conv):
        return False
    a, b = rounded(c, x), rounded(c, w)
    if a is None or b is None or n < LEAST_WIDTH or depth > _SUMS:
        return False
    weights = c.layout(w, Layout.PLAIN)
    scale, shape = c.known(a.scale), c.shape(b.scale)
    if scale is None or scale.size != 1 or a.high - a.low > 255 or b.low < -128 or b.high > 127:
        return False
    columns = prod(shape) != 1
    if not c.is_constant(weights) or (columns and (prod(shape) != n or shape[0] != n)):
        return False
    epilogue, operands = back.epilogue(bias)
    one = float(np.asarray(scale, np.float32).reshape(()))
    spec = IntegerConvolution(conv, one, a.low, epilogue)
    packed, sums, factors = _packed(c, w, b, None, spec.product, columns=columns)
    batch = source.shape[0]
    slots: dict[str, Slot] = {"a": source.buffer, "packed": packed, "sums": sums, "factors": factors}
    slots |= {"c": back.target.buffer, "batch": batch}
    slots |= {f"e{i}": t.buffer if t.image else t for i, t in enumerate(operands)}
    c.call(_convolution(spec, c.target), slots, batch=batch)
    return True


def _taps_first(c: Context, w: ir.Value) -> Tensor:
    """Weights [O, C, *kernel] as a matrix [*kernel · C, O]."""
    plain = c.plain(w)
    order = [*range(2, len(plain.shape)), 1, 0]
    shape = tuple(plain.shape[a] for a in order)
    transposed = replace(plain, shape=shape, strides=tuple(plain.strides[a] for a in order), image=None)
    target = Tensor(Buffer(plain.nbytes), shape, row_major(shape), plain.dtype)
    c.copy(transposed, target)
    columns = shape[-1]
    return replace(target, shape=(plain.size // columns, columns), strides=(columns, 1))


def _packed(
    c: Context, w: ir.Value, b: Rounded, right: Tensor | None, spec: IntegerGemm, *, columns: bool
) -> tuple[Buffer, Tensor, Tensor]:
    """A right side in bytes, packed once for all that read it alike; without one, that of a convolution."""
    place = None if right is None else (right.strides, right.offset)
    key = ("bytes", w, spec.n, spec.k, spec.scale, spec.low, place)
    found: tuple[Buffer, Tensor, Tensor] | None = c.kept(key)
    if found is None:
        if right is None:
            right = _taps_first(c, w)
        whole = -(-spec.n // c.target.lanes) * c.target.lanes
        packed = c.scratch(kernels.packed_bytes(spec.n, spec.k, c.target), np.dtype(np.int8))
        sums, factors = c.vector(whole, np.dtype(np.int32)), c.vector(whole, np.dtype(np.float32))
        strides = right.strides[1], right.strides[0]
        plain = IntegerGemm(spec.n, spec.k, 0, 0, spec.scale, spec.low)
        kernel = _pack(spec.n, spec.k, *strides, int(columns), plain, c.target)
        slots: dict[str, Slot] = {"b": right, "scale": c.plain(b.scale), "packed": packed}
        c.call(kernel, {**slots, "sums": sums, "factors": factors}, label="pack bytes")
        found = packed, sums, factors
        c.keep(key, found)
    return found
