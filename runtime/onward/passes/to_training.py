"""Returns an inference graph to training form: dropout drops, batch normalization uses the batch."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, canonical_model, infer_node

__all__ = ["TrainingForm", "to_training"]


@dataclass(frozen=True, slots=True)
class TrainingForm:
    """A graph in training form.

    Attributes:
        model: the model; where it drops units it has int64 scalar inputs for seed and step.
        statistics: running statistics, initializers of the model, and the value that replaces each.
        seed: the seed input, None if nothing random is left.
        step: the step input, None if nothing random is left.
        share: the input for which samples of the batch the model is given, int64 [2]: the first, and how
            many; None if nothing random is left, or where it was not asked for.
    """

    model: ir.Model
    statistics: Mapping[str, ir.Value]
    seed: ir.Value | None
    step: ir.Value | None
    share: ir.Value | None = None


def to_training(
    model: ir.Model, trainable: Collection[str], *, shares: bool = False, drop: bool = True
) -> TrainingForm:
    """The model in training form, for parameters that are going to be trained.

    Dropout becomes a function of (seed, step, output name). BatchNormalization with a trainable scale or bias
    normalises by the batch and gives new running statistics; one that is frozen altogether keeps its own.

    Args:
        model: an inference model at the opset that gradient rules write (21), put in canonical form here.
        trainable: names of the initializers that will be trained.
        shares: the model will be given parts of batches: units are dropped by their place in the whole batch.
        drop: whether Dropout drops; else it stays as it is.

    Raises:
        UnsupportedError: a Dropout whose ratio is computed, running statistics that are not initializers, or
            either operator inside a body.
    """
    model = canonical_model(model).clone()
    graph = model.graph
    for node in graph.all_nodes():
        if (
            node.graph is not graph
            and node.op_type in ("Dropout", "BatchNormalization")
            and node.domain == ""
        ):
            raise UnsupportedError(
                f"node {node.name!r}, operator {node.op_type}: inside a body it has no training form; "
                "take it out of the body, or out of the model"
            )
    g = Builder(graph)
    statistics: dict[str, ir.Value] = {}
    scalars: dict[str, ir.Value] = {}

    def scalar(name: str) -> ir.Value:
        if name not in scalars:
            scalars[name] = g.input(g.unique(name), ir.DataType.INT64, (2,) if name == "share" else ())
        return scalars[name]

    for node in list(graph):
        if node.op_type == "Dropout" and node.domain == "":
            if not drop:
                continue
            _replace_dropout(g, node, scalar, shares)
        elif (
            node.op_type == "BatchNormalization"
            and node.domain == ""
            and any(v is not None and v.name in trainable for v in node.inputs[1:3])
        ):
            statistics.update(_use_batch(g, node, statistics))
    return TrainingForm(model, statistics, scalars.get("seed"), scalars.get("step"), scalars.get("share"))


def _replace_dropout(g: Builder, node: ir.Node, scalar: Callable[[str], ir.Value], shares: bool) -> None:
    ratio = _ratio(node)
    x, y = node.inputs[0], node.outputs[0]
    if x is None:
        raise UnsupportedError(f"node {node.name!r}, operator Dropout: it has no input")
    if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
        raise UnsupportedError(
            f"node {node.name!r}, operator Dropout: its mask output is used; remove that use"
        )
    if not 0 <= ratio < 1:
        raise UnsupportedError(f"node {node.name!r}, operator Dropout: ratio {ratio} is not in [0, 1)")
    g.at(node)
    name = y.name
    # names of values are unique in every model, names of nodes need not be
    salt = zlib.crc32((name or "").encode())
    if ratio == 0:
        new = g.Identity(x)
    else:
        names = ("seed", "step", "share") if shares else ("seed", "step")
        operands = [scalar(name) for name in names]
        new = g.onward.PhiloxDropout(
            x, *operands, ratio=ratio, salt=salt, name=g.unique(f"{node.name}/train")
        )
    g.at(None)
    y.name = None
    new.name = name
    ir.convenience.replace_all_uses_with(y, new, replace_graph_outputs=True)
    g.graph.remove(node, safe=True)


def _ratio(node: ir.Node) -> float:
    if (attribute := node.attributes.get("ratio")) is not None:
        return float(attribute.as_float())
    if len(node.inputs) < 2 or (value := node.inputs[1]) is None:
        return 0.5
    content = ir.convenience.get_const_tensor(value)
    if content is None:
        raise UnsupportedError(f"node {node.name!r}, operator Dropout: its ratio is not a constant")
    return float(content.numpy().item())


def _use_batch(g: Builder, node: ir.Node, earlier: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
    """Normalise by the batch. Statistics that a node before has too go on from what it made of them."""
    running = node.inputs[3:5]
    if any(v is None or not v.is_initializer() for v in running):
        raise UnsupportedError(
            f"node {node.name!r}, operator BatchNormalization: its running statistics are not initializers; "
            "freeze its scale and bias to keep it in inference form"
        )
    if any(not _is_statistic(user, i) for v in running if v is not None for user, i in v.uses()):
        raise UnsupportedError(
            f"node {node.name!r}, operator BatchNormalization: its running statistics are used by something "
            "else than batch normalization; freeze its scale and bias to keep it in inference form"
        )
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise UnsupportedError(
            f"node {node.name!r}, operator BatchNormalization: its statistics outputs are used; "
            "convert the model with onward.passes.to_inference first"
        )
    node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    node.resize_outputs(3)
    names = [v.name or "" for v in running if v is not None]
    for value, name in zip(node.outputs[1:], names, strict=True):
        value.name = g.unique(f"{name}.next")
    for i, name in enumerate(names):
        if (advanced := earlier.get(name)) is not None:
            node.replace_input_with(3 + i, advanced)
    infer_node(node, g.graph.opset_imports[""])
    return dict(zip(names, node.outputs[1:], strict=True))


def _is_statistic(node: ir.Node, index: int) -> bool:
    """Whether an operand is the running mean or variance of a batch normalization."""
    return node.op_type == "BatchNormalization" and node.domain == "" and index in (3, 4)
