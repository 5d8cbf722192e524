"""Leaves open the batch of a file that takes one sample at a time, as exports without dynamic axes do."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx_ir as ir

from onward.errors import OnwardError
from onward.graph import Builder, dims_of, infer_node, is_tensor

__all__ = ["open_batch"]

_BATCH = "N"


def open_batch(model: ir.Model) -> ir.Model | None:
    """The model with the first extent of all inputs and outputs, 1 in the file, left open.

    Constant targets of Reshape that begin with the batch follow what they are given. Whether the result does
    with several samples what the file does with each has to be tried: constants may hold the batch elsewhere.

    Args:
        model: it is not changed.

    Returns:
        None where an input or output does not begin with an extent of 1.
    """
    initializers = model.graph.initializers
    inputs = [v for v in model.graph.inputs if v.name not in initializers]
    for value in (*inputs, *model.graph.outputs):
        dims = dims_of(value) if is_tensor(value) else None
        if not dims or dims[0] != 1:
            return None
    if not inputs:
        return None
    model = model.clone()
    graph = model.graph
    for value in graph.inputs:
        if value.name not in graph.initializers:
            value.shape = _opened(value)
    outputs = {value: _opened(value) for value in graph.outputs}
    g = Builder(graph)
    for node in list(graph):
        for value in node.outputs:
            value.shape = None
        if node.op_type == "Reshape" and node.domain == "":
            _follow(g, node)
        with contextlib.suppress(OnwardError):  # whoever runs the node is told
            infer_node(node, graph.opset_imports.get(node.domain, 0))
    for value, shape in outputs.items():
        value.shape = shape
    return model


def _opened(value: ir.Value) -> ir.Shape:
    return ir.Shape([_BATCH, *(dims_of(value) or ())[1:]])


def _follow(g: Builder, node: ir.Node) -> None:
    """Let a target that begins with the batch of one sample begin with the batch there is."""
    data, target = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    content = None if target is None else ir.convenience.get_const_tensor(target)
    if data is None or content is None:
        return
    wanted = np.array(content.numpy())
    first = dims_of(data) or (None,)
    if wanted.ndim != 1 or not wanted.size:
        return
    if wanted[0] == 1 and first[0] == _BATCH and not node.attributes.get_int("allowzero", 0):
        wanted[0] = 0
    elif (wanted > 0).all() and any(not isinstance(d, int) for d in dims_of(data) or (None,)):
        wanted[0] = -1
    else:
        return
    node.replace_input_with(1, g.const(wanted))
