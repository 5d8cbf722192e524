"""Computes before anything runs what follows from constants and shapes; gradient rules then read constants.

Exports compute axes, pads, extents and targets of Reshape by long chains of small integer operators. What
follows from declared dimensions alone becomes a constant; of vectors of which only some elements follow, the
dimensions of what is made from them do.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Sequence
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.errors import OnwardError
from onward.graph import (
    ONWARD_DOMAIN,
    Array,
    BodyOp,
    Builder,
    Dim,
    Op,
    bind,
    canonical_model,
    dims_of,
    infer_node,
    inline,
    is_float,
    numpy_dtype,
    replace_node,
    static_shape,
)
from onward.graph.extents import (
    Elements,
    elements_of,
    expanded_dims,
    propagated,
    reshaped_dims,
)
from onward.graph.infer import range_is_short
from onward.passes._sequences import SEQUENCE_OPERATORS, Sequences

__all__ = ["fold_shapes", "unpack_sequences"]

_LARGEST = 1 << 16
"""Elements of a result that becomes a constant."""

_SMALL_FLOATS = 16
"""Elements of a floating-point initializer that counts as a constant and not as a weight."""


_RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
})  # fmt: skip

_BOUNDED = frozenset({"NonZero", "Range", "Compress", "Unique", "Slice", "Reshape"})
"""Operators whose results have no more elements than their operands say, where inference finds no shape."""


def fold_shapes(model: ir.Model, variable: Collection[str] = ()) -> ir.Model:
    """The model with everything computed that follows from constants and declared dimensions.

    Branches whose condition is known stand in the place of their If, and tensors in that of sequences whose
    tensors are known. Inputs, outputs and initializers stay.
    From initializers that are inputs too, those named as variable, and floating-point ones of more than 16
    elements, nothing follows.

    Args:
        model: it is not changed; the result is in canonical form.
        variable: initializers whose contents will change.

    Raises:
        UnsupportedError, InvalidModelError: as `onward.graph.canonical_model`.
    """
    model = canonical_model(model).clone()
    _Folding(model.graph, variable).run()
    return model


def unpack_sequences(model: ir.Model, variable: Collection[str] = ()) -> ir.Model:
    """The model with known tensors in the place of sequences: the same one where it has no sequences.

    Args:
        model: it is not changed.
        variable: initializers whose contents will change, beside those of floating-point numbers.

    Raises:
        UnsupportedError, InvalidModelError: as `onward.graph.canonical_model`.
    """
    if not any(node.op_type in SEQUENCE_OPERATORS and node.domain == "" for node in model.graph):
        return model
    weights = [name for name, value in model.graph.initializers.items() if is_float(value)]
    return fold_shapes(model, [*variable, *weights])


@final
class _Folding:
    def __init__(self, graph: ir.Graph, variable: Collection[str], g: Builder | None = None) -> None:
        self._g = Builder(graph) if g is None else g
        self._constants: dict[ir.Value, Array] = {}
        self._elements: dict[ir.Value, Elements] = {}
        self._replaced: dict[ir.Value, ir.Value] = {}
        self._sequences = Sequences()
        for name, value in graph.initializers.items():
            if name not in variable:
                self._hold(value)

    def run(self) -> None:
        graph = self._g.graph
        for node in list(graph):
            self._visit(node)
        for node in reversed(list(graph)):
            if not any(v.uses() or v.is_graph_output() for v in node.outputs):
                graph.remove(node, safe=True)

    def _hold(self, value: ir.Value) -> None:
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or tensor.dtype.is_string():
            return
        if tensor.size <= (_SMALL_FLOATS if is_float(value) else _LARGEST):
            self._know(value, tensor.numpy())

    def _know(self, value: ir.Value, array: Array) -> None:
        self._constants[value] = array
        if (elements := elements_of(array)) is not None:
            self._elements[value] = elements

    def _visit(self, node: ir.Node) -> None:
        opset = self._g.graph.opset_imports.get(node.domain, 0)
        operator = bind(node, opset)
        if isinstance(operator, BodyOp):
            known = [None if v is None else self._constants.get(v) for v in node.inputs]
            if (taken := operator.taken(known)) is not None:
                self._put_in_place(node, *taken)
                return
            self._infer(node, opset)  # inside its bodies, too
            for body in operator.bodies():
                _Folding(body, (), self._g.inside(body)).run()
            return
        if node.domain == "" and node.op_type in SEQUENCE_OPERATORS and self._unpack(node):
            return
        self._infer(node, opset)
        results = self._computed(node, operator)
        if results is None:
            results = self._followed(node)
        for value, array in zip(node.outputs, results, strict=False):
            if value.name:
                self._make_constant(value, array)

    def _put_in_place(self, node: ir.Node, body: ir.Graph, first: int) -> None:
        """A body in its node's place."""
        g = self._g
        before = set(g.graph)
        g.at(node)
        outputs = inline(g, body, [v for v in node.inputs[first:] if v is not None])
        inner = [n for n in g.graph if n not in before]
        for value in g.graph.initializers.values():
            if value not in self._constants and any(n in inner for n, _ in value.uses()):
                self._hold(value)
        for n in inner:
            self._visit(n)
        outputs = [self._replaced.get(v, v) for v in outputs]  # where what made one was such a node itself
        self._replaced.update(zip(node.outputs, outputs, strict=False))
        g.at(node)
        held = {old: self._constants.get(new) for old, new in zip(node.outputs, outputs, strict=False)}
        replace_node(g, node, outputs)
        g.at(None)
        for old, array in held.items():
            if array is not None:
                self._know(old, array)

    def _unpack(self, node: ir.Node) -> bool:
        """Put what is known of a sequence's tensors in the place of a node; whether that was possible."""
        g, (y,) = self._g, node.outputs
        before = set(g.graph)
        g.at(node)
        found = self._sequences.unpack(g, node, self._constants)
        for made in [n for n in g.graph if n not in before]:
            for value in made.inputs:
                if value is not None and value not in self._constants and value.is_initializer():
                    self._hold(value)
            self._visit(made)
        if isinstance(found, ir.Value) and y.is_graph_output():
            replace_node(g, node, [g.Identity(found)])
        elif isinstance(found, ir.Value):
            ir.convenience.replace_all_uses_with(y, found)
            self._replaced[y] = found
        elif found is not None:
            self._infer(node, g.graph.opset_imports[""])
            self._make_constant(y, found)
        g.at(None)
        return found is not None

    def _infer(self, node: ir.Node, opset: int) -> None:
        """Shapes of outputs, as far as they follow now; what was known stays."""
        old = [dims_of(v) for v in node.outputs]
        with contextlib.suppress(OnwardError):  # whoever runs the node is told
            infer_node(node, opset)
        for value, before in zip(node.outputs, old, strict=True):
            found = _merged(dims_of(value), before)
            value.shape = None if found is None else ir.Shape(found)
        if node.domain or len(node.inputs) < 1:
            return
        y, data = node.outputs[0], node.inputs[0]
        wanted = self._elements.get(node.inputs[-1]) if node.inputs[-1] is not None else None
        if wanted is None or data is None:
            return
        dims: tuple[Dim, ...] | None = None
        if node.op_type == "Reshape":
            zeros = bool(node.attributes.get_int("allowzero", 0))
            dims = reshaped_dims(dims_of(data), wanted, allowzero=zeros)
        elif node.op_type == "Expand":
            dims = expanded_dims(dims_of(data), wanted)
        elif node.op_type == "ConstantOfShape" and isinstance(wanted, tuple):
            dims = wanted
        if dims is not None and not any(isinstance(d, int) and d < 0 for d in dims):
            found = _merged(dims, dims_of(y))
            y.shape = None if found is None else ir.Shape(found)

    def _computed(self, node: ir.Node, operator: Op) -> tuple[Array, ...] | None:
        """The outputs, where all operands are constants, or shapes are all that counts."""
        if node.op_type in _RANDOM or node.domain == ONWARD_DOMAIN:
            return None
        operands: list[Array | None] = []
        for value in node.inputs:
            if value is None or value in self._constants:
                operands.append(None if value is None else self._constants[value])
            elif node.op_type in ("Shape", "Size") and (shape := static_shape(value)) is not None:
                # only the extents matter: a view of one element stands for the tensor
                operands.append(np.broadcast_to(np.zeros((), np.int8), shape))
            else:
                return None
        for value in node.outputs:
            shape = static_shape(value)
            if shape is None and node.op_type not in _BOUNDED:
                return None
            if shape is not None and math.prod(shape) > _LARGEST:
                return None
        if node.op_type == "Range" and not range_is_short(operands):
            return None
        try:
            with np.errstate(all="ignore"):
                results: Any = operator.kernel(*operands)  # type: ignore[attr-defined]
        except (ValueError, IndexError, TypeError, KeyError, ArithmeticError, MemoryError, OnwardError):
            return None  # whoever runs the node is told
        results = results if isinstance(results, tuple) else (results,)
        if not all(isinstance(r, np.ndarray | np.generic) for r in results):
            return None
        found = tuple(np.asarray(r) for r in results)
        return None if any(a.size > _LARGEST or a.dtype.kind in "OUST" for a in found) else found

    def _followed(self, node: ir.Node) -> tuple[Array, ...]:
        """The output where each of its elements is known; what is known of it is noted."""
        elements = propagated(node, self._elements)
        if elements is None:
            return ()
        y = node.outputs[0]
        flat: Sequence[Dim] = elements if isinstance(elements, tuple) else (elements,)
        if y.dtype is not None and all(isinstance(n, int) for n in flat):
            return (np.asarray(elements, numpy_dtype(y.dtype)),)
        self._elements[y] = elements
        return ()

    def _make_constant(self, value: ir.Value, array: Array) -> None:
        self._know(value, array)
        value.shape = ir.Shape(array.shape)
        if value.is_graph_output() or not value.uses():
            return
        if is_float(value) and array.size > _SMALL_FLOATS:
            return  # it may be a weight to whoever looks for some
        constant = self._g.const(array)
        self._know(constant, array)
        ir.convenience.replace_all_uses_with(value, constant)


def _merged(found: tuple[Dim, ...] | None, known: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """Dimensions that were found, and where they are open, those known before."""
    if found is None or known is None or len(found) != len(known):
        return known if found is None else found
    return tuple(
        new if isinstance(new, int) or (new is not None and not isinstance(old, int)) else old
        for new, old in zip(found, known, strict=True)
    )
