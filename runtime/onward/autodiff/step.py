"""The training step: one ONNX graph of forward, loss, backward, gradient transforms, weight decay and update.

    (parameters, optimizer state, running statistics, batch, targets, learning rate, step, seed)
        → (the same state, advanced; loss; the model's outputs)

A batch in which nothing counts, its labels all ignored, leaves parameters, optimizer state and running
statistics as they are.

State inputs are initializers too, so that a saved step carries its starting point: any ONNX runtime can run
it, feed the outputs back, and train.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onward.autodiff.beside import Average, Averages, Masks
from onward.autodiff.gradients import MissingGradientsError, cut_by_integers, gradients
from onward.autodiff.objective import Loss, Objective, inverse, write_objective, write_totals
from onward.autodiff.ranks import Ranks, Shared
from onward.autodiff.transforms import GradientTransform, transformed
from onward.autodiff.update import Optimizer, State, Window, update, update_own
from onward.errors import ConfigError, InvalidModelError, UnsupportedError
from onward.graph import Builder, dtype_of, is_float, numpy_dtype
from onward.passes.fold_shapes import fold_shapes
from onward.passes.to_training import to_training

__all__ = ["OPSET", "TrainingStep", "training_step"]

OPSET = 21
"""The opset that gradient rules write."""

_KEY = "onward.training_step"


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """A training step and the names of its parts.

    Attributes:
        model: the step as a model. Its state inputs are initializers too: the starting point.
        bindings: for each state input the output that replaces it at the next step.
        parameters: state inputs that are trained.
        statistics: state inputs that are running statistics.
        slots: all other state inputs: the optimizer's, sums of a window, averages and masks.
        inputs: the batch's inputs.
        targets: the target inputs by the model output that they belong to.
        outputs: the forward pass's outputs, as the model names them.
        loss: the output that is the loss, a scalar: the mean over what counts in a batch, 0 if nothing does.
        totals: for each output that is a weighted sum of losses over the batch, the output that is the sum of
            the weights. The loss over any number of batches is Σ total / Σ weight, added up over these pairs.
        learning_rate: the input for the learning rate, a float32 scalar.
        step: the input for the number of steps done before this one, an int64 scalar.
        seed: the input for the seed, an int64 scalar; None where nothing is random.
        update: the input for the number of the update that this step makes, from 1, or 0 where it only
            accumulates: an int64 scalar, see `UpdateCount`; None where each step updates.
        gradients: for each parameter the output that is the gradient of the batch's loss, before gradients
            are accumulated and transformed, where asked for.
        sample_weight: the input that says how much each sample counts, float32 [N]; None where all count 1.
        accumulated: state inputs that hold sums over the window under way.
        ranks: where the step is of one of several ranks (`Ranks`), its inputs `samples`, how many samples
            of its share count, a float32 scalar, 0 where the share is empty and a stand-in is given, and
            `signal`, a float32 scalar; `share`, where something is random, int64 [2]: the first sample's
            position in the batch and how many there are; and the output `signals`, the sum of `signal` over
            the ranks. Loss, totals and weights are then the whole batch's, outputs and sample weights the
            share's.
        shards: where optimizer state is divided among ranks, for each of the optimizer's slots of every
            parameter, by the name that it has undivided: the parameter, and the elements that are here, the
            first and the one behind the last. Slots of no elements are no state.
        averages: for each parameter and running statistic the state input that is its average, where weights
            are averaged.
        averaged: the state input that counts how many weights are in the averages, a float32 scalar: where
            it is 0 the averages mean nothing.
        masks: for each parameter that is pruned the state input, of its type, that is 0 where it stays 0.
    """

    model: ir.Model
    bindings: Mapping[str, str]
    parameters: tuple[str, ...]
    statistics: tuple[str, ...]
    slots: tuple[str, ...]
    inputs: tuple[str, ...]
    targets: Mapping[str, str]
    outputs: tuple[str, ...]
    loss: str
    totals: Mapping[str, str]
    learning_rate: str
    step: str
    seed: str | None
    update: str | None
    gradients: Mapping[str, str]
    sample_weight: str | None = None
    accumulated: tuple[str, ...] = ()
    ranks: Mapping[str, str] = field(default_factory=dict)
    shards: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    averages: Mapping[str, str] = field(default_factory=dict)
    averaged: str | None = None
    masks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, model: ir.Model) -> TrainingStep:
        """The step that a loaded model is.

        Raises:
            InvalidModelError: the model is not a training step, or its description is malformed.
        """
        text = model.metadata_props.get(_KEY)
        if text is None:
            raise InvalidModelError(f"this model is not a training step: it has no {_KEY!r} metadata")
        try:
            fields = json.loads(text)
            names: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
            step = cls(model=model, **names)
            lacking = step._lacking()
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            raise InvalidModelError(f"metadata {_KEY!r} is malformed: {error}") from None
        if lacking:
            raise InvalidModelError(f"metadata {_KEY!r} names {lacking[0]!r}, which the model does not have")
        return step

    def _lacking(self) -> list[str]:
        """Names of inputs and outputs that the model does not have."""
        graph = self.model.graph
        given = {v.name for v in graph.inputs} | set(graph.initializers)
        made = {v.name for v in graph.outputs}
        optional = [name for name in (self.seed, self.update, self.sample_weight) if name is not None]
        sums = [name for role, name in self.ranks.items() if role == "signals"]
        optional += [name for role, name in self.ranks.items() if role != "signals"]
        scalars = [self.learning_rate, self.step, *optional]
        beside = [*self.averages.values(), *self.masks.values(), *filter(None, [self.averaged])]
        inputs = [*self.bindings, *self.inputs, *self.targets.values(), *scalars, *beside]
        losses = [self.loss, *self.totals, *self.totals.values()]
        outputs = [*self.bindings.values(), *self.outputs, *losses, *self.gradients.values(), *sums]
        return [n for n in inputs if n not in given] + [n for n in outputs if n not in made]


def training_step(
    model: ir.Model,
    losses: Mapping[str, Loss],
    optimizer: Optimizer,
    trainable: Sequence[str],
    *,
    loss_weights: Mapping[str, float] | None = None,
    gradient_transforms: Sequence[GradientTransform] = (),
    accumulate: bool = False,
    expose_gradients: bool = False,
    sample_weight: str | None = None,
    over_samples: bool = False,
    ranks: Ranks | None = None,
    average: Average | None = None,
    masked: Collection[str] = (),
) -> TrainingStep:
    """Build the training step of an inference model.

    Args:
        model: the inference model, at opset 21; it is not changed.
        losses: a loss for each model output that is trained on.
        optimizer: writes the updates.
        trainable: names of the initializers to train; all others are frozen.
        loss_weights: the weight of each loss in the sum; 1 by default.
        gradient_transforms: change the gradients before the update, in this order; `Clip` is one.
        accumulate: join the gradients of several batches into one update: of the mean loss over all samples
            of the window that count. `TrainingStep.update` ends a window.
        expose_gradients: make the gradients outputs too.
        sample_weight: the name of an input, float32 [N], for how much each sample of a batch counts: one of
            weight 2 counts like two of weight 1, one of weight 0 not at all.
        over_samples: divide by the number of samples, as Keras does, not by the sum of weights.
        ranks: the step is done by several processes, each on a share of the batch. Gradients are summed over
            them before they are transformed; running statistics are means over the ranks, weighted by
            samples. All state is then the same on every rank, but for sums of a window under way.
        average: keep averages of parameters and running statistics over the updates.
        masked: names of parameters with a mask of elements that stay 0; none is pruned at first.

    Raises:
        ConfigError: an output, a parameter or an option that does not fit the model.
        UnsupportedError: operators between the loss and a parameter have no gradient; names all of them.
    """
    _check(model, losses, trainable)
    form = to_training(fold_shapes(model, trainable), trainable, shares=ranks is not None)
    step_model = form.model
    graph = step_model.graph
    g = Builder(graph)
    inputs = tuple(
        v.name or ""
        for v in graph.inputs
        if v not in (form.seed, form.step, form.share) and v.name not in graph.initializers
    )
    shared = None if ranks is None else Shared(g, ranks)
    running = form.statistics
    if ranks is not None and shared is not None and ranks.synchronise:
        with g.scope("ranks"):
            running = shared.synchronise(running)
    forward = {v.name or "": v for v in graph.outputs}
    learning_rate = g.input(g.unique("learning_rate"), ir.DataType.FLOAT, ())
    step = form.step or g.input(g.unique("step"), ir.DataType.INT64, ())
    with g.scope("loss"):
        objective = write_objective(
            g, forward, losses, loss_weights, sample_weight=sample_weight, over_samples=over_samples
        )
    state = State(g)
    parameters = [graph.initializers[name] for name in trainable]
    if shared is not None:
        shared.divide(objective)
    number: ir.Value | None = None
    window: Window | None = None
    if accumulate or all(part.may_be_empty for part in objective.parts):
        number = g.input(g.unique("update"), ir.DataType.INT64, ())
    updates = None if number is None else g.Greater(number, g.const(0, ir.DataType.INT64))
    if accumulate:
        assert updates is not None
        with g.scope("update"):
            window = Window(g, state, updates, objective.parts if shared is None else shared.parts)
    statistics = list(running.values())
    local = [] if ranks is None or ranks.synchronise else statistics
    if shared is not None:
        with g.scope("ranks"):
            shared.join([] if window is None else window.weights)
            if window is not None:
                window.weights = list(shared.window)
            objective = shared.objective(objective)
            shared.start_rest(local)
    backward = _backward(g, objective, parameters, accumulate)
    exposed: dict[str, str] = {}
    if expose_gradients:
        for parameter, sums in zip(parameters, backward, strict=True):
            name = parameter.name or ""
            own = _of_batch(g, objective, sums) if accumulate else sums[0]
            assert own is not None
            exposed[name] = g.output(own, g.unique(f"{name}.gradient")).name or ""
    whole = [part.weight for part in objective.parts] if shared is None else shared.weights
    counts = _any(g, whole) if all(part.may_be_empty for part in objective.parts) else None
    apply: ir.Value | None = None
    with g.scope("update"):
        t = g.Add(step, g.const(1, ir.DataType.INT64)) if number is None else number
        found = [total for sums in backward for total in sums if total is not None]
        if updates is not None:
            apply = updates
            weights = whole
            if window is not None:
                found = [window.mean(p, sums) for p, sums in zip(parameters, backward, strict=True)]
                weights = window.weights
            if counts is not None:
                apply = g.And(apply, _any(g, weights))
        given: Mapping[str, ir.Value] = dict(zip(trainable, found, strict=True))
        masks = Masks(g, state, masked)
        averages = None if average is None else Averages(g, state, average, apply)

        def bind(parameter: ir.Value, new: ir.Value) -> None:
            kept = masks.applied(parameter, new)
            state.bind(parameter, kept)
            if averages is not None:
                averages.add(parameter, kept)

        shards: dict[str, tuple[str, int, int]] = {}
        if shared is not None and ranks is not None and ranks.shard:
            divided = shared.divided(given)
            mine = shared.transformed(gradient_transforms, divided, dtype_of(parameters[0]))
            shards = update_own(g, state, optimizer, parameters, mine, divided, learning_rate, t, apply, bind)
        else:
            if shared is not None:
                given = shared.summed(given)
            grads = transformed(g, gradient_transforms, given)
            by_parameter = {p: grads[name] for p, name in zip(parameters, trainable, strict=True)}
            update(g, state, optimizer, by_parameter, learning_rate, t, apply, bind)
    signals: ir.Value | None = None
    if shared is not None:
        with g.scope("ranks"):
            joined, means = shared.rest()
            statistics = means or statistics
            objective = shared.joined(objective, joined)
            signals = g.output(shared.all_signals, g.unique("signals"))
    for (name, own_value), value in zip(running.items(), statistics, strict=True):
        old, target = graph.initializers[name], own_value.name
        if value is not own_value:
            own_value.name = g.unique(f"{name}.of_rank", scoped=False)
        if counts is not None:
            value.name = g.unique(f"{name}.of_batch", scoped=False)
            value = g.Where(counts, value, old)
        state.bind(old, value, target)
        if averages is not None:
            averages.add(old, value)
    slots = tuple(name for name in state.bindings if name not in trainable and name not in running)
    loss_name = g.output(objective.loss, g.unique("loss")).name or ""
    totals = write_totals(g, objective.parts)
    RemoveUnusedNodesPass()(step_model)
    _declare_training_order(graph, state)
    step_model.ir_version = 10
    fields: dict[str, Any] = {
        "bindings": state.bindings,
        "parameters": tuple(trainable),
        "statistics": tuple(running),
        "slots": slots,
        "inputs": inputs,
        "targets": {output: value.name for output, value in objective.targets.items()},
        "outputs": tuple(forward),
        "loss": loss_name,
        "totals": totals,
        "learning_rate": learning_rate.name,
        "step": step.name,
        "seed": form.seed.name if form.seed is not None else None,
        "update": number.name if number is not None else None,
        "gradients": exposed,
        "sample_weight": sample_weight,
        "accumulated": () if window is None else tuple(window.slots),
        "shards": shards,
        "ranks": {} if shared is None else shared.names(form.share, signals),
        "averages": {} if averages is None else averages.names,
        "averaged": None if averages is None else averages.count,
        "masks": masks.names,
    }
    step_model.metadata_props[_KEY] = json.dumps(fields)
    return TrainingStep(model=step_model, **fields)


def _check(model: ir.Model, losses: Mapping[str, Loss], trainable: Sequence[str]) -> None:
    if model.graph.opset_imports.get("") != OPSET:
        raise UnsupportedError(
            f"training graphs are built at opset {OPSET}, "
            f"this model has {model.graph.opset_imports.get('')}; convert it with onward.model.upgrade"
        )
    outputs = [v.name for v in model.graph.outputs]
    if not losses:
        raise ConfigError("there is no loss")
    for name in losses:
        if name not in outputs:
            raise ConfigError(
                f"there is a loss for {name!r}, but the model's outputs are {', '.join(map(str, outputs))}"
            )
    if not trainable:
        raise ConfigError("nothing is trainable: no parameter is left to update")
    for name in trainable:
        value = model.graph.initializers.get(name)
        if value is None:
            raise ConfigError(f"parameter {name!r} is not an initializer of the model")
        if not is_float(value):
            raise ConfigError(f"parameter {name!r} is not of a floating-point type")


def _backward(
    g: Builder, objective: Objective, parameters: Sequence[ir.Value], accumulate: bool
) -> list[list[ir.Value | None]]:
    """For each parameter the gradient of the loss, or, to be accumulated, of each part's total."""
    heads = [part.total for part in objective.parts] if accumulate else [objective.loss]
    columns = []
    for head in heads:
        one = g.const(np.ones((), numpy_dtype(dtype_of(head))))
        columns.append(gradients(g, {head: one}, parameters))
    rows = [list(row) for row in zip(*columns, strict=True)]
    if unreached := [p.name or "" for p, row in zip(parameters, rows, strict=True) if not any(row)]:
        values = [p for p, row in zip(parameters, rows, strict=True) if not any(row)]
        if cut := cut_by_integers(g.graph, values, heads):
            raise MissingGradientsError(
                f"no gradient reaches {', '.join(unreached)}:\n  " + "\n  ".join(map(str, cut)), cut
            )
        raise ConfigError(
            f"the loss does not depend on {', '.join(unreached)}; leave them out of the trainable ones"
        )
    return rows


def _of_batch(g: Builder, objective: Objective, sums: Sequence[ir.Value | None]) -> ir.Value:
    """The gradient of the batch's loss from those of its parts' totals."""
    pairs = zip(objective.parts, sums, strict=True)
    return functools.reduce(
        g.Add, [g.Mul(total, inverse(g, part.weight)) for part, total in pairs if total is not None]
    )


def _any(g: Builder, weights: Sequence[ir.Value]) -> ir.Value:
    return functools.reduce(g.Or, [g.Greater(weight, 0.0) for weight in weights])


def _declare_training_order(graph: ir.Graph, state: State) -> None:
    """State becomes inputs with defaults, after the batch's own inputs."""
    for value in state.inputs:
        if not value.is_graph_input():
            graph.inputs.append(value)
