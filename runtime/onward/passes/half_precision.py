"""Writes a float32 model in float16 or bfloat16, with what does not fit its range left in float32."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import final

import numpy as np
import onnx
import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import Array, Builder, bodies_of, dtype_of, infer_node, numpy_dtype
from onward.passes._selection import chosen_nodes

__all__ = ["to_half"]

_FLOAT = ir.DataType.FLOAT
_LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895e38}
_MARGIN = 4.0
"""A range that was seen on some data is taken to be that much wider on others."""

_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Their scales are small numbers that everything behind them is multiplied by."""

_SQUARES = frozenset({"ReduceSumSquare", "ReduceL2", "LpNormalization", "MeanVarianceNormalization"})
"""They sum squares inside, which no range outside shows."""

_NEAR_ZERO = frozenset({"Div", "Log", "Pow", "Reciprocal", "Sqrt"})
"""What these make of 0 is far from what they make of the small number that was added to keep it away."""

_TYPE_ATTRIBUTES = ("to", "dtype")


def to_half(
    model: ir.Model,
    to: ir.DataType = ir.DataType.FLOAT16,
    *,
    keep: Collection[str] = (),
    keep_io: bool = False,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> ir.Model:
    """The model with its float32 tensors in a 16-bit type, and Casts around what stays in float32.

    In float32 stay nodes that do not have the type at the model's opset, nodes of other domains and with
    bodies, operands that are float32 by the standard (Resize's scales), sums of squares in float16, and
    nodes of which a constant would become infinite, or one number 0 (and the quotient, root, power or
    logarithm of its result), or a tensor comes within a factor of four of the type's largest number in
    `ranges`.

    Args:
        model: without functions; it is not changed.
        to: float16 or bfloat16.
        keep: operators, or names of nodes, that stay in float32.
        keep_io: whether the graph's inputs and outputs stay float32.
        ranges: lowest and highest element by tensor, as `onward.verify.calibrate` finds them.

    Raises:
        ConfigError: `to` is another type; `keep` names nothing in the model; there is no float32 tensor.
    """
    if to not in _LARGEST:
        raise ConfigError(f"a 16-bit type is float16 or bfloat16, not {to.name.lower()}")
    kept = chosen_nodes(model, keep)
    model = model.clone()
    floats = {v for v in _values(model.graph) if v.dtype == _FLOAT and isinstance(v.type, ir.TensorType)}
    if not floats:
        raise ConfigError("the model has no float32 tensors to convert")
    writer = _Writer(model, to, kept, ranges or {}, floats)
    if not keep_io:
        writer.convert_inputs()
    for node in list(model.graph):
        writer.convert_node(node)
    writer.type_outputs(_FLOAT if keep_io else to)
    writer.remove_unread()
    return model


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


@final
class _Writer:
    """Changes one graph; what a value was is in `floats`, what it has become is its type."""

    def __init__(
        self,
        model: ir.Model,
        to: ir.DataType,
        keep: frozenset[str],
        ranges: Mapping[str, tuple[float, float]],
        floats: set[ir.Value],
    ) -> None:
        self._graph, self._to, self._keep = model.graph, to, keep
        self._ranges, self._floats = ranges, floats
        self._g = Builder(model.graph)
        self._copies: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._small: set[ir.Value] = set()
        """Results of nodes that a small constant keeps in float32."""

    def convert_inputs(self) -> None:
        for value in self._graph.inputs:
            if value in self._floats:
                value.type = ir.TensorType(self._to)
                if value.const_value is not None:
                    value.const_value = _converted(value.const_value, self._to)

    def convert_node(self, node: ir.Node) -> None:
        """Put a node in the type that it gets, with operands of that type."""
        half = self._is_half(node)
        fixed = _fixed_operands(node, self._graph.opset_imports)
        for i, value in enumerate(node.inputs):
            if value is not None and value in self._floats:
                wanted = self._to if half and i not in fixed else _FLOAT
                node.replace_input_with(i, self._typed(value, wanted, node))
        for body in bodies_of(node):
            for inner in body.all_nodes():
                for i, value in enumerate(inner.inputs):
                    if value is not None and value in self._floats:
                        inner.replace_input_with(i, self._typed(value, _FLOAT, node))
        if half:
            _retype_attributes(node, self._to)
            shapes = [v.shape for v in node.outputs]
            infer_node(node, self._graph.opset_imports[""])
            for value, shape in zip(node.outputs, shapes, strict=True):
                value.shape = shape

    def type_outputs(self, wanted: ir.DataType) -> None:
        """Give the graph's outputs their type by a Cast that takes over the name."""
        for i, value in enumerate(self._graph.outputs):
            if value not in self._floats or value.dtype == wanted:
                continue
            name, shape = value.name or "", value.shape
            value.name = self._g.unique(f"{name}/{dtype_of(value).name.lower()}", scoped=False)
            self._g.at(None)
            (cast,) = self._g.emit("Cast", value, to=int(wanted), outputs=[name])
            cast.shape = shape
            self._graph.outputs[i] = cast

    def remove_unread(self) -> None:
        """Drop float32 weights that nothing reads any more; their converted copies take over the names.

        Those that something reads are cast where they are read in 16 bits: two copies of one weight would be
        more bytes, and two weights to whoever trains the file.
        """
        for (old, dtype), new in self._copies.items():
            if not old.is_initializer() or old.is_graph_input():
                continue
            name = old.name or ""
            if not old.uses() and not old.is_graph_output():
                self._graph.initializers.pop(name)
                new.name = name
            elif new.is_initializer() and new.const_value is not None and new.const_value.size > 1:
                self._graph.initializers.pop(new.name or "")
                self._g.at(next(iter(self._graph)))
                new_name, new.name = new.name or "", None
                (cast,) = self._g.emit("Cast", old, to=int(dtype), outputs=[new_name])
                cast.shape = new.shape
                ir.convenience.replace_all_uses_with(new, cast)

    def _typed(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        if value.dtype == dtype:
            return value
        copy = self._copies.get((value, dtype))
        if copy is None:
            base = self._g.unique(f"{value.name}/{dtype.name.lower()}", scoped=False)
            if value.is_initializer() and not value.is_graph_input() and value.const_value is not None:
                copy = self._g.initializer(base, value.const_value.numpy().astype(numpy_dtype(dtype)))
            else:
                self._g.at(before)
                (copy,) = self._g.emit("Cast", value, to=int(dtype), outputs=[base])
                copy.shape = value.shape
            self._copies[value, dtype] = copy
        return copy

    def _is_half(self, node: ir.Node) -> bool:
        operands = [v for v in node.inputs if v is not None and v in self._floats]
        results = [v for v in node.outputs if v in self._floats]
        if not operands and not results:
            return False
        if node.domain or node.op_type in _KEPT or {node.op_type, node.name} & self._keep:
            return False
        if next(bodies_of(node), None) is not None:
            return False
        if node.op_type in _SQUARES and self._to == ir.DataType.FLOAT16:
            return False
        if not _has_type(node, self._graph.opset_imports, self._to):
            return False
        if any(self._vanishes(v) for v in (*operands, *results)) or (
            node.op_type in _NEAR_ZERO and not self._small.isdisjoint(operands)
        ):
            self._small.update(results)
            return False
        return all(self._fits(v) for v in (*operands, *results)) and all(
            self._holds(attribute.as_tensor().numpy())
            for attribute in node.attributes.values()
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FLOAT
        )

    def _fits(self, value: ir.Value) -> bool:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return self._holds(tensor.numpy())
        low, high = self._ranges.get(value.name or "", (0.0, 0.0))
        return max(-low, high) * _MARGIN <= _LARGEST[self._to]

    def _holds(self, array: Array) -> bool:
        """Whether finite constants stay finite."""
        finite = array[np.isfinite(array)]
        return not finite.size or bool(np.abs(finite).max() <= _LARGEST[self._to])

    def _vanishes(self, value: ir.Value) -> bool:
        """Whether a constant is one number that is not 0 and would be."""
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.size != 1:
            return False
        array = tensor.numpy()
        return bool((array != 0) & (array.astype(numpy_dtype(self._to)) == 0))


def _schema(node: ir.Node, opsets: Mapping[str, int]) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 0), node.domain)
    except onnx.defs.SchemaError:
        return None


def _fixed_operands(node: ir.Node, opsets: Mapping[str, int]) -> set[int]:
    """The operands that are float32 whatever the others are."""
    schema = _schema(node, opsets)
    if schema is None or not schema.inputs:
        return set()
    last = len(schema.inputs) - 1
    return {i for i in range(len(node.inputs)) if schema.inputs[min(i, last)].type_str == "tensor(float)"}


def _has_type(node: ir.Node, opsets: Mapping[str, int], to: ir.DataType) -> bool:
    """Whether every float32 operand and result that is free to be of another type may be of this one."""
    schema = _schema(node, opsets)
    if schema is None:
        return False
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    wanted = f"tensor({to.name.lower()})"
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for i, value in enumerate(values):
            if value is None or value.dtype not in (_FLOAT, to):
                continue
            types = allowed.get(formals[min(i, len(formals) - 1)].type_str)
            if not isinstance(value.type, ir.TensorType) or (types is not None and wanted not in types):
                return False
    return True


def _retype_attributes(node: ir.Node, to: ir.DataType) -> None:
    if node.op_type == "Constant":
        for name in ("value_float", "value_floats"):
            if (attribute := node.attributes.pop(name, None)) is not None:
                array = np.asarray(attribute.value, np.float32).astype(numpy_dtype(to))
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1, numpy_dtype(to))))
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FLOAT:
            node.attributes[name] = ir.AttrTensor(name, _converted(attribute.as_tensor(), to))
    for name in _TYPE_ATTRIBUTES:
        given = node.attributes.get(name)
        if given is not None and given.type == ir.AttributeType.INT and given.as_int() == int(_FLOAT):
            node.attributes[name] = ir.AttrInt64(name, int(to))
    schema_default = node.op_type in ("RandomNormal", "RandomUniform") and "dtype" not in node.attributes
    if schema_default:
        node.attributes["dtype"] = ir.AttrInt64("dtype", int(to))


def _converted(tensor: ir.TensorProtocol, to: ir.DataType) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(numpy_dtype(to)), name=tensor.name)
