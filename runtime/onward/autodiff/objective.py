"""The loss that a step minimises: a mean over the samples that count, kept as sums that can be joined.

The mean over several batches is Σ total / Σ weight. A mean of means would weigh a small batch, or one with
few labels, like a full one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import Builder, Dim, dims_of, dtype_of

__all__ = ["Loss", "Objective", "Part", "Weighted", "inverse", "with_loss", "write_objective"]


@final
@dataclass(frozen=True, slots=True)
class Weighted:
    """A loss whose samples do not all weigh the same: its mean is total / weight, and 0 where weight is 0.

    Attributes:
        total: the weighted sum over the batch, a float scalar.
        weight: the sum of the weights, a scalar of the same type, at least 0. It depends on no parameter.
    """

    total: ir.Value
    weight: ir.Value


class Loss(Protocol):
    """What a loss contributes to the step."""

    def output(self, output: ir.Value) -> ir.Value:
        """The value that the loss is taken of: the output, or what its last activation was applied to."""

    def target(self, output: ir.Value) -> tuple[ir.DataType, Sequence[Dim]]:
        """Element type and shape of the targets of a model output."""

    def build(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value | Weighted:
        """Write the loss: the mean over the batch, a float scalar; `Weighted` where samples weigh unlike."""

    def weighted(self, g: Builder, output: ir.Value, target: ir.Value, weights: ir.Value) -> Weighted:
        """Write the loss for samples of these weights, [N], of the output's type: at least 0."""


@final
@dataclass(frozen=True, slots=True)
class Part:
    """Losses with the same weights.

    Attributes:
        name: empty if it is the only one.
        total: the sum over the batch of what it adds to the loss, times its weight.
        weight: of the batch.
        may_be_empty: whether the weight may be 0.
    """

    name: str
    total: ir.Value
    weight: ir.Value
    may_be_empty: bool


@final
@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a batch, Σ total / weight over the parts; and the target input of each output."""

    loss: ir.Value
    parts: tuple[Part, ...]
    targets: Mapping[str, ir.Value]


def _weights_input(g: Builder, name: str, first: Dim) -> ir.Value:
    if any(v.name == name for v in g.graph.inputs) or name in g.graph.initializers:
        raise ConfigError(f"the model has a value {name!r} of its own; name the sample weights otherwise")
    return g.input(name, ir.DataType.FLOAT, (first,))


def write_objective(
    g: Builder,
    forward: Mapping[str, ir.Value],
    losses: Mapping[str, Loss],
    weights: Mapping[str, float] | None = None,
    *,
    sample_weight: str | None = None,
    over_samples: bool = False,
) -> Objective:
    """Append the losses of a model's outputs, each times its weight, and the inputs for their targets.

    Args:
        g: writes into the model's graph.
        forward: the model's outputs by name.
        losses: a loss for some of them.
        weights: of each loss in the sum; 1 by default.
        sample_weight: the name of a further input, float32 [N]: how much each sample counts.
        over_samples: divide by how much samples of weight 1 would count, not by the sum of weights.
    """
    of_samples: ir.Value | None = None
    targets: dict[str, ir.Value] = {}
    means: dict[tuple[Dim, ...], list[tuple[str, ir.Value]]] = {}
    own: list[tuple[str, Weighted]] = []
    for name, loss in losses.items():
        output = loss.output(forward[name])
        dtype, dims = loss.target(output)
        base = "target" if len(losses) == 1 else f"{name}.target"
        targets[name] = g.input(g.unique(base, scoped=False), dtype, dims)
        if sample_weight is None:
            built = loss.build(g, output, targets[name])
        else:
            of_samples = of_samples or _weights_input(g, sample_weight, dims[0] if dims else None)
            single = dtype_of(output) == ir.DataType.FLOAT
            each = of_samples if single else g.Cast(of_samples, to=int(dtype_of(output)))
            built = loss.weighted(g, output, targets[name], each)
            if over_samples:
                ones = g.Expand(g.const(1.0, dtype_of(each)), g.shape(each))
                built = Weighted(built.total, loss.weighted(g, output, targets[name], ones).weight)
        factor = (weights or {}).get(name, 1.0)
        if isinstance(built, Weighted):
            own.append((name, Weighted(_scaled(g, built.total, factor), built.weight)))
        else:
            means.setdefault(_varying(name, dims), []).append((name, _scaled(g, built, factor)))
    alone = len(means) + len(own) == 1
    parts: list[Part] = []
    terms: list[ir.Value] = []
    for dims, same in means.items():
        mean = _added(g, [value for _, value in same])
        weight = _samples(g, targets[same[0][0]], dims, mean)
        parts.append(Part("" if alone else same[0][0], g.Mul(mean, weight), weight, False))
        terms.append(mean)
    for name, part in own:
        parts.append(Part("" if alone else name, part.total, part.weight, True))
        terms.append(g.Mul(part.total, inverse(g, part.weight)))
    return Objective(_added(g, terms), tuple(parts), targets)


def inverse(g: Builder, weight: ir.Value) -> ir.Value:
    """1 / weight, and 0 where the weight is 0: what nothing counts for is nothing."""
    counts = g.Greater(weight, 0.0)
    return g.Where(counts, g.Reciprocal(g.Where(counts, weight, 1.0)), 0.0)


def with_loss(
    model: ir.Model,
    losses: Mapping[str, Loss],
    loss_weights: Mapping[str, float] | None = None,
    *,
    sample_weight: str | None = None,
    over_samples: bool = False,
) -> tuple[ir.Model, Mapping[str, str], Mapping[str, str]]:
    """The inference model with its loss as further outputs, for evaluation.

    With `sample_weight`, an input of that name, float32 [N], says how much each sample counts; means then are
    over the weights or, with `over_samples`, over the samples.

    Returns:
        The model; for each output that is a weighted sum of losses the output that is the sum of weights (see
        `TrainingStep.totals`); and for each output with a loss the name of its target input.
    """
    model = model.clone()
    g = Builder(model.graph)
    forward = {v.name or "": v for v in model.graph.outputs}
    with g.scope("loss"):
        objective = write_objective(
            g, forward, losses, loss_weights, sample_weight=sample_weight, over_samples=over_samples
        )
    targets = {output: value.name or "" for output, value in objective.targets.items()}
    return model, write_totals(g, objective.parts), targets


def write_totals(g: Builder, parts: Sequence[Part]) -> dict[str, str]:
    """Make the parts' sums outputs: totals and, for each, the weights."""
    named: dict[str, str] = {}
    for part in parts:
        base = f"{part.name}.loss" if part.name else "loss"
        total = g.output(part.total, g.unique(f"{base}.total")).name or ""
        named[total] = g.output(part.weight, g.unique(f"{base}.weight")).name or ""
    return named


def _scaled(g: Builder, value: ir.Value, factor: float) -> ir.Value:
    return value if factor == 1 else g.Mul(value, factor)


def _added(g: Builder, values: Sequence[ir.Value]) -> ir.Value:
    total = values[0]
    for value in values[1:]:
        total = g.Add(total, value)
    return total


def _varying(name: str, dims: Sequence[Dim]) -> tuple[Dim, ...]:
    """The first of a target's dimensions, and those that may differ from batch to batch."""
    rest = [f"{name}/{i}" if d is None else d for i, d in enumerate(dims[1:], 1) if not isinstance(d, int)]
    return (*dims[:1], *rest)


def _samples(g: Builder, target: ir.Value, varying: tuple[Dim, ...], like: ir.Value) -> ir.Value:
    """How many samples a batch has, times what else differs between batches: a scalar of the loss's type."""
    dims = dims_of(target) or ()
    if not dims:
        return g.const(1.0, dtype_of(like))
    axes = [0, *(i for i, d in enumerate(dims) if i and not isinstance(d, int))]
    extents = g.Gather(g.shape(target), axes)
    return g.Cast(g.ReduceProd(extents, keepdims=0), to=int(dtype_of(like)))
