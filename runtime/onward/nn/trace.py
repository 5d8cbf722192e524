"""Networks while they are written down: handles on graph values, and where layers put their nodes.

A handle (`Tensor`) is a graph value plus the graph that its layers are written to. Parameters are values
without contents until a network is made: only then are the seed and the final names known.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import numpy as np
import onnx_ir as ir

from onward.errors import ConfigError, ShapeError
from onward.graph import Builder, Dim, dims_of, dtype_of, numpy_dtype
from onward.nn.initializers import Fans, Initializer, resolve

if TYPE_CHECKING:
    from onward.nn.layer import Layer

__all__ = ["OPSET", "Input", "Parameter", "Placement", "Site", "Tensor", "Trace"]

OPSET = 21
_LAYER = "onward.nn.layer"
_PARAMETER = "onward.nn.parameter"


@final
@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of a network that is being written: what layers take and give.

    Attributes:
        value: the graph value.
        trace: where its layers write to.
    """

    value: ir.Value
    trace: Trace = field(repr=False)

    @property
    def shape(self) -> tuple[Dim, ...]:
        """One entry a dimension: an extent, a symbolic name, or None. The first is the batch."""
        dims = dims_of(self.value)
        assert dims is not None, "layers refuse outputs of unknown rank"
        return dims

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type."""
        return numpy_dtype(dtype_of(self.value))

    def __repr__(self) -> str:
        return f"Tensor({self.value.name}: {describe(self.value)})"


@final
@dataclass(frozen=True, eq=False)
class Placement:
    """A layer under the name that it has in one trace."""

    layer: Layer
    name: str


@final
@dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter that has no values yet."""

    placement: Placement
    suffix: str
    shape: tuple[int, ...]
    dtype: ir.DataType
    initializer: Initializer
    fans: Fans
    blocks: int


@final
class Trace:
    """The graph that layers write to while a network is defined."""

    def __init__(self) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="trace")
        self.builder = Builder(self.graph)
        self._placements: dict[int, Placement] = {}
        self._taken: set[str] = set()
        self._parameters: dict[tuple[int, str], ir.Value] = {}

    def place(self, layer: Layer) -> Placement:
        """The layer under its name here: given, or of its class and the next free number."""
        if (known := self._placements.get(id(layer))) is not None:
            return known
        if layer.name is not None and layer.name in self._taken:
            raise ConfigError(f"two layers are called {layer.name!r}: layer names are unique in a network")
        name = layer.name if layer.name is not None else numbered(type(layer).__name__.lower(), self._taken)
        return Placement(layer, name)

    def commit(self, placement: Placement) -> None:
        """Record that the layer was added, and which nodes are its own."""
        self._placements[id(placement.layer)] = placement
        self._taken.add(placement.name)
        for node in reversed(self.graph):
            if _LAYER in node.meta:
                break
            node.meta[_LAYER] = placement

    def parameter(self, wanted: Parameter) -> ir.Value:
        """The value of a parameter; the same one each time its layer asks."""
        key = (id(wanted.placement.layer), wanted.suffix)
        if (value := self._parameters.get(key)) is not None:
            require_same(parameter_of(value), wanted)
            return value
        value = ir.Value(
            name=f"{wanted.placement.name}.{wanted.suffix}",
            type=ir.TensorType(wanted.dtype),
            shape=ir.Shape(wanted.shape),
        )
        value.meta[_PARAMETER] = wanted
        self._parameters[key] = value
        return value


@final
@dataclass(frozen=True, eq=False)
class Site:
    """Where a layer that is being added writes to.

    Attributes:
        g: writes nodes; their names begin with the layer's.
    """

    g: Builder
    trace: Trace = field(repr=False)
    placement: Placement = field(repr=False)

    def parameter(
        self,
        suffix: str,
        shape: Sequence[int],
        initializer: str | Initializer,
        *,
        like: ir.Value | ir.DataType,
        fans: Fans | None = None,
        blocks: int = 1,
    ) -> ir.Value:
        """A parameter of the layer, `<layer>.<suffix>` in the model.

        Args:
            suffix: its name within the layer.
            shape: its shape.
            initializer: what draws its first values.
            like: its element type, or a value that has it.
            fans: what the variance-scaling initialisers divide by; needed by those only.
            blocks: how many matrices `[rows, shape[-1]]` the parameter stacks; each is drawn for itself.
        """
        dtype = like if isinstance(like, ir.DataType) else dtype_of(like)
        return self.trace.parameter(
            Parameter(
                self.placement,
                suffix,
                tuple(shape),
                dtype,
                resolve(initializer),
                fans if fans is not None else Fans(1.0, 1.0),
                blocks,
            )
        )


def Input(  # noqa: N802 (a constructor by its field's usual name)
    shape: Sequence[int | str],
    dtype: str | np.dtype[Any] | type = "float32",
    *,
    name: str | None = None,
    batch: int | str = "N",
) -> Tensor:
    """An input of a network that is being written.

    Args:
        shape: the shape of one sample, without the batch; a string is a symbolic extent.
        dtype: the element type.
        name: the input's name in the model; `input` (or `input_1`, ... where there are several) if absent.
        batch: the batch dimension's symbolic name, or a fixed extent.

    Raises:
        ConfigError: an extent is not a positive int or a name, or the dtype is unknown.
    """
    what = f"input {name!r}" if name is not None else "Input"
    for extent in (batch, *shape):
        if not (isinstance(extent, str) and extent) and not (
            isinstance(extent, int) and not isinstance(extent, bool) and extent > 0
        ):
            raise ConfigError(f"{what}: extents are positive ints or symbolic names, got {extent!r}")
    try:
        element = ir.DataType.from_numpy(np.dtype(dtype))
    except TypeError:
        raise ConfigError(f"{what}: unknown dtype {dtype!r}; use a NumPy name such as 'float32'") from None
    if name is not None:
        check_name(what, name)
    trace = Trace()
    value = trace.builder.input(name if name is not None else "", element, [batch, *shape])
    return Tensor(value, trace)


def placement_of(node: ir.Node) -> Placement:
    """The layer that wrote a node."""
    placement: Placement = node.meta[_LAYER]
    return placement


def parameter_of(value: ir.Value) -> Parameter:
    """The parameter that a value stands for."""
    parameter: Parameter = value.meta[_PARAMETER]
    return parameter


def is_parameter(value: ir.Value) -> bool:
    """Whether a value of a trace stands for a parameter."""
    return _PARAMETER in value.meta


def require_same(known: Parameter, wanted: Parameter) -> None:
    """A shared layer has one set of parameters.

    Raises:
        ShapeError: this use of the layer needs them in another shape or dtype.
    """
    if (known.shape, known.dtype) != (wanted.shape, wanted.dtype):
        raise ShapeError(
            f"shared parameter {known.placement.name}.{known.suffix} is "
            f"{known.dtype.name.lower()}{list(known.shape)}, but this input needs "
            f"{wanted.dtype.name.lower()}{list(wanted.shape)}"
        )


def numbered(base: str, taken: set[str]) -> str:
    """The first of base_1, base_2, ... that is free."""
    return next(name for i in itertools.count(1) if (name := f"{base}_{i}") not in taken)


def check_name(what: str, name: str) -> None:
    """Names of layers and tensors are letters, digits, `_`, `.` and `-`: `/` parts a layer from its nodes.

    Raises:
        ConfigError: the name has other characters, or none.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name):
        raise ConfigError(f"{what}: a name has letters, digits, '_', '.' and '-' only, got {name!r}")


def describe(value: ir.Value) -> str:
    """Element type and shape of a value, for messages: `float32[N, 3, 8, 8]`."""
    dims = dims_of(value)
    shape = "[?]" if dims is None else "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
    return f"{numpy_dtype(dtype_of(value))}{shape}"
