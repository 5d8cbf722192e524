"""Changes the floating-point type of a whole graph: float64 for gradient checks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, bodies_of, infer_node, numpy_dtype

__all__ = ["cast_floats"]


def cast_floats(model: ir.Model, to: ir.DataType, source: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """The model with every tensor of one floating-point type replaced by another.

    Inputs, initializers, constants and the targets of Cast change, in bodies too; then types are inferred
    anew.
    """
    model = model.clone()
    _cast_graph(model.graph, model.graph.opset_imports, to, source)
    return model


def _cast_graph(graph: ir.Graph, opsets: Mapping[str, int], to: ir.DataType, source: ir.DataType) -> None:
    for value in [*graph.inputs, *graph.initializers.values()]:
        if value.dtype == source:
            value.type = ir.TensorType(to)
        if value.const_value is not None and value.const_value.dtype == source:
            value.const_value = _cast(value.const_value, to)
    for node in graph:
        _cast_plain_constant(node, to, source)
        if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
            zero = ir.tensor(np.zeros(1, np.float32))  # the default, whatever the graph's type is
            node.attributes["value"] = ir.AttrTensor("value", zero)
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == source:
                node.attributes[name] = ir.AttrTensor(name, _cast(attribute.value, to))
        target = node.attributes.get("to") or node.attributes.get("dtype")
        if target is not None and target.value == int(source):
            node.attributes[target.name] = ir.AttrInt64(target.name, int(to))
        for body in bodies_of(node):
            _cast_graph(body, opsets, to, source)
        shapes = [v.shape for v in node.outputs]
        infer_node(node, opsets.get(node.domain, 1 if node.domain == ONWARD_DOMAIN else 0))
        for value, shape in zip(node.outputs, shapes, strict=True):
            value.shape = shape


def _cast_plain_constant(node: ir.Node, to: ir.DataType, source: ir.DataType) -> None:
    """`value_float` and `value_floats` are float32 by definition: another type needs `value`."""
    if node.op_type != "Constant" or node.domain != "" or source != ir.DataType.FLOAT:
        return
    for name in ("value_float", "value_floats"):
        if (attribute := node.attributes.pop(name, None)) is not None:
            array = np.asarray(attribute.value, np.float32).astype(numpy_dtype(to))
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))


def _cast(tensor: ir.TensorProtocol, to: ir.DataType) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(numpy_dtype(to)), name=tensor.name)
