"""Puts a new last layer on a model: for other classes than those that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onward.errors import ConfigError, UnsupportedError
from onward.graph import Array, Builder, dims_of, dtype_of, infer_node, is_float, numpy_dtype
from onward.nn.initializers import Fans, generator, resolve

__all__ = ["Head", "add_head", "find_head", "new_head", "replace_head"]

_PROBABILITIES = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})

_AFTER = frozenset(
    {"Identity", "Softmax", "LogSoftmax", "Sigmoid", "Flatten", "Reshape", "Squeeze", "Dropout"}
    | {"GlobalAveragePool", "AveragePool", "Relu"}
)
"""What may stand between a head and the output: one element a class, none mixed with another."""


@final
@dataclass(frozen=True, eq=False)
class Head:
    """The last layer of a classifier.

    Attributes:
        output: the model's output that it gives.
        operator: Gemm, MatMul or Conv.
        weight: the name of its weight.
        bias: the name of its bias; None: it has none.
        inputs: how many numbers each class is computed from.
        classes: how many outputs it has.
        axis: of the classes in the weight.
    """

    output: str
    operator: str
    weight: str
    bias: str | None
    inputs: int
    classes: int
    axis: int

    def __str__(self) -> str:
        return f"{self.weight} ({self.operator}), {self.inputs:,} inputs, {self.classes:,} outputs"


def find_head(model: ir.Model, output: str | None = None) -> Head:
    """The last layer of a model's output: Gemm, MatMul with or without Add, or a 1x1 Conv.

    At most Softmax, Sigmoid, Flatten, Reshape, Squeeze, Relu or a global mean may come after it.

    Args:
        model: a model whose constants are initializers, as `onward.model.load` leaves it.
        output: its name; by default the first.

    Raises:
        ConfigError: there is no such output.
        UnsupportedError: the model ends in something else; names the node.
    """
    value = next((v for v in model.graph.outputs if output in (None, v.name)), None)
    if value is None:
        raise ConfigError(
            f"no output {output!r}; the outputs are {', '.join(str(v.name) for v in model.graph.outputs)}"
        )
    return _find(value)


def replace_head(
    model: ir.Model,
    classes: int,
    *,
    output: str | None = None,
    seed: int = 0,
    initializer: str = "glorot_uniform",
) -> ir.Model:
    """The model with a new last layer of this many outputs; all other weights stay.

    The weight is drawn by the initializer as a function of the seed and its name, the bias is 0.

    Args:
        model: a model whose constants are initializers; it is not changed.
        classes: outputs of the new layer.
        output: the output whose last layer it is; by default the first.
        seed: equal seeds give equal weights.
        initializer: a name that `onward.nn.initializers.resolve` knows.

    Raises:
        ConfigError: there is no such output, or `classes` is below 1.
        UnsupportedError: the model does not end in a layer that can be replaced; names the node.
    """
    if classes < 1:
        raise ConfigError(f"a head has at least 1 output, not {classes}")
    model = model.clone()
    graph = model.graph
    head = find_head(model, output)
    weight = graph.initializers[head.weight]
    old = _array(weight)
    shape = tuple(classes if axis == head.axis else extent for axis, extent in enumerate(old.shape))
    rng = generator(seed, head.weight)
    fans = Fans(head.inputs, classes)
    _set(weight, resolve(initializer).draw(rng, shape, fans, old.dtype))
    if head.bias is not None:
        bias = graph.initializers[head.bias]
        ends = _array(bias).shape
        _set(bias, np.zeros((*ends[:-1], classes), _array(bias).dtype))
    _reshape_after(graph, weight, head.classes, classes)
    return model


def add_head(
    model: ir.Model,
    classes: int,
    *,
    output: str | None = None,
    seed: int = 0,
    initializer: str = "glorot_uniform",
) -> tuple[ir.Model, Head]:
    """The model with a linear layer of this many outputs behind what it gives: for one that ends in features.

    Features are the last axis of [N, F] and [N, ..., F], and the second of [N, F, 1, 1]. Softmax and Sigmoid
    at the end go. The output keeps its name.

    Args:
        model, classes, output, seed, initializer: see `replace_head`.

    Returns:
        The model, and what was added.

    Raises:
        ConfigError: there is no such output, or `classes` is below 1.
        UnsupportedError: the output is not of floats, or the file does not say how many features it has.
    """
    if classes < 1:
        raise ConfigError(f"a head has at least 1 output, not {classes}")
    model = model.clone()
    graph = model.graph
    old = next((v for v in graph.outputs if output in (None, v.name)), None)
    if old is None:
        raise ConfigError(
            f"no output {output!r}; the outputs are {', '.join(str(v.name) for v in graph.outputs)}"
        )
    value, place = old, graph.outputs.index(old)
    while (node := value.producer()) is not None and node.op_type in _PROBABILITIES and not node.domain:
        if (inner := node.inputs[0]) is None:
            break
        value = inner
    dims = dims_of(value)
    pooled = dims is not None and len(dims) > 2 and all(d == 1 for d in dims[2:])
    features = None if dims is None or len(dims) < 2 else dims[1] if pooled else dims[-1]
    if not is_float(value) or not isinstance(features, int) or dims is None:
        shape = "of unknown shape" if dims is None else str(list(dims))
        raise UnsupportedError(
            f"output {old.name!r}, {dtype_of(value).name.lower()} {shape}, is no [N, features] of floats, so "
            "that no head can be added; say shapes with --shapes, or train with as many classes as it has"
        )
    name = old.name or ""
    old.name = f"{name}/features" if old is value or not old.uses() else f"{name}/before"
    g = Builder(graph)
    dtype = numpy_dtype(dtype_of(value))
    weight_name = g.unique(f"{name}/head.weight", scoped=False)
    drawn = resolve(initializer).draw(
        generator(seed, weight_name), (features, classes), Fans(features, classes), dtype
    )
    weight = g.initializer(weight_name, drawn)
    bias = g.initializer(g.unique(f"{name}/head.bias", scoped=False), np.zeros(classes, dtype))
    with g.scope(f"{name}/head"):
        x = g.Flatten(value) if pooled else value
        result = g.Add(g.MatMul(x, weight), bias)
    result.name = name
    result.shape = ir.Shape([dims[0], classes] if pooled else [*dims[:-1], classes])
    graph.outputs[place] = result
    RemoveUnusedNodesPass()(model)
    return model, Head(name, "MatMul", weight_name, bias.name, features, classes, 1)


def new_head(
    model: ir.Model, classes: int, *, output: str | None = None, seed: int = 0
) -> tuple[ir.Model, Head | None, Head]:
    """The model with a new last layer: in place of its own, or behind it where that cannot be replaced.

    Returns:
        The model, the layer that was replaced, or None, and the new one.

    Raises:
        ConfigError, UnsupportedError: as `replace_head` and `add_head`.
    """
    try:
        old = find_head(model, output)
    except UnsupportedError:
        added, head = add_head(model, classes, output=output, seed=seed)
        return added, None, head
    replaced = replace_head(model, classes, output=output, seed=seed)
    return replaced, old, find_head(replaced, output)


def _find(output: ir.Value) -> Head:
    value, bias = output, None
    while True:
        node = value.producer()
        if node is None or node.domain != "" or node.inputs[0] is None:
            raise _refusal(output, node)
        if node.op_type in _AFTER:
            value = node.inputs[0]
            continue
        if node.op_type == "Add" and bias is None:
            constants = [v for v in node.inputs if v is not None and v.is_initializer()]
            products = [v for v in node.inputs if v is not None and not v.is_initializer()]
            if len(constants) == len(products) == 1:
                bias, value = constants[0], products[0]
                continue
        return _head(output, node, bias)


def _head(output: ir.Value, node: ir.Node, added: ir.Value | None) -> Head:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    turned = _turned(weight)
    if turned is not None:
        weight = turned
    if weight is None or not weight.is_initializer() or len(weight.uses()) != 1:
        raise _refusal(output, node)
    shape = _array(weight).shape
    own = node.inputs[2] if len(node.inputs) > 2 else None
    bias = added if own is None else own if added is None else None
    twice = own is not None and added is not None
    if node.op_type == "Gemm" and not node.attributes.get_int("transA", 0):
        axis = 0 if bool(node.attributes.get_int("transB", 0)) != (turned is not None) else 1
    elif node.op_type == "MatMul" and len(shape) == 2 and own is None:
        axis = 1 if turned is None else 0
    elif (
        node.op_type == "Conv"
        and turned is None
        and node.attributes.get_int("group", 1) == 1
        and set(shape[2:]) <= {1}
        and added is None
    ):
        axis = 0
    else:
        raise _refusal(output, node)
    classes = shape[axis]
    if twice or (bias is not None and not _is_bias(bias, classes)):
        raise _refusal(output, node)
    inputs = int(np.prod(shape)) // classes
    name = None if bias is None else bias.name
    return Head(output.name or "", node.op_type, weight.name or "", name, inputs, classes, axis)


def _turned(weight: ir.Value | None) -> ir.Value | None:
    """The matrix that a weight is the transpose of, where nothing else reads that."""
    node = None if weight is None else weight.producer()
    if (
        node is None
        or weight is None
        or node.op_type != "Transpose"
        or node.domain
        or len(weight.uses()) != 1
    ):
        return None
    source = node.inputs[0]
    whole = source is not None and source.is_initializer() and len(_array(source).shape) == 2
    perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else (1, 0)
    return source if whole and tuple(perm) == (1, 0) else None


def _is_bias(value: ir.Value, classes: int) -> bool:
    if not value.is_initializer() or len(value.uses()) != 1:
        return False
    shape = _array(value).shape
    return bool(shape) and shape[-1] == classes and int(np.prod(shape)) == classes


def _reshape_after(graph: ir.Graph, weight: ir.Value, old: int, new: int) -> None:
    """Infer shapes anew from the head on; constant shapes of Reshape that hold the old extent get the new."""
    node = next(iter(weight.uses())).node
    pending, changed = [node], {node}
    while pending:
        for value in pending.pop().outputs:
            for user, _ in value.uses():
                if user not in changed:
                    changed.add(user)
                    pending.append(user)
    for node in graph:
        if node not in changed:
            continue
        if node.op_type == "Reshape":
            _retarget(graph, node, old, new)
        for value in node.outputs:
            value.shape = None
        infer_node(node, graph.opset_imports.get(node.domain, 1))


def _retarget(graph: ir.Graph, node: ir.Node, old: int, new: int) -> None:
    target = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = None if target is None else ir.convenience.get_const_tensor(target)
    if tensor is None or target is None:
        raise UnsupportedError(
            f"node {node.name!r}, operator Reshape: its shape is computed, so the head before it cannot be "
            "replaced"
        )
    shape = tensor.numpy()
    if old not in shape:
        return
    name = f"{target.name or node.name}/head"
    changed = ir.tensor(np.where(shape == old, new, shape).astype(shape.dtype), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(changed.dtype), shape=ir.Shape(shape.shape), const_value=changed
    )
    graph.register_initializer(value)
    node.replace_input_with(1, value)
    if not target.uses() and target.is_initializer():
        graph.initializers.pop(target.name or "")


def _refusal(output: ir.Value, node: ir.Node | None) -> UnsupportedError:
    where = "an input" if node is None else f"node {node.name!r}, operator {node.op_type}"
    return UnsupportedError(
        f"the head of output {output.name!r} cannot be replaced: the model ends in {where}, not in Gemm, "
        "MatMul (and Add) or a 1x1 Conv with a weight of its own; train with as many classes as the model has"
    )


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def _set(value: ir.Value, array: Array) -> None:
    value.const_value = ir.tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)
