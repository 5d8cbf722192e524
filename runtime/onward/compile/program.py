"""A graph at fixed input shapes: shapes propagated to every value, constants folded."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from onward.errors import InvalidModelError, LimitError, OnwardError, ShapeError
from onward.graph import (
    ONWARD_DOMAIN,
    Array,
    BodyOp,
    Builder,
    Op,
    bind,
    canonical_model,
    infer_node,
    inlined,
    is_float,
    is_tensor,
    numpy_dtype,
    static_shape,
)
from onward.graph.infer import range_is_short
from onward.graph.memory import too_large
from onward.graph.origin import opset_of
from onward.graph.requests import NO_KERNEL, Loop, Request

__all__ = [
    "NotStaticError",
    "Operation",
    "Program",
    "asked",
    "is_integer_weight",
    "is_weight",
    "opened",
    "specialize",
    "specialize_node",
    "written",
]

_SMALL = 16

_INTEGER_OPERANDS = frozenset(
    {(ONWARD_DOMAIN, "DequantizedMatMul", 1), (ONWARD_DOMAIN, "DynamicMatMul", 3), ("", "Gather", 0)}
)
"""Where integers are weights."""

_LEAST_INTEGERS = 512
"""Elements from which they are; fewer are constants of a plan."""

_UNROLLED_FROM = 13
"""The opset from which on what stands between iterations is written as it is today."""

_BODY_OPSET = 25
"""Of the standard operators that bodies of our own operators are written in."""

_FOLD_LIMIT = 1 << 16
"""Results of folding up to this many elements are kept as constants; larger ones stay computed."""


class NotStaticError(OnwardError):
    """A graph whose shapes depend on data: it cannot have a plan."""


@dataclass(frozen=True, eq=False)
class Operation:
    """A node with its operator bound; absent inputs are None, absent outputs have no name and no shape.

    `request` is what the operator asks of the compiler.
    """

    node: ir.Node
    operator: Op
    inputs: tuple[ir.Value | None, ...]
    outputs: tuple[ir.Value, ...]
    request: Request = NO_KERNEL

    @property
    def label(self) -> str:
        """How reports call it."""
        return f"{self.node.op_type} {self.node.name}"


@dataclass(eq=False)
class Program:
    """Operations in execution order over values of known shape and dtype.

    Attributes:
        operations: what is left to compute at run time.
        inputs: the values given at each run, by name.
        state: floating-point initializers that are inputs too, and not given: they live in the session and
            may be replaced by outputs.
        weights: initializers that are read only, by name; a session may swap their contents.
        constants: what the graph fixes.
        outputs: the values asked for, by name.
        shapes, dtypes: of every value.
        trace: every operation in the graph's order, those included that were folded or that nobody reads.
    """

    operations: list[Operation]
    inputs: dict[str, ir.Value]
    state: dict[str, ir.Value]
    weights: dict[str, ir.Value]
    constants: dict[ir.Value, Array]
    outputs: dict[str, ir.Value]
    shapes: dict[ir.Value, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[ir.Value, np.dtype[np.generic]] = field(default_factory=dict)
    trace: list[Operation] = field(default_factory=list)

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """A value's shape."""
        return self.shapes[value]

    @property
    def requests(self) -> list[Request]:
        """What the operators ask for, in order."""
        return [o.request for o in self.operations]

    def known(self, value: ir.Value) -> Array | None:
        """The contents of a constant."""
        return self.constants.get(value)


def specialize(
    model: ir.Model,
    shapes: Mapping[str, tuple[int, ...]],
    swapped: Collection[str] = (),
    contents: Mapping[str, Array] = MappingProxyType({}),
) -> Program:
    """Fix the shapes of a model's inputs.

    Args:
        model: it is not changed.
        shapes: of every input that is not an initializer, and of those initializers that are given as inputs.
        swapped: initializers whose contents may change between runs. Others of at most 16 elements count as
            constants, from which shapes and further constants follow.
        contents: of inputs by name, which count as constants.

    Raises:
        NotStaticError: a shape depends on data, or a value holds strings.
        ShapeError: the shapes contradict an operator.
    """
    graph, program, known = opened(model, shapes, swapped, contents)
    initializers = graph.initializers
    values = [*graph.inputs, *initializers.values(), *(v for node in graph for v in node.outputs)]
    if text := next((v for v in values if v.dtype == ir.DataType.STRING), None):
        raise NotStaticError(f"{text.name!r} holds strings, which no memory of a plan holds")
    names = [v.name or "" for v in graph.outputs]
    # contents of state must not be taken for constants by inference
    held = {v: v.const_value for v in (*program.state.values(), *program.weights.values())}
    for value in held:
        value.const_value = None
    try:
        for node in graph:
            specialize_node(graph.opset_imports, node, program, known)
    finally:
        for value, tensor in held.items():
            value.const_value = tensor
    program.outputs = dict(zip(names, graph.outputs, strict=True))
    _drop_unused(program)
    for value in _values(program):
        if not is_tensor(value):
            raise NotStaticError(f"{value.name!r} is no tensor: {value.type}")
        shape = static_shape(value)
        if shape is None or value.dtype is None:
            raise NotStaticError(f"the shape of {value.name!r} depends on data")
        maker = value.producer()
        if maker is not None and any(extent < 0 for extent in shape):
            raise ShapeError(f"{_where(maker)}: no tensor has the shape {list(shape)}")
        program.shapes[value] = shape
        program.dtypes[value] = numpy_dtype(value.dtype)
        reason = too_large(math.prod(shape) * program.dtypes[value].itemsize)
        if reason is not None and maker is not None:
            raise LimitError(f"{_where(maker)}: {reason}")
    program.operations = [asked(program, o) for o in program.operations]
    return program


def opened(
    model: ir.Model,
    shapes: Mapping[str, tuple[int, ...]],
    swapped: Collection[str],
    contents: Mapping[str, Array] = MappingProxyType({}),
) -> tuple[ir.Graph, Program, dict[ir.Value, ir.TensorProtocol]]:
    """A copy of a model's graph, what is known before its first node, and the contents of constants.

    Arguments are those of `specialize`.
    """
    graph = canonical_model(model).clone().graph
    for value in graph.inputs:
        if (shape := shapes.get(value.name or "")) is not None:
            value.shape = ir.Shape(shape)
    _fix_contents(graph, contents)
    initializers = graph.initializers
    for value in graph.inputs:
        if value.name in shapes:  # a value given at each run stands instead of the initializer
            initializers.pop(value.name or "", None)
            value.const_value = None
    state = {v.name or "": v for v in graph.inputs if v.name in initializers and is_float(v)}
    known: dict[ir.Value, ir.TensorProtocol] = {}
    weights: dict[str, ir.Value] = {}
    constants: dict[ir.Value, Array] = {}
    for name, value in initializers.items():
        if name in state or value.const_value is None:
            continue
        if name not in contents and is_weight(value, value.const_value, swapped):
            weights[name] = value
        else:
            known[value] = value.const_value
            constants[value] = value.const_value.numpy()
    for value in (*state.values(), *weights.values()):
        if value.const_value is not None:
            value.shape = ir.Shape(value.const_value.shape.numpy())
    return (
        graph,
        Program(
            operations=[],
            inputs={v.name or "": v for v in graph.inputs if v.name not in initializers},
            state=state,
            weights=weights,
            constants=constants,
            outputs={},
        ),
        known,
    )


def _fix_contents(graph: ir.Graph, contents: Mapping[str, Array]) -> None:
    """Make inputs constants."""
    for value in [v for v in graph.inputs if v.name in contents]:
        graph.inputs.remove(value)
        value.const_value = ir.tensor(contents[value.name or ""], name=value.name)
        graph.register_initializer(value)


def asked(program: Program, operation: Operation) -> Operation:
    """An operation with the request of its operator."""
    operator: Any = operation.operator
    if not hasattr(operator, "lower"):
        function = getattr(operator, "loop", None)
        if function is None:
            return operation
        constants = tuple(getattr(operator, f.name) for f in fields(operator) if f.name != "output_count")
        return replace(operation, request=Loop(operation.outputs, operation.inputs, function, constants))
    try:
        request = operator.lower(program, operation.outputs, *operation.inputs)
        if (reason := request.misfit(program)) is not None:
            raise ShapeError(reason)
        return replace(operation, request=request)
    except (ShapeError, InvalidModelError) as error:
        raise type(error)(f"{_where(operation.node)}: {error}") from error
    except (ValueError, IndexError, TypeError, KeyError, ArithmeticError) as error:  # of a file's constants
        raise ShapeError(f"{_where(operation.node)}: {error}") from error


def written(program: Program, operation: Operation) -> list[Operation]:
    """The operations that an operator's body in standard operators is, in the place of the operation.

    Values that they make, and what they know, are added to the program.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": _BODY_OPSET, ONWARD_DOMAIN: 1}, name="body")
    g = Builder(graph, scope=f"{operation.outputs[0].name}/")
    operator: Any = operation.operator
    found = operator.expand(g, *operation.inputs)
    results = found if isinstance(found, tuple) else (found,)
    given = {v for v in (*operation.inputs, *graph.initializers.values()) if v is not None}
    results = tuple(g.Identity(v) if v in given else v for v in results)
    inner = replace(program, operations=[], trace=[])
    known = {v: ir.tensor(program.constants[v]) for v in operation.inputs if v in program.constants}
    for value in graph.initializers.values():
        assert value.const_value is not None
        known[value] = value.const_value
        program.constants[value] = value.const_value.numpy()
    for node in graph:
        specialize_node(graph.opset_imports, node, inner, known)
    names = dict(zip(results, operation.outputs, strict=True))
    program.constants.update((y, program.constants[v]) for v, y in names.items() if v in program.constants)
    for value in _values(inner):
        shape = static_shape(value)
        if shape is None or value.dtype is None:
            raise NotStaticError(f"the shape of {value.name!r} depends on data")
        program.shapes[value], program.dtypes[value] = shape, numpy_dtype(value.dtype)
    return [
        asked(
            program,
            replace(
                part,
                inputs=tuple(None if v is None else names.get(v, v) for v in part.inputs),
                outputs=tuple(names.get(v, v) for v in part.outputs),
            ),
        )
        for part in inner.operations
    ]


def is_weight(value: ir.Value, tensor: ir.TensorProtocol, swapped: Collection[str]) -> bool:
    """Whether contents are read at run time: what is swapped, and anything large enough to be a weight."""
    if is_integer_weight(value):
        return True
    return is_float(value) and (value.name in swapped or tensor.size > _SMALL)


def is_integer_weight(value: ir.Value) -> bool:
    """Whether a constant holds integers that products or look-ups in tables read, and nothing else does."""
    uses = list(value.uses())
    if value.dtype not in (ir.DataType.INT8, ir.DataType.UINT8) or value.const_value is None:
        return False
    if not uses or value.const_value.size < _LEAST_INTEGERS:
        return False
    return all((node.domain, node.op_type, place) in _INTEGER_OPERANDS for node, place in uses)


def specialize_node(
    opsets: Mapping[str, int], node: ir.Node, program: Program, known: dict[ir.Value, ir.TensorProtocol]
) -> None:
    """Add to a program what a node computes, unless that follows from constants and shapes."""
    opset = opsets.get(node.domain, 0)
    operator = bind(node, opset)
    if isinstance(operator, BodyOp):
        contents = [None if v is None else program.constants.get(v) for v in node.inputs]
        if (taken := operator.taken(contents)) is not None:
            _specialize_inside(opsets, node, *taken, program, known)
            return
        if _specialize_unrolled(opsets, node, operator, program, known):
            return
    for value in node.outputs:
        value.shape = None
    try:
        infer_node(node, opset, known)
    except ShapeError as error:
        if any(v is not None and 0 in (static_shape(v) or ()) for v in node.inputs):
            # Inference refuses some empty operands that kernels take.
            raise NotStaticError(str(error)) from error
        raise
    outputs = tuple(node.outputs[: operator.output_count])
    operation = Operation(node, operator, tuple(node.inputs), outputs)
    constants = [None if v is None else program.constants.get(v) for v in node.inputs]
    if operator.varies_on(constants):  # a plan does once what follows from constants
        raise NotStaticError(f"node {node.name!r}, operator {node.op_type}: it has no seed")
    program.trace.append(operation)
    results = _fold(operation, program)
    if results is None:
        program.operations.append(operation)
        return
    for value, array in zip(outputs, results, strict=False):
        program.constants[value] = array
        value.const_value = known[value] = ir.tensor(array)
        value.shape = ir.Shape(array.shape)


def _specialize_inside(
    opsets: Mapping[str, int],
    node: ir.Node,
    body: ir.Graph,
    first: int,
    program: Program,
    known: dict[ir.Value, ir.TensorProtocol],
) -> None:
    """A body in its node's place, on the node's operands from the first that it takes on."""
    copy, nodes = inlined(body, [v for v in node.inputs[first:] if v is not None])
    for value in copy.initializers.values():
        if value.const_value is not None:
            known[value] = value.const_value
            program.constants[value] = value.const_value.numpy()
    for inner in nodes:
        specialize_node(opsets, inner, program, known)
    outputs = list(copy.outputs)
    copy.outputs.clear()
    for old, new in zip(node.outputs, outputs, strict=False):
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _specialize_unrolled(
    opsets: Mapping[str, int],
    node: ir.Node,
    operator: BodyOp,
    program: Program,
    known: dict[ir.Value, ir.TensorProtocol],
) -> bool:
    """The iterations of a body in its node's place, where they are few; whether they are."""
    operands = [v for v in node.inputs if v is not None]
    if opsets.get("", 0) < _UNROLLED_FROM or any(static_shape(v) is None for v in operands):
        return False
    graph = ir.Graph([], [], nodes=[], opset_imports=dict(opsets), name="unrolled")
    results = operator.unrolled(Builder(graph, scope=f"{node.name}/"), *operands)
    if results is None:
        return False
    for value in graph.initializers.values():
        assert value.const_value is not None
        known[value] = value.const_value
        program.constants[value] = value.const_value.numpy()
    for inner in list(graph):
        specialize_node(opsets, inner, program, known)
    for old, new in zip(node.outputs, results, strict=False):
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    return True


def _fold(operation: Operation, program: Program) -> tuple[Array, ...] | None:
    """The outputs, where they follow from constants or shapes; what is empty counts as constant."""
    operands: list[Array | None] = []
    for value in operation.inputs:
        if value is None:
            operands.append(None)
        elif value in program.constants:
            operands.append(program.constants[value])
        elif (shape := static_shape(value)) is not None and value.dtype is not None:
            if not operation.operator.follows_from_shapes and 0 not in shape:
                return None
            if (reason := too_large(math.prod(shape) * numpy_dtype(value.dtype).itemsize)) is not None:
                raise LimitError(f"{_where(value.producer() or operation.node)}: {reason}")
            # only the extents matter: a view of one element stands for the tensor
            operands.append(np.broadcast_to(np.zeros((), numpy_dtype(value.dtype)), shape))
        else:
            return None
    for value in operation.outputs:
        shape = static_shape(value)
        if shape is not None and int(np.prod(shape)) > _FOLD_LIMIT:
            return None
    if operation.node.op_type == "Range" and not range_is_short(operands):
        return None
    kernel = operation.operator.kernel  # type: ignore[attr-defined]
    try:
        with np.errstate(all="ignore"):
            results = kernel(*operands)
    except (ValueError, IndexError, TypeError, KeyError, ArithmeticError, MemoryError, ShapeError) as error:
        kind = LimitError if isinstance(error, LimitError | MemoryError) else ShapeError
        raise kind(f"{_where(operation.node)}: {error}") from error
    results = results if isinstance(results, tuple) else (results,)
    if not all(isinstance(r, np.ndarray | np.generic) for r in results):
        return None  # a sequence or an optional
    return tuple(np.asarray(r) for r in results)


def _where(node: ir.Node) -> str:
    opset = None if node.graph is None else node.graph.opset_imports.get(node.domain)
    opset = opset_of(node, 0 if opset is None else opset)
    return f"node {node.name!r}, operator {node.op_type}" + (f", opset {opset}" if opset else "")


def _drop_unused(program: Program) -> None:
    """Leave out operations whose results nobody reads."""
    needed = set(program.outputs.values())
    kept = []
    for operation in reversed(program.operations):
        if any(v in needed for v in operation.outputs):
            needed.update(v for v in operation.inputs if v is not None)
            kept.append(operation)
    program.operations = kept[::-1]
    program.constants = {v: a for v, a in program.constants.items() if v in needed}


def _values(program: Program) -> list[ir.Value]:
    found = dict.fromkeys((*program.inputs.values(), *program.state.values(), *program.weights.values()))
    found.update(dict.fromkeys(program.constants))
    for operation in program.operations:
        found.update(dict.fromkeys(v for v in operation.inputs if v is not None))
        found.update(dict.fromkeys(v for v in operation.outputs if v.name))
    return list(found)
