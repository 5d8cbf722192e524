"""Weight-only quantisation: constants in integers, dequantised where they are read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import Builder, bodies_of
from onward.passes._integer_weights import Integers, by_axis, by_block, output_axis, summed_axis, weight_of
from onward.passes._selection import chosen_nodes

__all__ = ["BLOCKS", "quantize_weights"]

BLOCKS = (16, 32, 64, 128)
"""Sizes of blocks that runtimes have kernels for."""

_AXES, _BLOCKS = 13, 21
"""The first opsets with a scale for each index of an axis, and with 4-bit integers and blocks."""

_DEFAULT_BLOCK = 32
_OPERATORS = ("MatMul", "Gemm", "Gather")


def quantize_weights(
    model: ir.Model,
    bits: Literal[4, 8] = 8,
    *,
    block: int | None = None,
    keep: Collection[str] = (),
    smallest: int = 1024,
) -> ir.Model:
    """The model with the weights of MatMul, Gemm and Gather as symmetric int8 or int4 and DequantizeLinear.

    Everything is computed in float32 as before; what changes is the file, to about a quarter or an eighth.

    Args:
        model: at any opset; the result is at 21 at least where it has blocks, else at 13. It is not changed.
        bits: 8, with a scale for each output channel or table row; or 4, with a scale for each block.
        block: elements that share a scale along the axis that a product sums over, or in a table's row: 16,
            32, 64 or 128. By default none for int8 and 32 for int4.
        keep: operators, or names of nodes, whose weights stay floats.
        smallest: weights of fewer elements stay floats.

    Raises:
        ConfigError: another number of bits or block; `keep` names nothing in the model; no weight is left.
        UnsupportedError: the model cannot be taken to the opset.
    """
    from onward.model import upgrade

    if bits not in (4, 8):
        raise ConfigError(f"weights are quantised to 8 or 4 bits, not {bits}")
    if block is not None and block not in BLOCKS:
        raise ConfigError(f"a block has {', '.join(map(str, BLOCKS))} elements, not {block}")
    if bits == 4 and block is None:
        block = _DEFAULT_BLOCK
    kept = chosen_nodes(model, keep)
    least = _AXES if block is None else _BLOCKS
    old = model.graph.opset_imports.get("", 0) < least
    model = upgrade(model, least) if old else model.clone()
    g = Builder(model.graph)
    found = 0
    for value in list(model.graph.initializers.values()):
        node = next((n for n, _ in value.uses() if weight_of(n) is value and n.graph is model.graph), None)
        if node is None or node.op_type not in _OPERATORS or {node.op_type, node.name} & kept:
            continue
        assert value.const_value is not None
        weight = value.const_value.numpy()
        if weight.size < smallest:
            continue
        dtype = ir.DataType.INT8 if bits == 8 else ir.DataType.INT4
        if block is None:
            integers = by_axis(weight, output_axis(node, weight.ndim), dtype)
        else:
            integers = by_block(weight, summed_axis(node, weight.ndim), block, dtype)
        _put(g, value, integers)
        found += 1
    if not found:
        raise ConfigError(
            f"there is nothing to quantise: no {', '.join(_OPERATORS)} has a constant float32 weight of at "
            f"least {smallest} elements" + (" that is not kept" if kept else "")
        )
    return model


def _put(g: Builder, value: ir.Value, integers: Integers) -> None:
    """Put a DequantizeLinear of integers in the place of an initializer, for everything that reads it."""
    name = value.name or ""
    first = _first_reader(g.graph, value)
    readers = list(value.uses())
    content = g.initializer(g.unique(f"{name}_quantized", scoped=False), integers.content)
    scale = g.initializer(g.unique(f"{name}_scale", scoped=False), integers.scale)
    g.at(first)
    (floats,) = g.emit(
        "DequantizeLinear",
        content,
        scale,
        axis=integers.axis,
        block_size=integers.block if integers.block else None,
        outputs=[g.unique(f"{name}_dequantized", scoped=False)],
    )
    for node, operand in readers:
        node.replace_input_with(operand, floats)
    if not value.is_graph_output():
        g.graph.initializers.pop(name)


def _first_reader(graph: ir.Graph, value: ir.Value) -> ir.Node | None:
    """The first node of the graph that reads a value, or has a body that does."""
    readers = {node for node, _ in value.uses()}

    def reads(node: ir.Node) -> bool:
        return node in readers or any(n in readers for body in bodies_of(node) for n in body.all_nodes())

    return next((node for node in graph if reads(node)), None)
