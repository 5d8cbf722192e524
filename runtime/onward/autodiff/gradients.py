"""Reverse-mode differentiation: appends to a graph the nodes that compute gradients of its values.

The engine walks the nodes backwards from the values that are differentiated, asks each operator's
`gradient` rule, sums what several uses contribute, and sums over the axes along which an operand was
broadcast. Rules therefore never do either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, Dim, Op, bind, dims_of, is_float

__all__ = ["gradients", "sum_to"]


@dataclass(frozen=True, slots=True)
class _Step:
    node: ir.Node
    operator: Op


def gradients(
    g: Builder, seeds: Mapping[ir.Value, ir.Value], wrt: Sequence[ir.Value]
) -> list[ir.Value | None]:
    """Append the gradients of a scalar with respect to values of the graph.

    Args:
        g: writes to the end of the graph that holds every value given.
        seeds: for each value where differentiation starts, the gradient of the scalar with respect to it.
            A scalar differentiated by itself has the seed 1.
        wrt: values to differentiate by.

    Returns:
        For each value of `wrt` its gradient, of its type and shape; None where the seeds do not depend on it.

    Raises:
        UnsupportedError: operators on the way have no gradient; names all of them.
    """
    path, depends = _path(g.graph, seeds, wrt)
    collected: dict[ir.Value, list[ir.Value]] = {}
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
            for operand, contribution in zip(node.inputs, _rule(g, step, dys), strict=False):
                if operand is not None and operand in depends and contribution is not None:
                    collected.setdefault(operand, []).append(sum_to(g, contribution, operand))
    for value in wrt:
        total = _total(g, collected.get(value, []), value) if value not in found else None
        if total is not None:
            found[value] = total
    return [found.get(value) for value in wrt]


def sum_to(g: Builder, gradient: ir.Value, operand: ir.Value) -> ir.Value:
    """Sum a gradient over the axes along which its operand was broadcast.

    Where the shapes do not tell the axes at graph time, they are found at run time.

    Args:
        g: where to write.
        gradient: of the operator's output shape.
        operand: the operand that was broadcast to it, or had that shape already.
    """
    have, want = dims_of(gradient), dims_of(operand)
    if have is None or want is None or have == want:
        _adopt_shape(gradient, operand)
        return gradient
    lead = len(have) - len(want)
    pairs = list(zip(have[lead:], want, strict=True))
    if all(_known_relation(h, w) for h, w in pairs):
        axes = [*range(lead), *(lead + i for i, (h, w) in enumerate(pairs) if w == 1 and h != 1)]
        summed = g.ReduceSum(gradient, axes, keepdims=1) if axes else gradient
    else:
        # Axes where the operand has extent 1 are summed; over an axis of extent 1 that changes nothing.
        ones = g.Equal(g.Shape(operand), [1])
        offset = g.Squeeze(g.NonZero(ones), [0])
        axes_value = g.Concat(g.const(list(range(lead)), ir.DataType.INT64), g.Add(offset, lead), axis=0)
        summed = g.ReduceSum(gradient, axes_value, keepdims=1, noop_with_empty_axes=1)
        summed.shape = ir.Shape([1] * lead + list(want))
    if lead:
        summed = g.Squeeze(summed, list(range(lead)))
    _adopt_shape(summed, operand)
    return summed


def _known_relation(have: Dim, want: Dim) -> bool:
    """Whether it is clear at graph time if this axis was broadcast."""
    return want == 1 or (want is not None and have == want) or isinstance(want, int)


def _adopt_shape(value: ir.Value, like: ir.Value) -> None:
    """A gradient has its operand's shape, also where inference lost it."""
    if like.shape is not None and not value.is_graph_input() and not value.is_initializer():
        value.shape = like.shape.copy()


def _total(g: Builder, parts: Sequence[ir.Value], of: ir.Value) -> ir.Value | None:
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        with g.scope(f"grad/{of.name}"):
            total = g.Add(total, part)
        _adopt_shape(total, of)
    return total


def _path(
    graph: ir.Graph, seeds: Iterable[ir.Value], wrt: Sequence[ir.Value]
) -> tuple[list[_Step], set[ir.Value | None]]:
    """The nodes between `wrt` and the seeds in the graph's order, and every value that depends on `wrt`."""
    depends: set[ir.Value | None] = set(wrt)
    forward: list[ir.Node] = []
    for node in graph:
        if any(v in depends for v in node.inputs if v is not None):
            outputs = [v for v in node.outputs if is_float(v)]
            if outputs:
                depends.update(outputs)
                forward.append(node)
    needed = set(seeds)
    steps: list[_Step] = []
    problems: list[str] = []
    for node in reversed(forward):
        if not any(v in needed for v in node.outputs):
            continue
        needed.update(v for v in node.inputs if v is not None and v in depends)
        opset = graph.opset_imports.get(node.domain, 0)
        operator = bind(node, opset)
        if not hasattr(operator, "gradient"):
            problems.append(f"node {node.name!r}, operator {node.op_type}, opset {opset}")
        steps.append(_Step(node, operator))
    if problems:
        raise UnsupportedError(
            "no gradient is known for:\n  "
            + "\n  ".join(reversed(problems))
            + "\nfreeze the parameters before these nodes, or cut the model behind them"
        )
    steps.reverse()
    return steps, depends


def _rule(g: Builder, step: _Step, dys: tuple[ir.Value | None, ...]) -> Sequence[ir.Value | None]:
    rule: Any = step.operator.gradient  # type: ignore[attr-defined]
    node, opset = step.node, g.graph.opset_imports.get(step.node.domain, 0)
    try:
        if step.operator.multiple_outputs:
            result = rule(g, dys, tuple(node.outputs), *node.inputs)
        elif dys[0] is None:
            return ()
        else:
            result = rule(g, dys[0], node.outputs[0], *node.inputs)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"node {node.name!r}, operator {node.op_type}, opset {opset}: {error}"
        ) from None
    return tuple(result)
