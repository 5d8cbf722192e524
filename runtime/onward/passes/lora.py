"""Low-rank adapters: beside each product with a frozen weight another one, with two small matrices to train.

y = x W becomes y = x W + s (x A) B, with A [inputs, rank], B [rank, outputs] and s = alpha / rank. B is 0 at
first, so that nothing changes before training. Source: E. Hu et al., "LoRA: low-rank adaptation of large
language models", ICLR 2022, section 4.1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import final

import numpy as np
import onnx_ir as ir

from onward.errors import ConfigError, InvalidModelError
from onward.graph import Array, Builder, dtype_of, is_float, static_shape
from onward.nn.initializers import generator

__all__ = ["Adapter", "LoRA", "adapters_of", "add_lora", "merge_lora", "open_adapters"]

KEY = "onward.lora"
"""Metadata: the adapters of a model, as JSON."""


@final
@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Which weights get adapters, and how large they are.

    Attributes:
        rank: of the change of a weight.
        alpha: the change is scaled with alpha / rank; None: as large as the rank.
        targets: globs over names of weights of Gemm (no transA) and MatMul, those of dense layers and of the
            projections of attention among them.
    """

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if isinstance(self.targets, str):
            object.__setattr__(self, "targets", (self.targets,))
        if self.rank < 1:
            raise ConfigError(f"LoRA: rank must be at least 1, got {self.rank}")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ConfigError(f"LoRA: alpha must be above 0, got {self.alpha}")
        if not self.targets:
            raise ConfigError("LoRA: targets is empty: nothing would be trained")


@final
@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter: the weight's name, those of its two matrices, and what their product is scaled with."""

    weight: str
    a: str
    b: str
    scale: float


@final
@dataclass(frozen=True, eq=False)
class _Product:
    """A node that multiplies by a weight, which may be transposed before or in it."""

    node: ir.Node
    weight: ir.Value
    transposed: bool

    @property
    def extents(self) -> tuple[int, int]:
        """Inputs and outputs of the layer."""
        first, second = static_shape(self.weight) or (0, 0)
        return (second, first) if self.transposed else (first, second)

    @property
    def factor(self) -> float:
        """What the operator itself multiplies the product with."""
        return self.node.attributes.get_float("alpha", 1.0) if self.node.op_type == "Gemm" else 1.0


def add_lora(model: ir.Model, lora: LoRA, *, leave: Collection[str] = (), seed: int = 0) -> ir.Model:
    """The model with adapters, which its metadata list (`adapters_of`).

    A is uniform in ±1/√inputs, drawn by the seed and its name.

    Args:
        model: a model whose constants are initializers, as `onward.model.load` leaves it; it is not changed.
        lora: which weights.
        leave: names of weights that get none.
        seed: equal seeds give equal matrices.

    Raises:
        ConfigError: the model has adapters already, a target matches no weight of a product, or nothing is
            left to adapt.
    """
    if KEY in model.metadata_props:
        raise ConfigError("the model has adapters already; merge them first, with onward.passes.merge_lora")
    model = model.clone()
    graph = model.graph
    products = _products(graph)
    names = sorted({p.weight.name or "" for p in products})
    for pattern in lora.targets:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"LoRA: no weight of Gemm or MatMul matches {pattern!r}; there are "
                f"{', '.join(names[:20]) or 'none'}{', …' if len(names) > 20 else ''}"
            )
    chosen = [
        p
        for p in products
        if p.weight.name not in leave and any(fnmatchcase(p.weight.name or "", t) for t in lora.targets)
    ]
    if not chosen:
        raise ConfigError("LoRA: all weights that the targets match are trained as they are: choose others")
    g = Builder(graph)
    scale = (lora.rank if lora.alpha is None else lora.alpha) / lora.rank
    made: dict[tuple[str, bool], tuple[ir.Value, ir.Value]] = {}
    adapters: list[Adapter] = []
    for product in chosen:
        name, kind = product.weight.name or "", product.transposed
        if (name, kind) not in made:
            made[name, kind] = _matrices(g, product, lora.rank, seed)
            a, b = made[name, kind]
            adapters.append(Adapter(name, a.name or "", b.name or "", scale))
        _insert(g, product, *made[name, kind], scale)
    model.metadata_props[KEY] = json.dumps([asdict(adapter) for adapter in adapters])
    return model


def adapters_of(model: ir.Model) -> tuple[Adapter, ...]:
    """The adapters of a model; none where it has none.

    Raises:
        InvalidModelError: the metadata that list them are malformed, or name what the model lacks.
    """
    text = model.metadata_props.get(KEY)
    if text is None:
        return ()
    try:
        found = tuple(Adapter(**fields) for fields in json.loads(text))
    except (json.JSONDecodeError, TypeError) as error:
        raise InvalidModelError(f"metadata {KEY!r} is malformed: {error}") from None
    for adapter in found:
        for name in (adapter.weight, adapter.a, adapter.b):
            if name not in model.graph.initializers:
                raise InvalidModelError(f"metadata {KEY!r} names {name!r}, which the model does not have")
    return found


def merge_lora(model: ir.Model, matrices: Mapping[str, Array] | None = None) -> ir.Model:
    """The model with its adapters added to the weights: W + s A B, and nothing else left of them.

    Args:
        model: a model with adapters; it is not changed.
        matrices: other contents for the adapters' matrices, by name, as an adapter file has them.

    Raises:
        ConfigError: a matrix is missing, unknown, or of another shape.
        InvalidModelError: the adapters' metadata are malformed, or the nodes are not those of adapters.
    """
    model = model.clone()
    graph = model.graph
    adapters = adapters_of(model)
    given = _contents(graph, adapters, matrices)
    for adapter in adapters:
        weight = graph.initializers[adapter.weight]
        a, b = graph.initializers[adapter.a], graph.initializers[adapter.b]
        sums = [_sum_of(use.node, adapter) for use in list(a.uses())]
        change = given[adapter.a].astype(np.float64) @ given[adapter.b].astype(np.float64) * adapter.scale
        merged: dict[tuple[bool, float], ir.Value] = {}
        for add, product in sums:
            _restore(graph, add, product)
        by_node = {p.node: p for p in _products(graph)}
        for _, node in sums:
            found = by_node[node]
            key = found.transposed, found.factor
            if key not in merged:
                delta = change.T if found.transposed else change
                merged[key] = _changed(graph, weight, delta / found.factor, len(merged))
            _rewire(found, merged[key])
        for value in (a, b):
            if value.is_graph_input():
                graph.inputs.remove(value)
            graph.initializers.pop(value.name or "")
        if not weight.uses() and not weight.is_graph_output():
            own = next(iter(merged.values()))
            graph.initializers.pop(adapter.weight)
            graph.initializers.pop(own.name or "")
            own.name = adapter.weight
            graph.register_initializer(own)
    model.metadata_props.pop(KEY, None)
    return model


def open_adapters(model: ir.Model) -> ir.Model:
    """The model without what its adapters learned: their matrices are inputs, which are 0 unless given.

    An adapter file (`onward.model.write_adapter`) gives them in onnxruntime; `merge_lora` puts it in to stay.

    Args:
        model: a model with adapters; it is not changed.

    Raises:
        InvalidModelError: the adapters' metadata are malformed.
    """
    model = model.clone()
    for adapter in adapters_of(model):
        for name in (adapter.a, adapter.b):
            value = model.graph.initializers[name]
            value.const_value = ir.tensor(np.zeros_like(_array(value)), name=name)
            if not value.is_graph_input():
                model.graph.inputs.append(value)
    return model


def _contents(
    graph: ir.Graph, adapters: Sequence[Adapter], matrices: Mapping[str, Array] | None
) -> dict[str, Array]:
    names = [name for adapter in adapters for name in (adapter.a, adapter.b)]
    own = {name: _array(graph.initializers[name]) for name in names}
    if matrices is None:
        return own
    if unknown := [name for name in matrices if name not in own]:
        raise ConfigError(
            f"the model has no adapter matrix {unknown[0]!r}; it has {', '.join(names) or 'none'}"
        )
    for name, array in own.items():
        if name not in matrices:
            raise ConfigError(f"adapter matrix {name!r} is missing")
        if matrices[name].shape != array.shape:
            raise ConfigError(
                f"adapter matrix {name!r} has shape {list(matrices[name].shape)}, the model's has "
                f"{list(array.shape)}"
            )
    return dict(matrices)


def _products(graph: ir.Graph) -> list[_Product]:
    """All nodes of the main graph that multiply by a float initializer of two axes, on the right."""
    found = []
    for node in graph:
        if node.domain != "" or node.op_type not in ("Gemm", "MatMul"):
            continue
        right = node.inputs[1]
        if right is None or node.attributes.get_int("transA", 0) != 0:
            continue
        weight, transposed = right, node.attributes.get_int("transB", 0) != 0
        before = right.producer()
        if before is not None and before.op_type == "Transpose" and before.inputs[0] is not None:
            weight, transposed = before.inputs[0], not transposed
        if weight.is_initializer() and is_float(weight) and len(static_shape(weight) or ()) == 2:
            found.append(_Product(node, weight, transposed))
    return found


def _matrices(g: Builder, product: _Product, rank: int, seed: int) -> tuple[ir.Value, ir.Value]:
    inputs, outputs = product.extents
    name, dtype = product.weight.name or "", _array(product.weight).dtype
    a, b = (g.unique(f"{name}.lora_{each}", scoped=False) for each in "ab")
    limit = 1 / math.sqrt(inputs)
    first = generator(seed, a).uniform(-limit, limit, (inputs, rank)).astype(dtype)
    return g.initializer(a, first), g.initializer(b, np.zeros((rank, outputs), dtype))


def _insert(g: Builder, product: _Product, a: ir.Value, b: ir.Value, scale: float) -> None:
    """Write the adapter behind a product; what came out of the product keeps its name."""
    node = product.node
    y, x = node.outputs[0], node.inputs[0]
    graph = node.graph
    assert x is not None
    assert isinstance(graph, ir.Graph)
    following = list(graph)
    place = following.index(node)
    g.at(following[place + 1] if place + 1 < len(following) else None)
    name = y.name or ""
    change = g.MatMul(g.MatMul(x, a), b)
    # an operand of its own, also where it is 1: that is how an adapter is found again
    total = g.Add(y, g.Mul(change, g.const(scale, dtype_of(y))))
    add = total.producer()
    assert add is not None
    ir.convenience.replace_all_uses_with(y, total, replace_graph_outputs=True)
    add.replace_input_with(0, y)
    total.type, total.shape = y.type, y.shape
    y.name = g.unique(f"{name}/frozen", scoped=False)
    total.name = name
    g.at(None)


def _sum_of(first: ir.Node, adapter: Adapter) -> tuple[ir.Node, ir.Node]:
    """From (x A): the Add at the end of the adapter, and the product that it is added to."""

    def wrong() -> InvalidModelError:
        return InvalidModelError(
            f"node {first.name!r}, operator {first.op_type}: the adapter of {adapter.weight!r} is not the "
            "chain MatMul, MatMul, Mul, Add that it is written as"
        )

    node = first
    for wanted in ("MatMul", "Mul", "Add"):
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != wanted:
            raise wrong()
        node = uses[0].node
    base = node.inputs[0]
    product = None if base is None else base.producer()
    if base is None or product is None or product.op_type not in ("Gemm", "MatMul"):
        raise wrong()
    return node, product


def _restore(graph: ir.Graph, add: ir.Node, product: ir.Node) -> None:
    """Take an adapter out: the product's result stands where the sum stood, under its name."""
    total, y = add.outputs[0], product.outputs[0]
    name, total.name = total.name, None
    ir.convenience.replace_all_uses_with(total, y, replace_graph_outputs=True)
    y.name = name
    pending = [add]
    while pending:
        node = pending.pop()
        operands = [v for v in node.inputs if v is not None]
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        for value in operands:
            made = value.producer()
            if made is product or value.uses() or value.is_graph_output():
                continue
            if made is not None and made.op_type in ("Mul", "MatMul"):
                pending.append(made)
            elif made is None and value.is_initializer() and node.op_type == "Mul":
                graph.initializers.pop(value.name or "")  # the scale


def _changed(graph: ir.Graph, weight: ir.Value, delta: Array, number: int) -> ir.Value:
    """An initializer with the changed weight, under a name of its own."""
    old = _array(weight)
    base = f"{weight.name}.merged"
    name = base if not number else f"{base}_{number}"
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor((old.astype(np.float64) + delta).astype(old.dtype), name=name)
    value = ir.Value(name=name, type=weight.type, shape=weight.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def _rewire(product: _Product, weight: ir.Value) -> None:
    """Let a product use another weight, through a Transpose of its own if it has one."""
    node = product.node
    right = node.inputs[1]
    assert right is not None
    transpose = right.producer()
    if transpose is None:
        node.replace_input_with(1, weight)
        return
    graph = node.graph
    assert graph is not None
    copy = ir.node("Transpose", [weight], dict(transpose.attributes), name=f"{transpose.name}/{node.name}")
    copy.outputs[0].name = f"{right.name}/{node.name}"
    copy.outputs[0].type, copy.outputs[0].shape = right.type, right.shape
    graph.insert_before(node, copy)
    node.replace_input_with(1, copy.outputs[0])
    if not right.uses() and not right.is_graph_output():
        graph.remove(transpose, safe=True)


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()
