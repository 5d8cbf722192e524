"""A step behind the backward pass: gradients of several batches are joined, and state advances."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
import onnx_ir as ir

from onward.autodiff.objective import Part, inverse
from onward.autodiff.ranks import Divided
from onward.errors import ConfigError
from onward.graph import Builder, dtype_of, numpy_dtype, static_shape

__all__ = ["Optimizer", "State", "UpdateCount", "Window", "update", "update_own"]


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


@final
@dataclass
class UpdateCount:
    """Counts the updates of a step that makes one only at times, for `TrainingStep.update`.

    Attributes:
        done: updates made.
        weight: of what the window under way has seen: a window in which nothing counts makes no update.
    """

    done: int = 0
    weight: float = 0.0

    def number(self, ends: bool) -> np.ndarray[tuple[()], np.dtype[np.int64]]:
        """What the step takes: the number of the update that it makes if it ends a window, else 0."""
        return np.asarray(self.done + 1 if ends else 0, np.int64)

    def add(self, weight: float, ends: bool) -> None:
        """Take in a step that was done, by the weight of its batch."""
        self.weight += weight
        if ends:
            self.done += self.weight > 0
            self.weight = 0.0


@final
class State:
    """State inputs and the outputs that replace them."""

    def __init__(self, g: Builder) -> None:
        self._g = g
        self.inputs: list[ir.Value] = []
        self.bindings: dict[str, str] = {}

    def slot(self, name: str, like: ir.Value, fill: float) -> ir.Value:
        """State of a value's type and shape that begins filled."""
        array = np.full(static_shape(like) or (), fill, numpy_dtype(dtype_of(like)))
        return self._g.initializer(self._g.unique(name, scoped=False), array)

    def bind(self, value: ir.Value, replacement: ir.Value, target: str | None = None) -> None:
        """Say what replaces a state input."""
        name = value.name or ""
        if target is None:
            target = self._g.unique(f"{name}.next", scoped=False)
        self.inputs.append(value)
        self.bindings[name] = self._g.output(replacement, target).name or ""


@final
class Window:
    """Batches whose gradients are joined into one update.

    The sums of the parts' totals' gradients and of their weights are state; at the update the one is divided
    by the other, and both start again from 0.

    Attributes:
        ends: whether this batch is the window's last, a bool scalar.
        weights: the sums of the parts' weights, this batch's included; what they are divided by may be put
            in their place.
        slots: the state that holds sums.
    """

    def __init__(self, g: Builder, state: State, ends: ir.Value, parts: Sequence[Part]) -> None:
        self._g, self._state, self.ends = g, state, ends
        self._parts = parts
        self.slots: list[str] = []
        self.weights = [self._joined(_named("accumulated.weight", part), part.weight) for part in parts]

    def mean(self, parameter: ir.Value, sums: Sequence[ir.Value | None]) -> ir.Value:
        """The gradient of the window's mean loss, from those of the batch's totals, part by part."""
        g = self._g
        terms = [
            g.Mul(
                self._joined(_named(f"{parameter.name}.accumulated", part), total),
                _as(g, inverse(g, weight), parameter),
            )
            for part, weight, total in zip(self._parts, self.weights, sums, strict=True)
            if total is not None
        ]
        return functools.reduce(g.Add, terms)

    def _joined(self, name: str, value: ir.Value) -> ir.Value:
        held = self._state.slot(name, value, 0.0)
        self.slots.append(held.name or "")
        total = self._g.Add(held, value)
        self._state.bind(held, self._g.Where(self.ends, 0.0, total))
        return total


def update(
    g: Builder,
    state: State,
    optimizer: Optimizer,
    gradients: Mapping[ir.Value, ir.Value],
    learning_rate: ir.Value,
    t: ir.Value,
    apply: ir.Value | None,
    bind: Callable[[ir.Value, ir.Value], None],
) -> None:
    """Write the updates of parameters from their gradients.

    Args:
        t: the int64 number of the update, from 1.
        apply: whether to update at this step; None: at each. Steps without leave parameters and slots as they
            are.
        bind: called with each parameter and what the update makes of it.
    """
    rates = _Rates(g, optimizer, learning_rate)
    for parameter, grad in gradients.items():
        name = parameter.name or ""
        slots = {key: state.slot(f"{name}.{key}", parameter, fill) for key, fill in optimizer.slots().items()}
        rate = rates.of(name, parameter)
        with g.scope(name):
            new, new_slots = optimizer.update(g, parameter, grad, slots, rate, t)
            if apply is not None:
                new = g.Where(apply, new, parameter)
                new_slots = {key: g.Where(apply, v, slots[key]) for key, v in new_slots.items()}
        bind(parameter, new)
        for key, value in new_slots.items():
            state.bind(slots[key], value)


def update_own(
    g: Builder,
    state: State,
    optimizer: Optimizer,
    parameters: Sequence[ir.Value],
    gradients: Mapping[str, ir.Value],
    divided: Divided,
    learning_rate: ir.Value,
    t: ir.Value,
    apply: ir.Value | None,
    bind: Callable[[ir.Value, ir.Value], None],
) -> dict[str, tuple[str, int, int]]:
    """Write the updates of this rank's pieces of the parameters, and gather all.

    Args:
        parameters: all that are trained.
        gradients: of the pieces, by parameter name.
        divided: which pieces these are.
        learning_rate, t, apply, bind: see `update`.

    Returns:
        For each slot of every parameter: the parameter, and the elements of it that are here, the first and
        the one behind the last. Slots of which there are some are state.

    Raises:
        ConfigError: the optimizer has to see whole parameters.
    """
    rates = _Rates(g, optimizer, learning_rate)
    parts: dict[str, ir.Value] = {}
    for parameter in parameters:
        name = parameter.name or ""
        if name not in gradients:
            continue
        of_elements = getattr(optimizer, "of_elements", None)
        own: Optimizer | None = None if of_elements is None else of_elements(name)
        if own is None:
            raise ConfigError(
                f"{type(optimizer).__name__} has to see whole parameters, as far as it says (`of_elements`), "
                "which no rank updates where the optimizer's state is divided: leave `shard` out"
            )
        start, stop = divided.places[name]
        with g.scope(name):
            part = g.Slice(g.Reshape(parameter, [-1]), [start], [stop])
            slots = {key: state.slot(f"{name}.{key}", part, fill) for key, fill in own.slots().items()}
            new, new_slots = own.update(g, part, gradients[name], slots, rates.of(name, part), t)
            if apply is not None:
                new_slots = {key: g.Where(apply, v, slots[key]) for key, v in new_slots.items()}
        parts[name] = new
        for key, value in new_slots.items():
            state.bind(slots[key], value)
    whole = divided.gathered(g, parts)
    for parameter in parameters:
        new = _as(g, whole[parameter.name or ""], parameter)
        bind(parameter, new if apply is None else g.Where(apply, new, parameter))
    return {
        f"{name}.{key}": (name, *place) for name, place in divided.places.items() for key in optimizer.slots()
    }


@final
class _Rates:
    """Learning rates of parameters, one value for each factor."""

    def __init__(self, g: Builder, optimizer: Optimizer, learning_rate: ir.Value) -> None:
        self._g, self._optimizer, self._rate = g, optimizer, learning_rate
        self._scaled: dict[float, ir.Value] = {}

    def of(self, parameter: str, like: ir.Value) -> ir.Value:
        """That of a parameter, in the type of a value."""
        factor = self._optimizer.scale(parameter)
        if factor not in self._scaled:
            self._scaled[factor] = self._rate if factor == 1 else self._g.Mul(self._rate, factor)
        return _as(self._g, self._scaled[factor], like)


def _named(base: str, part: Part) -> str:
    return f"{base}.{part.name}" if part.name else base


def _as(g: Builder, value: ir.Value, like: ir.Value) -> ir.Value:
    return value if dtype_of(value) == dtype_of(like) else g.Cast(value, to=int(dtype_of(like)))
