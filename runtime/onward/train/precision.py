"""Arrays of a model of 16-bit floats: in float32 while it is trained, in its own types outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onward.errors import TrainingError
from onward.graph import Array, TensorSpec, dtype_of, numpy_dtype

__all__ = ["in_own_types", "in_types_of"]


def in_own_types(weights: Mapping[str, Array], model: ir.Model) -> dict[str, Array]:
    """Copies of weights in the types of a model's initializers.

    Raises:
        TrainingError: one has grown beyond what its type reaches.
    """
    found: dict[str, Array] = {}
    for name, array in weights.items():
        dtype = numpy_dtype(dtype_of(model.graph.initializers[name]))
        with np.errstate(over="ignore"):
            found[name] = array.astype(dtype, copy=True)
        if dtype != array.dtype and not np.isfinite(found[name]).all() and np.isfinite(array).all():
            raise TrainingError(
                f"weight {name!r} has come to {float(np.abs(array).max()):.4g}, which {dtype} does not "
                "reach; lower the learning rate, or train the file in float32 or bfloat16"
            )
    return found


def in_types_of(
    specs: Sequence[TensorSpec], arrays: Mapping[str, Array], halves: Sequence[str]
) -> dict[str, Array]:
    """Arrays by name in the types that are asked for, where both are float32 or one of `halves`."""
    if not halves:
        return dict(arrays)
    dtypes = {spec.name: spec.dtype for spec in specs}
    floats = {np.dtype(np.float32), *(ir.DataType[name.upper()].numpy() for name in halves)}
    return {
        name: a.astype(dtypes[name]) if name in dtypes and {a.dtype, dtypes[name]} <= floats else a
        for name, a in ((name, np.asarray(a)) for name, a in arrays.items())
    }
