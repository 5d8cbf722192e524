"""One default-domain opset for every model."""

from __future__ import annotations

import re

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onward.errors import OnwardError, UnsupportedError
from onward.graph import current_versions
from onward.graph.op import versions_of
from onward.model.reader import TRAINING_INFO, check_model
from onward.model.shapes import infer_shapes, root_cause, skeleton, survives
from onward.model.structure import all_nodes

__all__ = ["upgrade"]

_IR_VERSION = 10
_LAST_TYPE_OF_IR_10 = ir.DataType.INT4.value
_PADDED_WINDOWS = ("AveragePool", "MaxPool")
"""Opset 22 changed which windows count when `ceil_mode` is 1, under an unchanged signature."""


def upgrade(model: ir.Model, opset: int = 21) -> ir.Model:
    """The model with its default-domain operators at one opset, and IR version 10.

    Older versions of operators are written as current ones; ONNX's version converter is asked where a model
    has operators that Onward does not have. A newer model is taken down where every operator
    means the same in both opsets: same attributes with the same defaults, no newer input, no newer type.
    Other domains keep their versions; imports that nothing uses are dropped. The result passes
    `onnx.checker`, keeps names of inputs and outputs, and shares tensors with the original, which is
    unchanged.

    Args:
        model: a model without functions, as `load` leaves it.
        opset: the opset of the default domain to reach.

    Raises:
        UnsupportedError: an operator cannot be taken to that opset; names node, operator and opsets.
        ShapeError, InvalidModelError: the converted model does not check.
    """
    if model.functions:
        names = ", ".join("::".join(part for part in key if part) for key in model.functions)
        raise UnsupportedError(f"functions must be inlined before the opset can change: {names}")
    declared = model.opset_imports.get("", opset)
    if declared < opset:
        result = current_versions(model, opset) if _known(model) else _convert(model, declared, opset)
    else:
        result = model.clone()
        if declared > opset:
            _require_same_meaning(model, declared, opset)
            result.opset_imports[""] = opset
    result.ir_version = _IR_VERSION
    if "" in model.opset_imports:
        result.opset_imports[""] = opset
    common.RemoveUnusedOpsetsPass()(result)
    try:
        check_model(result)
        return infer_shapes(result)
    except OnwardError as error:
        raise type(error)(f"after conversion from opset {declared} to {opset}: {error}") from error


def _known(model: ir.Model) -> bool:
    """Whether Onward has every operator of the standard that the model has."""
    return all(node.domain or versions_of("", node.op_type) for node in model.graph.all_nodes())


def _convert(model: ir.Model, declared: int, opset: int) -> ir.Model:
    proto = skeleton(model)
    if not survives(proto):
        raise UnsupportedError(
            f"opset {declared} cannot be taken to {opset}: steps of a Slice are computed, and some end "
            f"ONNX's converter; export the model at opset {opset}"
        )
    try:
        converted = onnx.version_converter.convert_version(proto, opset)
    except Exception as error:
        raise UnsupportedError(_explain(proto, str(error), declared, opset)) from error
    _forget_inferred(converted.graph)
    try:
        result = ir.serde.deserialize_model(converted)
    except (ir.serde.SerdeError, ValueError, TypeError) as error:
        raise UnsupportedError(
            f"opset {declared} to {opset}: the converted graph cannot be read: {root_cause(error)}"
        ) from error
    result = _restore(model, result)
    _restore_meaning(result, declared)
    return result


def _restore(model: ir.Model, result: ir.Model) -> ir.Model:
    """Bring back what the converter does not carry: weights, metadata, quantisation annotations."""
    inputs = {value.name or "": value for value in result.graph.inputs}
    for name, original in model.graph.initializers.items():
        value = inputs.get(name) or result.graph.initializers.get(name)
        if value is None:
            continue
        value.const_value = original.const_value
        value.type, value.shape = original.type, original.shape
        value.meta.update(original.meta)
        if name not in result.graph.initializers:
            result.graph.register_initializer(value)
    kept = [inputs[value.name or ""] for value in model.graph.inputs]
    result.graph.inputs.clear()
    result.graph.inputs.extend(kept)
    for value in result.graph.initializers.values():
        if value.const_value is not None and isinstance(value.const_value, ir.serde.TensorProtoTensor):
            value.const_value = ir.Tensor(
                value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name
            )
    by_name = {node.name: node for node in model.graph.all_nodes() if node.name}
    for node in result.graph.all_nodes():
        source = by_name.get(node.name or "")
        if source is not None:
            node.metadata_props.update(source.metadata_props)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    result.domain, result.model_version, result.doc_string = (
        model.domain,
        model.model_version,
        model.doc_string,
    )
    result.graph.name = model.graph.name
    result.graph.doc_string = model.graph.doc_string
    result.graph.metadata_props.update(model.graph.metadata_props)
    result.metadata_props.clear()
    result.metadata_props.update(model.metadata_props)
    result.opset_imports.update({k: v for k, v in model.opset_imports.items() if k})
    if TRAINING_INFO in model.meta:
        result.meta[TRAINING_INFO] = model.meta[TRAINING_INFO]
    return result


def _explain(proto: onnx.ModelProto, message: str, declared: int, opset: int) -> str:
    """Name the first operator that the converter's message speaks of, and a node that has it."""
    reason = next((line.strip() for line in message.splitlines() if line.strip()), "no reason given")
    for node in all_nodes(proto.graph.node):
        if re.search(rf"\b{re.escape(node.op_type)}\b", message):
            return (
                f"node {node.name!r} ({node.op_type}, opset {declared}) cannot be taken to opset {opset}: "
                f"{reason[:300]}; export the model at opset {opset}"
            )
    return f"opset {declared} cannot be taken to {opset}: {reason[:300]}; export the model at opset {opset}"


def _forget_inferred(graph: onnx.GraphProto) -> None:
    """Drop what the converter declared for values in between; it writes shapes that are wrong."""
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _forget_inferred(attribute.g)
            for inner in attribute.graphs:
                _forget_inferred(inner)


def _restore_meaning(result: ir.Model, declared: int) -> None:
    """What the converter leaves with its old attributes, although defaults or meanings changed.

    Sources: the version notes of Hardmax-13 (before: over the flattened inner dimensions) and RoiAlign-16
    (before: output_half_pixel). Onward has all that opsets before 12 have, so they never come here.
    """
    for node in list(result.graph.all_nodes()):
        if node.domain != "":
            continue
        if node.op_type == "RoiAlign" and declared < 16:
            node.attributes.add(ir.AttrString("coordinate_transformation_mode", "output_half_pixel"))
        elif node.op_type == "Hardmax" and declared < 13:
            _flatten_hardmax(node)


def _flatten_hardmax(node: ir.Node) -> None:
    """Hardmax-11 sees a matrix: Reshape(Hardmax(Flatten(x)), Shape(x))."""
    graph, (data,), (output,) = node.graph, node.inputs, node.outputs
    assert graph is not None
    shape = ir.node("Shape", [data], name=f"{node.name}_shape")
    matrix = ir.node(
        "Flatten", [data], {"axis": node.attributes.get_int("axis", 1)}, name=f"{node.name}_flatten"
    )
    peak = ir.node("Hardmax", [matrix.outputs[0]], {"axis": -1}, name=f"{node.name}_matrix")
    back = ir.node("Reshape", [peak.outputs[0], shape.outputs[0]], name=node.name)
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [shape, matrix, peak, back], [output], [back.outputs[0]]
    )


def _require_same_meaning(model: ir.Model, declared: int, opset: int) -> None:
    problems = [
        f"node {node.name!r} ({node.op_type}): {problem}"
        for node in model.graph.all_nodes()
        if node.domain == "" and (problem := _newer_meaning(node, declared, opset)) is not None
    ]
    if problems:
        raise UnsupportedError(
            f"opset {declared} cannot be taken down to {opset}; export the model at opset {opset}:\n  "
            + "\n  ".join(problems)
        )


def _newer_meaning(node: ir.Node, declared: int, opset: int) -> str | None:
    """Why a node may mean something else at the older opset; None when it does not."""
    newer = _schema(node.op_type, declared)
    older = _schema(node.op_type, opset)
    if older is None or older.deprecated:
        return f"opset {opset} does not have it"
    if newer is None or newer.since_version == older.since_version:
        return None
    if node.op_type in _PADDED_WINDOWS and node.attributes.get_int("ceil_mode", 0) != 0:
        return "ceil_mode counts other windows there"
    for name in node.attributes:
        if name not in older.attributes:
            return f"attribute {name!r} does not exist there"
    for name, attribute in newer.attributes.items():
        if name in older.attributes and name not in node.attributes:
            before = older.attributes[name].default_value.SerializeToString()
            if before != attribute.default_value.SerializeToString():
                return f"attribute {name!r} has another default there"
    used = len(node.inputs)
    while used and node.inputs[used - 1] is None:
        used -= 1
    if used > older.max_input:
        return f"{used} inputs, where that opset takes {older.max_input}"
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype is not None and value.dtype.value > _LAST_TYPE_OF_IR_10:
            return f"type {value.dtype.name} does not exist in IR version {_IR_VERSION}"
    return None


def _schema(operator: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return None
