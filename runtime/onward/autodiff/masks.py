"""Keeps gradients finite behind a branch that was not taken.

    y = Where(x > 0, Sqrt(x), 0)      dx = Where(x > 0, dy, 0) · 0.5 / Sqrt(x)

Where x is negative the cotangent is exactly zero and its factor NaN: mathematics says zero, arithmetic NaN.
Gradient rules need no care of their own. This pass follows, through the nodes that they wrote, where a
cotangent is zero because a `Where` selected it away, and selects once more behind a factor that may be
infinite or NaN, before the product goes into a sum, a matrix product or a result. A graph without such
factors behind a `Where` stays as it was.

A cotangent that is zero by arithmetic alone is not masked: 0 · ∞ stays NaN there, for its limit is unknown.
Nor are the factors of matrix products and of other sums: what they read of a branch that was not taken must
be finite, and a run names the node where it is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import onnx_ir as ir

from onward.graph import Builder, dtype_of, find, is_float, static_shape

__all__ = ["keep_masked"]

_POLES = frozenset({
    "Acos", "Acosh", "Asin", "Atanh", "Cosh", "Div", "Exp", "Log", "Pow", "Reciprocal", "Sinh", "Sqrt", "Tan",
})  # fmt: skip
"""Operators that can be infinite or NaN for finite operands."""

_MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather",
    "Pad", "ReduceMean", "ReduceSum", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
})  # fmt: skip
"""Operators that put elements elsewhere, or add them up; they do to a mask what they do to a value."""

_ALONE = frozenset({"Cast", "Identity", "Neg", "PhiloxDropout"})
"""Operators of one value, element by element, that are zero where it is."""

_SUMS = frozenset({"ReduceMean", "ReduceSum"})


@final
@dataclass(frozen=True, eq=False)
class _Chosen:
    """Where a condition holds, or does not."""

    condition: ir.Value
    holds: bool


@final
@dataclass(frozen=True, eq=False)
class _Both:
    """Where both masks hold (`And`), or one of them (`Or`)."""

    operator: str
    first: _Mask
    second: _Mask


@final
@dataclass(frozen=True, eq=False)
class _Moved:
    """A mask after what a node does to values; `masks` has one for each operand that is moved."""

    node: ir.Node
    output: int
    masks: tuple[_Mask, ...]


_Mask: TypeAlias = "_Chosen | _Both | _Moved"


@final
@dataclass(frozen=True)
class _Zero:
    """A value that is zero outside a mask; `dirty` where it may hold NaN there instead.

    `chosen` where the model itself says `Where`, and not an activation's slope: what it leaves out may be NaN
    from the start, as a missing number in the data is.
    """

    mask: _Mask
    dirty: bool
    chosen: bool


def keep_masked(
    g: Builder,
    nodes: Sequence[ir.Node],
    seeds: Iterable[ir.Value],
    results: Sequence[ir.Value | None],
    variable: Iterable[ir.Value],
) -> list[ir.Value | None]:
    """Select masked cotangents again where a factor may have made them NaN.

    Args:
        g: the builder that wrote the nodes.
        nodes: the backward pass in order, at the end of the graph.
        seeds: the cotangents that it begins with.
        results: the gradients.
        variable: values that are initializers and not constants: what is differentiated by.

    Returns:
        The gradients, replaced where they had to be selected.
    """
    return _Pass(g, nodes, seeds, variable).run(results)


@final
class _Pass:
    def __init__(
        self,
        g: Builder,
        nodes: Sequence[ir.Node],
        seeds: Iterable[ir.Value],
        variable: Iterable[ir.Value],
    ) -> None:
        self._g = g
        self._nodes = nodes
        self._after: dict[ir.Node, ir.Node] = dict(itertools.pairwise(nodes))
        self._cotangents = set(seeds)
        self._variable = set(variable)
        inside = set(nodes)
        self._conditions = {
            node.inputs[0] for node in g.graph if node.op_type == "Where" and node not in inside
        }
        self._zeros: dict[ir.Value, _Zero] = {}
        self._clean: dict[ir.Value, ir.Value] = {}
        self._risky: dict[ir.Value, bool] = {}

    def run(self, results: Sequence[ir.Value | None]) -> list[ir.Value | None]:
        for node in self._nodes:
            if not any(v in self._cotangents for v in node.inputs):
                continue
            self._cotangents.update(node.outputs)
            if self._through(node) is None:
                self._cleaned(node)
        return [
            self._selected(value) if value is not None and self._is_dirty(value) else value
            for value in results
        ]

    def _cleaned(self, node: ir.Node) -> None:
        for i, value in enumerate(node.inputs):
            if value is not None and self._is_dirty(value):
                node.replace_input_with(i, self._selected(value))

    def _is_dirty(self, value: ir.Value) -> bool:
        zero = self._zeros.get(value)
        return zero is not None and zero.dirty

    def _through(self, node: ir.Node) -> _Zero | None:
        """Note what is known of a node's outputs; None where its operands have to be clean."""
        kind = node.op_type
        if kind == "Where":
            return self._note(node, self._where(node))
        masked = [v for v in node.inputs if v is not None and v in self._zeros]
        if not masked:
            return None
        if kind in _ALONE:
            return self._note(node, self._zeros[masked[0]]) if node.inputs[0] is masked[0] else None
        if kind in ("Mul", "Div"):
            return self._note(node, self._product(node))
        if kind in ("Add", "Sub", "Sum"):
            return self._note(node, self._sum(node))
        if kind in _MOVES and node.domain == "":
            return self._moved(node)
        return None

    def _note(self, node: ir.Node, zero: _Zero | None) -> _Zero | None:
        if zero is not None:
            self._zeros[node.outputs[0]] = zero
        return zero

    def _where(self, node: ir.Node) -> _Zero | None:
        condition, chosen, other = node.inputs
        if condition is None or chosen is None or other is None or not is_float(node.outputs[0]):
            return None
        for value, rest, holds in ((chosen, other, True), (other, chosen, False)):
            if _is_zero(rest) and value in self._cotangents:
                mask: _Mask = _Chosen(condition, holds)
                known = self._zeros.get(value)
                asked = condition in self._conditions
                if known is None:
                    return _Zero(mask, False, asked)
                return _Zero(_Both("And", mask, known.mask), known.dirty, known.chosen or asked)
        first, second = self._zeros.get(chosen), self._zeros.get(other)
        if first is None or second is None:
            return None
        either = (
            _Both("And", _Chosen(condition, holds), zero.mask)
            for holds, zero in ((True, first), (False, second))
        )
        return _Zero(_Both("Or", *either), first.dirty or second.dirty, first.chosen or second.chosen)

    def _product(self, node: ir.Node) -> _Zero | None:
        a, b = node.inputs
        assert a is not None
        assert b is not None
        first, second = self._zeros.get(a), self._zeros.get(b)
        if node.op_type == "Div":
            if first is None:
                return None
            return _Zero(first.mask, first.dirty or not self._divides(b), first.chosen)
        if first is not None and second is not None:
            both = _Both("And", first.mask, second.mask)
            return _Zero(both, first.dirty or second.dirty, first.chosen or second.chosen)
        known, factor = (first, b) if first is not None else (second, a)
        assert known is not None
        risky = not factor.is_initializer() if known.chosen else self._is_risky(factor)
        return _Zero(known.mask, known.dirty or risky, known.chosen)

    def _sum(self, node: ir.Node) -> _Zero | None:
        parts = [self._zeros.get(v) for v in node.inputs if v is not None]
        known = [zero for zero in parts if zero is not None]
        if len(known) < len(parts):
            return None
        mask, dirty = known[0].mask, any(zero.dirty for zero in known)
        others = [zero.mask for zero in known[1:] if zero.mask is not mask]
        if others and dirty:
            # what one part has outside its mask must not reach another's
            self._cleaned(node)
        for other in others:
            mask = _Both("Or", mask, other)
        return _Zero(mask, dirty and not others, any(zero.chosen for zero in known))

    def _moved(self, node: ir.Node) -> _Zero | None:
        count = len(node.inputs) if node.op_type == "Concat" else 1
        known = [self._zeros.get(v) for v in node.inputs[:count] if v is not None]
        found = [zero for zero in known if zero is not None]
        if len(found) < len(known) or not found:
            return None
        dirty = any(zero.dirty for zero in found)
        for i, output in enumerate(node.outputs):
            masks = tuple(zero.mask for zero in found)
            left = dirty and node.op_type not in _SUMS
            self._zeros[output] = _Zero(_Moved(node, i, masks), left, any(zero.chosen for zero in found))
        # a sum would spread what is not a number
        return None if node.op_type in _SUMS else self._zeros[node.outputs[0]]

    def _divides(self, value: ir.Value) -> bool:
        """Whether a divisor is a constant other than zero."""
        content = None if value in self._variable else ir.convenience.get_const_tensor(value)
        return content is not None and bool(np.all(np.isfinite(content.numpy()) & (content.numpy() != 0)))

    def _is_risky(self, value: ir.Value) -> bool:
        """Whether a factor may be infinite or NaN: it comes, elementwise, from something with a pole."""
        pending, seen = [value], set[ir.Value]()
        while pending:
            at = pending.pop()
            if at in self._risky:
                if self._risky[at]:
                    self._risky[value] = True
                    return True
                continue
            if at in seen or (node := at.producer()) is None:
                continue
            seen.add(at)
            if node.op_type in _POLES and node.domain == "" and not self._harmless(node):
                self._risky[value] = True
                return True
            if node.op_type in _MOVES or self._elementwise(node):
                pending += [v for v in node.inputs if v is not None and is_float(v)]
        self._risky[value] = False
        return False

    def _harmless(self, node: ir.Node) -> bool:
        """Whether the constant operand of a division or a power leaves no pole."""
        if node.op_type not in ("Div", "Pow") or (right := node.inputs[1]) is None:
            return False
        if node.op_type == "Div":
            return self._divides(right)
        content = None if right in self._variable else ir.convenience.get_const_tensor(right)
        return content is not None and bool(np.all((content.numpy() >= 0) & (content.numpy() % 1 == 0)))

    def _elementwise(self, node: ir.Node) -> bool:
        opset = self._g.graph.opset_imports.get(node.domain)
        return opset is not None and hasattr(find(node.domain, node.op_type, opset), "element")

    def _selected(self, value: ir.Value) -> ir.Value:
        """The value with zeros outside its mask."""
        if value not in self._clean:
            node = value.producer()
            assert node is not None
            self._g.at(self._after.get(node))
            try:
                with self._g.scope("grad/masked"):
                    mask = self._value(self._zeros[value].mask)
                    clean = self._g.Where(mask, value, 0.0)
            finally:
                self._g.at(None)
            clean.shape = None if value.shape is None else value.shape.copy()
            self._clean[value] = clean
        return self._clean[value]

    def _value(self, mask: _Mask) -> ir.Value:
        """A mask as a bool value, written at the builder's place."""
        # not shared: a mask written for one value may stand behind another that needs it
        g = self._g
        if isinstance(mask, _Chosen):
            return mask.condition if mask.holds else g.Not(mask.condition)
        if isinstance(mask, _Both):
            first, second = self._value(mask.first), self._value(mask.second)
            return g.And(first, second) if mask.operator == "And" else g.Or(first, second)
        return self._value_moved(mask)

    def _value_moved(self, mask: _Moved) -> ir.Value:
        g, node = self._g, mask.node
        operands: list[ir.Value | None] = list(node.inputs)
        for i, inner in enumerate(mask.masks):
            value = node.inputs[i]
            assert value is not None
            # in the value's own type and shape, which a condition need not have
            number = g.Cast(self._value(inner), to=int(dtype_of(value)))
            operands[i] = _expanded(g, number, value)
        outputs = g.emit(
            node.op_type, *operands, outputs=len(node.outputs), **dict[str, Any](node.attributes)
        )
        moved = outputs[mask.output]
        moved.shape = None if (shape := node.outputs[mask.output].shape) is None else shape.copy()
        return g.Greater(moved, 0.0)


def _expanded(g: Builder, number: ir.Value, like: ir.Value) -> ir.Value:
    shape = static_shape(like)
    if shape is not None and static_shape(number) == shape:
        return number
    wide = g.Expand(number, g.shape(like))
    wide.shape = None if like.shape is None else like.shape.copy()
    return wide


def _is_zero(value: ir.Value) -> bool:
    content = ir.convenience.get_const_tensor(value)
    return content is not None and not np.any(content.numpy())
