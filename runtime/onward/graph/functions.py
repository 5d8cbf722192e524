"""Operators that the standard defines by a body of other operators, where no class has a kernel for them.

The body stands in the node's place before anything runs: what it is made of runs in every engine, is fused
with its neighbours, and has gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onward.errors import UnsupportedError
from onward.graph.bodies import bodies_of
from onward.graph.builder import Builder
from onward.graph.op import ONWARD_DOMAIN, bind, find
from onward.graph.origin import note_opset
from onward.graph.replace import replace_node

__all__ = ["expand_function", "has_body"]


def has_body(domain: str, op_type: str, opset: int) -> bool:
    """Whether an operator has no class at an opset, but a body in its schema."""
    if domain == ONWARD_DOMAIN:
        return False
    try:
        find(domain, op_type, opset)
    except UnsupportedError:
        try:
            schema: Any = onnx.defs.get_schema(op_type, opset, domain)  # its stub lacks bodies
        except onnx.defs.SchemaError:
            return False
        versions = (*schema.function_opset_versions, *schema.context_dependent_function_opset_versions)
        return any(version <= opset or domain != "" for version in versions)
    return False


def expand_function(g: Builder, node: ir.Node, opset: int) -> list[ir.Node]:
    """Put its body in the place of a node.

    Args:
        g: a builder on the node's graph.
        node: its inputs carry types.
        opset: of the node's domain.

    Returns:
        The nodes of the body, whose outputs have no types yet.

    Raises:
        UnsupportedError: the body depends on types that are not known, or has no form at this opset.
    """
    where = f"node {node.name!r}, operator {node.op_type}, opset {opset}"
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.name:
            node.attributes.add(ir.serde.deserialize_attribute(attribute.default_value))
    function = _function(node, schema, opset, where)
    outer = _captured(node)
    inner, positions = _instantiated(node, function, outer)
    operands = [
        *node.inputs,
        *[None] * (len(function.input) - len(outer) - len(node.inputs)),
        *outer.values(),
    ]
    for stand_in, value in zip(inner.inputs, operands, strict=False):
        if value is not None:
            ir.convenience.replace_all_uses_with([stand_in], [value], replace_graph_outputs=True)
    made = dict(zip(positions, inner.outputs, strict=True))
    nodes, results = list(inner), [made.get(i, value) for i, value in enumerate(node.outputs)]
    inner.outputs.clear()
    inner.remove(nodes)
    g.at(node)
    with g.scope(node.name or node.op_type):
        for written in nodes:
            note_opset(written, opset)
            g.insert(written)
            _rename_inside(g, written)
    replace_node(g, node, results)
    for written in nodes:
        if written.op_type == "Constant" and not written.outputs[0].is_graph_output():
            # what is known of constants stands in initializers
            content = bind(written, g.graph.opset_imports[""]).kernel()  # type: ignore[attr-defined]
            written.outputs[0].replace_all_uses_with(g.const(content))
            g.graph.remove(written, safe=True)
    g.at(None)
    return [written for written in nodes if written.graph is not None]


def _function(node: ir.Node, schema: Any, opset: int, where: str) -> onnx.FunctionProto:
    if schema.has_function:
        content = _newest(schema.get_function_with_opset_version, schema.function_opset_versions, opset)
    else:
        types = [_serialised_type(value, where) for value in node.inputs]
        serialised = ir.serde.serialize_node(node).SerializeToString()
        content = _newest(
            lambda version: schema.get_context_dependent_function_with_opset_version(
                version, serialised, types
            ),
            schema.context_dependent_function_opset_versions,
            opset,
        )
    if not content:
        raise UnsupportedError(f"{where}: its body has no form at this opset, and there is no kernel")
    function = onnx.FunctionProto()
    function.ParseFromString(content)
    return function


def _newest(get: Callable[[int], bytes | None], versions: Sequence[int], opset: int) -> bytes | None:
    """The body at an opset, else the newest before it: its operators only take further types since."""
    known = [opset, *sorted((v for v in versions if v < opset), reverse=True)]
    return next((content for version in known if (content := get(version))), None)


def _serialised_type(value: ir.Value | None, where: str) -> bytes:
    proto = onnx.TypeProto()
    if value is not None:
        if value.type is None:
            raise UnsupportedError(f"{where}: the type of {value.name!r} is not known")
        ir.serde.serialize_type_into(proto, value.type)
        if value.shape is not None:
            ir.serde.serialize_shape_into(proto, value.shape)
    return proto.SerializeToString()


def _captured(node: ir.Node) -> dict[str, ir.Value]:
    """What graphs in a node's attributes take from around it, by name: its body takes the same."""
    found: dict[str, ir.Value] = {}

    def visit(body: ir.Graph, own: set[ir.Value]) -> None:
        own = own | set(body.inputs) | set(body.initializers.values())
        for inner in body:
            found.update((v.name or "", v) for v in inner.inputs if v is not None and v not in own)
            own.update(inner.outputs)
            for deeper in bodies_of(inner):
                visit(deeper, own)
        found.update((v.name or "", v) for v in body.outputs if v not in own)

    for body in bodies_of(node):
        visit(body, set())
    return found


def _instantiated(
    node: ir.Node, proto: onnx.FunctionProto, outer: Mapping[str, ir.Value]
) -> tuple[ir.Graph, list[int]]:
    """A graph of the body, attributes in their places, and which outputs of the node it gives.

    Its inputs are those of the function, then `outer`.
    """
    proto.domain = "body"
    made = {name for inner in proto.node for name in inner.output} | set(proto.input)
    positions = [i for i, (v, name) in enumerate(zip(node.outputs, proto.output, strict=False)) if v.name]
    if lacking := [proto.output[i] for i in positions if proto.output[i] not in made]:
        raise UnsupportedError(
            f"node {node.name!r}, operator {node.op_type}: its body gives no output {lacking[0]!r}"
        )
    wanted_outputs = [proto.output[i] for i in positions]
    del proto.output[:]
    proto.output.extend(wanted_outputs)
    proto.input.extend(outer)
    imports = {entry.domain: entry.version for entry in proto.opset_import}
    function = ir.serde.deserialize_function(proto)
    inputs = [ir.Value(name=f"operand {i}") for i in range(len(proto.input))]
    given_count = len(proto.input) - len(outer)
    absent = [i for i in range(given_count) if i >= len(node.inputs) or node.inputs[i] is None]
    operands = [None if i in absent else value for i, value in enumerate(inputs)]
    wanted = {*proto.attribute, *(a.name for a in proto.attribute_proto)}
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)  # those stand in the body that the schema made
    given = [a for name, a in node.attributes.items() if name in wanted and a.type not in graphs]
    call = ir.Node("body", function.name, operands, given, num_outputs=len(positions))
    graph = ir.Graph(
        inputs,
        list(call.outputs),
        nodes=[call],
        opset_imports={**imports, "body": 1},
        name="body",
    )
    try:
        common.InlinePass()(ir.Model(graph, ir_version=10, functions=[function]))
    except Exception as error:
        raise UnsupportedError(
            f"node {node.name!r}, operator {node.op_type}: its body cannot be instantiated ({error})"
        ) from error
    return graph, positions


def _rename_inside(g: Builder, node: ir.Node) -> None:
    for body in bodies_of(node):
        for value in body.inputs:
            value.name = g.unique(value.name or "input")
        for inner in body:
            inner.name = g.unique(inner.name or inner.op_type)
            for value in inner.outputs:
                if value.name:
                    value.name = g.unique(value.name)
            _rename_inside(g, inner)
