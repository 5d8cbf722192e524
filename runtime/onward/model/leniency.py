"""What is read although the standard does not allow it, as other runtimes read it; each is noted."""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Iterator

import numpy as np
import onnx

from onward.errors import InvalidModelError
from onward.model.structure import all_nodes
from onward.model.tensors import check_tensor

__all__ = ["LENIENCIES", "forgive", "with_types"]

LENIENCIES = "onward.leniencies"
"""Key of `ir.Model.meta`: what the file says that the standard does not allow, a tuple of sentences."""

_CONSTANTS_FROM = 4
"""The IR version from which an initialiser may be no input."""

_OPSETS_FROM = 3
"""The IR version from which a model imports operator sets."""

_ELEMENTS = ("tensor_type", "sparse_tensor_type")

_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def forgive(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Change what exporters are known to write wrong into what they mean; says what was changed.

    A dimension below 1 that is declared for an input, an output or a value between is unknown: nothing is
    lost where it is truly 0. An output that declares no shape gets the one that follows. `keepdims` is 1 or
    it is 0. Initialisers that are no inputs are constants before IR 4 too, which asks for inputs. Operator
    sets come with IR 3 or later. Of an operator set, a key of the metadata or an initialiser that is there
    twice, the last counts; an operator set that is used but not imported is the newest. Of a tensor whose
    data are there twice, `raw_data` count. Where onnxruntime reads a file otherwise, it is refused.
    """
    notes: list[str] = []
    for part in (
        _graph,
        _order,
        _imports,
        _metadata,
        _tensors,
        _dims,
        _flags,
        _ir_version,
        _inputs,
        _outputs,
    ):
        part(proto, notes.append)
    return tuple(notes)


_Say = Callable[[str], None]


def _graph(proto: onnx.ModelProto, say: _Say) -> None:
    if proto.HasField("graph") and not proto.graph.name:
        say("the graph has no name")
        proto.graph.name = "graph"
    for graph in _graphs(proto.graph):
        empty = [i for i, n in enumerate(graph.node) if not (n.op_type or n.output or n.input or n.attribute)]
        for i in reversed(empty):
            del graph.node[i]
        if empty:
            say(f"graph {graph.name!r} holds {len(empty)} nodes that say nothing: left out")


def _order(proto: onnx.ModelProto, say: _Say) -> None:
    for graph in _graphs(proto.graph):
        makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
        needs = {
            i: {makers[name] for name in _reads(node) if name in makers} for i, node in enumerate(graph.node)
        }
        if all(max(before, default=-1) < i for i, before in needs.items()):
            continue
        try:
            order = list(graphlib.TopologicalSorter(needs).static_order())
        except graphlib.CycleError:
            continue  # whoever looks at the structure says where
        nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
        del graph.node[:]
        graph.node.extend(nodes)
        say(f"the nodes of graph {graph.name!r} are not in the order in which they need each other: sorted")


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node and the graphs inside it read."""
    for inner in all_nodes([node]):
        yield from inner.input
        for attribute in inner.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from (value.name for value in graph.output)


def _imports(proto: onnx.ModelProto, say: _Say) -> None:
    if not proto.opset_import:
        return
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = _domain(entry.domain)
        if versions.setdefault(domain, entry.version) != entry.version:
            say(
                f"operator set {_called(domain)!r} is imported as {versions[domain]} and as {entry.version}: "
                f"read as {entry.version}"
            )
        versions[domain] = entry.version
    newest = {
        "": onnx.defs.onnx_opset_version(),
        "ai.onnx.ml": onnx.defs.onnx_ml_opset_version(),
        "com.microsoft": 1,
    }
    used = {_domain(node.domain) for node in all_nodes(proto.graph.node)}
    for domain in sorted(used & newest.keys() - versions.keys()):
        say(f"operator set {_called(domain)!r} is not imported: read as {newest[domain]}, the newest known")
        versions[domain] = newest[domain]
    del proto.opset_import[:]
    for domain, version in versions.items():
        proto.opset_import.add(domain=domain, version=version)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _called(domain: str) -> str:
    return domain or "ai.onnx"


def _metadata(proto: onnx.ModelProto, say: _Say) -> None:
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    if len(entries) < len(proto.metadata_props):
        say("the metadata have a key more than once: the last counts")
        del proto.metadata_props[:]
        for key, value in entries.items():
            proto.metadata_props.add(key=key, value=value)


def _tensors(proto: onnx.ModelProto, say: _Say) -> None:
    graph = proto.graph
    last = {tensor.name: i for i, tensor in enumerate(graph.initializer)}
    twice = [i for i, tensor in enumerate(graph.initializer) if last[tensor.name] != i]
    for name in sorted({graph.initializer[i].name for i in twice} - {""}):
        say(f"initialiser {name!r} is there more than once: the last counts")
    unnamed = [i for i, tensor in enumerate(graph.initializer) if not tensor.name]
    if unnamed:
        say(f"{len(unnamed)} initialisers have no name: left out")
    for i in sorted({*twice, *unnamed}, reverse=True):
        del graph.initializer[i]
    for tensor in graph.initializer:
        _payload(tensor, say)
    for graph in _graphs(proto.graph):
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _payload(attribute.t, say)
    _leave_out_unused(proto.graph, say)


def _payload(tensor: onnx.TensorProto, say: _Say) -> None:
    label = f"tensor {tensor.name!r}"
    if tensor.HasField("segment"):
        say(f"{label} is said to be a segment: read as a whole")
        tensor.ClearField("segment")
    again = [name for name in _TYPED if len(getattr(tensor, name))]
    if tensor.raw_data and again:
        say(f"{label} has its data in raw_data and in {' and '.join(again)}: raw_data are read")
        for name in again:
            tensor.ClearField(name)
    if tensor.data_type == onnx.TensorProto.BOOL and tensor.raw_data.strip(b"\0\1"):
        say(f"{label} holds booleans that are neither 0 nor 1: read as 1")
        tensor.raw_data = (np.frombuffer(tensor.raw_data, np.uint8) != 0).tobytes()


def _leave_out_unused(graph: onnx.GraphProto, say: _Say) -> None:
    """Initialisers of the wrong size do not matter where nothing reads them."""
    wrong: dict[str, str] = {}
    for tensor in graph.initializer:
        try:
            check_tensor(tensor, "graph:")
        except InvalidModelError as error:
            wrong[tensor.name] = str(error)
    if not wrong:
        return
    read = {name for node in all_nodes(graph.node) for name in node.input}
    read |= {value.name for part in _graphs(graph) for value in (*part.output, *part.input)}
    for name in wrong.keys() - read:
        say(f"initialiser {name!r}, which nothing reads, is left out: {wrong[name]}")
    kept = [t for t in graph.initializer if t.name not in wrong or t.name in read]
    if len(kept) < len(graph.initializer):
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)


def _dims(proto: onnx.ModelProto, say: _Say) -> None:
    held = {tensor.name for tensor in proto.graph.initializer}
    for graph in _graphs(proto.graph):
        for kind, values in (("input", graph.input), ("output", graph.output), ("value", graph.value_info)):
            for value in values:
                open_dims = [] if value.name in held else list(_opened(value.type))
                if open_dims:
                    read = ", ".join(map(str, open_dims))
                    say(f"{kind} {value.name!r} declares the dimension {read}: read as unknown")


def _flags(proto: onnx.ModelProto, say: _Say) -> None:
    functions = [node for function in proto.functions for node in function.node]
    for node in all_nodes([*proto.graph.node, *functions]):
        for attribute in node.attribute:
            if attribute.name == "keepdims" and attribute.i not in (0, 1) and node.domain in ("", "ai.onnx"):
                say(f"node {node.name!r} says keepdims {attribute.i}: read as 0, for it is not 1")
                attribute.i = 0
            if attribute.name == "auto_pad" and not attribute.s and node.domain in ("", "ai.onnx"):
                say(f"node {node.name!r} says an empty auto_pad: read as NOTSET")
                attribute.s = b"NOTSET"


def _ir_version(proto: onnx.ModelProto, say: _Say) -> None:
    if proto.ir_version < _OPSETS_FROM and proto.opset_import:
        say(f"operator sets are imported, but the IR version is {proto.ir_version}: read as {_OPSETS_FROM}")
        proto.ir_version = _OPSETS_FROM
    alone = {t.name for t in proto.graph.initializer} - {value.name for value in proto.graph.input}
    if alone and 0 < proto.ir_version < _CONSTANTS_FROM:
        names = ", ".join(repr(name) for name in sorted(alone)[:3]) + (", …" if len(alone) > 3 else "")
        say(f"initialisers are no inputs, as IR {proto.ir_version} asks: {names} read as constants")
        proto.ir_version = _CONSTANTS_FROM


def _inputs(proto: onnx.ModelProto, say: _Say) -> None:
    for value in proto.graph.input:
        if value.type.WhichOneof("value") is not None and not _has_shape(value.type):
            say(f"input {value.name!r} declares no shape: any is taken")


def _outputs(proto: onnx.ModelProto, say: _Say) -> None:
    for value in proto.graph.output:
        if not _has_shape(value.type):
            say(f"output {value.name!r} declares no shape: the one that follows is used")


def with_types(graph: onnx.GraphProto) -> None:
    """Give outputs without type, and inputs and outputs without shape, some: the checker of `onnx` asks for
    them and compares them to none.
    """
    for value in graph.output:
        if value.type.WhichOneof("value") is None:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for value in (*graph.input, *graph.output):
        if value.type.WhichOneof("value") is not None and not _has_shape(value.type):
            getattr(value.type, value.type.WhichOneof("value") or "tensor_type").shape.SetInParent()


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
            if dim.HasField("dim_value") and dim.dim_value < 1:
                yield dim.dim_value
                dim.ClearField("dim_value")
