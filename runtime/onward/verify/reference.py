"""The float64 run beside a comparison: which kinks a graph passes near, and what it gives on given sides.

Two sound float32 runs part where an element lies within its forward error of a kink. The reference finds
those elements, can be told on which side each is, and then says what every tensor is: the difference between
the results of two runs that differ in their sides only is no fault, and is known to float64's precision.

Where forward errors come from: one run in float32 by the interpreter, and one in float64 in which every
input and weight is off by one rounding of the compared type at random, and every result of a node by what
rounding in the node amounts to, partial sums included, which is `onward.verify.sums` (Monte Carlo arithmetic;
Parker 1997, Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic). An element may err
by `MARGIN` times the larger of its own two errors and of what nine in ten elements of its tensor keep to; one
that neither run moves is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
import onnx_ir as ir

from onward.engine import Interpreter
from onward.graph import Array, bind, canonical_model
from onward.passes import cast_floats
from onward.verify.kinks import KINKED, Units, near_kinks
from onward.verify.sums import ROUNDING, SUMS, rounding_error

__all__ = ["MARGIN", "WRONG", "Near", "Reference", "Sides", "widened"]

MARGIN = 4.0
"""How many times the errors of two sample runs another run may err by."""
_ORDINARY = 0.9
_FLOAT = ir.DataType.FLOAT

_ROUNDLESS = frozenset(
    {"Abs", "Clip", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "GlobalMaxPool"}
    | {
        "Identity",
        "Max",
        "MaxPool",
        "Min",
        "Neg",
        "Pad",
        "ReduceMax",
        "ReduceMin",
        "Relu",
        "Reshape",
        "Slice",
    }
    | {"Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze", "Where"}
)
"""Operators that pass elements on: their results are not rounded, and gradients look for them by equality."""

Sides: TypeAlias = tuple[Array, ...]
"""For each entry of `Near.units` the side of every element: −1 below, 0 at, 1 above the kink, or `WRONG`."""

WRONG = 2
"""In the place of a side: the element is not where rounding could have put it."""


@final
@dataclass(frozen=True, slots=True)
class Near:
    """The elements near a kink in one run.

    Attributes:
        nodes: the kinked nodes' names, one an entry of `units`.
        units: the elements.
        operands: names of the node's operands, one tuple an entry.
        distance: x − at in the float64 run, one array an entry.
        slack: the forward error of each element.
        values: names of the tensors that the elements are of, those that a node makes.
    """

    nodes: tuple[str, ...]
    units: tuple[Units, ...]
    operands: tuple[tuple[str, ...], ...]
    distance: tuple[Array, ...]
    slack: tuple[Array, ...]
    values: tuple[str, ...]

    def __len__(self) -> int:
        return sum(units.index.size for units in self.units)

    @property
    def own(self) -> Sides:
        """The sides of the float64 run itself."""
        return tuple(np.sign(d).astype(np.int8) for d in self.distance)

    def sides(self, values: Mapping[str, Array]) -> Sides:
        """The sides in a run that made these tensors; other tensors are as they were here.

        An element that is further from where it was here than rounding explains is wrong, and not to be held:
        its side is `WRONG`.
        """
        found: list[Array] = []
        for n, units in enumerate(self.units):
            operands = self.operands[n]
            x = values.get(operands[units.operand])
            other = None if units.rival is None else values.get(operands[units.rival])
            element = units.at + self.distance[n] if x is None else x.reshape(-1)[units.index]
            at = units.at if other is None else other.reshape(-1)[units.rival_index]
            side = (element > at).astype(np.int8) - (element < at).astype(np.int8)
            with np.errstate(all="ignore"):
                distance = element.astype(np.float64) - at.astype(np.float64)
                right = np.abs(distance - self.distance[n]) <= self.slack[n]
            found.append(np.where(right, side, WRONG).astype(np.int8))
        return tuple(found)

    def edits(self, sides: Sides, *, every: bool = False) -> dict[str, tuple[Array, Array]]:
        """For each tensor the flat positions and values that put the elements on these sides.

        Args:
            sides: where the elements are to be.
            every: whether elements that are there in the float64 run are named as well.
        """
        found: dict[str, list[tuple[Array, Array]]] = {}
        for n, (units, wanted) in enumerate(zip(self.units, sides, strict=True)):
            d, slack = self.distance[n], self.slack[n]
            moved = (np.full(d.shape, True) if every else np.sign(d) != wanted) & (wanted != WRONG)
            if not moved.any():
                continue
            gap = wanted * np.maximum(np.abs(d), slack / 2)
            name, index, new = self.operands[n][units.operand], units.index, units.at + gap
            if name not in self.values and units.rival is not None and units.rival_index is not None:
                name, index, new = self.operands[n][units.rival], units.rival_index, units.at + d - gap
            found.setdefault(name, []).append((index[moved], new[moved]))
        return {
            name: (np.concatenate([i for i, _ in parts]), np.concatenate([v for _, v in parts]))
            for name, parts in found.items()
        }


@final
class Reference:
    """A graph in float64, with its kinks.

    Args:
        model: float32 where it computes.
        roots: outputs of the forward pass; kinked nodes that none of them depends on are the backward pass's,
            which only takes over what the forward pass has decided.
    """

    def __init__(self, model: ir.Model, roots: Iterable[str]) -> None:
        self._whole, self._single = _Run(model, wide=True), _Run(model, wide=False)
        kinked, forward = _forward(model, set(roots))
        self._kinked = kinked
        self._made = {v.name for node in model.graph for v in node.outputs}
        self._narrow, self._wide = _Run(forward, wide=False), _Run(forward, wide=True)

    def near(self, feeds: Mapping[str, Array]) -> Near:
        """The elements whose side of a kink the rounding of a run on these inputs decides.

        Args:
            feeds: every input, state included.
        """
        exact = self._wide.run(widened(feeds), watch=True)
        samples = [
            self._narrow.run(feeds, watch=True),
            self._wide.run(widened(feeds), watch=True, noise=np.random.default_rng(0)),
        ]
        slack: dict[str, Array] = {}
        nodes, kept, operands, distance, slacks = [], [], [], [], []
        for node in self._kinked:
            names = tuple("" if v is None else v.name or "" for v in node.inputs)
            arrays = [exact.get(name) for name in names]
            for name in names:
                if name not in slack and name in exact:
                    slack[name] = _error(exact[name], [s[name] for s in samples])
            operator = bind(node, self._wide.opsets.get(node.domain, 0))
            for units in near_kinks(operator, arrays, [slack.get(name) for name in names]):
                x = exact[names[units.operand]].reshape(-1)[units.index]
                error = slack[names[units.operand]].reshape(-1)[units.index]
                if units.rival is not None:
                    error = error + slack[names[units.rival]].reshape(-1)[units.rival_index]
                nodes.append(node.name or "")
                kept.append(units)
                operands.append(names)
                distance.append(x - units.at)
                slacks.append(error)
        tensors = {
            names[which]
            for names, units in zip(operands, kept, strict=True)
            for which in (units.operand, units.rival)
            if which is not None and names[which] in self._made
        }
        return Near(
            tuple(nodes), tuple(kept), tuple(operands), tuple(distance), tuple(slacks), tuple(sorted(tensors))
        )

    def run(self, feeds: Mapping[str, Array], near: Near, sides: Sides) -> dict[str, Array]:
        """Every output in float64, with the elements near kinks on given sides.

        Args:
            feeds: every input, state included.
            near: what `near` found for them.
            sides: where they are to be.
        """
        return self._whole.run(widened(feeds), edits=near.edits(sides))

    def single(self, feeds: Mapping[str, Array], near: Near, sides: Sides) -> dict[str, Array]:
        """As `run`, in the model's own precision."""
        return self._single.run(feeds, edits=near.edits(sides, every=True))

    def perturbed(self, feeds: Mapping[str, Array], near: Near, sides: Sides, seed: int) -> dict[str, Array]:
        """As `run`, where inputs, weights and results of nodes are off at random by what rounding does."""
        noise = np.random.default_rng(seed)
        return self._whole.run(widened(feeds), edits=near.edits(sides, every=True), noise=noise)


def widened(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The same numbers in float64."""
    return {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in feeds.items()}


def _forward(model: ir.Model, roots: set[str]) -> tuple[list[ir.Node], ir.Model]:
    """The kinked nodes of the forward pass, and the model up to their operands, which are its outputs."""
    needed = {v for node in model.graph for v in node.outputs if v.name in roots}
    needed |= {v for v in model.graph.outputs if v.name in roots}
    forward: set[ir.Node] = set()
    for node in reversed(list(model.graph)):
        if not needed.isdisjoint(node.outputs):
            forward.add(node)
            needed.update(v for v in node.inputs if v is not None)
    kinked = [n for n in model.graph if n in forward and n.domain == "" and n.op_type in KINKED]
    wanted = {v.name for n in kinked for v in n.inputs if v is not None and v.producer() is not None}
    before: set[str] = {name for name in wanted if name is not None}
    kept: set[str] = set()
    for node in reversed(list(model.graph)):
        if any(v.name in before for v in node.outputs):
            kept.update(v.name for v in node.outputs if v.name)
            before.update(v.name for v in node.inputs if v is not None and v.name)
    part = model.clone()
    values = {v.name: v for node in part.graph for v in node.outputs}
    part.graph.outputs[:] = [values[name] for name in sorted(name for name in wanted if name)]
    for node in reversed(list(part.graph)):
        if not any(v.name in kept for v in node.outputs):
            part.graph.remove(node, safe=True)
    return kinked, part


def _error(exact: Array, samples: Sequence[Array]) -> Array:
    """How far another run may be from an exact one, element by element."""
    if exact.dtype.kind != "f":
        return np.zeros(exact.shape)
    with np.errstate(all="ignore"):
        own = np.maximum.reduce([np.abs(sample.astype(np.float64) - exact) for sample in samples])
    own = np.where(np.isfinite(own), own, 0.0)
    moved = own[own > 0]
    ordinary = float(np.quantile(moved, _ORDINARY)) if moved.size else 0.0
    return np.asarray(MARGIN * np.where(own > 0, np.maximum(own, ordinary), 0.0))


class _Run:
    """One graph in one precision, whose values can be changed as they are made."""

    def __init__(self, model: ir.Model, *, wide: bool) -> None:
        self._model = canonical_model(cast_floats(model, ir.DataType.DOUBLE) if wide else model)
        self._interpreter = Interpreter(self._model.graph)
        self.opsets = dict(self._model.graph.opset_imports)
        self._weights = {
            name: v.const_value.numpy()
            for name, v in self._model.graph.initializers.items()
            if v.const_value is not None
        }
        self._sums = {
            node: bind(node, self.opsets.get(node.domain, 0))
            for node in self._model.graph
            if (node.domain, node.op_type) in SUMS
        }
        self._readers = Counter(v for node in self._sums for v in node.inputs if v is not None)

    def run(
        self,
        feeds: Mapping[str, Array],
        *,
        edits: Mapping[str, tuple[Array, Array]] | None = None,
        noise: np.random.Generator | None = None,
        watch: bool = False,
    ) -> dict[str, Array]:
        """Outputs; with `watch` weights and inputs too."""
        inputs = {v.name for v in self._model.graph.inputs}
        given = {name: x for name, x in feeds.items() if name in inputs}
        if noise is not None:
            rest = {name: x for name, x in self._weights.items() if name in inputs and name not in given}
            given = {name: _rounded(x, noise) for name, x in {**rest, **given}.items()}
        fixed = {id(x) for x in (*given.values(), *self._weights.values())}
        known = {**self._weights, **given}
        operands = {v: known[v.name or ""] for v in self._readers if v.name in known}
        unread = Counter(self._readers)

        def observer(node: ir.Node, results: tuple[Array, ...]) -> None:
            for value, x in zip(node.outputs, results, strict=False):
                if not isinstance(x, np.ndarray):
                    continue
                rounds = noise is not None and node.op_type not in _ROUNDLESS
                if noise is not None and rounds and x.dtype == np.float64 and _may_change(x, fixed):
                    read = [None if v is None else operands.get(v) for v in node.inputs]
                    error = rounding_error(self._sums.get(node), read, x)
                    x += error * noise.uniform(-1, 1, x.shape)
                if edits and value.name is not None and value.name in edits:
                    index, new = edits[value.name]
                    x[np.unravel_index(index, x.shape)] = new
                if noise is not None and value in unread:
                    operands[value] = x
            if node in self._sums:
                unread.subtract(v for v in node.inputs if v is not None)
                for operand in node.inputs:
                    if operand is not None and not unread[operand]:
                        operands.pop(operand, None)

        changed: Callable[..., None] | None = observer if edits or noise is not None else None
        results = self._interpreter.run(given, observer=changed)
        return {**self._weights, **given, **results} if watch else results


def _may_change(x: Array, fixed: set[int]) -> bool:
    """Whether an array is a result of its own, and no view of another or input that was passed on."""
    return bool(x.flags.owndata) and id(x) not in fixed


def _rounded(x: Array, noise: np.random.Generator) -> Array:
    """Off by up to one rounding of float32."""
    if x.dtype != np.float64:
        return x
    return np.asarray(x * (1 + ROUNDING * noise.uniform(-1, 1, x.shape)))
