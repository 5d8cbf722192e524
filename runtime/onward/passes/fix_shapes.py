"""Says shapes and contents of inputs that a file leaves open: what follows is known before gradients are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import Array, dims_of, is_float, spec_of
from onward.passes.fold_shapes import fold_shapes

__all__ = ["fix_inputs", "fix_shapes"]


def fix_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int | str | None]]) -> ir.Model:
    """The model with further dimensions of its inputs fixed.

    Args:
        model: it is not changed.
        shapes: by input; None and names leave a dimension as it is. A symbol that is fixed is fixed
            everywhere.

    Raises:
        ConfigError: there is no such input, or a shape contradicts the declared one.
    """
    model = model.clone()
    inputs = {v.name: v for v in model.graph.inputs}
    found: dict[str, int] = {}
    for name, wanted in shapes.items():
        if name not in inputs:
            known = ", ".join(str(n) for n in inputs)
            raise ConfigError(f"a shape is given for {name!r}, but the inputs are {known}")
        dims = dims_of(inputs[name])
        if dims is None:
            dims = (None,) * len(wanted)
        fits = len(dims) == len(wanted) and all(
            not isinstance(new, int) or (new >= 0 and (not isinstance(old, int) or new == old))
            for old, new in zip(dims, wanted, strict=False)
        )
        if not fits:
            raise ConfigError(f"shape {list(wanted)} does not fit input {name!r}, declared {list(dims)}")
        merged = [new if isinstance(new, int) else old for old, new in zip(dims, wanted, strict=True)]
        for old, new in zip(dims, merged, strict=True):
            if isinstance(old, str) and isinstance(new, int) and found.setdefault(old, new) != new:
                raise ConfigError(f"dimension {old!r} is said to be both {found[old]} and {new}")
        inputs[name].shape = ir.Shape(merged)
    values = [*model.graph.inputs, *model.graph.outputs, *(v for n in model.graph for v in n.outputs)]
    for value in values:
        dims = dims_of(value)
        if dims is not None and any(d in found for d in dims if isinstance(d, str)):
            value.shape = ir.Shape([found.get(d, d) if isinstance(d, str) else d for d in dims])
    return model


def fix_inputs(model: ir.Model, contents: Mapping[str, Array]) -> ir.Model:
    """The model with inputs that are constants, and what follows from them folded.

    Branches that they choose stand in the place of their If; weights that only other branches read are gone.

    Args:
        model: it is not changed.
        contents: an array by input, of its dtype and of a shape that fits.

    Raises:
        ConfigError: there is no such input, or the array does not fit it.
    """
    model = model.clone()
    graph = model.graph
    inputs = {v.name: v for v in graph.inputs}
    for name, content in contents.items():
        if name not in inputs:
            known = ", ".join(str(n) for n in inputs)
            raise ConfigError(f"contents are given for {name!r}, but the inputs are {known}")
        value, array = inputs[name], np.asarray(content)
        spec = spec_of(value)
        if array.dtype != spec.dtype or not spec.admits(array.shape):
            raise ConfigError(f"input {name!r}: expected {spec}, got {array.dtype}{list(array.shape)}")
        graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        value.shape = ir.Shape(array.shape)
        graph.initializers[name] = value
    weights = [name for name, value in graph.initializers.items() if is_float(value)]
    folded = fold_shapes(model, [name for name in weights if name not in contents])
    for name, value in list(folded.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del folded.graph.initializers[name]
    return folded
