"""The training step: one ONNX graph of forward, loss, backward, clipping, weight decay and update.

    (parameters, optimizer state, running statistics, batch, targets, learning rate, step, seed)
        → (the same state, advanced; loss; the model's outputs)

State inputs are initializers too, so that a saved step carries its starting point: any ONNX runtime can run
it, feed the outputs back, and train.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onward.autodiff.gradients import gradients
from onward.errors import ConfigError, InvalidModelError, UnsupportedError
from onward.graph import Builder, Dim, dtype_of, is_float, numpy_dtype, static_shape
from onward.passes.to_training import to_training

__all__ = ["OPSET", "Clip", "Loss", "Optimizer", "TrainingStep", "training_step", "with_loss"]

OPSET = 21
"""The opset that gradient rules write."""

_KEY = "onward.training_step"


class Loss(Protocol):
    """What a loss contributes to the step."""

    def output(self, output: ir.Value) -> ir.Value:
        """The value that the loss is taken of: the output, or what its last activation was applied to."""

    def target(self, output: ir.Value) -> tuple[ir.DataType, Sequence[Dim]]:
        """Element type and shape of the targets of a model output."""

    def build(self, g: Builder, output: ir.Value, target: ir.Value) -> ir.Value:
        """Write the loss; returns a float scalar."""


class Optimizer(Protocol):
    """What an optimizer contributes to the step."""

    def slots(self) -> Mapping[str, float]:
        """Names of the state kept for each parameter, and the value that fills it at the start."""

    def scale(self, parameter: str) -> float:
        """The factor of the learning rate for a parameter."""

    def update(
        self,
        g: Builder,
        parameter: ir.Value,
        gradient: ir.Value,
        slots: Mapping[str, ir.Value],
        learning_rate: ir.Value,
        t: ir.Value,
    ) -> tuple[ir.Value, Mapping[str, ir.Value]]:
        """Write one parameter's update; returns the new parameter and the new slots.

        `t` is the int64 number of this update, counted from 1.
        """


@dataclass(frozen=True, slots=True)
class Clip:
    """Gradient clipping: by value, then by the norm over all gradients.

    Attributes:
        value: clip each element to [−value, value].
        norm: scale all gradients so that their joint Euclidean norm is at most this.
    """

    value: float | None = None
    norm: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "norm"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ConfigError(f"gradient clipping by {name} must be above 0, got {limit}")


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """A training step and the names of its parts.

    Attributes:
        model: the step as a model. Its state inputs are initializers too: the starting point.
        bindings: for each state input the output that replaces it at the next step.
        parameters: state inputs that are trained.
        statistics: state inputs that are running statistics.
        slots: state inputs that belong to the optimizer.
        inputs: the batch's inputs.
        targets: the target inputs by the model output that they belong to.
        outputs: the forward pass's outputs, as the model names them.
        loss: the output that is the loss, a scalar.
        learning_rate: the input for the learning rate, a float32 scalar.
        step: the input for the number of steps done before this one, an int64 scalar.
        seed: the input for the seed, an int64 scalar; None where nothing is random.
        gradients: for each parameter the output that is its gradient before clipping, where asked for.
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
    learning_rate: str
    step: str
    seed: str | None
    gradients: Mapping[str, str]

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
        scalars = [self.learning_rate, self.step, *([] if self.seed is None else [self.seed])]
        inputs = [*self.bindings, *self.inputs, *self.targets.values(), *scalars]
        outputs = [*self.bindings.values(), *self.outputs, self.loss, *self.gradients.values()]
        return [n for n in inputs if n not in given] + [n for n in outputs if n not in made]


def training_step(
    model: ir.Model,
    losses: Mapping[str, Loss],
    optimizer: Optimizer,
    trainable: Sequence[str],
    *,
    loss_weights: Mapping[str, float] | None = None,
    clip: Clip | None = None,
    accumulate: int = 1,
    expose_gradients: bool = False,
) -> TrainingStep:
    """Build the training step of an inference model.

    Args:
        model: the inference model, at opset 21; it is not changed.
        losses: a loss for each model output that is trained on.
        optimizer: writes the updates.
        trainable: names of the initializers to train; all others are frozen.
        loss_weights: the weight of each loss in the sum; 1 by default.
        clip: gradient clipping.
        accumulate: update once in this many steps, with the mean of their gradients.
        expose_gradients: make the gradients outputs too.

    Raises:
        ConfigError: an output, a parameter or an option that does not fit the model.
        UnsupportedError: operators between the loss and a parameter have no gradient; names all of them.
    """
    _check(model, losses, trainable, accumulate)
    form = to_training(model, trainable)
    step_model = form.model
    graph = step_model.graph
    g = Builder(graph)
    inputs = tuple(
        v.name or ""
        for v in graph.inputs
        if v not in (form.seed, form.step) and v.name not in graph.initializers
    )
    forward = {v.name or "": v for v in graph.outputs}
    learning_rate = g.input(g.unique("learning_rate"), ir.DataType.FLOAT, ())
    step = form.step or g.input(g.unique("step"), ir.DataType.INT64, ())
    targets: dict[str, ir.Value] = {}
    with g.scope("loss"):
        loss = _total_loss(g, forward, losses, loss_weights or {}, targets)
    parameters = [graph.initializers[name] for name in trainable]
    seed = g.const(np.ones((), numpy_dtype(dtype_of(loss))))
    grads = gradients(g, {loss: seed}, parameters)
    if unreached := [name for name, grad in zip(trainable, grads, strict=True) if grad is None]:
        raise ConfigError(
            f"the loss does not depend on {', '.join(unreached)}; leave them out of the trainable ones"
        )
    found = [grad for grad in grads if grad is not None]
    state = _State(g)
    exposed: dict[str, str] = {}
    if expose_gradients:
        for name, grad in zip(trainable, found, strict=True):
            exposed[name] = g.output(grad, g.unique(f"{name}.gradient")).name or ""
    with g.scope("update"):
        _update(g, state, optimizer, parameters, found, learning_rate, step, clip, accumulate)
    slots = tuple(name for name in state.bindings if name not in trainable)
    for name, value in form.statistics.items():
        state.bind(graph.initializers[name], value, value.name)
    loss_name = g.output(loss, g.unique("loss")).name or ""
    RemoveUnusedNodesPass()(step_model)
    _declare_training_order(graph, state)
    step_model.ir_version = 10
    fields: dict[str, Any] = {
        "bindings": state.bindings,
        "parameters": tuple(trainable),
        "statistics": tuple(form.statistics),
        "slots": slots,
        "inputs": inputs,
        "targets": {output: value.name for output, value in targets.items()},
        "outputs": tuple(forward),
        "loss": loss_name,
        "learning_rate": learning_rate.name,
        "step": step.name,
        "seed": form.seed.name if form.seed is not None else None,
        "gradients": exposed,
    }
    step_model.metadata_props[_KEY] = json.dumps(fields)
    return TrainingStep(model=step_model, **fields)


def with_loss(
    model: ir.Model, losses: Mapping[str, Loss], loss_weights: Mapping[str, float] | None = None
) -> tuple[ir.Model, str, Mapping[str, str]]:
    """The inference model with its loss as a further output, for evaluation.

    Returns:
        The model, the name of the loss output, and for each output with a loss the name of its target input.
    """
    model = model.clone()
    g = Builder(model.graph)
    targets: dict[str, ir.Value] = {}
    forward = {v.name or "": v for v in model.graph.outputs}
    with g.scope("loss"):
        loss = _total_loss(g, forward, losses, loss_weights or {}, targets)
    name = g.output(loss, g.unique("loss")).name or ""
    return model, name, {output: value.name or "" for output, value in targets.items()}


def _check(model: ir.Model, losses: Mapping[str, Loss], trainable: Sequence[str], accumulate: int) -> None:
    if model.graph.opset_imports.get("") != OPSET:
        raise UnsupportedError(
            f"training graphs are built at opset {OPSET}, "
            f"this model has {model.graph.opset_imports.get('')}; convert it with onward.model.upgrade"
        )
    if accumulate < 1:
        raise ConfigError(f"accumulate must be at least 1, got {accumulate}")
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


def _total_loss(
    g: Builder,
    forward: Mapping[str, ir.Value],
    losses: Mapping[str, Loss],
    weights: Mapping[str, float],
    targets: dict[str, ir.Value],
) -> ir.Value:
    total: ir.Value | None = None
    for name, loss in losses.items():
        output = loss.output(forward[name])
        dtype, dims = loss.target(output)
        base = "target" if len(losses) == 1 else f"{name}.target"
        targets[name] = g.input(g.unique(base, scoped=False), dtype, dims)
        part = loss.build(g, output, targets[name])
        if (weight := weights.get(name, 1.0)) != 1.0:
            part = g.Mul(part, weight)
        total = part if total is None else g.Add(total, part)
    assert total is not None
    return total


class _State:
    """State inputs and the outputs that replace them."""

    def __init__(self, g: Builder) -> None:
        self._g = g
        self.inputs: list[ir.Value] = []
        self.bindings: dict[str, str] = {}

    def slot(self, name: str, like: ir.Value, fill: float) -> ir.Value:
        shape = static_shape(like) or ()
        return self._g.initializer(
            self._g.unique(name, scoped=False), np.full(shape, fill, numpy_dtype(dtype_of(like)))
        )

    def bind(self, value: ir.Value, replacement: ir.Value, target: str | None = None) -> None:
        name = value.name or ""
        if target is None:
            target = self._g.unique(f"{name}.next", scoped=False)
        self.inputs.append(value)
        self.bindings[name] = self._g.output(replacement, target).name or ""


def _update(
    g: Builder,
    state: _State,
    optimizer: Optimizer,
    parameters: Sequence[ir.Value],
    grads: Sequence[ir.Value],
    learning_rate: ir.Value,
    step: ir.Value,
    clip: Clip | None,
    accumulate: int,
) -> None:
    one = g.const(1, ir.DataType.INT64)
    t = g.Add(g.Div(step, accumulate) if accumulate > 1 else step, one)
    apply: ir.Value | None = None
    sums: list[ir.Value] = []
    if accumulate > 1:
        apply = g.Equal(g.Mod(g.Add(step, one), accumulate), g.const(0, ir.DataType.INT64))
        sums = [state.slot(f"{p.name}.accumulated", p, 0.0) for p in parameters]
        grads = [g.Add(s, g.Mul(d, 1.0 / accumulate)) for s, d in zip(sums, grads, strict=True)]
        for held, total in zip(sums, grads, strict=True):
            state.bind(held, g.Where(apply, 0.0, total))
    if clip is not None:
        grads = _clipped(g, clip, grads)
    rates: dict[float, ir.Value] = {}
    for parameter, grad in zip(parameters, grads, strict=True):
        name = parameter.name or ""
        factor = optimizer.scale(name)
        if factor not in rates:
            rates[factor] = learning_rate if factor == 1 else g.Mul(learning_rate, factor)
        rate = rates[factor]
        if dtype_of(parameter) != ir.DataType.FLOAT:
            rate = g.Cast(rate, to=int(dtype_of(parameter)))
        slots = {key: state.slot(f"{name}.{key}", parameter, fill) for key, fill in optimizer.slots().items()}
        with g.scope(name):
            new, new_slots = optimizer.update(g, parameter, grad, slots, rate, t)
            if apply is not None:
                new = g.Where(apply, new, parameter)
                new_slots = {key: g.Where(apply, v, slots[key]) for key, v in new_slots.items()}
        state.bind(parameter, new)
        for key, value in new_slots.items():
            state.bind(slots[key], value)


def _clipped(g: Builder, clip: Clip, grads: Sequence[ir.Value]) -> list[ir.Value]:
    if clip.value is not None:
        grads = [g.Clip(d, -clip.value, clip.value) for d in grads]
    if clip.norm is not None:
        squares = [g.ReduceSumSquare(d, keepdims=0) for d in grads]
        norm = g.Sqrt(g.Sum(*squares))
        factor = g.Min(g.Div(clip.norm, g.Add(norm, 1e-6)), 1.0)
        grads = [g.Mul(d, factor) for d in grads]
    return list(grads)


def _declare_training_order(graph: ir.Graph, state: _State) -> None:
    """State becomes inputs with defaults, after the batch's own inputs."""
    for value in state.inputs:
        if not value.is_graph_input():
            graph.inputs.append(value)
