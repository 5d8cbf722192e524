"""Replaces recurrent operators by one group of standard operators for each time step."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onward.errors import UnsupportedError
from onward.graph import Builder, bind, dims_of, infer_node
from onward.ops._recurrent import DEFAULT_ACTIVATIONS, Recurrent

__all__ = ["UNROLLED", "unroll_fixed", "unroll_recurrent"]

UNROLLED = frozenset(DEFAULT_ACTIVATIONS)
"""Operators of the standard that have gradients by being unrolled."""

_OPSET = 13
"""The oldest opset whose Split, Squeeze and Unsqueeze are those that unrolling writes."""

_SPLIT_NEEDS_COUNT = 18

_LONGEST = 256
"""Time steps that a compiled plan unrolls; beyond it, planning takes longer than it saves."""

_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Softplus", "Softsign", "Tanh"})
"""Those whose operator of the same name takes no parameters."""


def unroll_recurrent(model: ir.Model, trainable: Collection[str] | None = None) -> ir.Model:
    """The model with LSTM, GRU and RNN replaced by standard operators; names of outputs are kept.

    Weights remain the same initializers. The products of the whole sequence with W are one MatMul; then
    follows each time step by itself.

    Args:
        model: a model of opset 13 or later, with shapes.
        trainable: names of initializers; recurrent nodes that none of them leads to are left as they are.
            None: every recurrent node is replaced.

    Raises:
        UnsupportedError: a node has sequence_lens, activations with parameters, or a sequence length that
            is not fixed.
    """
    model = model.clone()
    graph = model.graph
    g = Builder(graph)
    reached = None if trainable is None else _reached(graph, trainable)
    for node in list(_recurrent(graph)):
        if reached is None or node in reached:
            if (obstacle := _obstacle(node, graph.opset_imports[""])) is not None:
                raise UnsupportedError(f"node {node.name!r}, operator {node.op_type}: {obstacle}")
            _Unrolled(g, node).replace()
    return model


def unroll_fixed(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> ir.Model:
    """The model with those recurrent nodes unrolled whose sequence length follows from the inputs' shapes.

    Args:
        model: it is not changed, and returned as it is where there is nothing to unroll.
        shapes: of every input that is not an initializer.
    """
    if not any(_recurrent(model.graph)):
        return model
    model = model.clone()
    graph = model.graph
    opset = graph.opset_imports[""]
    for value in graph.inputs:
        if (shape := shapes.get(value.name or "")) is not None:
            value.shape = ir.Shape(shape)
    for node in graph:
        infer_node(node, graph.opset_imports[node.domain])
    g = Builder(graph)
    for node in list(_recurrent(graph)):
        if _obstacle(node, opset) is None and (_length(node) or 0) <= _LONGEST:
            _Unrolled(g, node).replace()
    return model


def _recurrent(graph: ir.Graph) -> Iterator[ir.Node]:
    return (node for node in graph if node.domain == "" and node.op_type in UNROLLED)


def _reached(graph: ir.Graph, names: Collection[str]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    pending = [graph.initializers[name] for name in names if name in graph.initializers]
    while pending:
        for node, _ in pending.pop().uses():
            if node not in found:
                found.add(node)
                pending.extend(node.outputs)
    return found


def _operator(node: ir.Node, opset: int) -> Recurrent:
    operator = bind(node, opset)
    assert isinstance(operator, Recurrent)
    return operator


def _length(node: ir.Node) -> int | None:
    x = node.inputs[0]
    dims = dims_of(x) if x is not None else None
    length = dims[1 if node.attributes.get_int("layout", 0) else 0] if dims is not None else None
    return length if isinstance(length, int) else None


def _names(operator: Recurrent) -> Sequence[str]:
    defaults = DEFAULT_ACTIVATIONS[operator.op_type]
    names = operator.activations or defaults
    return [name[:1].upper() + name[1:].lower() for name in names]


def _obstacle(node: ir.Node, opset: int) -> str | None:
    """Why a node cannot be unrolled, and what to do; None if it can."""
    if opset < _OPSET:
        return f"unrolling needs opset {_OPSET}, the model has {opset}; convert it with onward.model.upgrade"
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        return "sequence_lens has no gradient rule; pad the sequences to one length and leave it out"
    if others := [name for name in _names(_operator(node, opset)) if name not in _ACTIVATIONS]:
        return f"activation {others[0]} cannot be unrolled; use one of {', '.join(sorted(_ACTIVATIONS))}"
    length = _length(node)
    if length is None:
        return "the sequence length is not static; fix it in the shape of the model's input"
    if length == 0:
        return "the sequence length is 0; give it at least one time step"
    if any(v is not None and dims_of(v) is None for v in node.inputs[:3]):
        return "the shapes of its inputs are not known"
    return None


class _Unrolled:
    """One recurrent node, written out."""

    def __init__(self, g: Builder, node: ir.Node) -> None:
        self._g = g
        self._node = node
        self._opset = g.graph.opset_imports[""]
        self._operator: Any = _operator(node, self._opset)
        self._time = 1 if self._operator.batch_major else 0
        self._length = _length(node) or 0
        self._inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
        self._directions = 2 if self._operator.direction == "bidirectional" else 1
        names = _names(self._operator)
        count = len(DEFAULT_ACTIVATIONS[node.op_type])
        self._activations = [names[i : i + count] for i in range(0, len(names), count)]

    def replace(self) -> None:
        g, node = self._g, self._node
        g.at(node)
        with g.scope(node.name or node.op_type):
            results = self._write()
        g.at(None)
        for old, new in zip(node.outputs, results, strict=False):
            if new is None:
                continue
            name, old.name = old.name, None
            new.type, new.shape, new.name = old.type, old.shape, name
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        g.graph.remove(node, safe=True)

    def _write(self) -> list[ir.Value | None]:
        g, time = self._g, self._time
        used = [bool(v.name) and bool(v.uses() or v.is_graph_output()) for v in self._node.outputs]
        sequences: list[ir.Value] = []
        finals: list[tuple[ir.Value, ...]] = []
        weights = [self._per_direction(i, 0) for i in (1, 2, 3, 7)]
        state_axis = 1 if time else 0
        initial = [self._per_direction(5, state_axis), self._per_direction(6, state_axis)]
        for d in range(self._directions):
            W, R, B, P = (w[d] for w in weights)
            assert W is not None
            assert R is not None
            states, steps = self._direction(d, W, R, B, P, tuple(s[d] for s in initial))
            finals.append(states)
            if used[0]:
                joined = [g.Unsqueeze(h, [time]) for h in steps]
                sequences.append(g.Unsqueeze(self._concat(joined, time), [time + 1]))
        results: list[ir.Value | None] = [self._concat(sequences, time + 1) if used[0] else None]
        for i, wanted in enumerate(used[1:]):
            parts = [g.Unsqueeze(states[i], [state_axis]) for states in finals] if wanted else []
            results.append(self._concat(parts, state_axis) if wanted else None)
        return results

    def _per_direction(self, index: int, axis: int) -> Sequence[ir.Value | None]:
        value = self._inputs[index]
        if value is None:
            return [None] * self._directions
        return [self._g.Squeeze(part, [axis]) for part in self._split(value, axis, self._directions)]

    def _direction(
        self,
        d: int,
        W: ir.Value,
        R: ir.Value,
        B: ir.Value | None,
        P: ir.Value | None,
        initial: tuple[ir.Value | None, ...],
    ) -> tuple[tuple[ir.Value, ...], list[ir.Value]]:
        """The last states, and H of each time step in the order of time."""
        g, node, time = self._g, self._node, self._time
        cell = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[node.op_type]
        x = g.MatMul(node.inputs[0], g.Transpose(W, perm=[1, 0]))
        Wb = Rb = None
        if B is not None:
            Wb, Rb = self._split(B, 0, 2)
            # with linear_before_reset the reset gate multiplies a part of the second bias
            apart = node.op_type == "GRU" and self._operator.linear_before_reset
            x = g.Add(x, Wb if apart else g.Add(Wb, Rb))
        xs = [g.Squeeze(part, [time]) for part in self._split(x, time, self._length)]
        prepared = cell(d, R, Rb, P)
        count = 2 if node.op_type == "LSTM" else 1
        states = tuple(self._zeros(xs[0]) if state is None else state for state in initial[:count])
        backward = self._operator.direction == "reverse" or d == 1
        steps: list[ir.Value] = []
        for xt in reversed(xs) if backward else xs:
            states = prepared(xt, states)
            steps.append(states[0])
        return states, steps[::-1] if backward else steps

    def _zeros(self, x: ir.Value) -> ir.Value:
        """[N, H] of zeros, for x [N, gates · H]."""
        return self._g.zeros_like(self._split(x, -1, self._operator.gates)[0])

    def _lstm(self, d: int, R: ir.Value, Rb: ir.Value | None, P: ir.Value | None) -> Any:
        g = self._g
        Pi, Po, Pf = self._split(P, 0, 3) if P is not None else (None, None, None)

        def step(x: ir.Value, states: tuple[ir.Value, ...]) -> tuple[ir.Value, ...]:
            H, C = states
            i, o, f, c = self._split(g.Add(g.Gemm(H, R, transB=1), x), 1, 4)
            i = self._act(d, 0, self._peeped(i, Pi, C))
            f = g.Sub(1.0, i) if self._operator.input_forget else self._act(d, 0, self._peeped(f, Pf, C))
            C = g.Add(g.Mul(f, C), g.Mul(i, self._act(d, 1, c)))
            o = self._act(d, 0, self._peeped(o, Po, C))
            return g.Mul(o, self._act(d, 2, C)), C

        return step

    def _gru(self, d: int, R: ir.Value, Rb: ir.Value | None, P: ir.Value | None) -> Any:
        g = self._g
        Rz, Rr, Rh = self._split(R, 0, 3)
        R_gates = g.Concat(Rz, Rr, axis=0)
        before = self._operator.linear_before_reset
        Rb_gates = Rbh = None
        if Rb is not None and before:
            Rbz, Rbr, Rbh = self._split(Rb, 0, 3)
            Rb_gates = g.Concat(Rbz, Rbr, axis=0)

        def step(x: ir.Value, states: tuple[ir.Value, ...]) -> tuple[ir.Value, ...]:
            (H,) = states
            xz, xr, xh = self._split(x, 1, 3)
            z, r = self._split(g.Gemm(H, R_gates, Rb_gates, transB=1), 1, 2)
            z = self._act(d, 0, g.Add(xz, z))
            r = self._act(d, 0, g.Add(xr, r))
            if before:
                h = g.Add(xh, g.Mul(r, g.Gemm(H, Rh, Rbh, transB=1)))
            else:
                h = g.Add(g.Gemm(g.Mul(r, H), Rh, transB=1), xh)
            h = self._act(d, 1, h)
            return (g.Add(g.Mul(g.Sub(1.0, z), h), g.Mul(z, H)),)

        return step

    def _rnn(self, d: int, R: ir.Value, Rb: ir.Value | None, P: ir.Value | None) -> Any:
        g = self._g
        return lambda x, states: (self._act(d, 0, g.Add(g.Gemm(states[0], R, transB=1), x)),)

    def _peeped(self, gate: ir.Value, weight: ir.Value | None, C: ir.Value) -> ir.Value:
        return gate if weight is None else self._g.Add(gate, self._g.Mul(weight, C))

    def _act(self, d: int, index: int, x: ir.Value) -> ir.Value:
        if (clip := self._operator.clip) is not None and index < 2:
            x = self._g.Clip(x, -clip, clip)
        y: ir.Value = getattr(self._g, self._activations[d % len(self._activations)][index])(x)
        return y

    def _split(self, x: ir.Value, axis: int, count: int) -> Sequence[ir.Value]:
        if count == 1:
            return [x]
        given = count if self._opset >= _SPLIT_NEEDS_COUNT else None
        return self._g.emit("Split", x, outputs=count, axis=axis, num_outputs=given)

    def _concat(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        return parts[0] if len(parts) == 1 else self._g.Concat(*parts, axis=axis)
