"""Says shapes of inputs that a file leaves open: what follows from them is known before gradients are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import dims_of

__all__ = ["fix_shapes"]


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
