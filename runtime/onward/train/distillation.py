"""Distillation: a network learns from labels and from the scores of another, which is in the same graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import onnx_ir as ir

from onward.autodiff import OPSET, Weighted
from onward.errors import ConfigError, ShapeError
from onward.graph import Builder, Dim, dims_of, dtype_of
from onward.model import upgrade
from onward.passes.float32 import in_float32
from onward.passes.to_inference import to_inference
from onward.train.losses import CrossEntropy, Loss, logits_of
from onward.train.preparation import prepare_model

__all__ = ["Distillation", "distilled", "with_teacher"]

_SCOPE = "teacher"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Distillation:
    """A teacher, and how much it counts: α · CE(labels) + (1 − α) · T² · KL(teacher ‖ student), both at T.

    KL compares softmax(scores / T); T² keeps its gradients as large as at T = 1. Source: G. Hinton, O.
    Vinyals, J. Dean, "Distilling the knowledge in a neural network", 2015, section 2.

    Attributes:
        teacher: a model, a network or an .onnx file with the student's inputs, by name or in their order, and
            scores for the same classes. It is frozen, without dropout.
        alpha: the share of the labels, in [0, 1].
        temperature: T, above 0.
        output: the teacher's output with the scores; None: its first.
    """

    teacher: ir.Model | str | Any
    alpha: float = 0.5
    temperature: float = 2.0
    output: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"distillation: alpha must be in [0, 1], got {self.alpha}")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"distillation: temperature must be above 0, got {self.temperature}")


@final
@dataclass(frozen=True)
class _Distilled(Loss):
    """The student's loss; the teacher's scores are an output of the graph that it is written into."""

    base: CrossEntropy
    teacher: str
    alpha: float
    temperature: float

    def output(self, output: ir.Value) -> ir.Value:
        return self.base.output(output)

    def target(self, output: ir.Value) -> tuple[ir.DataType, Sequence[Dim]]:
        return self.base.target(output)

    def build(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value | Weighted:
        hard, soft = self.base.build(g, output, target), self._soft(g, output)
        if not isinstance(hard, Weighted):
            return g.Add(g.Mul(hard, self.alpha), g.ReduceMean(soft, keepdims=0))
        return self._joined(g, hard, soft, self.base.label_weights(g, output, target))

    def weighted(self, g: Builder, output: ir.Value, target: ir.Value, weights: ir.Value) -> Weighted:
        hard, soft = self.base.weighted(g, output, target, weights), self._soft(g, output)
        if (rank := len(dims_of(target) or ())) > 1:
            weights = g.Unsqueeze(weights, list(range(1, rank)))
        of_labels = self.base.label_weights(g, output, target)
        return self._joined(g, hard, soft, weights if of_labels is None else g.Mul(of_labels, weights))

    def _joined(self, g: Builder, hard: Weighted, soft: ir.Value, weights: ir.Value | None) -> Weighted:
        each = soft if weights is None else g.Mul(soft, weights)
        total = g.Add(g.Mul(hard.total, self.alpha), g.ReduceSum(each, keepdims=0))
        return Weighted(total, hard.weight)

    def _soft(self, g: Builder, output: ir.Value) -> ir.Value:
        """(1 − α) T² KL(teacher ‖ student) of each label's place: [N, ...]."""
        scores = next(v for v in g.graph.outputs if v.name == self.teacher)
        axis = self.base.axis % len(dims_of(output) or ())
        wanted = logits_of(scores, "Softmax", self.base.axis)
        if dtype_of(wanted) != dtype_of(output):
            wanted = g.Cast(wanted, to=int(dtype_of(output)))
        teacher = g.LogSoftmax(g.Div(wanted, self.temperature), axis=axis)
        student = g.LogSoftmax(g.Div(output, self.temperature), axis=axis)
        divergence = g.ReduceSum(g.Mul(g.Exp(teacher), g.Sub(teacher, student)), [axis], keepdims=0)
        return g.Mul(divergence, (1 - self.alpha) * self.temperature**2)


def distilled(loss: Loss, rule: Distillation, scores: str) -> Loss:
    """The loss of labels joined with that of the teacher's scores, an output of the graph.

    Raises:
        ConfigError: the loss is not cross-entropy.
    """
    if not isinstance(loss, CrossEntropy):
        raise ConfigError(
            f"distillation needs cross-entropy over classes as the loss, not {type(loss).__name__}"
        )
    return _Distilled(loss, scores, float(rule.alpha), float(rule.temperature))


def with_teacher(model: ir.Model, rule: Distillation, output: str) -> tuple[ir.Model, str]:
    """The model with the teacher in its graph, and the name of a further output: the teacher's scores.

    Args:
        model: the student, at the opset of training steps; it is not changed.
        rule: says which teacher.
        output: the student's output that learns.

    Raises:
        ConfigError: the teacher's inputs or scores do not fit the student's.
    """
    model = model.clone()
    graph = model.graph
    teacher = upgrade(to_inference(in_float32(prepare_model(rule.teacher))), OPSET)
    source = teacher.graph
    scores = next((v for v in source.outputs if rule.output in (None, v.name)), None)
    if scores is None:
        raise ConfigError(
            f"distillation: the teacher has no output {rule.output!r}; it has "
            f"{', '.join(str(v.name) for v in source.outputs)}"
        )
    own = next(v for v in graph.outputs if v.name == output)
    _check_scores(own, scores)
    for domain, version in source.opset_imports.items():
        if graph.opset_imports.setdefault(domain, version) != version:
            raise ConfigError(
                f"distillation: the teacher uses version {version} of {domain!r}, the student "
                f"{graph.opset_imports[domain]}"
            )
    for mine, theirs in _pairs(graph, source):
        ir.convenience.replace_all_uses_with(theirs, mine, replace_graph_outputs=False)
    taken = {v.name for v in _values(graph)}
    scope = _SCOPE
    while any(name is not None and name.startswith(f"{scope}/") for name in taken):
        scope += "_"
    for value in _values(source):
        if value.name:
            value.name = f"{scope}/{value.name}"
    for node in source.all_nodes():
        node.name = f"{scope}/{node.name}"
    source.outputs.clear()
    for value in list(source.initializers.values()):
        source.initializers.pop(value.name or "")
        if value.is_graph_input():
            source.inputs.remove(value)
        graph.register_initializer(value)
    for node in list(source):
        source.remove(node)
        graph.append(node)
    return model, Builder(graph).output(scores, f"{scope}/scores").name or ""


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value that has a name in the graph and its bodies, once."""
    seen: set[ir.Value] = set()
    bodies = {graph} | {node.graph for node in graph.all_nodes() if isinstance(node.graph, ir.Graph)}
    for body in bodies:
        for value in (*body.inputs, *body.initializers.values()):
            if value not in seen:
                seen.add(value)
                yield value
    for node in graph.all_nodes():
        for value in node.outputs:
            if value not in seen:
                seen.add(value)
                yield value


def _check_scores(student: ir.Value, teacher: ir.Value) -> None:
    mine, theirs = dims_of(student), dims_of(teacher)
    if mine is None or theirs is None or len(mine) != len(theirs) or len(mine) < 2:
        raise ShapeError(
            f"distillation: the student's scores {student.name!r} are {mine}, the teacher's {theirs}"
        )
    for a, b in zip(mine[1:], theirs[1:], strict=True):
        if isinstance(a, int) and isinstance(b, int) and a != b:
            raise ConfigError(
                f"distillation: the student's output {student.name!r} is {list(mine)}, the teacher's "
                f"{list(theirs)}: they have to score the same classes"
            )


def _pairs(student: ir.Graph, teacher: ir.Graph) -> list[tuple[ir.Value, ir.Value]]:
    """The student's input for each of the teacher's."""
    own = [v for v in student.inputs if v.name not in student.initializers]
    wanted = [v for v in teacher.inputs if v.name not in teacher.initializers]
    by_name = {v.name: v for v in own}
    if all(v.name in by_name for v in wanted):
        pairs = [(by_name[v.name], v) for v in wanted]
    elif len(own) == len(wanted):
        pairs = list(zip(own, wanted, strict=True))
    else:
        raise ConfigError(
            f"distillation: the teacher takes {', '.join(str(v.name) for v in wanted)}, the student "
            f"{', '.join(str(v.name) for v in own)}: name them alike"
        )
    for mine, theirs in pairs:
        a, b = dims_of(mine), dims_of(theirs)
        rest = zip((a or ())[1:], (b or ())[1:], strict=False)
        unlike = any(isinstance(i, int) and isinstance(j, int) and i != j for i, j in rest)
        if (
            dtype_of(mine) != dtype_of(theirs)
            or (a is not None and b is not None and len(a) != len(b))
            or unlike
        ):
            raise ConfigError(
                f"distillation: the student's input {mine.name!r} is {dtype_of(mine).name.lower()}"
                f"{list(a or ())}, the teacher's {theirs.name!r} {dtype_of(theirs).name.lower()}"
                f"{list(b or ())}; a teacher that prepares its inputs itself is brought to the bare network "
                "by onward.passes.detach_preparation, as `onward train --teacher` does"
            )
    return pairs
