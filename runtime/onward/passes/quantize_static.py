"""Static quantisation: QuantizeLinear and DequantizeLinear with scales that calibration found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import final

import numpy as np
import onnx_ir as ir

from onward.errors import ConfigError, DataError, UnsupportedError
from onward.graph import Array, Builder, numpy_dtype
from onward.ops._quantization import integer_range
from onward.passes._integer_weights import by_axis, output_axis, weight_of
from onward.passes._selection import chosen_nodes

__all__ = ["quantize_static", "tensors_to_calibrate"]

_OPSET = 13
"""The first whose DequantizeLinear has scales by axis."""

_OPERATORS = ("Conv", "Gemm", "MatMul")
_ACTIVATIONS = ("Relu", "Clip")
_LARGEST_BIAS = float(1 << 23)
"""In steps: float32 holds such integers exactly, and sums beside them stay within int32."""


def quantize_static(
    model: ir.Model,
    ranges: Mapping[str, tuple[float, float]],
    *,
    activations: ir.DataType = ir.DataType.UINT8,
    keep: Collection[str] = (),
) -> ir.Model:
    """The model in QDQ form: convolutions and products whose two sides are 8-bit integers.

    What Conv, Gemm and MatMul with a constant weight read passes a QuantizeLinear and DequantizeLinear; so
    does what a Conv gives, after the Relu or Clip that alone reads it, unless it is an output of the graph.
    Weights become symmetric int8 with a scale for each output channel; biases of Conv and Gemm int32 with the
    scale x_scale · w_scale. Runtimes compute that in integers (onnxruntime: QLinearConv; Onward: `uint8`
    activations on CPUs with VNNI).

    Args:
        model: in inference form, at opset 13 or later; it is not changed.
        ranges: lowest and highest element of each of `tensors_to_calibrate(model, keep=keep)`.
        activations: uint8, by scale and zero point; or int8, whose zero point is 0.
        keep: operators, or names of nodes, that stay in float32.

    Raises:
        ConfigError: `keep` names nothing in the model; no node is left; `activations` is another type.
        DataError: a range is missing or not finite.
        UnsupportedError: the opset is older.
    """
    if activations not in (ir.DataType.UINT8, ir.DataType.INT8):
        raise ConfigError(f"activations are quantised to uint8 or int8, not {activations.name.lower()}")
    wanted = tensors_to_calibrate(model, keep=keep)
    for name in wanted:
        if name not in ranges:
            raise DataError(f"calibration says nothing of tensor {name!r}")
        if not np.isfinite(ranges[name]).all():
            low, high = ranges[name]
            raise DataError(f"calibration found the range {low} … {high} for tensor {name!r}")
    if (opset := model.graph.opset_imports.get("", 0)) < _OPSET:
        raise UnsupportedError(
            f"opset {opset} has no scales by axis: take the model to {_OPSET} or later first "
            "(onward.model.upgrade)"
        )
    model = model.clone()
    writer = _Writer(model, ranges, activations)
    nodes = _quantized(model, chosen_nodes(model, keep))
    for value in _activations(nodes):
        writer.put_activation(value)
    for node in nodes:
        writer.put_constants(node)
    writer.remove_unread()
    return model


def tensors_to_calibrate(model: ir.Model, *, keep: Collection[str] = ()) -> list[str]:
    """The tensors whose ranges `quantize_static` needs, in the order of the graph.

    Raises:
        ConfigError: see `quantize_static`.
    """
    kept = chosen_nodes(model, keep)
    nodes = _quantized(model, kept)
    if not nodes:
        raise ConfigError(
            f"there is nothing to quantise: no {', '.join(_OPERATORS)} has a constant float32 weight"
            + (" and is not kept" if kept else "")
        )
    return [value.name or "" for value in _activations(nodes)]


def _quantized(model: ir.Model, kept: frozenset[str]) -> list[ir.Node]:
    return [
        node
        for node in model.graph
        if node.op_type in _OPERATORS
        and weight_of(node) is not None
        and not {node.op_type, node.name} & kept
        and node.inputs[0] is not None
        and node.inputs[0].dtype == ir.DataType.FLOAT
        and node.inputs[0].const_value is None
    ]


def _activations(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """What the nodes read and what convolutions give, each once."""
    found: dict[ir.Value, None] = {}
    for node in nodes:
        x = node.inputs[0]
        assert x is not None
        found[x] = None
        if node.op_type == "Conv":
            y = _result(node)
            if not y.is_graph_output():
                found[y] = None
    return list(found)


def _result(node: ir.Node) -> ir.Value:
    """A node's output, or that of the activation that alone reads it."""
    y = node.outputs[0]
    readers = [n for n, operand in y.uses() if operand == 0]
    alone = len(y.uses()) == 1 and len(readers) == 1 and not y.is_graph_output()
    if alone and readers[0].op_type in _ACTIVATIONS and not readers[0].domain:
        return readers[0].outputs[0]
    return y


@final
class _Writer:
    def __init__(self, model: ir.Model, ranges: Mapping[str, tuple[float, float]], to: ir.DataType) -> None:
        self._graph, self._ranges, self._to = model.graph, ranges, to
        self._g = Builder(model.graph)
        self._scales: dict[ir.Value, np.float32] = {}
        """By what DequantizeLinear gives."""
        self._weights: dict[tuple[ir.Value, int, bytes], tuple[ir.Value, Array]] = {}
        self._replaced: dict[ir.Value, None] = {}

    def put_activation(self, value: ir.Value) -> None:
        """Round a tensor where it is made: everything that is computed from it reads what was rounded."""
        scale, zero = self._range(value)
        name = value.name or ""
        g = self._g
        uses = list(value.uses())
        producer = value.producer()
        following = next(iter(self._graph), None) if producer is None else self._after(producer)
        g.at(following)
        with g.scope(name):
            operands = g.const(scale), g.const(zero)
            rounded = g.DequantizeLinear(g.QuantizeLinear(value, *operands), *operands)
        rounded.shape = value.shape
        for node, operand in uses:
            node.replace_input_with(operand, rounded)
        self._scales[rounded] = scale

    def put_constants(self, node: ir.Node) -> None:
        """Give a node its weight and bias as integers."""
        x, w = node.inputs[0], node.inputs[1]
        assert x is not None
        assert w is not None
        assert w.const_value is not None
        x_scale = self._scales[x]
        axis = output_axis(node, len(w.const_value.shape))
        bias = self._bias(node)
        floats, w_scale = self._weight(node, w, axis, bias, x_scale)
        node.replace_input_with(1, floats)
        self._replaced[w] = None
        if bias is not None:
            value = node.inputs[2]
            assert value is not None
            scale = np.maximum(x_scale * w_scale, np.finfo(np.float32).tiny)
            whole = np.rint(bias.astype(np.float64) / scale).astype(np.int32)
            content = self._g.initializer(self._g.unique(f"{value.name}_quantized", scoped=False), whole)
            self._g.at(node)
            with self._g.scope(value.name or ""):
                node.replace_input_with(2, self._g.DequantizeLinear(content, self._g.const(scale), axis=0))
            self._replaced[value] = None

    def remove_unread(self) -> None:
        """Drop the weights and biases that nothing reads any more."""
        for value in self._replaced:
            if not value.uses() and not value.is_graph_output():
                self._graph.initializers.pop(value.name or "", None)

    def _after(self, node: ir.Node) -> ir.Node | None:
        following = iter(self._graph)
        for other in following:
            if other is node:
                return next(following, None)
        return None

    def _range(self, value: ir.Value) -> tuple[np.float32, Array]:
        """Scale and zero point of a tensor; 0 is one of the numbers that are exact."""
        low, high = (float(x) for x in self._ranges[value.name or ""])
        low, high = min(low, 0.0), max(high, 0.0)
        least, largest = integer_range(self._to)
        if self._to == ir.DataType.INT8:
            scale, zero = max(-low, high) / largest, 0
        else:
            scale = (high - low) / (largest - least)
            zero = 0 if scale == 0 else int(np.clip(np.rint(-low / scale), least, largest))
        return np.float32(scale or 1.0), np.asarray(zero, numpy_dtype(self._to))

    def _bias(self, node: ir.Node) -> Array | None:
        """A constant bias of one number a channel that can be added to integer sums."""
        value = node.inputs[2] if len(node.inputs) > 2 else None
        if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
            return None
        if value.dtype != ir.DataType.FLOAT or node.attributes.get_float("beta", 1.0) != 1.0:
            return None
        array = value.const_value.numpy()
        w = node.inputs[1]
        assert w is not None
        assert w.const_value is not None
        shape = tuple(w.const_value.shape.numpy())
        if array.shape != (shape[output_axis(node, len(shape))],) or not np.isfinite(array).all():
            return None
        return array

    def _weight(
        self, node: ir.Node, w: ir.Value, axis: int, bias: Array | None, x_scale: np.float32
    ) -> tuple[ir.Value, Array]:
        assert w.const_value is not None
        array = w.const_value.numpy()
        if not np.isfinite(array).all():
            raise DataError(f"weight {w.name!r} of node {node.name!r} is not finite")
        least: Array = np.zeros(array.shape[axis], np.float32)
        if bias is not None:
            least = np.abs(bias) / (np.float64(x_scale) * _LARGEST_BIAS)
        key = w, axis, least.tobytes() if bias is not None else b""
        if key not in self._weights:
            found = by_axis(array, axis, ir.DataType.INT8, least=least)
            g = self._g
            content = g.initializer(g.unique(f"{w.name}_quantized", scoped=False), found.content)
            g.at(next(iter(self._graph)))
            with g.scope(w.name or ""):
                zero = g.const(np.zeros(found.scale.shape, np.int8))
                floats = g.DequantizeLinear(content, g.const(found.scale), zero, axis=axis)
            self._weights[key] = floats, found.scale
        return self._weights[key]
