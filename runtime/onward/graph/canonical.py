"""The canonical form of a graph, which every engine runs and gradients are taken of.

Old versions of operators become current ones, once, when a model is read for execution; and what bodies take
from around them becomes inputs. Names, types and shapes of the values that a user knows stay; the model that
was read does not change.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from onward.errors import InvalidModelError, OnwardError, UnsupportedError
from onward.graph.bodies import bodies_of
from onward.graph.builder import Builder
from onward.graph.functions import expand_function, has_body
from onward.graph.infer import infer_node
from onward.graph.op import (
    CONSUMED_INPUTS,
    NO_WEIGHT,
    ONWARD_DOMAIN,
    bind,
    find,
    has_schemas,
    is_weight_operand,
    versions_of,
)
from onward.graph.origin import note_opset, opset_of
from onward.graph.replace import replace_node

__all__ = ["CURRENT_OPSET", "canonical_graph", "canonical_model", "current_versions"]

CURRENT_OPSET = 21
"""The opset of a graph that had older versions of operators; one that had none keeps its own."""

_FIRST_WITH_SHAPES = 7
"""Before this opset `onnx` knows shapes of few operators' results."""

_DEEPEST = 32
"""How many graphs may stand inside one another."""


def canonical_graph(graph: ir.Graph) -> ir.Graph:
    """The graph in canonical form: the same one where it is that already, else a copy.

    Raises:
        UnsupportedError: operators that are unknown at their opset, all of them at once; or an old version
            of one that has no current form; names node, operator and opset.
        InvalidModelError: a node's attributes do not fit its operator, or graphs nest deeper than 32.
    """
    found = _survey(graph)
    return _transformed(graph.clone(), *found) if any(found) else graph


def canonical_model(model: ir.Model) -> ir.Model:
    """The model with its graph in canonical form: the same one where it is that already, else a copy.

    Raises:
        UnsupportedError, InvalidModelError: as `canonical_graph`.
    """
    found = _survey(model.graph)
    if not any(found):
        return model
    copy = model.clone()
    _transformed(copy.graph, *found)
    return copy


def current_versions(model: ir.Model, opset: int = CURRENT_OPSET) -> ir.Model:
    """A copy of the model whose operators of the standard have their versions at a newer opset.

    Raises:
        UnsupportedError, InvalidModelError: as `canonical_graph`.
    """
    copy = model.clone()
    _to_current(copy.graph, opset)
    return copy


def _transformed(graph: ir.Graph, functions: bool, old: bool, captures: bool) -> ir.Graph:
    if functions:
        _share_imports(graph, dict(graph.opset_imports))
        g = Builder(graph)
        _expand_functions(g, list(graph), 0)
        # the bodies have operators and forms that were not seen yet
        _, old, captures = _survey(graph)
    if old:
        _to_current(graph, max(CURRENT_OPSET, graph.opset_imports.get("", CURRENT_OPSET)))
    if captures:
        _share_imports(graph, dict(graph.opset_imports))
        _make_explicit(Builder(graph))
    return graph


def _survey(graph: ir.Graph) -> tuple[bool, bool, bool]:
    """Whether a graph has operators that are functions, old versions, and bodies that may capture."""
    opsets = graph.opset_imports
    functions = False
    old, captures = opsets.get("", CURRENT_OPSET) < _FIRST_WITH_SHAPES, False
    problems: list[str] = []

    def visit(inside: ir.Graph, depth: int) -> None:
        nonlocal functions, old, captures
        if depth > _DEEPEST:
            raise InvalidModelError(f"graphs stand more than {_DEEPEST} deep inside one another")
        for node in inside:
            try:
                cls = find(node.domain, node.op_type, opsets.get(node.domain, 0))
            except UnsupportedError as error:
                if has_body(node.domain, node.op_type, opsets.get(node.domain, 0)):
                    functions = True
                else:
                    problems.append(f"node {node.name!r}: {error}")
                continue
            old = old or hasattr(cls, "canonical") or CONSUMED_INPUTS in node.attributes
            for body in bodies_of(node):
                captures = captures or node.domain == ""
                visit(body, depth + 1)

    visit(graph, 0)
    if problems:
        raise UnsupportedError("this graph cannot run:\n  " + "\n  ".join(problems))
    return functions, old, captures


def _expand_functions(g: Builder, nodes: list[ir.Node], depth: int) -> None:
    """Put bodies in the place of operators that have no class, and of those in the bodies."""
    for node in nodes:
        opset = g.graph.opset_imports.get(node.domain, 0)
        if has_body(node.domain, node.op_type, opset):
            if depth > _DEEPEST:
                raise InvalidModelError(f"operators are defined by more than {_DEEPEST} others in turn")
            _expand_functions(g, expand_function(g, node, opset), depth + 1)
            continue
        for body in bodies_of(node):
            _share_imports(g.graph, dict(g.graph.opset_imports))
            inner = g.inside(body)
            _expand_functions(inner, list(body), depth)
        if any(value.name and value.type is None for value in node.outputs):
            infer_node(node, opset)
            _take_types_of_branches(node)


def _take_types_of_branches(node: ir.Node) -> None:
    """Types of an If's outputs, as far as its branches agree."""
    branches = list(bodies_of(node))
    if node.op_type != "If" or len(branches) != 2:
        return
    for value, *results in zip(node.outputs, *(b.outputs for b in branches), strict=False):
        value.type = next((r.type for r in results if r.type is not None), None)
        if all(r.shape is not None and r.shape == results[0].shape for r in results):
            value.shape = results[0].shape


def _to_current(graph: ir.Graph, opset: int) -> None:
    declared = graph.opset_imports.get("", opset)
    if declared > opset:
        return
    graph.opset_imports[""] = opset
    _share_imports(graph, dict(graph.opset_imports))
    _replace_old(Builder(graph), declared)


def _share_imports(graph: ir.Graph, opsets: dict[str, int]) -> None:
    """Tell every body which opsets it is written in."""
    for node in graph:
        for body in bodies_of(node):
            body.opset_imports.clear()
            body.opset_imports.update(opsets)
            _share_imports(body, opsets)


def _replace_old(g: Builder, declared: int) -> None:
    g.declared_opset = declared
    for node in list(g.graph):
        for body in bodies_of(node):
            _replace_old(g.inside(body), declared)
        at = declared if node.domain == "" else g.graph.opset_imports.get(node.domain, 0)
        if node.domain == ONWARD_DOMAIN or (node.domain and not versions_of(node.domain, node.op_type)):
            continue
        note_opset(node, at)
        rule = getattr(find(node.domain, node.op_type, at), "canonical", None)
        if rule is not None:
            if node.domain != "":
                _mark_constants(node)
            _rewrite(g, node, at, rule)
            continue
        if node.domain != "":
            continue
        node.attributes.pop(CONSUMED_INPUTS, None)
        if _incomplete(node):
            infer_node(node, g.graph.opset_imports[""])


def _make_explicit(g: Builder) -> None:
    for node in list(g.graph):
        for body in bodies_of(node):
            _make_explicit(g.inside(body))
        opset = g.graph.opset_imports.get(node.domain, 0)
        rule = getattr(find(node.domain, node.op_type, opset), "explicit", None)
        if rule is not None:
            g.declared_opset = opset_of(node, opset)
            _rewrite(g, node, opset, rule)
        elif _incomplete(node):
            infer_node(node, opset)


def _mark_constants(node: ir.Node) -> None:
    """Mark initialisers that only operators outside the standard take, and none as a weight."""
    for value in node.inputs:
        if value is not None and value.is_initializer():
            uses = value.uses()
            if all(user.domain != "" and not is_weight_operand(user, i) for user, i in uses):
                value.meta[NO_WEIGHT] = True


def _incomplete(node: ir.Node) -> bool:
    """Whether the type of an output is not known, or not its shape: files may declare outputs without."""
    return any(value.name and (value.type is None or value.shape is None) for value in node.outputs)


def _check_operands(node: ir.Node, rule: Callable[..., Any]) -> None:
    """Refuse too few or too many operands of an operator whose schema nobody has checked."""
    if has_schemas(node.domain):
        return
    try:
        bound = inspect.signature(rule).bind(None, None, *node.inputs)
    except TypeError:
        names = list(inspect.signature(rule).parameters)[2:]
        raise InvalidModelError(f"{len(node.inputs)} inputs; it takes {', '.join(names)}") from None
    for name, parameter in list(inspect.signature(rule).parameters.items())[2:]:
        if bound.arguments.get(name) is None and "None" not in str(parameter.annotation):
            raise InvalidModelError(f"input {name!r} is missing")


def _rewrite(g: Builder, node: ir.Node, opset: int, rule: Callable[..., Any]) -> None:
    """Put what an operator's rule writes in the place of a node; messages name the node."""
    g.at(node)
    try:
        operator = bind(node, opset)
        _check_operands(node, rule)
        with g.scope(node.name or node.op_type):
            results = rule(operator, g, *node.inputs)
        results = (results,) if isinstance(results, ir.Value) else results
        for i, value in enumerate(node.outputs):
            used = value.name and (value.uses() or value.is_graph_output())
            if used and (i >= len(results) or results[i] is None):
                raise UnsupportedError(f"output {i}, {value.name!r}, is not supported")
        last = None if results[0] in node.inputs else results[0].producer()
        replace_node(g, node, results)
        if last is not None:
            last.name = node.name
    except OnwardError as error:
        where = f"node {node.name!r}, operator {node.op_type}, opset {g.declared_opset}"
        raise type(error)(f"{where}: {error}") from error
    finally:
        g.at(None)
