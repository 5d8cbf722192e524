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
from onward.ops.dynamic_quantize_linear import scale_and_zero

__all__ = ["with_integer_weights"]

_SMALLEST = 1024
"""Elements from which a weight is worth it; smaller ones are constants of a plan."""

_LEAST_DEPTH, _LEAST_WIDTH = 32, 16
_DEEPEST = (1 << 31) // (255 * 128)
"""Of products in bytes: smaller ones gain nothing, int32 does not hold the sums of deeper ones."""

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


def with_integer_weights(model: ir.Model, *, bytes_multiply: bool = False) -> ir.Model:
    """The model with DequantizeLinear of constants and the MatMul or Gemm after it as one node.

    So it is where integers are of 8 bits or fewer, with float32 scales for the tensor, for each column of the
    product, or for blocks of what it sums over. What other nodes read, and products whose left side is
    quantised too, stay as they are. So it is, with `bytes_multiply`, with MatMulInteger of what
    DynamicQuantizeLinear gives and of symmetric constants, and the Cast after it. The same model where
    nothing changes.

    Args:
        model: in canonical form; it is not changed.
        bytes_multiply: whether the processor has an instruction for products of bytes.
    """
    dynamic = bytes_multiply and any(_is_dynamic(n) for n in model.graph)
    if not dynamic and not any(_is_product(n) or _is_look_up(n) for n in model.graph):
        return model
    model = model.clone()
    g = Builder(model.graph)
    if dynamic:
        _dynamic(g)
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
    looked_up: set[ir.Node] = set()
    for node in [n for n in model.graph if _is_look_up(n)]:
        maker = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert maker is not None
        if _look_up(g, node, maker, model.graph.opset_imports.get("", 0)):
            looked_up.add(maker)
    for maker in {maker for maker, _ in made} | looked_up:
        if not maker.outputs[0].uses() and not maker.outputs[0].is_graph_output():
            model.graph.remove(maker, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            model.graph.initializers.pop(name)
    return model


def _is_dynamic(node: ir.Node) -> bool:
    """A MatMulInteger of DynamicQuantizeLinear's integers and symmetric constants that a Cast alone reads."""
    if (node.domain, node.op_type) != ("", "MatMulInteger") or len(node.inputs) < 3:
        return False
    left, right, zero = node.inputs[:3]
    maker = None if left is None else left.producer()
    if maker is None or (maker.domain, maker.op_type) != ("", "DynamicQuantizeLinear"):
        return False
    if left is not maker.outputs[0] or zero is not maker.outputs[2] or maker.graph is not node.graph:
        return False
    dims, w = dims_of(left), constant_of(right)
    if dims is None or len(dims) < 2 or w is None or w.ndim != 2 or w.size < _SMALLEST:
        return False
    if w.shape[0] < _LEAST_DEPTH or w.shape[0] > _DEEPEST or w.shape[1] < _LEAST_WIDTH:
        return False
    points = constant_of(node.inputs[3]) if len(node.inputs) > 3 else None
    if len(node.inputs) > 3 and node.inputs[3] is not None and points is None:
        return False
    if ((np.zeros(1) if points is None else points.astype(np.int16)) != _SHIFT.get(w.dtype, 0)).any():
        return False
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return False
    cast = uses[0].node
    return cast.op_type == "Cast" and cast.attributes.get_int("to", 0) == ir.DataType.FLOAT


def _dynamic(g: Builder) -> None:
    """Put DynamicMatMul in the place of products by `_is_dynamic`."""
    scales: dict[ir.Node, tuple[ir.Value, ir.Value]] = {}
    weights: dict[ir.Value, ir.Value] = {}
    for node in [n for n in g.graph if _is_dynamic(n)]:
        left, right = node.inputs[:2]
        maker = None if left is None else left.producer()
        w = constant_of(right)
        assert maker is not None
        assert right is not None
        assert w is not None
        x = maker.inputs[0]
        assert x is not None
        if maker not in scales:
            g.at(maker)
            with g.scope(maker.name or maker.op_type):
                scale, zero = scale_and_zero(g, x)
                scales[maker] = scale, g.Cast(zero, to=int(ir.DataType.UINT8))
        if right not in weights:
            shifted = w if w.dtype == np.int8 else (w.astype(np.int16) - _SHIFT[w.dtype]).astype(np.int8)
            weights[right] = g.initializer(g.unique(f"{right.name}/integers", scoped=False), shifted)
        cast = next(iter(node.outputs[0].uses())).node
        g.at(cast)
        with g.scope(node.name or node.op_type):
            y = g.onward.DynamicMatMul(x, *scales[maker], weights[right])
            replace_node(g, cast, [y])
        g.graph.remove(node, safe=True)
        g.at(None)
    for maker, (scale, zero) in scales.items():
        if not maker.outputs[0].uses() and not any(v.is_graph_output() for v in maker.outputs):
            ir.convenience.replace_all_uses_with(maker.outputs[1], scale)
            ir.convenience.replace_all_uses_with(maker.outputs[2], zero)
            g.graph.remove(maker, safe=True)


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


def _is_look_up(node: ir.Node) -> bool:
    """A Gather of rows of a dequantised table."""
    if (node.domain, node.op_type) != ("", "Gather") or node.attributes.get_int("axis", 0) != 0:
        return False
    maker = None if node.inputs[0] is None else node.inputs[0].producer()
    return maker is not None and (maker.domain, maker.op_type) == ("", "DequantizeLinear")


def _look_up(g: Builder, node: ir.Node, maker: ir.Node, opset: int) -> bool:
    """Take rows of a table's integers and dequantise these; whether that can be done."""
    form = _weight_form(maker, opset)
    if form is None:
        return False
    table, scale, zero = form.content, form.scale, form.zero
    rows, width = table.shape
    by_row = scale.size == rows and scale.ndim == 1 and form.axis == 0 and not form.block
    by_block = form.axis == 1 and form.block > 0 and scale.shape == (rows, -(-width // form.block))
    if not by_row and not by_block:
        return False
    indices = node.inputs[1]
    g.at(node)
    with g.scope(node.name or node.op_type):
        at = np.zeros(width, np.int64) if by_row else np.arange(width) // form.block

        def taken(array: Array) -> ir.Value:
            """The scales or zero points of rows, one for each element or one a row."""
            part = g.Gather(g.const(array.reshape(rows, -1)), indices, axis=0)
            return part if by_row else g.Gather(part, g.const(at), axis=-1)

        whole = g.initializer(g.unique(f"{maker.outputs[0].name}/table", scoped=False), table)
        y = g.Cast(g.Gather(whole, indices, axis=0), to=int(ir.DataType.FLOAT))
        if zero is not None:
            y = g.Sub(y, taken(zero.astype(np.float32)))
        replace_node(g, node, [g.Mul(y, taken(scale))])
    g.at(None)
    return True


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


@final
@dataclass(frozen=True, eq=False)
class _Form:
    """A DequantizeLinear of a constant matrix: signed integers of a byte, scales and zero points as given."""

    content: Array
    scale: Array
    zero: Array | None
    axis: int
    block: int
    bits: int


def _weight_form(maker: ir.Node, opset: int) -> _Form | None:
    """What a DequantizeLinear's operands are; None where they are not constants of these types."""
    try:
        operator = bind(maker, opset)
    except OnwardError:
        return None
    x, scale, zero = (constant_of(v) for v in (*maker.inputs, None)[:3])
    if len(maker.inputs) > 2 and maker.inputs[2] is not None and zero is None:
        return None
    if x is None or scale is None or x.ndim != 2 or x.size < _SMALLEST or x.dtype not in _BITS:
        return None
    given = operator.output_dtype  # type: ignore[attr-defined]
    if scale.dtype != np.float32 or given not in (0, ir.DataType.FLOAT):
        return None
    if zero is not None and zero.shape != scale.shape:
        return None
    shift = _SHIFT.get(x.dtype, 0)
    content = x if shift == 0 else x.astype(np.int16) - shift
    zeros = np.zeros(scale.shape, np.int16) if zero is None else zero.astype(np.int16)
    zeros = zeros - shift
    axis, block = operator.axis % 2, operator.block_size  # type: ignore[attr-defined]
    return _Form(
        np.ascontiguousarray(content.astype(np.int8, copy=False)),
        scale,
        zeros.astype(np.int8) if zeros.any() else None,
        axis,
        block,
        _BITS[x.dtype],
    )


def _weight(g: Builder, maker: ir.Node, transposed: bool, opset: int) -> _Weight | None:
    """The integers of a DequantizeLinear [K, N], and scales and zero points [blocks, N]."""
    form = _weight_form(maker, opset)
    if form is None:
        return None
    content = form.content.T if transposed else form.content
    depth, columns = content.shape
    along_depth = form.axis == (1 if transposed else 0)
    scale, zero = (
        _by_block(v, depth, columns, along_depth, transposed, form.block) for v in (form.scale, form.zero)
    )
    if scale is None:
        return None
    name = maker.inputs[0].name if maker.inputs[0] is not None else ""
    stored = nibbles(content) if form.bits == 4 else np.ascontiguousarray(content)
    return _Weight(
        g.initializer(g.unique(f"{name}/integers", scoped=False), stored),
        g.const(np.ascontiguousarray(scale)),
        None if zero is None else g.const(np.ascontiguousarray(zero)),
        depth,
        form.bits,
        form.block if len(scale) > 1 else 0,
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
