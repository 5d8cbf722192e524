"""Products with quantised weights as nodes that read the integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onward.errors import OnwardError
from onward.graph import Array, Builder, bind, dims_of, replace_node
from onward.ops._shape import constant_of
from onward.ops.dequantized_mat_mul import nibbles

__all__ = ["with_integer_weights"]

_SMALLEST = 1024
"""Elements from which a weight is worth it; smaller ones are constants of a plan."""

_SHIFT = {np.dtype(np.uint8): 128, np.dtype(ml_dtypes.uint4): 8, np.dtype(ml_dtypes.uint2): 0}
"""What is taken off unsigned integers, and off their zero points, so that they fit signed ones."""

_BITS = {
    np.dtype(np.int8): 8,
    np.dtype(np.uint8): 8,
    np.dtype(ml_dtypes.int4): 4,
    np.dtype(ml_dtypes.uint4): 4,
    np.dtype(ml_dtypes.int2): 4,
    np.dtype(ml_dtypes.uint2): 4,
}
"""Bits that integers are kept in."""


@final
@dataclass(frozen=True, eq=False)
class _Weight:
    """A weight's operands of DequantizedMatMul."""

    content: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    depth: int
    bits: int
    block: int


def with_integer_weights(model: ir.Model) -> ir.Model:
    """The model with DequantizeLinear of constants and the MatMul or Gemm after it as one node.

    So it is where integers are of 8 bits or fewer, with float32 scales for the tensor, for each column of the
    product, or for blocks of what it sums over. What other nodes read, and products whose left side is
    quantised too, stay as they are. The same model where nothing changes.

    Args:
        model: in canonical form; it is not changed.
    """
    found = [n for n in model.graph if _is_product(n)]
    if not found:
        return model
    model = model.clone()
    g = Builder(model.graph)
    made: dict[tuple[ir.Node, bool], _Weight | None] = {}
    for node in [n for n in model.graph if _is_product(n)]:
        maker = node.inputs[1].producer() if node.inputs[1] is not None else None
        assert maker is not None
        transposed = bool(node.attributes.get_int("transB", 0))
        key = maker, transposed
        if key not in made:
            made[key] = _weight(g, maker, transposed, model.graph.opset_imports.get("", 0))
        weight = made[key]
        if weight is not None:
            _replace(g, node, weight)
    for maker in {maker for maker, _ in made}:
        if not maker.outputs[0].uses() and not maker.outputs[0].is_graph_output():
            model.graph.remove(maker, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            model.graph.initializers.pop(name)
    return model


def _is_product(node: ir.Node) -> bool:
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return False
    left, right = node.inputs[:2]
    maker = None if right is None else right.producer()
    if left is None or maker is None or (maker.domain, maker.op_type) != ("", "DequantizeLinear"):
        return False
    if left.dtype != ir.DataType.FLOAT or maker.graph is not node.graph or node.graph is None:
        return False
    before = left.producer()
    if before is not None and (before.domain, before.op_type) == ("", "DequantizeLinear"):
        return False  # both sides are integers: a product of bytes
    if node.op_type == "Gemm":
        return not node.attributes.get_int("transA", 0) and node.attributes.get_float("alpha", 1.0) == 1.0
    dims = dims_of(left)
    return dims is not None and len(dims) >= 2


def _replace(g: Builder, node: ir.Node, weight: _Weight) -> None:
    g.at(node)
    left = node.inputs[0]
    with g.scope(node.name or node.op_type):
        operands = [left, weight.content, weight.scale, *([] if weight.zero is None else [weight.zero])]
        y = g.onward.DequantizedMatMul(*operands, K=weight.depth, bits=weight.bits, block_size=weight.block)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        beta = node.attributes.get_float("beta", 1.0)
        if bias is not None and beta != 0:
            y = g.Add(y, bias if beta == 1 else g.Mul(bias, beta))
        replace_node(g, node, [y])
    g.at(None)


def _weight(g: Builder, maker: ir.Node, transposed: bool, opset: int) -> _Weight | None:
    """The integers of a DequantizeLinear [K, N], and scales and zero points [blocks, N]."""
    try:
        operator = bind(maker, opset)
    except OnwardError:
        return None
    x, scale, zero = (constant_of(v) for v in (*maker.inputs, None)[:3])
    if len(maker.inputs) > 2 and maker.inputs[2] is not None and zero is None:
        return None
    if x is None or scale is None or x.ndim != 2 or x.size < _SMALLEST or x.dtype not in _BITS:
        return None
    if scale.dtype != np.float32 or operator.output_dtype not in (0, ir.DataType.FLOAT):  # type: ignore[attr-defined]
        return None
    if transposed:
        x = x.T
    depth, columns = x.shape
    axis, block = operator.axis % 2, operator.block_size  # type: ignore[attr-defined]
    summed = 1 if transposed else 0
    if zero is not None and zero.shape != scale.shape:
        return None
    spread = [_by_block(v, depth, columns, axis == summed, transposed, block) for v in (scale, zero)]
    if spread[0] is None:
        return None
    shift = _SHIFT.get(x.dtype, 0)
    kept = x if shift == 0 else (x.astype(np.int16) - shift)
    zeros = np.zeros_like(spread[0], np.int16) if spread[1] is None else spread[1].astype(np.int16)
    zeros = zeros - shift
    bits = _BITS[x.dtype]
    kept = kept.astype(np.int8, copy=False)
    name = maker.inputs[0].name if maker.inputs[0] is not None else ""
    content = nibbles(kept) if bits == 4 else np.ascontiguousarray(kept)
    return _Weight(
        g.initializer(g.unique(f"{name}/integers", scoped=False), content),
        g.const(np.ascontiguousarray(spread[0])),
        g.const(zeros.astype(np.int8)) if zeros.any() else None,
        depth,
        bits,
        block if len(spread[0]) > 1 else 0,
    )


def _by_block(
    given: Array | None, depth: int, columns: int, along_depth: bool, transposed: bool, block: int
) -> Array | None:
    """Scales or zero points as [blocks, columns]; None where they are neither of those."""
    if given is None:
        return None
    if given.size == 1 and given.ndim <= 1:
        return np.broadcast_to(given.reshape(1, 1), (1, columns))
    if block == 0:
        fits = not along_depth and given.shape == (columns,)
        return given.reshape(1, columns) if fits else None
    if not along_depth:
        return None
    matrix = given.T if transposed else given
    return matrix if matrix.shape == (-(-depth // block), columns) else None
