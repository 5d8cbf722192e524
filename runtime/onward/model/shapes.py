"""Types and shapes of every value, by ONNX's own inference."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onward.errors import InvalidModelError, OnwardError, ShapeError, UnsupportedError
from onward.graph import find
from onward.graph.infer import infer_node, range_is_short, steps_are_safe
from onward.graph.op import has_schemas, versions_of
from onward.model.structure import all_nodes

__all__ = ["KEEP_BYTES", "infer_shapes", "root_cause", "skeleton", "survives"]

KEEP_BYTES = 1024
_TRAINING = "ai.onnx.preview.training"
_NESTED = "Inference error(s):"
_NODE = re.compile(r"\(op_type:\s*(?P<op>[^,)]*)(?:,\s*node name:\s*(?P<name>[^)]*))?\)")


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """The model as protobuf without the bytes of large initialisers, which become graph inputs.

    Initialisers of up to 1 KiB stay: axes, shapes and scales are what inference and version
    conversion read. The graph's own inputs come first. The model is not changed.

    Raises:
        InvalidModelError: the model holds something that protobuf cannot.
    """
    graph = model.graph
    small: list[ir.Value] = []
    large: list[ir.Value] = []
    for value in graph.initializers.values():
        tensor = value.const_value
        (small if tensor is not None and tensor.nbytes <= KEEP_BYTES else large).append(value)
    inputs = list(graph.inputs)
    listed = set(inputs)
    inputs += [value for value in large if value not in listed]
    if model.ir_version < 4:
        inputs += [value for value in small if value not in listed]
    view: Any = ir.GraphView(
        inputs,
        graph.outputs,
        nodes=tuple(graph),
        initializers=small,
        name=graph.name,
        metadata_props=graph.metadata_props,
    )
    proto = onnx.ModelProto(ir_version=model.ir_version)
    try:
        ir.serde.serialize_graph_into(proto.graph, view, model_ir_version=model.ir_version)
        for domain, version in model.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        for function in model.functions.values():
            ir.serde.serialize_function_into(proto.functions.add(), function)
    except (ir.serde.SerdeError, TypeError, ValueError, NotImplementedError) as error:
        raise InvalidModelError(
            f"graph {graph.name!r} cannot be written as ONNX: {root_cause(error)}"
        ) from error
    return proto


def infer_shapes(model: ir.Model) -> ir.Model:
    """Give every value the dtype and shape that ONNX's inference, with data propagation, can tell.

    The bytes of large initialisers take no part. Names of symbolic dimensions stay; a declared symbolic
    dimension becomes a number when inference knows it. Values that inference cannot tell stay open.

    Returns:
        The same model, annotated in place.

    Raises:
        ShapeError: a node's inputs do not fit together, or a declared shape contradicts the inferred one.
        InvalidModelError: the model holds something that protobuf cannot.
    """
    proto = skeleton(model)
    if not survives(proto):
        _infer_by_node(model.graph, dict(model.opset_imports))
        return model
    hidden = _hide_steps(proto)
    added = _show_gradients(proto)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        if str(error).count(_NESTED) < 2:
            raise _contradiction(str(error), proto) from error
        # Inference stumbled inside the standard's own body of a function operator: not this model's fault.
        inferred = onnx.shape_inference.infer_shapes(
            proto, check_type=False, strict_mode=False, data_prop=True
        )
    for place in reversed(added):
        del inferred.graph.node[place]
    _merge_graph(model.graph, inferred.graph)
    if hidden:
        for node in model.graph.all_nodes():
            if node.op_type == "Slice" and node.domain == "":
                infer_node(node, model.opset_imports.get("", 0))
    _infer_behind_own(model.graph)
    return model


def _infer_behind_own(graph: ir.Graph) -> None:
    """What follows from operators of which `onnx` knows nothing, but classes do."""
    own = False
    for node in graph:
        unknown = any(v.name and (v.type is None or v.shape is None) for v in node.outputs)
        if unknown and not has_schemas(node.domain):
            infers = any(hasattr(c, "infer") for c in versions_of(node.domain, node.op_type).values())
            own = own or infers
            unknown = infers
        if own and unknown:
            infer_node(node, graph.opset_imports.get(node.domain, 0))


def survives(proto: onnx.ModelProto) -> bool:
    """Whether ONNX's inference and converter may see the whole model.

    They follow constants through arithmetic, and steps of a Slice near 2^63 end the process or never end, and
    a Range is counted out: steps must be constants that `infer_shapes` can look at.
    """
    contents, slices = _steps(proto)
    if not all(node.input[4] in contents for node in slices):
        return False
    ranges = (node for node in all_nodes(proto.graph.node) if node.op_type == "Range")
    return all(
        range_is_short(
            [onnx.numpy_helper.to_array(contents[n]) if n in contents else None for n in node.input]
        )
        for node in ranges
    )


def _steps(proto: onnx.ModelProto) -> tuple[dict[str, onnx.TensorProto], list[onnx.NodeProto]]:
    """Constants by name, and the nodes that slice in steps."""
    contents = {tensor.name: tensor for tensor in proto.graph.initializer}
    slices = []
    for node in all_nodes(proto.graph.node):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                contents[node.output[0]] = attribute.t
            elif node.op_type == "Constant" and attribute.name in ("value_int", "value_ints"):
                numbers = attribute.ints if attribute.ints else [attribute.i]
                contents[node.output[0]] = onnx.numpy_helper.from_array(np.array(numbers, np.int64))
            contents.update((tensor.name, tensor) for tensor in attribute.g.initializer)
        if node.op_type == "Slice" and len(node.input) > 4 and node.input[4]:
            slices.append(node)
    return contents, slices


def _infer_by_node(graph: ir.Graph, opsets: Mapping[str, int]) -> None:
    """Types and shapes from one node to the next, from what is declared where a body comes."""
    for node in graph:
        for attribute in node.attributes.values():
            for body in _subgraphs(attribute):
                _infer_by_node(body, opsets)
        opset = opsets.get(node.domain, 0)
        try:
            find(node.domain, node.op_type, opset)
        except UnsupportedError:
            continue  # whoever runs the model is told
        declared = [(value.type, value.shape) for value in node.outputs]
        infer_node(node, opset)
        for value, (kind, shape) in zip(node.outputs, declared, strict=True):
            if kind is not None and value.type is not None and kind.dtype != value.type.dtype:
                raise ShapeError(
                    f"node {node.name!r} ({node.op_type}), value {value.name!r}: declared {kind.dtype.name}, "
                    f"inferred {value.type.dtype.name}"
                )
            value.type = value.type if value.type is not None else kind
            value.shape = value.shape if value.shape is not None else shape


def _hide_steps(proto: onnx.ModelProto) -> bool:
    """Put inputs in the place of steps of Slice that ONNX's inference does not survive."""
    contents, slices = _steps(proto)
    hidden: dict[str, str] = {}
    for node in slices:
        tensor = contents[node.input[4]]
        if steps_are_safe(onnx.numpy_helper.to_array(tensor)):
            continue
        name = node.input[4]
        if name not in hidden:
            hidden[name] = f"{name}/not shown"
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(hidden[name], tensor.data_type, list(tensor.dims))
            )
        node.input[4] = hidden[name]
    return bool(hidden)


def _show_gradients(proto: onnx.ModelProto) -> list[int]:
    """Put an Identity in the place of each result of Gradient, which has the type of what it is taken by.

    Inference knows nothing of Gradient, and refuses what reads its results. Returned is where nodes were
    added.
    """
    nodes: list[onnx.NodeProto] = []
    added: list[int] = []
    for node in proto.graph.node:
        pairs = [(x, y) for x, y in zip(node.input, node.output, strict=False) if y]
        if node.op_type != "Gradient" or node.domain != _TRAINING or not pairs:
            nodes.append(node)
            continue
        added += range(len(nodes) + 1, len(nodes) + len(pairs))
        nodes += [onnx.helper.make_node("Identity", [x], [y], name=node.name) for x, y in pairs]
    if any(node.op_type == "Gradient" for node in proto.graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del proto.graph.node[:]
        proto.graph.node.extend(copies)
    return added


def _contradiction(message: str, proto: onnx.ModelProto) -> OnwardError:
    """The first useful sentence of ONNX's message, with the node it speaks of."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    found = _NODE.search(message)
    text = next((line for line in lines if _NODE.search(line)), lines[0] if lines else "no reason given")
    text = _NODE.sub("", text).strip(" :,")
    text = re.sub(r"^(\[\w+Error\]|Inference error\(s\):|[\s:,])+", "", text)
    place = "graph"
    if found:
        name, operator = (found["name"] or "").strip(), found["op"].strip()
        domains = [n.domain for n in all_nodes(proto.graph.node) if (n.name, n.op_type) == (name, operator)]
        opsets = {entry.domain: entry.version for entry in proto.opset_import}
        opset = opsets.get(domains[0] if domains else "", 0)
        place = f"node {name!r}, operator {operator}, opset {opset}"
    return ShapeError(f"{place}: shapes or types do not fit: {text[:300]}")


def root_cause(error: BaseException) -> str:
    """The innermost message of a chain of exceptions, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def _merge_graph(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    known: dict[str, onnx.ValueInfoProto] = {info.name: info for info in (*proto.value_info, *proto.output)}
    for output in graph.outputs:
        _merge_value(output, known)
    for node, node_proto in zip(graph, proto.node, strict=True):
        for output in node.outputs:
            _merge_value(output, known)
        bodies = {attribute.name: attribute for attribute in node_proto.attribute}
        for attribute in node.attributes.values():
            for subgraph, body in zip(_subgraphs(attribute), _bodies(bodies, attribute.name), strict=True):
                _merge_graph(subgraph, body)


def _subgraphs(attribute: ir.Attr) -> Iterable[ir.Graph]:
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()


def _bodies(attributes: Mapping[str, onnx.AttributeProto], name: str) -> Iterator[onnx.GraphProto]:
    attribute = attributes.get(name)
    if attribute is not None:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _merge_value(value: ir.Value, known: Mapping[str, onnx.ValueInfoProto]) -> None:
    info = known.get(value.name or "")
    if info is None:
        return
    kind = ir.serde.deserialize_type_proto_for_type(info.type)
    shape = ir.serde.deserialize_type_proto_for_shape(info.type)
    producer = value.producer()
    place = f"node {producer.name!r} ({producer.op_type}), " if producer is not None else ""
    if value.type is None:
        value.type = kind
    elif kind is not None and kind.dtype != value.type.dtype:
        raise ShapeError(
            f"{place}value {value.name!r}: declared {value.type.dtype.name}, inferred {kind.dtype.name}"
        )
    if shape is None:
        return
    if value.shape is None:
        value.shape = shape
        return
    if value.shape.rank() != shape.rank():
        raise ShapeError(f"{place}value {value.name!r}: declared shape {value.shape}, inferred {shape}")
    dims: list[int | ir.SymbolicDim] = []
    for declared, inferred in zip(value.shape, shape, strict=True):
        if isinstance(declared, int) and isinstance(inferred, int) and declared != inferred:
            raise ShapeError(f"{place}value {value.name!r}: declared shape {value.shape}, inferred {shape}")
        if isinstance(declared, int) or (declared.value is not None and not isinstance(inferred, int)):
            dims.append(declared)
        else:
            dims.append(inferred)
    merged = ir.Shape(dims, denotations=[value.shape.get_denotation(i) for i in range(len(dims))])
    if merged != value.shape:
        value.shape = merged
