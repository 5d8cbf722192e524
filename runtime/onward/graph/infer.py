"""Types of a node's outputs: `onnx` knows the standard's operators, classes with `infer` know their own."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx.shape_inference import InferenceError, infer_node_outputs

from onward.errors import ShapeError, UnsupportedError
from onward.graph.op import ONWARD_DOMAIN, bind, has_schemas, versions_of
from onward.graph.types import Array, Dim, dims_of, dtype_of

__all__ = ["infer_node", "range_is_short", "steps_are_safe"]

_DATA_LIMIT = 1024
"""Constants up to this many elements are given to inference as data: shapes, axes, repeats, splits."""

_STEPS = 4
"""The operand of Slice that holds steps."""

_LONGEST_RANGE = 1 << 24
"""Elements of a Range whose contents `onnx` is shown."""

_LARGEST_STEP = 1 << 30
"""Steps of Slice above are not shown to `onnx`, whose inference cuts them to 32 bits and ends the process."""

_KNOWN_LIMIT = 1 << 13
"""Results of inference kept: layers and time steps repeat, and a result costs 0.2 ms."""

_Types: TypeAlias = "tuple[tuple[ir.DataType, tuple[Dim, ...] | None] | None, ...]"
_known: dict[Hashable, _Types] = {}
_SIMPLE = frozenset(
    {
        ir.AttributeType.INT,
        ir.AttributeType.FLOAT,
        ir.AttributeType.STRING,
        ir.AttributeType.INTS,
        ir.AttributeType.FLOATS,
        ir.AttributeType.STRINGS,
    }
)


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
    if node.domain == ONWARD_DOMAIN or (
        versions_of(node.domain, node.op_type) and not has_schemas(node.domain)
    ):
        _infer_by_class(node, opset)
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        where = f"node {node.name!r}, operator {node.op_type}, opset {opset}"
        raise UnsupportedError(f"{where}: domain {node.domain or 'ai.onnx'!r} has no such operator") from None
    if any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
        return  # what its bodies give is declared
    contents = [_content(value, known) for value in node.inputs]
    steps = contents[_STEPS] if node.op_type == "Slice" and len(contents) > _STEPS else None
    if steps is not None and not steps_are_safe(steps.numpy()):
        contents[_STEPS] = None
    if node.op_type == "Range" and not range_is_short([None if c is None else c.numpy() for c in contents]):
        contents[0] = None
    key = _key(node, opset, contents)
    types = _known.get(key) if key is not None else None
    if types is None:
        found = _inferred(node, opset, schema, contents)
        for value, result in zip(node.outputs, found, strict=True):
            if result is not None:
                value.type = ir.serde.deserialize_type_proto_for_type(result)
                value.shape = ir.serde.deserialize_type_proto_for_shape(result)
        if key is not None and all(r is None or r.HasField("tensor_type") for r in found):
            if len(_known) >= _KNOWN_LIMIT:
                _known.clear()
            _known[key] = tuple(
                None if r is None else (dtype_of(v), dims_of(v))
                for v, r in zip(node.outputs, found, strict=True)
            )
    else:
        for value, known_type in zip(node.outputs, types, strict=True):
            if known_type is not None:
                dtype, dims = known_type
                value.type = ir.TensorType(dtype)
                value.shape = None if dims is None else ir.Shape(dims)
    versions = versions_of("" if node.domain == "ai.onnx" else node.domain, node.op_type)
    if hasattr(versions.get(schema.since_version), "infer"):
        _infer_by_class(node, opset)


def steps_are_safe(steps: Array) -> bool:
    """Whether `onnx` may see these steps of a Slice."""
    return not np.any((steps > _LARGEST_STEP) | (steps < -_LARGEST_STEP))


def range_is_short(operands: Sequence[Array | None]) -> bool:
    """Whether `onnx` may see these operands of a Range: its inference counts up to the end."""
    numbers = [float(o.reshape(-1)[0]) for o in operands if o is not None and o.size]
    if len(numbers) < 3:
        return True
    start, limit, delta = numbers
    return delta != 0 and (limit - start) / delta <= _LONGEST_RANGE


def _inferred(
    node: ir.Node, opset: int, schema: onnx.defs.OpSchema, contents: Sequence[ir.TensorProtocol | None]
) -> list[onnx.TypeProto | None]:
    """The types of a node's outputs by onnx; None where nothing follows."""
    # inference works on names: an unnamed or repeated value gets a name of its position
    proto = onnx.NodeProto(
        op_type=node.op_type,
        domain=node.domain,
        input=["" if value is None else f"i{i}" for i, value in enumerate(node.inputs)],
        output=["" if value.name == "" else f"o{i}" for i, value in enumerate(node.outputs)],
    )
    for attribute in node.attributes.values():
        if attribute.is_ref():
            ir.serde.serialize_reference_attribute_into(proto.attribute.add(), attribute)
        else:
            ir.serde.serialize_attribute_into(proto.attribute.add(), attribute)
    types = {f"i{i}": _type_proto(value) for i, value in enumerate(node.inputs) if value is not None}
    data = {f"i{i}": ir.serde.serialize_tensor(c) for i, c in enumerate(contents) if c is not None}
    if node.op_type == "Range":  # the bodies of the standard give it vectors of one element
        for name, proto_type in types.items():
            _make_scalar(proto_type, data.get(name))
    imports = [onnx.helper.make_opsetid(node.domain, opset)]
    try:
        found = infer_node_outputs(schema, proto, types, data, opset_imports=imports, ir_version=10)
    except (InferenceError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[-1]
        operands = ", ".join("-" if v is None else _describe(v) for v in node.inputs)
        raise ShapeError(
            f"node {node.name!r}, operator {node.op_type}, opset {opset}: {reason} (inputs: {operands})"
        ) from None
    return [found.get(f"o{i}") for i in range(len(node.outputs))]


def _content(
    value: ir.Value | None, known: Mapping[ir.Value, ir.TensorProtocol] | None
) -> ir.TensorProtocol | None:
    """The contents of a value that inference may use."""
    if value is None:
        return None
    content = value.const_value
    if content is None and known is not None:
        content = known.get(value)
    return content if content is not None and content.size <= _DATA_LIMIT else None


def _key(node: ir.Node, opset: int, contents: Sequence[ir.TensorProtocol | None]) -> Hashable:
    """Everything that inference looks at; None where that is more than numbers and tensor types."""
    attributes: list[Hashable] = []
    for name, attribute in node.attributes.items():
        if attribute.is_ref() or attribute.type not in _SIMPLE:
            return None
        content = attribute.value
        attributes.append((name, attribute.type, content if isinstance(content, str) else repr(content)))
    operands: list[Hashable] = []
    for value, data in zip(node.inputs, contents, strict=True):
        if value is None:
            operands.append(None)
            continue
        if value.type is not None and type(value.type) is not ir.TensorType:
            return None
        if data is None:
            operands.append((value.dtype, dims_of(value)))
        elif data.dtype == ir.DataType.STRING:
            return None
        else:
            array = data.numpy()
            operands.append((value.dtype, dims_of(value), data.dtype, array.shape, array.tobytes()))
    named = tuple(value.name == "" for value in node.outputs)
    return (node.domain, node.op_type, opset, tuple(attributes), tuple(operands), named)


def _infer_by_class(node: ir.Node, opset: int) -> None:
    operator = bind(node, opset)
    try:
        results = operator.infer(*node.inputs)  # type: ignore[attr-defined]
    except (ValueError, IndexError, TypeError, KeyError, ArithmeticError, ShapeError) as error:
        raise ShapeError(f"node {node.name!r}, operator {node.op_type}, opset {opset}: {error}") from None
    for value, result in zip(node.outputs, results, strict=False):
        if result is None:
            continue  # what onnx says is all that there is
        kind, dims = result
        value.type = ir.TensorType(kind) if isinstance(kind, ir.DataType) else kind
        value.shape = None if dims is None else ir.Shape(dims)


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    if value.type is not None:
        ir.serde.serialize_type_into(proto, value.type)
        if value.shape is not None:
            ir.serde.serialize_shape_into(proto, value.shape)
    return proto


def _make_scalar(proto: onnx.TypeProto, content: onnx.TensorProto | None) -> None:
    """Show a vector of one element as a scalar."""
    shape = proto.tensor_type.shape
    if len(shape.dim) == 1 and shape.dim[0].dim_value == 1:
        del shape.dim[:]
    if content is not None and list(content.dims) == [1]:
        del content.dims[:]


def _describe(value: ir.Value) -> str:
    dims = dims_of(value)
    shape = "[?]" if dims is None else "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
    return f"{value.name}: {value.dtype.name.lower() if value.dtype is not None else '?'}{shape}"
