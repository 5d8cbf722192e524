"""What is read although the standard does not allow it, as other runtimes read it; each is noted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from onward.model.structure import all_nodes

__all__ = ["LENIENCIES", "forgive", "with_types"]

LENIENCIES = "onward.leniencies"
"""Key of `ir.Model.meta`: what the file says that the standard does not allow, a tuple of sentences."""

_CONSTANTS_FROM = 4
"""The IR version from which an initialiser may be no input."""

_ELEMENTS = ("tensor_type", "sparse_tensor_type")


def forgive(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Change what exporters are known to write wrong into what they mean; says what was changed.

    A dimension of −1 or 0 that is declared for an input, an output or a value between is unknown: nothing is
    lost where it is truly 0. An output that declares no shape gets the one that follows. `keepdims` is 1 or
    it is 0. Initialisers that are no inputs are constants before IR 4 too, which asks for inputs.
    """
    found: list[str] = []
    held = {tensor.name for tensor in proto.graph.initializer}
    for graph in _graphs(proto.graph):
        for kind, values in (("input", graph.input), ("output", graph.output), ("value", graph.value_info)):
            for value in values:
                open_dims = [] if value.name in held else list(_opened(value.type))
                if open_dims:
                    read = ", ".join(map(str, open_dims))
                    found.append(f"{kind} {value.name!r} declares the dimension {read}: read as unknown")
    functions = [node for function in proto.functions for node in function.node]
    for node in all_nodes([*proto.graph.node, *functions]):
        for attribute in node.attribute:
            if attribute.name == "keepdims" and attribute.i not in (0, 1) and node.domain in ("", "ai.onnx"):
                found.append(f"node {node.name!r} says keepdims {attribute.i}: read as 0, for it is not 1")
                attribute.i = 0
    alone = held - {value.name for value in proto.graph.input}
    if alone and 0 < proto.ir_version < _CONSTANTS_FROM:
        names = ", ".join(repr(name) for name in sorted(alone)[:3]) + (", …" if len(alone) > 3 else "")
        found.append(f"initialisers are no inputs, as IR {proto.ir_version} asks: {names} read as constants")
        proto.ir_version = _CONSTANTS_FROM
    for value in proto.graph.output:
        if not _has_shape(value.type):
            found.append(f"output {value.name!r} declares no shape: the one that follows is used")
    return tuple(found)


def with_types(outputs: Iterable[onnx.ValueInfoProto]) -> None:
    """Give outputs without type or shape some, for a checker that asks for them and compares them to none."""
    for value in outputs:
        if value.type.WhichOneof("value") is None:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if not _has_shape(value.type):
            value.type.tensor_type.shape.SetInParent()


def _has_shape(kind: onnx.TypeProto) -> bool:
    choice = kind.WhichOneof("value")
    if choice is None:
        return False
    return choice not in _ELEMENTS or getattr(kind, choice).HasField("shape")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in all_nodes(graph.node):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _opened(kind: onnx.TypeProto) -> Iterator[int]:
    """Let dimensions below 1 be unknown; gives what they were."""
    choice = kind.WhichOneof("value")
    if choice in ("sequence_type", "optional_type"):
        yield from _opened(getattr(kind, choice).elem_type)
    elif choice in _ELEMENTS:
        for dim in getattr(kind, choice).shape.dim:
            if dim.HasField("dim_value") and dim.dim_value in (-1, 0):
                yield dim.dim_value
                dim.ClearField("dim_value")
