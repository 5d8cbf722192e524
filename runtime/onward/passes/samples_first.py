"""Gives a model whose samples lie along another axis inputs and outputs [N, ...]."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import Builder, dims_of

__all__ = ["axis_of_all", "samples_first"]


def axis_of_all(model: ir.Model, axis: int) -> dict[str, int]:
    """One axis of samples for all inputs and outputs of rank 2 and above, by name."""
    values = [
        v for v in (*model.graph.inputs, *model.graph.outputs) if v.name not in model.graph.initializers
    ]
    return {v.name or "": axis for v in values if len(dims_of(v) or (0, 0)) > 1}


def samples_first(model: ir.Model, axes: Mapping[str, int]) -> ir.Model:
    """The model with its samples along axis 0 of the inputs and outputs that are named.

    Args:
        model: it is not changed.
        axes: by input or output, where samples lie in it; negative from the end.

    Raises:
        ConfigError: there is no such input or output, or it has no such axis.
    """
    model = model.clone()
    graph = model.graph
    inputs = {v.name: v for v in graph.inputs if v.name not in graph.initializers}
    outputs = {v.name: v for v in graph.outputs}
    for name, axis in axes.items():
        value = inputs.get(name, outputs.get(name))
        if value is None:
            known = ", ".join(map(str, (*inputs, *outputs)))
            raise ConfigError(f"samples lie along an axis of {name!r}, but inputs and outputs are {known}")
        dims = dims_of(value)
        if dims is None or not -len(dims) <= axis < len(dims):
            shape = "of unknown rank" if dims is None else str(list(dims))
            raise ConfigError(f"{name!r} is {shape}: it has no axis {axis} for samples")
        axis %= len(dims)
        if axis == 0:
            continue
        others = [i for i in range(len(dims)) if i != axis]
        first = [dims[axis], *(dims[i] for i in others)]
        g = Builder(graph)
        if name in inputs:
            g.at(next(iter(graph), None))
            uses = list(value.uses())
            value.shape = ir.Shape(first)
            back = [others.index(i) + 1 if i != axis else 0 for i in range(len(dims))]
            own = g.Transpose(value, perm=back)
            for node, index in uses:
                node.replace_input_with(index, own)
        else:
            place = graph.outputs.index(value)
            value.name = g.unique(f"{name}/own", scoped=False)
            moved = g.Transpose(value, perm=[axis, *others])
            moved.name, moved.shape = name, ir.Shape(first)
            graph.outputs[place] = moved
    return model
