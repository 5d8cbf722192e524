"""Writes typed nodes into a graph: gradient rules, layers and passes read as maths through it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onward.errors import ShapeError
from onward.graph.infer import infer_node
from onward.graph.op import ONWARD_DOMAIN, has_schemas, newest_version
from onward.graph.origin import note_opset
from onward.graph.types import Array, Dim, TextTensor, dims_of, dtype_of, is_float, numpy_dtype, static_shape

__all__ = ["Builder", "Operand"]

Operand: TypeAlias = "ir.Value | Array | float | int | bool | Sequence[int] | Sequence[float] | None"


class Builder:
    """Appends nodes to a graph; every value it makes has a name, a type and, as far as it follows, a shape.

    `g.Relu(x)` emits a node of the operator named and returns its first output. Python numbers and lists
    become constants: of the element type that the operator's schema ties to another operand, else int64 for
    integers. `g.onward.Name(...)` emits operators of `ai.onward`.

    Args:
        graph: the graph to write to. Its opset decides the operators' versions.
        before: write before this node instead of at the end.
        scope: a prefix of the names of nodes and values.
    """

    def __init__(self, graph: ir.Graph, *, before: ir.Node | None = None, scope: str = "") -> None:
        self.graph = graph
        self._before = before
        self._scope = scope
        self._names = _used_names(graph)
        self._counts: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self.declared_opset: int | None = None
        """The opset of the user's model that new nodes are said to come from."""

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Put names made inside the `with` block below `name/`."""
        outer, self._scope = self._scope, f"{self._scope}{name}/"
        try:
            yield
        finally:
            self._scope = outer

    def at(self, node: ir.Node | None) -> None:
        """Write before this node from now on; None: at the end."""
        self._before = node

    def inside(self, body: ir.Graph) -> Builder:
        """A builder on a body that stands in the graph: names are unique in both."""
        inner = Builder(body)
        inner._names, inner._counts, inner._scope = self._names, self._counts, self._scope
        inner.declared_opset = self.declared_opset
        return inner

    def unique(self, base: str, *, scoped: bool = True) -> str:
        """A name that the graph does not have yet, below the current scope."""
        base = f"{self._scope}{base}" if scoped else base
        name = base
        while name in self._names:
            self._counts[base] = self._counts.get(base, 0) + 1
            name = f"{base}_{self._counts[base]}"
        self._names.add(name)
        return name

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return functools.partial(self._emit_first, op_type, "")

    @property
    def onward(self) -> _OnwardOperators:
        """Emits operators of the `ai.onward` domain by name."""
        return _OnwardOperators(self)

    def _emit_first(self, op_type: str, domain: str, *inputs: Operand, **attributes: Any) -> ir.Value:
        return self.emit(op_type, *inputs, domain=domain, **attributes)[0]

    def emit(
        self,
        op_type: str,
        *inputs: Operand,
        domain: str = "",
        outputs: int | Sequence[str | None] = 1,
        name: str | None = None,
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """Write one node and return its outputs.

        Args:
            op_type: the operator.
            inputs: graph values, arrays, numbers, lists, or None for an absent optional input.
            domain: the operator's domain; empty for the standard.
            outputs: how many outputs, or their names (None: make one up; empty: the output is absent).
            name: the node's name; made up if absent. Given names must be free.
            attributes: those that are None are left out.

        Raises:
            ShapeError: the operands' types or shapes contradict the operator.
            UnsupportedError: the operator does not exist at the graph's opset.
        """
        opset = self._opset(domain)
        operands = self._operands(op_type, domain, opset, inputs)
        while operands and operands[-1] is None:
            operands.pop()
        base = name if name is not None else self.unique(op_type)
        names = [None] * outputs if isinstance(outputs, int) else list(outputs)
        self._names.update(n for n in (base, *names) if n)
        values = [
            ir.Value(name=given if given is not None else self.unique_output(base, i))
            for i, given in enumerate(names)
        ]
        given = {key: _attribute(key, value) for key, value in attributes.items() if value is not None}
        node = ir.node(op_type, operands, given, domain=domain, outputs=values, name=base)
        if self.declared_opset is not None:
            note_opset(node, self.declared_opset)
        infer_node(node, opset)
        self._write(node)
        return tuple(values)

    def insert(self, node: ir.Node) -> None:
        """Write a node that belongs to no graph; it and its outputs get names that are free."""
        node.name = self.unique(node.name or node.op_type)
        for value in node.outputs:
            if value.name:
                value.name = self.unique(value.name)
        self._write(node)

    def _write(self, node: ir.Node) -> None:
        if self._before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._before, node)

    def unique_output(self, node_name: str, index: int) -> str:
        """A free name for an output of a node: the node's own for the first."""
        name = f"{node_name}:{index}" if index else f"{node_name}:y"
        while name in self._names:
            name += "'"
        self._names.add(name)
        return name

    def const(self, content: Any, dtype: ir.DataType | np.dtype[Any] | type | None = None) -> ir.Value:
        """A constant, shared with equal ones made by this builder; an initializer of the graph."""
        wanted = numpy_dtype(dtype) if isinstance(dtype, ir.DataType) else dtype
        array = np.asarray(content, dtype=wanted)
        data = repr(array.tolist()).encode() if array.dtype.kind in "OU" else array.tobytes()
        key = (array.dtype.str + array.dtype.name, array.shape, data)
        if (value := self._constants.get(key)) is None:
            value = self.initializer(self.unique("const", scoped=False), array)
            self._constants[key] = value
        return value

    def initializer(self, name: str, array: Array) -> ir.Value:
        """Register an array as an initializer under exactly this name."""
        tensor: ir.TensorProtocol = (
            TextTensor.of(array, name)
            if array.dtype.kind in "OU"
            else ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        )
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self._names.add(name)
        self.graph.register_initializer(value)
        return value

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        """Add an input to the graph."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._names.add(name)
        self.graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str) -> ir.Value:
        """Make a value an output of the graph under this name; its former name is lost.

        The value is renamed where it is free to be; an input, an initializer or a value that already is an
        output gets an Identity.
        """
        if value.name != name:
            if value.is_graph_input() or value.is_initializer() or value.is_graph_output():
                value = self.emit("Identity", value, outputs=[name], name=self.unique(f"{name}/out"))[0]
            else:
                value.name = name
        self._names.add(name)
        self.graph.outputs.append(value)
        return value

    def shape(self, x: ir.Value) -> ir.Value:
        """The shape of x as an int64 vector: a constant where it is static."""
        known = static_shape(x)
        return self.const(known, np.int64) if known is not None else self._emit_first("Shape", "", x)

    def dim(self, x: ir.Value, axis: int) -> ir.Value:
        """The extent of one axis as an int64 vector of length 1: a constant where it is static."""
        dims = dims_of(x)
        extent = dims[axis] if dims is not None else None
        if isinstance(extent, int):
            return self.const([extent], np.int64)
        end = None if axis == -1 else axis + 1
        return self._emit_first("Shape", "", x, start=axis, end=end)

    def size(self, x: ir.Value, axes: Sequence[int] | None = None) -> ir.Value:
        """The number of elements over the axes given (all by default), a scalar of x's element type."""
        dims = dims_of(x)
        if dims is not None:
            picked = dims if axes is None else [dims[a] for a in axes]
            if all(isinstance(d, int) for d in picked):
                return self.const(float(np.prod([int(d or 0) for d in picked])), dtype_of(x))
        if axes is None:
            count = self._emit_first("Size", "", x)
        else:
            extents = self._emit_first("Gather", "", self.shape(x), list(axes))
            count = self._emit_first("ReduceProd", "", extents, keepdims=0)
        return self._emit_first("Cast", "", count, to=int(dtype_of(x)))

    def reshape_like(self, x: ir.Value, like: ir.Value) -> ir.Value:
        """x with the shape of another value that has as many elements."""
        # without allowzero an empty batch would read its extent from x
        y = self._emit_first("Reshape", "", x, self.shape(like), allowzero=1)
        y.shape = like.shape.copy() if like.shape is not None else None
        return y

    def zeros_like(self, x: ir.Value) -> ir.Value:
        """Zeros of x's type and shape."""
        zero = ir.tensor(np.zeros(1, numpy_dtype(dtype_of(x))))
        y = self._emit_first("ConstantOfShape", "", self.shape(x), value=zero)
        y.shape = x.shape.copy() if x.shape is not None else None
        return y

    def _opset(self, domain: str) -> int:
        if domain == ONWARD_DOMAIN:
            return self.graph.opset_imports.setdefault(ONWARD_DOMAIN, 1)
        if domain not in self.graph.opset_imports and not has_schemas(domain):
            return self.graph.opset_imports.setdefault(domain, newest_version(domain))
        return self.graph.opset_imports[domain]

    def _operands(
        self, op_type: str, domain: str, opset: int, inputs: Sequence[Operand]
    ) -> list[ir.Value | None]:
        values = [x if isinstance(x, ir.Value) else None for x in inputs]
        literals = [i for i, x in enumerate(inputs) if x is not None and not isinstance(x, ir.Value)]
        for i in literals:
            content = inputs[i]
            dtype = (
                None if isinstance(content, np.ndarray) else _literal_type(op_type, domain, opset, values, i)
            )
            if dtype is None and not isinstance(content, np.ndarray):
                array = np.asarray(content)
                dtype = _first_float(values) if array.dtype.kind == "f" else ir.DataType.INT64
            value = self.const(content, dtype)
            if _fraction_lost(content, value):
                raise ShapeError(
                    f"operator {op_type}, opset {opset}: operand {i} is {content}, "
                    f"but its type is {dtype_of(value).name.lower()}"
                )
            values[i] = value
        return values


class _OnwardOperators:
    """`g.onward.Name(...)`: the first output of an `ai.onward` operator."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return functools.partial(self._builder._emit_first, op_type, ONWARD_DOMAIN)


def _attribute(name: str, value: Any) -> Any:
    """An attribute of a plain type; others are left to onnx_ir, which takes ten times as long."""
    kind = type(value)
    if kind is int:
        return ir.AttrInt64(name, value)
    if kind is float:
        return ir.AttrFloat32(name, value)
    if kind is str:
        return ir.AttrString(name, value)
    if kind in (list, tuple) and value and all(type(v) is int for v in value):
        return ir.AttrInt64s(name, value)
    return value


def _used_names(graph: ir.Graph) -> set[str]:
    names = {v.name for v in graph.inputs if v.name} | set(graph.initializers)
    for node in graph.all_nodes():
        if node.name:
            names.add(node.name)
        names.update(v.name for v in node.outputs if v.name)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                names |= {v.name for v in attribute.as_graph().inputs if v.name}
                names |= set(attribute.as_graph().initializers)
    return names


def _literal_type(
    op_type: str, domain: str, opset: int, values: Sequence[ir.Value | None], index: int
) -> ir.DataType | None:
    """The element type that the schema prescribes for a literal operand: a sibling's, or the only one."""
    if not has_schemas(domain):
        return None
    formals = onnx.defs.get_schema(op_type, opset, domain).inputs
    constraint = formals[min(index, len(formals) - 1)].type_str
    if constraint.startswith("tensor("):
        return _type_named(constraint)
    for j, value in enumerate(values):
        if value is not None and formals[min(j, len(formals) - 1)].type_str == constraint:
            return dtype_of(value)
    return None


def _fraction_lost(content: Any, value: ir.Value) -> bool:
    """Whether a constant of an integer type differs from the fractions it was made from."""
    given = np.asarray(content)
    if given.dtype.kind != "f" or is_float(value) or value.const_value is None:
        return False
    return not np.array_equal(given, value.const_value.numpy())


def _type_named(constraint: str) -> ir.DataType:
    name = constraint.removeprefix("tensor(").removesuffix(")").upper()
    return ir.DataType[name]


def _first_float(values: Sequence[ir.Value | None]) -> ir.DataType:
    return next((dtype_of(v) for v in values if v is not None and is_float(v)), ir.DataType.FLOAT)
