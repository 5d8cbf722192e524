"""Cleans a model for inference: no dropout, batch normalization by its running statistics, nothing unused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, dtype_of, numpy_dtype
from onward.passes.expand import expand_onward
from onward.passes.quantization import in_integers

__all__ = ["IR_VERSION", "MAX_OPSET", "to_inference"]

IR_VERSION = 10
MAX_OPSET = 21
"""What runtimes in use load: onnxruntime 1.20 and later."""


def to_inference(model: ir.Model) -> ir.Model:
    """The model as it is deployed.

    Dropout disappears, BatchNormalization uses its running statistics, what is quantised is in integers
    again, operators of `ai.onward` become standard ones, and nodes, initializers, opset imports and
    training-only inputs (a dropout's ratio, seed or training mode) that nothing uses are removed. Names of
    the other inputs and of all outputs, declared types, metadata and documentation are kept; training
    information is not.

    Args:
        model: in inference or training form; it is not changed.

    Returns:
        A model of IR version 10 and opset 21 or lower.

    Raises:
        UnsupportedError: the opset is higher and an operator means something else at 21; or a training-only
            output is used that has no meaning in inference.
    """
    from onward.model import upgrade

    if model.functions:
        model = common.InlinePass()(model.clone()).model
    model = upgrade(model, MAX_OPSET) if model.opset_imports.get("", 0) > MAX_OPSET else model.clone()
    graph = model.graph
    fed: set[ir.Value] = set()
    for node in list(graph.all_nodes()):
        if (node.op_type, node.domain) in (("Dropout", ""), ("PhiloxDropout", ONWARD_DOMAIN)):
            fed.update(v for v in node.inputs if v is not None)
            _bypass_dropout(node)
        elif (node.op_type, node.domain) == ("BatchNormalization", ""):
            fed.update(v for v in node.inputs[5:] if v is not None)
            _use_running_statistics(node, graph.opset_imports.get("", 0))
    if any(node.domain == ONWARD_DOMAIN for node in graph.all_nodes()):
        model = expand_onward(in_integers(model))
        graph, fed = model.graph, _same_named(model.graph, fed)
    common.RemoveUnusedNodesPass()(model)
    for value in [v for v in graph.inputs if v in fed and not v.uses() and not v.is_graph_output()]:
        graph.inputs.remove(value)
        graph.initializers.pop(value.name or "", None)
    common.RemoveUnusedOpsetsPass()(model)
    graph.opset_imports.pop(ONWARD_DOMAIN, None)
    model.ir_version = IR_VERSION
    return model


def _same_named(graph: ir.Graph, values: set[ir.Value]) -> set[ir.Value]:
    names = {v.name for v in values}
    return {v for v in graph.inputs if v.name in names}


def _bypass_dropout(node: ir.Node) -> None:
    x = node.inputs[0]
    if x is None or node.graph is None:
        raise UnsupportedError(f"node {node.name!r}, operator {node.op_type}: it has no input")
    for mask in node.outputs[1:]:
        if mask.uses() or mask.is_graph_output():
            _replace(mask, _everything_kept(node, x, mask))
    _replace(node.outputs[0], x)
    node.graph.remove(node, safe=True)


def _everything_kept(node: ir.Node, x: ir.Value, mask: ir.Value) -> ir.Value:
    one = ir.tensor(np.ones(1, numpy_dtype(dtype_of(mask))))
    shape = ir.node("Shape", [x], name=f"{node.name}/shape")
    full = ir.node("ConstantOfShape", [shape.outputs[0]], {"value": one}, name=f"{node.name}/mask")
    shape.outputs[0].name = f"{mask.name}/shape"
    shape.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    full.outputs[0].name = f"{mask.name}/full"
    assert node.graph is not None
    node.graph.insert_before(node, [shape, full])
    return full.outputs[0]


def _use_running_statistics(node: ir.Node, opset: int) -> None:
    node.attributes.pop("training_mode", None)
    extra = list(node.outputs[1:])
    if opset >= 14:
        # the statistics that inference leaves behind are those that it was given
        for value, running in zip(extra, node.inputs[3:5], strict=False):
            if running is not None and (value.uses() or value.is_graph_output()):
                _replace(value, running)
    if any(value.uses() or value.is_graph_output() for value in extra):
        raise UnsupportedError(
            f"node {node.name!r}, operator BatchNormalization, opset {opset}: its training outputs are used; "
            "remove those uses before exporting"
        )
    node.resize_outputs(1)


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Put one value in the place of another; the graph's outputs keep their names."""
    if old.is_graph_output():
        node = old.producer()
        assert node is not None
        assert node.graph is not None
        name, old.name = old.name, None
        producer = new.producer()
        fixed = producer is None or new.is_initializer() or new.is_graph_output()
        if fixed or (producer is not None and producer.graph is not node.graph):
            identity = ir.node("Identity", [new], name=f"{name}/out")
            node.graph.insert_before(node, identity)
            new = identity.outputs[0]
        new.name = name
        new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
