"""What is in a model: interface, operators, parameters, cost."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import onnx_ir as ir

from onward.model.leniency import LENIENCIES

__all__ = ["LayerReport", "ModelReport", "ValueReport", "inspect_model"]

_COSTLY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_Dim = int | str | None


@final
@dataclass(frozen=True, slots=True)
class ValueReport:
    """An input or output: dtype by ONNX name (None: not a tensor), shape (None: rank unknown).

    A dimension is a number, the name of a symbolic dimension, or None.
    """

    name: str
    dtype: str | None
    shape: tuple[_Dim, ...] | None


@final
@dataclass(frozen=True, slots=True)
class LayerReport:
    """One node: its parameters (elements of its initialisers) and multiply-accumulates.

    `macs` is None for operators that have none, or whose shapes are not known; a symbolic first dimension
    of the output counts as 1, so that the number is per sample.
    """

    name: str
    operator: str
    output_shape: tuple[_Dim, ...] | None
    parameters: int
    macs: int | None


@final
@dataclass(frozen=True, slots=True)
class ModelReport:
    """Summary of a model; `as_dict` gives plain JSON values."""

    producer: str
    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[ValueReport, ...]
    outputs: tuple[ValueReport, ...]
    operators: Mapping[str, int]
    nodes: int
    parameters: int
    parameter_bytes: int
    macs: int
    layers_of_unknown_cost: int
    layers: tuple[LayerReport, ...]
    metadata: Mapping[str, str]
    leniencies: tuple[str, ...] = ()
    """What the file says that the standard does not allow, and how it was read."""

    def as_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers."""
        return dataclasses.asdict(self)


def inspect_model(model: ir.Model) -> ModelReport:
    """Summarise a model.

    Parameters are all elements of the main graph's numeric initialisers, each counted once; in the table of
    layers, one that several nodes use counts at the first. Nodes of subgraphs count among the operators and
    are listed under the node that holds them, in order. The report's `macs` is the sum over the layers
    where it is known; `layers_of_unknown_cost` says how many Conv, ConvTranspose, Gemm and MatMul it lacks.

    Args:
        model: a model with shapes inferred, as `load` leaves it.
    """
    numeric = {
        value: tensor
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None and tensor.dtype != ir.DataType.STRING
    }
    nodes = list(model.graph.all_nodes())
    layers = []
    counted: set[ir.Value] = set()
    for node in nodes:
        own = [
            value for value in node.inputs if value is not None and value in numeric and value not in counted
        ]
        counted.update(own)
        output = node.outputs[0] if node.outputs else None
        layers.append(
            LayerReport(
                name=node.name or "",
                operator=_operator(node),
                output_shape=_shape(output.shape) if output is not None else None,
                parameters=sum(numeric[value].size for value in dict.fromkeys(own)),
                macs=_macs(node),
            )
        )
    return ModelReport(
        producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
        ir_version=model.ir_version,
        opsets=dict(model.opset_imports),
        inputs=tuple(_value(value) for value in model.graph.inputs),
        outputs=tuple(_value(value) for value in model.graph.outputs),
        operators=dict(sorted(Counter(_operator(node) for node in nodes).items())),
        nodes=len(nodes),
        parameters=sum(tensor.size for tensor in numeric.values()),
        parameter_bytes=sum(tensor.nbytes for tensor in numeric.values()),
        macs=sum(layer.macs or 0 for layer in layers),
        layers_of_unknown_cost=sum(layer.macs is None and layer.operator in _COSTLY for layer in layers),
        layers=tuple(layers),
        metadata=dict(model.metadata_props),
        leniencies=tuple(model.meta.get(LENIENCIES, ())),
    )


def _operator(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _value(value: ir.Value) -> ValueReport:
    tensor = isinstance(value.type, ir.TensorType)
    return ValueReport(
        value.name or "", value.type.dtype.name if tensor and value.type else None, _shape(value.shape)
    )


def _shape(shape: ir.Shape | None) -> tuple[_Dim, ...] | None:
    if shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in shape)


def _macs(node: ir.Node) -> int | None:
    """Multiply-accumulates of one node.

    Conv: output elements × (C_in / group) × kernel elements. ConvTranspose: input elements ×
    (C_out / group) × kernel elements. Gemm and MatMul: output elements × K.
    """
    if node.domain or node.op_type not in _COSTLY:
        return None
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None
    assert weight is not None
    if node.op_type == "ConvTranspose":
        return _times(_count(data), _static(weight, slice(1, None)))
    result = _count(node.outputs[0])
    if node.op_type == "Conv":
        return _times(result, _static(weight, slice(1, None)))
    if node.op_type == "Gemm":
        transposed = node.attributes.get_int("transB", 0)
        return _times(result, _static(weight, slice(1, 2) if transposed else slice(0, 1)))
    inner = _static(data, slice(-1, None))
    if inner is None:
        rank = weight.shape.rank() if weight.shape is not None else 0
        inner = _static(weight, slice(-2, -1) if rank > 1 else slice(0, 1)) if rank else None
    return _times(result, inner)


def _times(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a * b


def _count(value: ir.Value) -> int | None:
    """Elements of a value, its first dimension counting as 1 when it is symbolic."""
    if value.shape is None:
        return None
    dims: Sequence[int | ir.SymbolicDim] = tuple(value.shape)
    if dims and not isinstance(dims[0], int):
        dims = dims[1:]
    return _product(dims)


def _static(value: ir.Value, part: slice) -> int | None:
    return None if value.shape is None else _product(tuple(value.shape)[part])


def _product(dims: Sequence[int | ir.SymbolicDim]) -> int | None:
    numbers = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(numbers) if len(numbers) == len(dims) else None
