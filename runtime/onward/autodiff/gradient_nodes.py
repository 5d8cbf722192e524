"""Writes out `Gradient` of `ai.onnx.preview.training`: what a node asks for, as the nodes that compute it.

Its attributes name values of the graph that it is in: `y` as a function of `xs` and `zs`; its inputs say
where the derivative by each of `xs` is taken. Where these are other values than those named, or where one
that is named depends on another, the nodes between them stand a second time, with the inputs put in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import onnx_ir as ir

from onward.autodiff.gradients import gradients
from onward.errors import InvalidModelError, UnsupportedError
from onward.graph import Builder, bodies_of, canonical_model, current_versions, dims_of, is_float
from onward.graph.canonical import CURRENT_OPSET

__all__ = ["TRAINING_DOMAIN", "expand_gradients", "is_gradient"]

TRAINING_DOMAIN = "ai.onnx.preview.training"
"""The domain of Gradient and of the standard's optimizers."""


def is_gradient(node: ir.Node) -> bool:
    """Whether a node is the standard's `Gradient`."""
    return node.op_type == "Gradient" and node.domain == TRAINING_DOMAIN


@final
@dataclass(frozen=True, eq=False)
class _Asked:
    """A Gradient node, taken out of its graph; graph inputs stand for its outputs until they are known."""

    name: str
    xs: tuple[str, ...]
    zs: tuple[str, ...]
    y: str
    inputs: tuple[str, ...]
    outputs: tuple[ir.Value | None, ...]


def expand_gradients(model: ir.Model) -> ir.Model:
    """The model with the nodes of the gradients in place of `Gradient`: the same one where it has none.

    Of a `y` with several elements, the gradient is that of their sum. The result is at opset 21 or above.

    Raises:
        InvalidModelError: a name in an attribute is none of the graph's, or there are more or fewer inputs
            than names.
        UnsupportedError: a node in a body, or operators on the way that have no gradient; names all of them.
    """
    if not any(is_gradient(node) for node in model.graph.all_nodes()):
        return model
    model = model.clone()
    graph = model.graph
    for node in graph.all_nodes():
        if is_gradient(node) and node.graph is not graph:
            raise UnsupportedError(f"{_where(node.name)}: inside a body it cannot be written out")
    asked = [_take_out(graph, node) for node in list(graph) if is_gradient(node)]
    names = [[None if v is None else v.name for v in each.outputs] for each in asked]
    model = canonical_model(current_versions(model, max(CURRENT_OPSET, graph.opset_imports.get("", 0))))
    graph = model.graph
    by_name = {v.name: v for v in graph.inputs}
    for each, own in zip(asked, names, strict=True):
        _write(graph, each, [None if name is None else by_name[name] for name in own])
        graph.sort()  # a later one may be asked for what was just written
    graph.opset_imports.pop(TRAINING_DOMAIN, None)
    if any(node.domain == TRAINING_DOMAIN for node in graph.all_nodes()):
        graph.opset_imports[TRAINING_DOMAIN] = 1
    return model


def _where(name: str | None) -> str:
    return f"node {name!r}, operator Gradient, domain {TRAINING_DOMAIN}"


def _take_out(graph: ir.Graph, node: ir.Node) -> _Asked:
    strings = {
        key: tuple(node.attributes[key].as_strings()) if key in node.attributes else ()
        for key in ("xs", "zs")
    }
    y = node.attributes["y"].as_string() if "y" in node.attributes else ""
    inputs = tuple("" if v is None else v.name or "" for v in node.inputs)
    names = (*strings["xs"], *strings["zs"])
    if not strings["xs"] or not y:
        raise InvalidModelError(f"{_where(node.name)}: the attributes xs and y are needed")
    if len(inputs) != len(names):
        raise InvalidModelError(
            f"{_where(node.name)}: {len(inputs)} inputs for {len(names)} names in xs and zs"
        )
    stands: list[ir.Value | None] = []
    values = _values(graph)
    for name, value in zip(strings["xs"], node.outputs, strict=False):
        if not value.name:
            stands.append(None)
            continue
        source = values.get(name)
        stand = ir.Value(
            name=f"{value.name}/asked",
            type=None if source is None else source.type,
            shape=None if source is None else source.shape,
        )
        graph.inputs.append(stand)
        label = value.name
        ir.convenience.replace_all_uses_with(value, stand, replace_graph_outputs=True)
        value.name = None
        stand.metadata_props["name"] = label
        stands.append(stand)
    graph.remove(node, safe=True)
    return _Asked(node.name or "", strings["xs"], strings["zs"], y, inputs, tuple(stands))


def _write(graph: ir.Graph, asked: _Asked, stands: Sequence[ir.Value | None]) -> None:
    values = _values(graph)

    def value(name: str) -> ir.Value:
        if name not in values:
            raise InvalidModelError(f"{_where(asked.name)}: {name!r} is no value of the graph")
        return values[name]

    named = [value(name) for name in (*asked.xs, *asked.zs)]
    given = [value(name) for name in asked.inputs]
    y, xs = value(asked.y), named[: len(asked.xs)]
    for name, each in zip((asked.y, *asked.xs), (y, *xs), strict=True):
        if not is_float(each):
            raise UnsupportedError(f"{_where(asked.name)}: {name!r} is not of a floating-point type")
    g = Builder(graph)
    with g.scope(asked.name or "Gradient"):
        behind = _behind(graph, named)
        if given != named or not behind.isdisjoint(named):
            copies = {old: g.Identity(new) for old, new in zip(named, given, strict=True)}
            y, xs = _again(g, y, behind, copies), [copies[x] for x in xs]
        one = g.const(1, y.dtype)
        seed = one if dims_of(y) == () else g.Expand(one, g.Shape(y))
        found = gradients(g, {y: seed}, xs)
        for stand, x, gradient in zip(stands, xs, found, strict=False):
            if stand is None:
                continue
            result = g.zeros_like(x) if gradient is None else gradient
            if result in (*xs, seed) or result.is_initializer() or result.is_graph_output():
                result = g.Identity(result)
            result.type, result.shape = x.type, x.shape
            graph.inputs.remove(stand)
            ir.convenience.replace_all_uses_with(stand, result, replace_graph_outputs=True)
            result.name = stand.metadata_props["name"]


def _values(graph: ir.Graph) -> dict[str | None, ir.Value]:
    found: dict[str | None, ir.Value] = {v.name: v for v in graph.initializers.values()}
    for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
        found[value.metadata_props.get("name", value.name)] = value
    return found


def _behind(graph: ir.Graph, sources: Sequence[ir.Value]) -> set[ir.Value]:
    """The values that depend on others, which are not among them unless they depend on one another."""
    found: set[ir.Value] = set()
    known: set[ir.Value | None] = set(sources)
    for node in graph:
        if not known.isdisjoint(node.inputs):
            known.update(node.outputs)
            found.update(node.outputs)
    return found


def _again(g: Builder, y: ir.Value, behind: set[ir.Value], copies: Mapping[ir.Value, ir.Value]) -> ir.Value:
    """`y` of other values: the nodes between once more."""
    made = dict(copies)
    needed: set[ir.Value | None] = {y}
    nodes: list[ir.Node] = []
    for node in reversed(g.graph):
        if any(v in needed and v in behind and v not in copies for v in node.outputs):
            nodes.append(node)
            needed.update(v for v in node.inputs if v not in copies)
    for node in reversed(nodes):
        attributes = [a.clone() if hasattr(a, "clone") else a for a in node.attributes.values()]
        new = ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else made.get(v, v) for v in node.inputs],
            attributes,
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for old, value in zip(node.outputs, new.outputs, strict=True):
            value.name, value.type, value.shape = old.name, old.type, old.shape
            made.setdefault(old, value)
        if next(bodies_of(node), None) is not None:
            raise UnsupportedError(
                f"{_where(None)}: node {node.name!r} with bodies lies between values that are replaced"
            )
        g.insert(new)
    return made.get(y, y)
