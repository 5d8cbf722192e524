"""Types of a node's outputs: `onnx` knows the standard's operators, classes with `infer` know their own."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir
from onnx.shape_inference import InferenceError, infer_node_outputs

from onward.errors import ShapeError, UnsupportedError
from onward.graph.op import ONWARD_DOMAIN, Op, bind, registered
from onward.graph.types import dims_of

__all__ = ["infer_node"]

_DATA_LIMIT = 1024
"""Constants up to this many elements are given to inference as data: shapes, axes, repeats, splits."""


def infer_node(node: ir.Node, opset: int, known: Mapping[ir.Value, ir.TensorProtocol] | None = None) -> None:
    """Set the types and shapes of a node's outputs from those of its inputs, as far as they follow.

    Args:
        node: the node; its inputs carry types.
        opset: the opset of the node's domain.
        known: values whose contents are known beside those that are constants in the graph.

    Raises:
        ShapeError: the inputs' types or shapes contradict the operator.
        UnsupportedError: the operator does not exist at this opset.
    """
    if node.domain == ONWARD_DOMAIN:
        _infer_by_class(node, bind(node, opset))
        return
    where = f"node {node.name!r}, operator {node.op_type}, opset {opset}"
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        raise UnsupportedError(f"{where}: domain {node.domain or 'ai.onnx'!r} has no such operator") from None
    proto = ir.to_proto(node)
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    # inference works on names: an unnamed or repeated value gets a name of its position
    proto.input[:] = ["" if value is None else f"i{i}" for i, value in enumerate(node.inputs)]
    proto.output[:] = ["" if value.name == "" else f"o{i}" for i, value in enumerate(node.outputs)]
    for i, value in enumerate(node.inputs):
        if value is None:
            continue
        name = f"i{i}"
        types[name] = _type_proto(value)
        content = value.const_value
        if content is None and known is not None:
            content = known.get(value)
        if content is not None and content.size <= _DATA_LIMIT:
            data[name] = ir.to_proto(content)
    imports = [onnx.helper.make_opsetid(node.domain, opset)]
    try:
        found = infer_node_outputs(schema, proto, types, data, opset_imports=imports, ir_version=10)
    except (InferenceError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[-1]
        operands = ", ".join("-" if v is None else _describe(v) for v in node.inputs)
        raise ShapeError(f"{where}: {reason} (inputs: {operands})") from None
    for i, value in enumerate(node.outputs):
        if (result := found.get(f"o{i}")) is not None:
            value.type = ir.serde.deserialize_type_proto_for_type(result)
            value.shape = ir.serde.deserialize_type_proto_for_shape(result)
    versions = registered().get(("", node.op_type), {})
    if hasattr(versions.get(schema.since_version), "infer"):
        _infer_by_class(node, bind(node, opset))


def _infer_by_class(node: ir.Node, operator: Op) -> None:
    results = operator.infer(*node.inputs)  # type: ignore[attr-defined]
    for value, (dtype, dims) in zip(node.outputs, results, strict=False):
        value.type = ir.TensorType(dtype)
        value.shape = None if dims is None else ir.Shape(dims)


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    if value.type is not None:
        ir.serde.serialize_type_into(proto, value.type)
        if value.shape is not None:
            ir.serde.serialize_shape_into(proto, value.shape)
    return proto


def _describe(value: ir.Value) -> str:
    dims = dims_of(value)
    shape = "[?]" if dims is None else "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
    return f"{value.name}: {value.dtype.name.lower() if value.dtype is not None else '?'}{shape}"
