"""Models whose shapes depend on data, in parts: those that can have plans, and what NumPy does between them.

Nodes are looked at in order. One whose results have shapes that follow from those of its operands belongs to
a part with a plan. One whose results do not, such as NonZero, and one on strings or sequences, is a cut:
NumPy does it, and what reads its results comes in a later part. What reads none of them is not affected,
wherever it stands. Behind a cut, extents are not known yet: a number stands for each, to see what follows
from shapes there, and another number, to see which shapes do not depend on it. The guesses decide only who
runs what; a part's plan is made for the shapes that come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeAlias, final

import onnx_ir as ir

from onward.compile.program import (
    NotStaticError,
    Operation,
    is_weight,
    opened,
    specialize_node,
)
from onward.errors import OnwardError
from onward.graph import infer_node, is_tensor, static_shape

__all__ = ["FEW", "MANY", "Cut", "Division", "Part", "divide", "part_model"]

_EXTENTS = (5040, 10080)
"""Stand for an extent that depends on data: many numbers divide them, and few models ask for more."""

FEW = 8
"""Operations of a part without weights, or of a body, from which on a plan is worth its calls."""

MANY = 1 << 14
"""Elements that fewer operations work on from which on it is, too."""

_KNOWN, _CUT, _MET = range(3)
"""Kinds of nodes: of known shapes; that no plan holds; of shapes that depend on data."""

_Place: TypeAlias = tuple[int, int]
"""When a node runs: in which round, and its kind; within a round kinds follow in the order above."""


@final
@dataclass(frozen=True)
class Cut:
    """A node that no plan holds, and why."""

    node: str
    reason: str


@final
@dataclass(frozen=True)
class Part:
    """Some nodes of a model that run together.

    Attributes:
        nodes: their positions in the graph. One that follows from constants and shapes is in every part that
            reads it.
        inputs: names of the values that are not the part's own.
        outputs: names of its values that are read outside.
        planned: whether it is to have plans; NumPy runs it otherwise.
        met: whether shapes of its inputs depend on data, so that they are known when they are met.
    """

    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    planned: bool
    met: bool


@final
@dataclass(frozen=True, eq=False)
class Division:
    """A model in parts, in the order in which they run.

    Attributes:
        parts: at least one has plans.
        shapes: of each part's inputs; None where they are not known before they are met.
        cuts: of each part, the nodes that no plan can hold. A part that NumPy runs without any is too small.
        types: of values of which the model says none.
    """

    parts: tuple[Part, ...]
    shapes: tuple[Mapping[str, tuple[int, ...]] | None, ...]
    cuts: tuple[tuple[Cut, ...], ...]
    types: Mapping[str, ir.TypeProtocol]


def divide(
    model: ir.Model,
    shapes: Mapping[str, tuple[int, ...]],
    state: Collection[str] = (),
    swapped: Collection[str] = (),
) -> Division | None:
    """Cut a model whose shapes depend on data; None where no part is worth a plan.

    Args:
        model: in canonical form; it is not changed.
        shapes: of every input that is not an initializer, and of those initializers that are given as inputs.
        state: names of initializers that outputs replace: parts take them as inputs.
        swapped: initializers whose contents may change between runs, as for `program.specialize`.
    """
    graph = model.graph
    names = [v.name for v in _values(graph) if v.name]
    if len(set(names)) != len(names):
        return None
    nodes = list(graph)
    survey, other = (_Survey(model, shapes, state, swapped, extent) for extent in _EXTENTS)
    for node in nodes:
        survey.look(node)
        other.look(node)
    survey.guessed = {
        v for v in survey.guessed if survey.shapes.get(v.name or "") != other.shapes.get(v.name or "", ())
    }
    groups = _worthwhile(survey, _grouped(survey, _needed(graph, nodes)))
    if len(groups) < 2 or all(kind == _CUT for kind, _ in groups):
        return None
    return _joined(graph, survey, groups)


def part_model(
    model: ir.Model, division: Division, part: Part, contents: Mapping[str, ir.TensorProtocol]
) -> ir.Model:
    """A part as a model of its own.

    Args:
        model: the whole.
        division: of it.
        part: of the division.
        contents: of initializers; those left out are taken from the model.
    """
    graph = model.graph
    nodes = list(graph)
    chosen, fed = [nodes[i] for i in part.nodes], frozenset(part.inputs)
    twins: dict[ir.Value, ir.Value] = {}
    inputs: dict[str, ir.Value] = {}
    initializers: list[ir.Value] = []
    made: list[ir.Node] = []
    for node in chosen:
        for value in node.inputs:
            if value is None or value in twins:
                continue
            twins[value] = twin = _twin(value, division.types)
            if value.name in fed:
                inputs[twin.name or ""] = twin
            else:
                twin.const_value = contents.get(value.name or "", value.const_value)
                initializers.append(twin)
        twins.update((v, _twin(v, division.types)) for v in node.outputs)
        operands = [None if v is None else twins[v] for v in node.inputs]
        results = [twins[v] for v in node.outputs]
        copy = ir.Node(
            node.domain,
            node.op_type,
            operands,
            node.attributes.values(),
            overload=node.overload,
            outputs=results,
            version=node.version,
            name=node.name,
        )
        copy.meta.update(node.meta)
        made.append(copy)
    named = {v.name: twin for v, twin in twins.items()}
    outputs = [named[name] for name in part.outputs]
    whole = ir.Graph(
        [inputs[name] for name in part.inputs],
        outputs,
        nodes=made,
        initializers=initializers,
        opset_imports=dict(graph.opset_imports),
        name=graph.name,
    )
    return ir.Model(whole, ir_version=model.ir_version)


class _Survey:
    """What is found out about each node, in the graph's order."""

    def __init__(
        self,
        model: ir.Model,
        shapes: Mapping[str, tuple[int, ...]],
        state: Collection[str],
        swapped: Collection[str],
        extent: int,
    ) -> None:
        self.graph, self.state, self._extent = model.graph, state, extent
        self.scratch, self.program, self._known = opened(model, shapes, swapped)
        for value in (*self.program.state.values(), *self.program.weights.values()):
            value.const_value = None
        self._twins = dict(zip(self.graph, list(self.scratch), strict=True))
        initial = self.graph.initializers
        self.fed = {
            v for v in self.graph.inputs if v.name in shapes or v.name in state or v.name not in initial
        }
        """Inputs of a run, and state."""
        self.weights = {
            value
            for name, value in initial.items()
            if name not in shapes
            and value.const_value is not None
            and (name in state or is_weight(value, value.const_value, swapped))
        }
        self.cuts: dict[ir.Node, Cut] = {}
        self.folded: set[ir.Node] = set()
        self.guessed: set[ir.Value] = set()
        """Values whose shapes may depend on data."""
        self.elements: dict[ir.Node, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, ir.TypeProtocol] = {}
        for value in self.scratch.inputs:
            self._note(value)

    def look(self, node: ir.Node) -> None:
        """Find out whether a node can be in a plan, as far as nodes before it are known."""
        twin = self._twins[node]
        guessed = any(v in self.guessed for v in node.inputs)
        begun = len(self.program.operations)
        reason = self._obstacle(twin, guessed)
        made = self.program.operations[begun:]
        if reason is not None:
            del self.program.operations[begun:]
            self.cuts[node] = Cut(f"{node.op_type} {node.name}", reason)
            guessed = self._guess(node, twin, made) or guessed
        else:
            if not made:
                self.folded.add(node)
            self.elements[node] = sum(_size(v) for o in made for v in o.outputs if v.name)
        if guessed:
            self.guessed.update(node.outputs)
        for value in twin.outputs:
            self._note(value)

    def kind(self, node: ir.Node) -> int:
        """What kind of node it is, if it is computed at all."""
        if node in self.cuts:
            return _CUT
        return _MET if any(v in self.guessed for v in (*node.inputs, *node.outputs)) else _KNOWN

    def _obstacle(self, twin: ir.Node, guessed: bool) -> str | None:
        """Why no plan holds a node; None where one does. What it computes is added to the program."""
        begun = len(self.program.operations)
        for value in (*twin.inputs, *twin.outputs):
            if value is not None and (reason := _foreign(value)) is not None:
                for result in twin.outputs:
                    result.shape = None
                with suppress(OnwardError):  # its shapes are declared, or told by its results
                    infer_node(twin, self.scratch.opset_imports.get(twin.domain, 0), self._known)
                return reason
        try:
            specialize_node(self.scratch.opset_imports, twin, self.program, self._known)
        except NotStaticError as error:
            return str(error)
        except OnwardError as error:  # NumPy raises it, if it is one without the guess
            return "what it gives is only known with its operands" if guessed else str(error)
        for operation in self.program.operations[begun:]:
            for value in operation.outputs:
                if not value.name:
                    continue
                if (reason := _foreign(value)) is not None:
                    return reason
                shape = static_shape(value)
                if shape is None or value.dtype is None or (guessed and min(shape, default=0) < 0):
                    return f"the shape of {value.name!r} depends on data"
        return None

    def _guess(self, node: ir.Node, twin: ir.Node, made: Sequence[Operation]) -> bool:
        """Let a number stand for each extent that a cut leaves open; says whether there were any."""
        declared = {v.name: v for v in node.outputs}
        found = False
        inner = [v for o in made for v in o.outputs]
        for value in dict.fromkeys((*twin.outputs, *inner)):
            for contents in (self._known, self.program.constants):
                contents.pop(value, None)
            value.const_value = None
            told = declared.get(value.name)
            if value.type is None and told is not None:
                value.type = told.type
            shape = value.shape if value.shape is not None or told is None else told.shape
            if not is_tensor(value) or shape is None:
                found = True
                continue
            extents = [d if isinstance(d, int) and d >= 0 else None for d in shape]
            found = found or None in extents
            value.shape = ir.Shape([self._extent if d is None else d for d in extents])
        return found

    def _note(self, value: ir.Value) -> None:
        name = value.name or ""
        if value.type is not None:
            self.types[name] = value.type
        if (shape := static_shape(value)) is not None:
            self.shapes[name] = shape


_Groups: TypeAlias = "list[tuple[int, list[int]]]"
"""Kinds of nodes, and their positions, in the order in which they run. NumPy runs what is of the kind cut."""


def _grouped(survey: _Survey, needed: Collection[int]) -> _Groups:
    """The nodes of each place; those that fold belong to whoever reads them."""
    at: dict[ir.Value, _Place] = {}
    places: dict[_Place, list[int]] = {}
    for i, node in enumerate(survey.graph):
        place = max((at.get(v, (0, _KNOWN)) for v in node.inputs if v is not None), default=(0, _KNOWN))
        if node not in survey.folded:
            kind = survey.kind(node)
            place = place[0] + (kind < place[1]), kind
            if i in needed:
                places.setdefault(place, []).append(i)
        at.update(dict.fromkeys(node.outputs, place))
    return [(kind, places[turn, kind]) for turn, kind in sorted(places)]


def _worthwhile(survey: _Survey, groups: _Groups) -> _Groups:
    """Give what is too small for a plan to NumPy, and join what NumPy does.

    Where there is state, what depends on data's shapes goes there too: which shapes came before may not
    change a step's results.
    """
    nodes = list(survey.graph)
    found: _Groups = []
    for kind, members in groups:
        chosen = [nodes[i] for i in members]
        reads_weight = any(not survey.weights.isdisjoint(n.inputs) for n in chosen)
        large = kind == _KNOWN and sum(survey.elements[n] for n in chosen) >= MANY
        if (kind == _MET and survey.state) or not (large or reads_weight or len(chosen) >= FEW):
            kind = _CUT
        if found and kind == found[-1][0] == _CUT:
            found[-1] = (_CUT, sorted([*found[-1][1], *members]))
        else:
            found.append((kind, members))
    return found


def _joined(graph: ir.Graph, survey: _Survey, groups: _Groups) -> Division:
    """Parts with what they read and are read for."""
    nodes = list(graph)
    index = {value: i for i, node in enumerate(nodes) for value in node.outputs}
    folded = {i for i, node in enumerate(nodes) if node in survey.folded}
    ends = sorted({index[v] for v in graph.outputs if v in index and index[v] in folded})
    if ends and groups[-1][0] != _CUT:
        groups = [*groups, (_CUT, [])]
    parts: list[Part] = []
    for k, (kind, members) in enumerate(groups):
        wanted = [*members, *(ends if k == len(groups) - 1 else ())]
        inside = sorted(_with_folded(nodes, index, folded, wanted))
        own = {v for i in inside for v in nodes[i].outputs}
        reads = dict.fromkeys(v for i in inside for v in nodes[i].inputs if v is not None and v not in own)
        inputs = [v for v in reads if v in index or v in survey.fed]
        parts.append(
            Part(
                tuple(inside),
                tuple(v.name or "" for v in inputs),
                tuple(v.name or "" for i in wanted for v in nodes[i].outputs),
                kind != _CUT,
                kind == _MET,
            )
        )
    read = {name for part in parts for name in part.inputs} | {v.name or "" for v in graph.outputs}
    parts = [replace(p, outputs=tuple(n for n in p.outputs if n in read)) for p in parts]
    shapes = [
        None
        if part.met or any(name not in survey.shapes for name in part.inputs)
        else {name: survey.shapes[name] for name in part.inputs}
        for part in parts
    ]
    cuts = [tuple(survey.cuts[n] for i in members if (n := nodes[i]) in survey.cuts) for _, members in groups]
    cuts += [()] * (len(parts) - len(cuts))
    return Division(tuple(parts), tuple(shapes), tuple(cuts), survey.types)


def _with_folded(
    nodes: Sequence[ir.Node], index: Mapping[ir.Value, int], folded: Collection[int], wanted: Iterable[int]
) -> set[int]:
    """Nodes with those that fold and that they read, directly or through others that fold."""
    found, waiting = set(wanted), list(wanted)
    while waiting:
        for value in nodes[waiting.pop()].inputs:
            i = None if value is None else index.get(value)
            if i in folded and i not in found and i is not None:
                found.add(i)
                waiting.append(i)
    return found


def _needed(graph: ir.Graph, nodes: Sequence[ir.Node]) -> set[int]:
    """Positions of the nodes that outputs follow from."""
    read = set(graph.outputs)
    found = set()
    for i in reversed(range(len(nodes))):
        if not read.isdisjoint(nodes[i].outputs):
            found.add(i)
            read.update(v for v in nodes[i].inputs if v is not None)
    return found


def _values(graph: ir.Graph) -> list[ir.Value]:
    found = dict.fromkeys((*graph.inputs, *graph.initializers.values()))
    found.update(dict.fromkeys(v for node in graph for v in node.outputs))
    return list(found)


def _foreign(value: ir.Value) -> str | None:
    """Why no memory of a plan holds a value; None where it does."""
    if not is_tensor(value):
        return f"{value.name!r} is no tensor"
    return f"{value.name!r} holds strings" if value.dtype == ir.DataType.STRING else None


def _size(value: ir.Value) -> int:
    size = 1
    for extent in static_shape(value) or ():
        size *= extent
    return size


def _twin(value: ir.Value, types: Mapping[str, ir.TypeProtocol]) -> ir.Value:
    kind = value.type if value.type is not None else types.get(value.name or "")
    return ir.Value(name=value.name, type=kind, shape=None if value.shape is None else value.shape.copy())
