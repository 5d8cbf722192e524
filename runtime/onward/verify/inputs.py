"""Random inputs that a model can take: dtypes, shapes, and integers that index within their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onward.errors import InputError
from onward.graph import ONWARD_DOMAIN, Array, TensorSpec, dims_of, spec_of

__all__ = ["draw", "random_inputs"]

_CARRIERS = frozenset(
    {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand", "Slice"}
    | {"Concat", "Tile", "Split"}
)
"""Operators that pass their operands' elements on."""
_INDEXED = {
    ("Gather", ""): "axis",
    ("GatherElements", ""): "axis",
    ("ScatterElements", ""): "axis",
    ("GatherND", ""): "all",
    ("ScatterND", ""): "all",
    ("SoftmaxCrossEntropyLoss", ""): "class",
    ("NegativeLogLikelihoodLoss", ""): "class",
    ("SoftmaxCrossEntropy", ONWARD_DOMAIN): "class",
    ("SoftmaxCrossEntropyGrad", ONWARD_DOMAIN): "class",
}
"""Operators whose second operand indexes the first, and which of its extents bounds the index."""
_IMAGE_EXTENT, _OTHER_EXTENT = 32, 16
_INTEGER_RANGE = (0, 10)


def random_inputs(
    model: ir.Model,
    *,
    seed: int = 0,
    batch: int = 2,
    dims: Mapping[str, int] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    given: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """An array for each input of a model that has no default.

    Floats are standard normal; integers that select from a table stay within it, bytes use their whole
    range, and other integers are 0 … 9.

    Args:
        model: its inputs say dtype and shape.
        seed: equal seeds give equal inputs.
        batch: the extent of symbolic first dimensions.
        dims: extents of other symbolic dimensions by name, or of unnamed ones as `input:axis`; by default 32
            for the spatial axes of images, else 16. Equal names have equal extents.
        ranges: by input name, the interval that elements are drawn from: [low, high] uniformly for floats,
            low … high − 1 for integers.
        given: inputs that are not random; they bind symbolic dimensions.

    Raises:
        InputError: an input is neither given nor can be drawn; a given one contradicts another's dimensions;
            an option names an input or a dimension that does not exist.
    """
    values = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    specs = {v.name or "": spec_of(v) for v in values}
    given, ranges = given or {}, ranges or {}
    for name in [*given, *ranges]:
        if name not in specs:
            raise InputError(f"no input named {name!r}; the inputs are {', '.join(specs)}")
    extents = _extents(list(specs.values()), batch, dims or {}, given)
    result = dict(given)
    for index, value in enumerate(values):
        spec = specs[value.name or ""]
        if spec.name in given:
            continue
        if spec.shape is None:
            raise InputError(f"input {spec.name!r} has no declared rank: give the array")
        shape = [d if isinstance(d, int) else extents[_key(spec, axis)] for axis, d in enumerate(spec.shape)]
        low_high = ranges.get(spec.name)
        if low_high is None and (bound := _index_bound(value)) is not None:
            low_high = (0, bound)
        result[spec.name] = draw(np.random.default_rng([seed, index]), spec, shape, low_high)
    return {name: result[name] for name in specs}


def draw(
    rng: np.random.Generator, spec: TensorSpec, shape: Sequence[int], interval: tuple[float, float] | None
) -> Array:
    """One random array of a spec's dtype.

    Raises:
        InputError: the dtype has no random values that would mean anything, or the interval is empty.
    """
    kind = spec.dtype.kind
    if interval is not None and not interval[0] < interval[1]:
        raise InputError(f"input {spec.name!r}: the range {interval[0]} … {interval[1]} is empty")
    if kind == "b":
        return rng.random(shape) < 0.5
    if kind in "iu" and spec.dtype.name in np.sctypeDict:
        limits = np.iinfo(spec.dtype)
        whole = (limits.min, limits.max + 1) if spec.dtype.itemsize == 1 else _INTEGER_RANGE
        low, high = whole if interval is None else (int(interval[0]), int(interval[1]))
        return rng.integers(low, high, size=shape).astype(spec.dtype)
    if spec.dtype.name in ("float16", "bfloat16", "float32", "float64"):
        drawn = rng.standard_normal(shape) if interval is None else rng.uniform(*interval, size=shape)
        return np.asarray(drawn).astype(spec.dtype)
    raise InputError(f"input {spec.name!r}: there are no random values of dtype {spec.dtype}; give the array")


def _key(spec: TensorSpec, axis: int) -> str:
    dim = spec.shape[axis] if spec.shape is not None else None
    return dim if isinstance(dim, str) else f"{spec.name}:{axis}"


def _extents(
    specs: Sequence[TensorSpec], batch: int, dims: Mapping[str, int], given: Mapping[str, Array]
) -> dict[str, int]:
    found: dict[str, int] = {}
    for spec in specs:
        array = given.get(spec.name)
        if array is None or spec.shape is None or array.ndim != len(spec.shape):
            continue
        for axis, dim in enumerate(spec.shape):
            if not isinstance(dim, int) and found.setdefault(_key(spec, axis), array.shape[axis]) != (
                extent := array.shape[axis]
            ):
                raise InputError(
                    f"input {spec.name!r}: dimension {_key(spec, axis)!r} is {extent} here and "
                    f"{found[_key(spec, axis)]} in another input"
                )
    free = {
        _key(spec, axis): (axis, len(shape))
        for spec, shape in reversed([(s, s.shape or ()) for s in specs])
        for axis, dim in reversed(list(enumerate(shape)))
        if not isinstance(dim, int)
    }
    for name in dims:
        if name not in free:
            raise InputError(f"no input has a dimension {name!r}; there are {', '.join(free) or 'none'}")
    firsts = {_key(s, 0) for s in specs if s.shape and not isinstance(s.shape[0], int)}
    for key, (axis, rank) in free.items():
        spatial = rank >= 4 and axis >= 2
        default = batch if key in firsts else _IMAGE_EXTENT if spatial else _OTHER_EXTENT
        found.setdefault(key, dims.get(key, default))
    return found


def _index_bound(value: ir.Value) -> int | None:
    """How many entries the tables have that a value selects from; None where it selects from none."""
    if value.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
        return None
    bounds: list[int] = []
    pending, seen = [value], {value}
    while pending:
        for node, operand in pending.pop().uses():
            if node.domain == "" and node.op_type in _CARRIERS and (operand == 0 or node.op_type == "Concat"):
                fresh = [v for v in node.outputs if v not in seen]
                pending += fresh
                seen.update(fresh)
            elif (bound := _bound(node, operand)) is not None:
                bounds.append(bound)
    return min(bounds, default=None)


def _bound(node: ir.Node, operand: int) -> int | None:
    if (node.op_type, node.domain, operand) == ("OneHot", "", 0):
        depth = None if node.inputs[1] is None else ir.convenience.get_const_tensor(node.inputs[1])
        return 1 if depth is None else int(depth.numpy().reshape(-1)[0])
    which = _INDEXED.get((node.op_type, node.domain))
    if which is None or operand != 1 or node.inputs[0] is None:
        return None
    dims = dims_of(node.inputs[0])
    if not dims:
        return 1
    if which == "all":
        return min((d if isinstance(d, int) else 1) for d in dims)
    attribute = node.attributes.get("axis")
    axis = 1 if which == "class" else 0 if attribute is None else attribute.as_int()
    extent = dims[axis] if -len(dims) <= axis < len(dims) else 1
    # entry 0 is there whatever the extent turns out to be
    return extent if isinstance(extent, int) else 1
