"""Changes the floating-point type of a whole graph: float64 for gradient checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from onward.graph import ONWARD_DOMAIN, bodies_of, infer_node, numpy_dtype

__all__ = ["cast_floats"]


def cast_floats(model: ir.Model, to: ir.DataType, source: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """The model with every tensor of one floating-point type replaced by another.

    Inputs, initializers, constants and the targets of Cast change, in bodies too; then types are inferred
    anew. Operands that have the type by their operator's schema, such as Resize's scales, keep it.
    """
    model = model.clone()
    _cast_graph(model.graph, model.graph.opset_imports, to, source)
    return model


def _cast_graph(graph: ir.Graph, opsets: Mapping[str, int], to: ir.DataType, source: ir.DataType) -> None:
    fixed = {v for node in graph for v in _of_fixed_type(node, opsets, source)}
    for value in [*graph.inputs, *graph.initializers.values()]:
        if value in fixed:
            continue
        if value.dtype == source and value.type is not None:
            value.type = _retyped(value.type, to)
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


def _retyped(given: ir.TypeProtocol, to: ir.DataType) -> ir.TypeProtocol:
    """The type with other elements: of a tensor, or of a sequence or an optional of them."""
    if isinstance(given, ir.SequenceType | ir.OptionalType):
        return type(given)(_retyped(given.elem_type, to))
    return ir.TensorType(to)


def _of_fixed_type(node: ir.Node, opsets: Mapping[str, int], source: ir.DataType) -> Iterator[ir.Value]:
    """The operands whose type is this one whatever the others' is."""
    if node.domain == ONWARD_DOMAIN or node.domain not in opsets:
        return
    try:
        formals = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain).inputs
    except onnx.defs.SchemaError:
        return
    for i, value in enumerate(node.inputs):
        if (
            value is not None
            and formals[min(i, len(formals) - 1)].type_str == f"tensor({source.name.lower()})"
        ):
            yield value


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
