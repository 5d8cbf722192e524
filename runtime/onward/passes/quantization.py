"""Quantised models in floats and back: QuantizeLinear and DequantizeLinear as `ai.onward.FakeQuantize`.

A pair of QuantizeLinear and DequantizeLinear, and DequantizeLinear of constants, are what exporters and
quantisers write (QDQ). In floats both can be trained and fused; scales and zero points stay what they were
calibrated to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir

from onward.errors import OnwardError
from onward.graph import ONWARD_DOMAIN, Array, Builder, bind, dims_of, dtype_of, numpy_dtype, replace_node
from onward.ops._quantization import INTEGER_TYPES, integer_range
from onward.ops._shape import constant_of

__all__ = ["in_floats", "in_integers"]

_BIAS = ir.DataType.INT32
"""Of weights only: QuantizeLinear does not write it."""


@final
@dataclass(frozen=True, slots=True)
class _Scheme:
    """How a tensor is quantised: integers of a type, with scales and zero points by axis or one each."""

    to: ir.DataType
    axis: int
    scale: Array
    zero: Array

    def shaped(self, array: Array, rank: int) -> Array:
        """Scales or zero points in a form that broadcasts against a tensor of this rank."""
        if array.size == 1:
            return array.reshape(())
        return array.reshape(-1, *(1,) * (rank - 1 - self.axis % rank))

    def same(self, other: _Scheme) -> bool:
        """Whether two are equal."""
        return (
            self.to == other.to
            and (self.axis == other.axis or self.scale.size == 1)
            and self.scale.tobytes() == other.scale.tobytes()
            and self.zero.tobytes() == other.zero.tobytes()
        )


def in_floats(model: ir.Model, *, trainable: bool = False) -> ir.Model:
    """The model with quantised tensors as floats that have been rounded: the same model where it has none.

    Every pair of QuantizeLinear and DequantizeLinear becomes one FakeQuantize, every DequantizeLinear of a
    constant that nothing else reads a float initializer of the name of its output, and a FakeQuantize that
    rounds it again. Other forms (blocks,
    floats of 8 bits, scales that are computed) stay as they are.

    Args:
        model: in canonical form, or at opset 21; it is not changed.
        trainable: whether NaN, which integers have none of, is to stay NaN and be found; and whether biases
            of int32 get a FakeQuantize of their own, as other initializers do.
    """
    kinds = {n.op_type for n in model.graph if not n.domain}
    if "DequantizeLinear" not in kinds:
        return model
    model = model.clone()
    g = Builder(model.graph)
    for node in list(model.graph):
        if node.domain == "" and node.op_type == "DequantizeLinear":
            scheme = _scheme(node, model)
            if scheme is not None:
                _replace(g, model, node, scheme, trainable=trainable)
    _remove_unread(model.graph)
    return model


def _replace(g: Builder, model: ir.Model, node: ir.Node, scheme: _Scheme, *, trainable: bool) -> None:
    x = node.inputs[0]
    assert x is not None
    quantizer = x.producer()
    if quantizer is not None and quantizer.op_type == "QuantizeLinear" and quantizer.domain == "":
        source, before = quantizer.inputs[0], _scheme(quantizer, model)
        if source is None or dtype_of(source) != ir.DataType.FLOAT or before is None:
            return
        if not before.same(scheme):
            return
        g.at(node)
        y = _faked(g, source, scheme, nan_to_low=not trainable)
        if y is not None:
            replace_node(g, node, [y])
        g.at(None)
        return
    content = constant_of(x)
    name = node.outputs[0].name
    if content is None or not x.is_initializer() or len(x.uses()) != 1 or not name:
        return
    if node.outputs[0].is_graph_output():
        return
    floats = (content.astype(np.int64) - scheme.shaped(scheme.zero, content.ndim).astype(np.int64)).astype(
        np.float32
    ) * scheme.shaped(scheme.scale, content.ndim)
    g.at(node)
    node.outputs[0].name = g.unique(f"{name}/dequantized", scoped=False)
    weight = g.initializer(name, floats.astype(np.float32))
    rounds = trainable or scheme.to != _BIAS
    y = _faked(g, weight, scheme, nan_to_low=not trainable) if rounds else weight
    if y is not None:
        ir.convenience.replace_all_uses_with(node.outputs[0], y)
        g.graph.remove(node, safe=True)
        if not x.uses():
            g.graph.initializers.pop(x.name or "", None)
    g.at(None)


def _faked(g: Builder, x: ir.Value, scheme: _Scheme, *, nan_to_low: bool) -> ir.Value | None:
    dims = dims_of(x)
    if scheme.scale.size > 1 and dims is None:
        return None
    rank = len(dims) if dims is not None else 1
    least, largest = _limits(scheme.to)
    zero = scheme.shaped(scheme.zero, rank).astype(np.int64)
    if zero.size and (zero == zero.flat[0]).all():
        zero = zero.reshape(-1)[0]
    return g.onward.FakeQuantize(
        x,
        g.const(scheme.shaped(scheme.scale, rank)),
        g.const((least - zero).astype(np.float32)),
        g.const((largest - zero).astype(np.float32)),
        to=int(scheme.to),
        axis=scheme.axis,
        nan_to_low=int(nan_to_low),
    )


def _limits(dtype: ir.DataType) -> tuple[int, int]:
    # of int32 what float32 holds exactly: biases are far from its ends
    return (-(1 << 24), 1 << 24) if dtype == _BIAS else integer_range(dtype)


def _scheme(node: ir.Node, model: ir.Model) -> _Scheme | None:
    """How a node quantises; None where that is not known, or not by tensor or axis to integers of float32."""
    try:
        operator = bind(node, model.graph.opset_imports.get("", 0))
    except OnwardError:
        return None
    scale = constant_of(node.inputs[1])
    zero_value = node.inputs[2] if len(node.inputs) > 2 else None
    zero = constant_of(zero_value)
    if scale is None or scale.dtype != np.float32 or scale.ndim > 1 or (zero is None) != (zero_value is None):
        return None
    if getattr(operator, "block_size", 0) or getattr(operator, "precision", 0):
        return None
    given = None if zero_value is None else dtype_of(zero_value)
    if node.op_type == "QuantizeLinear":
        to = operator.target(given)  # type: ignore[attr-defined]
    else:
        if operator.output_dtype not in (0, ir.DataType.FLOAT):  # type: ignore[attr-defined]
            return None
        to = given if given is not None else dtype_of(node.inputs[0])  # type: ignore[arg-type]
    if to not in INTEGER_TYPES and to != _BIAS:
        return None
    whole = np.zeros(scale.shape, numpy_dtype(to)) if zero is None else zero
    return _Scheme(to, operator.axis, scale, whole.reshape(scale.shape))  # type: ignore[attr-defined]


def _remove_unread(graph: ir.Graph) -> None:
    """Leave out quantisers and constants that nothing reads any more."""
    for node in reversed(list(graph)):
        reads = any(v.uses() or v.is_graph_output() for v in node.outputs)
        if node.op_type == "QuantizeLinear" and node.domain == "" and not reads:
            graph.remove(node, safe=True)


def in_integers(model: ir.Model) -> ir.Model:
    """The model with FakeQuantize as QuantizeLinear and DequantizeLinear, and weights as integers.

    It undoes `in_floats(trainable=True)`: an initializer that only a FakeQuantize reads becomes integers and
    a DequantizeLinear. The same model where it has no FakeQuantize.
    """
    if not any(n.domain == ONWARD_DOMAIN and n.op_type == "FakeQuantize" for n in model.graph):
        return model
    model = model.clone()
    g = Builder(model.graph)
    for node in list(model.graph):
        if node.domain == ONWARD_DOMAIN and node.op_type == "FakeQuantize":
            g.at(node)
            with g.scope(node.name or node.op_type):
                result = _integers(g, node)
                if result is not None:
                    replace_node(g, node, [result])
            g.at(None)
    return model


def _integers(g: Builder, node: ir.Node) -> ir.Value | None:
    x, scale_value, low_value, _ = node.inputs
    scale, low = constant_of(scale_value), constant_of(low_value)
    if x is None or scale is None or low is None:
        return None
    to = ir.DataType(node.attributes.get_int("to"))
    axis = node.attributes.get_int("axis", 1) if scale.size > 1 else None
    flat = scale.reshape(-1) if scale.size > 1 else scale.reshape(())
    zero = (_limits(to)[0] - low.astype(np.int64)).astype(numpy_dtype(to))
    zeros = np.broadcast_to(zero, scale.shape).reshape(flat.shape)
    content = x.const_value if x.is_initializer() and not x.is_graph_input() else None
    scales, points = g.const(flat), g.const(zeros)
    if content is not None and len(x.uses()) == 1:
        least, largest = _limits(to)
        whole = np.clip(np.rint(content.numpy() / scale) + zero.astype(np.float64), least, largest)
        integers = g.initializer(
            g.unique(f"{x.name}_quantized", scoped=False), whole.astype(np.int32).astype(numpy_dtype(to))
        )
        y = g.DequantizeLinear(integers, scales, points, axis=axis)
        g.graph.initializers.pop(x.name or "", None)
        return y
    if to == _BIAS:
        return None
    return g.DequantizeLinear(g.QuantizeLinear(x, scales, points, axis=axis), scales, points, axis=axis)
