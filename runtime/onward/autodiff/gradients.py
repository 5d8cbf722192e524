"""Reverse-mode differentiation: appends to a graph the nodes that compute gradients of its values.

The engine walks the nodes backwards from the values that are differentiated, asks each operator's
`gradient` rule, sums what several uses contribute, and sums over the axes along which an operand was
broadcast. Rules therefore never do either, and need not care for branches that were not taken (`masks`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onward.autodiff.masks import keep_masked
from onward.errors import UnsupportedError
from onward.graph import Builder, Op, bind, bodies_of, dims_of, is_float
from onward.ops._channel_sum import is_centred

__all__ = ["MissingGradientsError", "NoGradient", "cut_by_integers", "gradients", "sum_to"]


@dataclass(frozen=True, slots=True)
class NoGradient:
    """A node that no gradient goes through, and why, where that is more than that no rule is known."""

    node: ir.Node
    opset: int
    why: str = ""
    inside: tuple[NoGradient, ...] = ()
    """Nodes of its bodies, where those are what keeps it from having one."""

    def __str__(self) -> str:
        where = f"node {self.node.name!r}, operator {self.node.op_type}, opset {self.opset}"
        if self.inside:
            return "\n  ".join(f"in a body of {where}: {problem}" for problem in self.inside)
        return f"{where}: {self.why}" if self.why else where


class MissingGradientsError(UnsupportedError):
    """Nodes between the loss and the parameters have no gradient: all of them."""

    def __init__(self, message: str, problems: Sequence[NoGradient] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class _Step:
    """A node on the way; without an operator where no gradient is known."""

    node: ir.Node
    operator: Op | None


def gradients(
    g: Builder, seeds: Mapping[ir.Value, ir.Value], wrt: Sequence[ir.Value]
) -> list[ir.Value | None]:
    """Append the gradients of a scalar with respect to values of the graph.

    Args:
        g: writes to the end of the graph that holds every value given, and is in canonical form.
        seeds: for each value where differentiation starts, the gradient of the scalar with respect to it.
            A scalar differentiated by itself has the seed 1.
        wrt: values to differentiate by.

    Returns:
        For each value of `wrt` its gradient, of its type and shape; None where the seeds do not depend on it.

    Raises:
        MissingGradientsError: operators on the way have no gradient; names all of them.
    """
    path, depends, problems = _path(g.graph, seeds, wrt)
    last = g.graph[-1] if len(g.graph) else None
    collected: dict[ir.Value, list[ir.Value]] = {}
    seeds = {value: _own(g, seed) for value, seed in seeds.items()}
    for value, seed in seeds.items():
        collected.setdefault(value, []).append(seed)
    wanted = set(wrt)
    found: dict[ir.Value, ir.Value] = {}
    for step in reversed(path):
        node = step.node
        dys = tuple(_total(g, collected.pop(v, []), v) for v in node.outputs)
        found.update(
            (value, dy)
            for value, dy in zip(node.outputs, dys, strict=True)
            if dy is not None and value in wanted
        )
        if all(dy is None for dy in dys):
            continue
        with g.scope(f"grad/{node.name or node.op_type}"):
            alone = len({v for v in node.inputs if v is not None}) == 1
            try:
                results = _rule(g, step, dys)
            except UnsupportedError as error:
                opset = g.graph.opset_imports.get(node.domain, 0)
                problems[node] = NoGradient(node, opset, str(error), getattr(error, "problems", ()))
                results = ()
            if node in problems:  # what lies before it is asked too, so that nothing stays unsaid
                floats = (v is not None and v in depends and is_float(v) for v in node.inputs)
                results = [
                    g.zeros_like(v) if float_ and v is not None else None
                    for v, float_ in zip(node.inputs, floats, strict=True)
                ]
            for operand, contribution in zip(node.inputs, results, strict=False):
                if operand is not None and operand in depends and contribution is not None:
                    # an operand on its own is not broadcast, whatever is unknown of its shape
                    whole = alone and not _axes_known(contribution, operand)
                    part = _like(contribution, operand) if whole else sum_to(g, contribution, operand)
                    collected.setdefault(operand, []).append(part)
    if problems:
        raise _missing([problems[step.node] for step in path if step.node in problems])
    for value in wrt:
        total = _total(g, collected.get(value, []), value) if value not in found else None
        if total is not None:
            found[value] = total
    written = list(itertools.takewhile(lambda node: node is not last, reversed(g.graph)))[::-1]
    return keep_masked(g, written, seeds.values(), [found.get(value) for value in wrt], wrt)


def cut_by_integers(
    graph: ir.Graph, sources: Iterable[ir.Value], results: Iterable[ir.Value]
) -> list[NoGradient]:
    """Nodes between values where what depends on the sources becomes integer: no gradient passes there."""
    depends: set[ir.Value | None] = set(sources)
    cut: list[ir.Node] = []
    everything: set[ir.Value | None] = set(depends)
    for node in graph:
        if not everything.isdisjoint(node.inputs):
            everything.update(node.outputs)
            if not depends.isdisjoint(node.inputs):
                floats = [v for v in node.outputs if is_float(v)]
                depends.update(floats)
                if not floats:
                    cut.append(node)
    needed: set[ir.Value | None] = set(results)
    for node in reversed(graph):
        if not needed.isdisjoint(node.outputs):
            needed.update(node.inputs)
    why = "its result is not of a floating-point type, so that no gradient passes"
    opsets = graph.opset_imports
    return [NoGradient(n, opsets.get(n.domain, 0), why) for n in cut if not needed.isdisjoint(n.outputs)]


def _own(g: Builder, seed: ir.Value) -> ir.Value:
    """A constant seed that no rule takes for its own constant: what depends on it is a cotangent."""
    content = seed.const_value if seed.is_initializer() else None
    return seed if content is None else g.initializer(g.unique("seed", scoped=False), content.numpy())


def sum_to(g: Builder, gradient: ir.Value, operand: ir.Value) -> ir.Value:
    """Sum a gradient over the axes along which its operand was broadcast.

    Where the shapes do not tell the axes at graph time, they are found at run time.

    Args:
        g: where to write.
        gradient: of the operator's output shape.
        operand: the operand that was broadcast to it, or had that shape already.
    """
    have, want = dims_of(gradient), dims_of(operand)
    if have is None or want is None or not _axes_known(gradient, operand):
        return _sum_at_run_time(g, gradient, operand)
    lead = len(have) - len(want)
    broadcast = [w == 1 and h != 1 for h, w in zip(have[lead:], want, strict=True)]
    axes = [*range(lead), *(lead + i for i, summed in enumerate(broadcast) if summed)]
    if axes and axes == [i for i in range(len(have)) if i != 1] and is_centred(gradient):
        return g.zeros_like(operand)
    summed = g.ReduceSum(gradient, axes, keepdims=1) if axes else gradient
    if lead:
        summed = g.Squeeze(summed, list(range(lead)))
    return _like(summed, operand)


def _sum_at_run_time(g: Builder, gradient: ir.Value, operand: ir.Value) -> ir.Value:
    shape = g.Shape(operand)
    lead = g.Sub(g.Size(g.Shape(gradient)), g.Size(shape))
    # Axes where the operand has extent 1 are summed; over an axis of extent 1 that changes nothing.
    ones = g.Add(g.Squeeze(g.NonZero(g.Equal(shape, [1])), [0]), lead)
    leading = g.Range(g.const(0, ir.DataType.INT64), lead, g.const(1, ir.DataType.INT64))
    axes = g.Concat(leading, ones, axis=0)
    summed = g.ReduceSum(gradient, axes, keepdims=1, noop_with_empty_axes=1)
    return _like(g.Reshape(summed, shape, allowzero=1), operand)


def _axes_known(gradient: ir.Value, operand: ir.Value) -> bool:
    """Whether it is clear at graph time along which axes the operand was broadcast."""
    have, want = dims_of(gradient), dims_of(operand)
    if have is None or want is None:
        return False
    pairs = zip(have[len(have) - len(want) :], want, strict=True)
    return all(isinstance(w, int) or (w is not None and h == w) for h, w in pairs)


def _like(value: ir.Value, operand: ir.Value) -> ir.Value:
    """A gradient has its operand's shape, also where inference lost it."""
    if operand.shape is not None and not value.is_graph_input() and not value.is_initializer():
        value.shape = operand.shape.copy()
    return value


def _total(g: Builder, parts: Sequence[ir.Value], of: ir.Value) -> ir.Value | None:
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        with g.scope(f"grad/{of.name}"):
            total = _like(g.Add(total, part), of)
    return total


def _path(
    graph: ir.Graph, seeds: Iterable[ir.Value], wrt: Sequence[ir.Value]
) -> tuple[list[_Step], set[ir.Value | None], dict[ir.Node, NoGradient]]:
    """The nodes between `wrt` and the seeds in the graph's order, and every value that depends on `wrt`.

    Those that have no rule are among the nodes, and apart.
    """
    depends: set[ir.Value | None] = set(wrt)
    forward: list[ir.Node] = []
    for node in graph:
        if any(v in depends for v in (*node.inputs, *_captured(node)) if v is not None):
            outputs = [v for v in node.outputs if is_float(v)]
            if outputs:
                depends.update(outputs)
                forward.append(node)
    needed = set(seeds)
    steps: list[_Step] = []
    problems: dict[ir.Node, NoGradient] = {}
    for node in reversed(forward):
        if not any(v in needed for v in node.outputs):
            continue
        needed.update(v for v in node.inputs if v is not None and v in depends)
        opset = graph.opset_imports.get(node.domain, 0)
        operator: Op | None = None
        try:
            operator = bind(node, opset)
        except UnsupportedError as error:
            problems[node] = NoGradient(node, opset, str(error))
        else:
            if any(v in depends for v in _captured(node)):
                why = "its body uses values of the graph around it; see canonical_model"
                problems[node] = NoGradient(node, opset, why)
            elif not hasattr(operator, "gradient") and not hasattr(operator, "body_gradient"):
                problems[node] = NoGradient(node, opset)
        steps.append(_Step(node, operator))
    steps.reverse()
    return steps, depends, problems


def _missing(problems: Sequence[NoGradient]) -> MissingGradientsError:
    lines = "\n  ".join(map(str, problems))
    return MissingGradientsError(
        f"no gradient is known for:\n  {lines}\n"
        "freeze the parameters before these nodes, or cut the model behind them",
        problems,
    )


def _captured(node: ir.Node) -> set[ir.Value]:
    """Values around a node that bodies use without having them as inputs, which no canonical graph has."""
    used: set[ir.Value | None] = set()
    for body in bodies_of(node):
        used.update(body.outputs, *(inner.inputs for inner in body.all_nodes()))
    return {value for value in used if value is not None and value.graph is node.graph}


def _rule(g: Builder, step: _Step, dys: tuple[ir.Value | None, ...]) -> Sequence[ir.Value | None]:
    rule: Any = getattr(step.operator, "gradient", None)
    node = step.node
    if rule is None:
        rule = getattr(step.operator, "body_gradient", None)
        result = () if rule is None else rule(g, gradients, dys, tuple(node.outputs), *node.inputs)
    elif step.operator is not None and step.operator.multiple_outputs:
        result = rule(g, dys, tuple(node.outputs), *node.inputs)
    elif dys[0] is None:
        return ()
    else:
        result = rule(g, dys[0], node.outputs[0], *node.inputs)
    return tuple(result)
