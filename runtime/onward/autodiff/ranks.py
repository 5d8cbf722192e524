"""The step of one of several processes, each of which has a share of every batch.

The loss of the whole batch is Σ_ranks total / Σ_ranks weight. Weights depend on no parameter, so their sum is
exchanged first, and each rank differentiates its own part of that loss, total / Σ weight: what is left to do
for the gradients is one sum over the ranks. A rank whose share is empty computes on a sample that does not
count, whose totals and weights are multiplied by 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir

from onward.autodiff.objective import Objective, Part, inverse
from onward.autodiff.pieces import Bucket, Own, Pieces
from onward.autodiff.transforms import Clip, Collective, GradientTransform
from onward.errors import ConfigError
from onward.graph import Builder, bind, dims_of, dtype_of, numpy_dtype, static_shape
from onward.ops.batch_normalization import BatchNormalization

__all__ = ["Exchange", "Ranks", "Shared"]


@final
@dataclass(frozen=True, slots=True)
class Ranks:
    """How the steps of several processes are joined.

    Attributes:
        function: sums a block over all ranks; its name at `onward.engine.register_foreign`. It is called in
            every step, on a few numbers.
        gradients: sums gradients; its functions may do nothing in steps that make no update.
        shard: each rank updates its piece of the parameters alone, and has the optimizer's state for that
            alone; needs `gradients` that are summed in pieces.
        synchronise: normalise by the whole batch in BatchNormalization, with two exchanges for each in either
            direction; else by each rank's share.
    """

    function: str
    gradients: Collective | Pieces
    shard: bool = False
    synchronise: bool = False

    def __post_init__(self) -> None:
        if self.shard and not isinstance(self.gradients, Pieces):
            raise ConfigError("optimizer state is divided where gradients are summed in pieces")


@final
class Exchange:
    """Sums of values over all ranks, with the tags 0, 1, 2, … in the order in which they are started."""

    def __init__(self, g: Builder, function: str) -> None:
        self._g, self._function, self._tag = g, function, 0

    def start(self, values: Sequence[ir.Value], *, differentiable: bool = False) -> Pending:
        """Begin to sum values of fixed shape; those of one element type travel together."""
        kinds: dict[ir.DataType, list[int]] = {}
        for i, value in enumerate(values):
            kinds.setdefault(dtype_of(value), []).append(i)
        blocks = []
        for places in kinds.values():
            operands = [values[i] for i in places]
            options = {"self_adjoint": 1, "gradient_tag": self._tag + 1} if differentiable else {}
            block = self._g.onward.StartCall(*operands, function=self._function, tag=self._tag, **options)
            blocks.append((places, operands, block, self._tag))
            self._tag += 1 + differentiable
        return Pending(self._g, self._function, blocks)


@final
class Pending:
    """Sums that were started."""

    def __init__(
        self,
        g: Builder,
        function: str,
        blocks: Sequence[tuple[Sequence[int], Sequence[ir.Value], ir.Value, int]],
    ) -> None:
        self._g, self._function, self._blocks = g, function, blocks

    def wait(self) -> list[ir.Value]:
        """The sums, in the order of the values."""
        g = self._g
        found: dict[int, ir.Value] = {}
        for places, operands, block, tag in self._blocks:
            joined = g.onward.WaitCall(block, function=self._function, tag=tag)
            start = 0
            for place, value in zip(places, operands, strict=True):
                if (shape := static_shape(value)) is None:
                    raise ConfigError(f"{value.name!r} has no fixed shape, which an exchange needs")
                end = start + math.prod(shape)
                found[place] = g.Reshape(g.Slice(joined, [start], [end]), g.const(np.array(shape, np.int64)))
                start = end
        return [found[i] for i in range(len(found))]


@final
class Shared:
    """A batch of which this rank has a share, while a step is written.

    Attributes:
        samples: the input for how many samples of the share count, a float32 scalar.
        signal: the input for a number that is summed over the ranks, a float32 scalar.
        parts: this rank's.
        weights: the parts' weights over the whole batch.
        window: the same over a window of batches, where there is one.
    """

    def __init__(self, g: Builder, ranks: Ranks) -> None:
        self._g = g
        self._exchange = Exchange(g, ranks.function)
        self.gradients = ranks.gradients
        self.samples = g.input(g.unique("samples"), ir.DataType.FLOAT, ())
        self.signal = g.input(g.unique("signal"), ir.DataType.FLOAT, ())
        self.parts: tuple[Part, ...] = ()

    def synchronise(self, statistics: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        """Let each BatchNormalization in training form normalise by the whole batch.

        Mean and variance are sums over all ranks by what they count, in the order mean, variance: summing
        squares beside sums would lose digits.

        Returns:
            What replaces the running statistics, by their names.
        """
        g = self._g
        names = {value: name for name, value in statistics.items()}
        replaced = dict(statistics)
        for node in list(g.graph):
            if node.op_type != "BatchNormalization" or node.domain or not _trains(node):
                continue
            operator = bind(node, g.graph.opset_imports[""])
            assert isinstance(operator, BatchNormalization)
            x, scale, bias, *running = node.inputs
            y, *advanced = node.outputs
            assert x is not None
            assert scale is not None
            assert bias is not None
            g.at(node)
            axes = [axis for axis in range(len(dims_of(x) or ())) if axis != 1]
            spatial = [axis - 1 for axis in axes[1:]]

            def along(value: ir.Value, spatial: Sequence[int] = spatial) -> ir.Value:
                return g.Unsqueeze(value, spatial) if spatial else value

            here = _as(g, g.Min(self.samples, 1.0), x)
            count = g.Mul(g.size(x, axes), here)
            sums = self._exchange.start([g.Mul(g.ReduceSum(x, axes, keepdims=0), here)], differentiable=True)
            counts = self._exchange.start([count])
            (total,), (all_counted,) = sums.wait(), counts.wait()
            mean = g.Div(total, all_counted)
            centred = g.Sub(x, along(mean))
            squares = g.Mul(g.ReduceSumSquare(centred, axes, keepdims=0), here)
            (spread,) = self._exchange.start([squares], differentiable=True).wait()
            variance = g.Div(spread, all_counted)
            slope = g.Div(scale, g.Sqrt(g.Add(variance, operator.epsilon)))
            new = g.Add(g.Mul(centred, along(slope)), along(bias))
            moved = [
                g.Add(g.Mul(old, operator.momentum), g.Mul(_as(g, value, old), 1 - operator.momentum))
                for old, value in zip(running, (mean, variance), strict=True)
                if old is not None
            ]
            g.at(None)
            for before, after in zip((y, *advanced), (new, *moved), strict=True):
                after.name, before.name = before.name, None
                ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
                if before in names:
                    replaced[names[before]] = after
            g.graph.remove(node, safe=True)
        return replaced

    def divide(self, objective: Objective) -> None:
        """Take up the loss of this rank's share."""
        g = self._g
        present = g.Min(self.samples, 1.0)
        parts = []
        for part in objective.parts:
            here = _as(g, present, part.weight)
            parts.append(
                Part(part.name, g.Mul(part.total, here), g.Mul(part.weight, here), part.may_be_empty)
            )
        self.parts = tuple(parts)

    def join(self, window: Sequence[ir.Value] = ()) -> None:
        """Exchange the weights: before the backward pass."""
        own = [part.weight for part in self.parts]
        sums = self._exchange.start([*own, *window, self.samples, self.signal]).wait()
        self.weights, self.window = sums[: len(own)], sums[len(own) : -2]
        self._all_samples, self.all_signals = sums[-2:]

    def objective(self, whole: Objective) -> Objective:
        """This rank's part of the whole batch's loss."""
        self._inverses = [inverse(self._g, weight) for weight in self.weights]
        return Objective(self._loss([part.total for part in self.parts]), self.parts, whole.targets)

    def joined(self, own: Objective, totals: Sequence[ir.Value]) -> Objective:
        """The whole batch's loss, totals and weights."""
        parts = tuple(
            Part(part.name, total, weight, part.may_be_empty)
            for part, total, weight in zip(self.parts, totals, self.weights, strict=True)
        )
        return Objective(self._loss(totals), parts, own.targets)

    def names(self, share: ir.Value | None, signals: ir.Value | None) -> dict[str, str]:
        """For `TrainingStep.ranks`."""
        roles = {"samples": self.samples, "signal": self.signal, "share": share, "signals": signals}
        return {role: value.name or "" for role, value in roles.items() if value is not None}

    def _loss(self, totals: Sequence[ir.Value]) -> ir.Value:
        terms = [self._g.Mul(t, i) for t, i in zip(totals, self._inverses, strict=True)]
        return functools.reduce(self._g.Add, terms)

    def start_rest(self, statistics: Sequence[ir.Value]) -> None:
        """Begin to exchange the totals, and the means of running statistics weighted by samples."""
        g = self._g
        part = g.Div(self.samples, self._all_samples)
        scaled = [g.Mul(value, _as(g, part, value)) for value in statistics]
        self._rest = self._exchange.start([part.total for part in self.parts] + scaled)

    def rest(self) -> tuple[list[ir.Value], list[ir.Value]]:
        """Totals and statistics over all ranks: after the backward pass."""
        found = self._rest.wait()
        return found[: len(self.parts)], found[len(self.parts) :]

    def summed(self, gradients: Mapping[str, ir.Value]) -> Mapping[str, ir.Value]:
        """Gradients over all ranks. Those of half precision travel, and are summed, as float32."""
        g = self._g
        with g.scope("ranks"):
            joined = self.gradients(g, {name: _wide(g, d) for name, d in gradients.items()})
            return {name: _as(g, joined[name], d) for name, d in gradients.items()}

    def divided(self, gradients: Mapping[str, ir.Value]) -> Divided:
        """The piece of each bucket of gradients that this rank updates, summed over all ranks."""
        g, pieces = self._g, self.gradients
        assert isinstance(pieces, Pieces)
        own: dict[str, tuple[Own, ir.Value]] = {}
        places: dict[str, tuple[int, int]] = {}
        with g.scope("ranks"):
            found = pieces.sums(g, {name: _wide(g, d) for name, d in gradients.items()})
            for rank in range(pieces.ranks):
                if not any(bucket.own(rank) for bucket, _ in found):
                    raise ConfigError(
                        f"the trained parameters are too few to be divided among {pieces.ranks} ranks: leave "
                        "`shard` out"
                    )
            for bucket, sums in found:
                places.update((name, (0, 0)) for name in bucket.names)
                for part in bucket.own(pieces.rank):
                    value = g.Slice(sums, [part.at], [part.at + part.stop - part.start])
                    own[part.name] = part, _as(g, value, gradients[part.name])
                    places[part.name] = part.start, part.stop
        return Divided(pieces, [bucket for bucket, _ in found], own, places)

    def transformed(
        self, transforms: Sequence[GradientTransform], divided: Divided, dtype: ir.DataType
    ) -> dict[str, ir.Value]:
        """The gradients of this rank's pieces after each transform in turn.

        Args:
            transforms: those that work on parts of gradients.
            divided: the pieces.
            dtype: in which squares are summed.

        Raises:
            ConfigError: a transform needs whole gradients.
        """
        g = self._g
        found: Mapping[str, ir.Value] = {name: value for name, (_, value) in divided.own.items()}

        def total(squares: Sequence[ir.Value]) -> ir.Value:
            zero = g.const(np.zeros((), numpy_dtype(dtype)))
            return self._exchange.start([g.Sum(*squares) if squares else zero]).wait()[0]

        for transform in transforms:
            if not isinstance(transform, Clip):
                label = getattr(transform, "__name__", type(transform).__name__)
                raise ConfigError(
                    f"gradient transform {label} sees whole gradients, which no rank has where the "
                    "optimizer's state is divided among them: leave `shard` out, or the transform"
                )
            with g.scope("Clip"):
                found = transform.parts(g, found, total)
        return dict(found)


@final
@dataclass(frozen=True)
class Divided:
    """This rank's pieces of all gradients.

    Attributes:
        pieces: how they were divided.
        buckets: in their order.
        own: by parameter name, where one has elements here: which, and their gradient, a vector.
        places: for each parameter, the first of its elements that are here, and the one behind the last.
    """

    pieces: Pieces
    buckets: Sequence[Bucket]
    own: Mapping[str, tuple[Own, ir.Value]]
    places: Mapping[str, tuple[int, int]]

    def gathered(self, g: Builder, parts: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        """Whole tensors, from the vectors that each rank has in the place of its gradients."""
        found = [(b, [_wide(g, parts[own.name]) for own in b.own(self.pieces.rank)]) for b in self.buckets]
        with g.scope("ranks"):
            return self.pieces.gathered(g, found)


def _wide(g: Builder, value: ir.Value) -> ir.Value:
    half = dtype_of(value) in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return g.Cast(value, to=int(ir.DataType.FLOAT)) if half else value


def _trains(node: ir.Node) -> bool:
    mode = node.attributes.get("training_mode")
    return mode is not None and mode.as_int() == 1


def _as(g: Builder, value: ir.Value, like: ir.Value) -> ir.Value:
    return value if dtype_of(value) == dtype_of(like) else g.Cast(value, to=int(dtype_of(like)))
