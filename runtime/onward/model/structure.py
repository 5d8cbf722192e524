"""What a ModelProto must satisfy before anything else looks at it.

Graphs nest at most 33 deep in any file that protobuf parses (its own recursion bound of 100), so plain
recursion is safe here.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import onnx

from onward.errors import InvalidModelError, UnsupportedError
from onward.model.limits import Limits
from onward.model.tensors import check_tensor, node_tensors

__all__ = ["all_nodes", "check_count", "check_structure", "node_label"]

_HUGE = 2**48

_LARGEST_NUMBER = 2**30
"""Of a lone integer among an operator's attributes: axes, counts, sizes, flags."""

_ANY_NUMBER = frozenset({"Constant", "EyeLike", "Shape"})
"""Operators of the standard with an attribute that may be any integer."""

_PLACES_SAID = 4
"""How many of the places that lie in one another a message names."""


def node_label(node: onnx.NodeProto, index: int) -> str:
    """How messages call a node: by name, or by position when it has none."""
    operator = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    return f"node {node.name!r} ({operator})" if node.name else f"node #{index} ({operator})"


def check_structure(proto: onnx.ModelProto, limits: Limits) -> None:
    """Refuse a model whose parts do not fit together.

    Raises:
        InvalidModelError: no graph, no outputs, no opset import; names that are defined twice, never, or
            after their use; cycles among nodes or functions, or calls that do not fit a function; tensors
            whose payload does not hold what their dtype and dims say; unaddressable dimensions; a bound of
            `limits`.
        UnsupportedError: an IR version or opset newer than the installed onnx knows; map types.
    """
    if not proto.HasField("graph"):
        raise InvalidModelError("it is not an ONNX model: it has no graph")
    if not proto.opset_import:
        raise InvalidModelError(
            "it imports no operator set (opset_import is empty): export it again, or the file is cut off"
        )
    if not proto.graph.output:
        raise InvalidModelError("its graph has no outputs, so there is nothing to compute")
    if proto.ir_version > onnx.IR_VERSION:
        raise UnsupportedError(
            f"IR version {proto.ir_version} is newer than the {onnx.IR_VERSION} that the installed onnx "
            f"{onnx.__version__} reads: export it with an older IR version or update onnx"
        )
    if proto.ir_version < 1:
        raise InvalidModelError(f"IR version is {proto.ir_version}; an ONNX model has 1 or more")
    _check_opsets(proto)
    _check_text(proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
    _check_text(*(text for entry in proto.metadata_props for text in (entry.key, entry.value)))
    _Walk(limits, _expansions(proto)).model(proto)


def check_count(proto: onnx.ModelProto, limits: Limits) -> None:
    """Refuse a file of too many nodes before anything looks at each of them.

    Raises:
        InvalidModelError: the main graph and the functions' bodies alone have more than `limits` allows.
    """
    found = len(proto.graph.node) + sum(len(function.node) for function in proto.functions)
    if found > limits.max_nodes:
        raise InvalidModelError(f"{found} nodes, more than {limits.max_nodes}; raise Limits.max_nodes")


def _check_opsets(proto: onnx.ModelProto) -> None:
    for entry in proto.opset_import:
        _check_text(entry.domain)
    newest = onnx.defs.onnx_opset_version()
    version = next((entry.version for entry in proto.opset_import if not entry.domain), None)
    if version is not None and version > newest:
        raise UnsupportedError(
            f"opset {version} is newer than the {newest} that the installed onnx {onnx.__version__} knows: "
            "export the model with an older opset or update onnx"
        )
    if version is not None and version < 1:
        raise InvalidModelError(f"opset {version} does not exist")


def _check_text(*texts: object) -> None:
    """Protobuf hands out a text field that is not UTF-8 as bytes."""
    for text in texts:
        if not isinstance(text, str):
            raise InvalidModelError(f"a name or text is not UTF-8: {str(text)[:60]}; the file is damaged")


def _key(domain: str, name: str, overload: str) -> tuple[str, str, str]:
    return ("" if domain == "ai.onnx" else domain, name, overload)


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes and those of their subgraphs, in order."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g.node)
            for graph in attribute.graphs:
                yield from all_nodes(graph.node)


@final
@dataclass(frozen=True, slots=True)
class _Expansion:
    """What a call of a model-local function becomes when it is inlined to the bottom."""

    nodes: int
    calls: int
    inputs: int
    outputs: int


_Expansions: TypeAlias = dict[tuple[str, str, str], _Expansion]


def _expansions(proto: onnx.ModelProto) -> _Expansions:
    bodies: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {}
    for function in proto.functions:
        _check_text(function.domain, function.name, function.overload)
        key = _key(function.domain, function.name, function.overload)
        if key in bodies:
            raise InvalidModelError(f"function {function.domain}::{function.name} is defined twice")
        bodies[key] = [_key(node.domain, node.op_type, node.overload) for node in all_nodes(function.node)]
    sorter = graphlib.TopologicalSorter(
        {key: [call for call in calls if call in bodies] for key, calls in bodies.items()}
    )
    try:
        order = list(sorter.static_order())
    except graphlib.CycleError as error:
        chain = " -> ".join("::".join(part for part in key if part) for key in error.args[1])
        raise InvalidModelError(f"functions call themselves: {chain}") from None
    functions = {_key(f.domain, f.name, f.overload): f for f in proto.functions}
    found: _Expansions = {}
    for key in order:
        inner = [found[call] for call in bodies[key] if call in found]
        found[key] = _Expansion(
            len(bodies[key]) - len(inner) + sum(e.nodes for e in inner),
            1 + sum(e.calls for e in inner),
            len(functions[key].input),
            len(functions[key].output),
        )
    return found


def _inside(where: str, place: str) -> str:
    """A place and what it lies in; of many, the first and the last."""
    places = [*where.split(": "), place]
    if len(places) > _PLACES_SAID:
        places = [places[0], "…", *places[2 - _PLACES_SAID :]]
    return ": ".join(places)


@final
class _Walk:
    """Visits every graph once, counting nodes and keeping the names in scope."""

    def __init__(self, limits: Limits, functions: _Expansions) -> None:
        self._limits = limits
        self._functions = functions
        self._nodes = self._calls = 0
        self._in_function = False

    def model(self, proto: onnx.ModelProto) -> None:
        self._graph(proto.graph, [], 1, "graph")
        self._in_function = True
        for function in proto.functions:
            where = f"function {function.domain}::{function.name}"
            if not function.opset_import:
                raise InvalidModelError(f"{where} imports no operator set")
            names: set[str] = set()
            for name in function.input:
                self._define(name, names, where, "an input")
            self._body(function.node, [names], 1, where)
            for name in function.output:
                if name not in names:
                    raise InvalidModelError(f"{where}: output {name!r} is produced by no node")
        for index, training in enumerate(proto.training_info):
            for graph in (training.initialization, training.algorithm):
                for tensor in graph.initializer:
                    check_tensor(tensor, f"training_info {index}:")
                for node in all_nodes(graph.node):
                    self._count(1)
                    for tensor in node_tensors(node):
                        check_tensor(tensor, f"training_info {index}:")

    def _graph(self, graph: onnx.GraphProto, scopes: list[set[str]], depth: int, where: str) -> None:
        if depth > self._limits.max_depth:
            raise InvalidModelError(
                f"{where}: graphs nest more than {self._limits.max_depth} deep; raise Limits.max_depth"
            )
        _check_text(graph.name, graph.doc_string)
        _check_text(*(text for entry in graph.metadata_props for text in (entry.key, entry.value)))
        names: set[str] = set()
        for value in graph.input:
            self._define(value.name, names, where, "an input")
            _check_type(value.type, f"{where}: input {value.name!r}")
        initialisers: set[str] = set()
        for tensor in graph.initializer:
            self._define(tensor.name, initialisers, where, "an initialiser")
            check_tensor(tensor, f"{where}:")
        for sparse in graph.sparse_initializer:
            self._define(sparse.values.name, initialisers, where, "an initialiser")
        names |= initialisers
        for value in graph.value_info:
            _check_type(value.type, f"{where}: value {value.name!r}")
        self._body(graph.node, [*scopes, names], depth, where)
        for value in graph.output:
            _check_type(value.type, f"{where}: output {value.name!r}")
            if value.name not in names and not any(value.name in scope for scope in scopes):
                raise InvalidModelError(f"{where}: output {value.name!r} is produced by no node")

    def _body(self, nodes: Sequence[onnx.NodeProto], scopes: list[set[str]], depth: int, where: str) -> None:
        names = scopes[-1]
        for index, node in enumerate(nodes):
            key = _key(node.domain, node.op_type, node.overload)
            label = node_label(node, index)
            function = self._functions.get(key)
            if function is None:
                self._count(1)
            else:
                _check_call(node, function, f"{where}: {label}")
                self._count(function.nodes, 0 if self._in_function else function.calls)
            _check_text(node.op_type, node.domain, node.name, node.overload)
            if not node.op_type:
                raise InvalidModelError(f"{where}: node #{index} names no operator")
            for name in node.input:
                if name and not any(name in scope for scope in scopes):
                    raise _undefined(nodes, name, f"{where}: {label}")
            for tensor in node_tensors(node):
                check_tensor(tensor, f"{where}: {label}")
            attributes: set[str] = set()
            for attribute in node.attribute:
                self._define(attribute.name, attributes, f"{where}: {label}", "an attribute")
                _check_number(node, attribute, f"{where}: {label}")
                if attribute.ref_attr_name and not self._in_function:
                    raise InvalidModelError(
                        f"{where}: {label}: attribute {attribute.name!r} is that of a function, "
                        f"{attribute.ref_attr_name!r}, but the node is in none"
                    )
                if attribute.HasField("tp"):
                    _check_type(attribute.tp, f"{where}: {label} attribute {attribute.name!r}")
                graphs = [attribute.g] if attribute.HasField("g") else []
                for graph in (*graphs, *attribute.graphs):
                    self._graph(graph, scopes, depth + 1, _inside(where, f"{label} {attribute.name}"))
            for name in node.output:
                if name:
                    self._define(name, names, f"{where}: {label}", "an output")

    def _count(self, nodes: int, calls: int = 0) -> None:
        self._nodes += nodes
        self._calls += calls
        if self._calls > self._limits.max_calls:
            raise InvalidModelError(
                f"more than {self._limits.max_calls} calls of functions, those inside functions included; "
                "raise Limits.max_calls"
            )
        if self._nodes > self._limits.max_nodes:
            raise InvalidModelError(
                f"more than {self._limits.max_nodes} nodes (functions expanded); raise Limits.max_nodes"
            )

    @staticmethod
    def _define(name: str, names: set[str], where: str, what: str) -> None:
        if not name:
            raise InvalidModelError(f"{where}: {what} has no name")
        _check_text(name)
        if name in names:
            raise InvalidModelError(f"{where}: {what} named {name!r}, a name that is already taken")
        names.add(name)


def _check_call(node: onnx.NodeProto, function: _Expansion, where: str) -> None:
    for kind, given, most in (
        ("inputs", len(node.input), function.inputs),
        ("outputs", len(node.output), function.outputs),
    ):
        if given > most:
            raise InvalidModelError(f"{where}: it has {given} {kind}, but the function has {most}")


def _check_number(node: onnx.NodeProto, attribute: onnx.AttributeProto, where: str) -> None:
    """Refuse axes, counts and sizes that no tensor has: `onnx`'s own inference does not survive some."""
    if node.domain not in ("", "ai.onnx") or node.op_type in _ANY_NUMBER:
        return
    if (node.op_type, attribute.name) == ("Split", "num_outputs") and attribute.i != len(node.output):
        raise InvalidModelError(
            f"{where}: attribute 'num_outputs' is {attribute.i}, but the node has {len(node.output)} outputs"
        )
    if attribute.type == onnx.AttributeProto.INT and abs(attribute.i) > _LARGEST_NUMBER:
        raise InvalidModelError(
            f"{where}: attribute {attribute.name!r} is {attribute.i}, which no axis, count or size can be"
        )


def _undefined(nodes: Sequence[onnx.NodeProto], name: str, where: str) -> InvalidModelError:
    makers = {output: index for index, node in enumerate(nodes) for output in node.output if output}
    if name not in makers:
        return InvalidModelError(f"{where}: input {name!r} is defined nowhere in its scope")
    needs = {i: [makers[name] for name in node.input if name in makers] for i, node in enumerate(nodes)}
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        chain = " -> ".join(node_label(nodes[index], index) for index in error.args[1][:6])
        return InvalidModelError(f"{where}: input {name!r} depends on itself: the graph has a cycle: {chain}")
    maker = node_label(nodes[makers[name]], makers[name])
    return InvalidModelError(f"{where}: input {name!r} is used before {maker} makes it: sort the nodes")


def _check_type(kind: onnx.TypeProto, where: str) -> None:
    choice = kind.WhichOneof("value")
    if choice == "map_type":
        raise UnsupportedError(
            f"{where} is a map; tensors, sequences and optionals are supported "
            "(for a scikit-learn classifier, export with zipmap=False)"
        )
    if choice in ("sequence_type", "optional_type"):
        _check_type(getattr(kind, choice).elem_type, where)
    if choice in ("tensor_type", "sparse_tensor_type"):
        size = 1
        for dim in getattr(kind, choice).shape.dim:
            _check_text(dim.dim_param)
            if dim.HasField("dim_value"):
                size *= max(dim.dim_value, 1)
        if size > _HUGE:
            raise InvalidModelError(f"{where} has a shape of more elements than any machine holds")
