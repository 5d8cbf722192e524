"""Optimizers: each writes the update of one parameter into the training step."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, final

import onnx_ir as ir

from onward.errors import ConfigError
from onward.graph import ONWARD_DOMAIN, Builder
from onward.train._named import create

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Group", "Optimizer", "RMSprop", "optimizer_named"]


@final
@dataclass(frozen=True)
class Group:
    """Parameters with options of their own.

    Attributes:
        pattern: a glob over parameter names; the first group that matches a parameter counts.
        learning_rate: factor of the learning rate.
        weight_decay: in the place of the optimizer's; None keeps it.
    """

    pattern: str
    learning_rate: float = 1.0
    weight_decay: float | None = None


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """What every optimizer has.

    Attributes:
        learning_rate: the base learning rate; a schedule multiplies it.
        weight_decay: added to the gradient as weight_decay · parameter (AdamW: decoupled).
        groups: parameters with a rate or weight decay of their own.
    """

    learning_rate: float = field(default=0.01, kw_only=False)
    weight_decay: float = 0.0
    groups: tuple[Group, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or not float(value) >= 0:
                raise ConfigError(f"{type(self).__name__}: {name} must be at least 0, got {value!r}")
            object.__setattr__(self, name, float(value))

    def group(self, parameter: str) -> Group:
        """The group of a parameter; one without special options if none matches."""
        return next((g for g in self.groups if fnmatchcase(parameter, g.pattern)), Group("*"))

    def scale(self, parameter: str) -> float:
        """The factor of the learning rate for a parameter."""
        return self.group(parameter).learning_rate

    def decay(self, parameter: ir.Value) -> float:
        """The weight decay of a parameter."""
        own = self.group(parameter.name or "").weight_decay
        return self.weight_decay if own is None else own

    def of_elements(self, parameter: str) -> Optimizer | None:
        """What updates some elements of a parameter as if all were there; None where it cannot be done.

        It has no groups: the parameter's own options are those of all.
        """
        return None

    @abstractmethod
    def slots(self) -> Mapping[str, float]:
        """Names of the state kept for each parameter, and the value that fills it at the start."""

    @abstractmethod
    def update(
        self,
        g: Builder,
        parameter: ir.Value,
        gradient: ir.Value,
        slots: Mapping[str, ir.Value],
        learning_rate: ir.Value,
        t: ir.Value,
    ) -> tuple[ir.Value, Mapping[str, ir.Value]]:
        """Write one parameter's update; returns the new parameter and the new slots."""


@dataclass(frozen=True, kw_only=True)
class _OneOperator(Optimizer):
    """An optimizer whose update is one operator of `ai.onward`: of the parameter, its gradient, the slots in
    their order, the learning rate and, where it counts them, the number of the step.
    """

    steps: ClassVar[bool] = False
    """Whether it takes the number of the step."""

    def of_elements(self, parameter: str) -> Optimizer:
        own = self.group(parameter).weight_decay
        return replace(self, weight_decay=self.weight_decay if own is None else own, groups=())

    @abstractmethod
    def operator(self) -> tuple[str, dict[str, Any]]:
        """The operator and its attributes but for the weight decay."""

    def update(
        self,
        g: Builder,
        parameter: ir.Value,
        gradient: ir.Value,
        slots: Mapping[str, ir.Value],
        learning_rate: ir.Value,
        t: ir.Value,
    ) -> tuple[ir.Value, Mapping[str, ir.Value]]:
        name, attributes = self.operator()
        names = list(self.slots())
        new, *state = g.emit(
            name,
            parameter,
            gradient,
            *(slots[slot] for slot in names),
            learning_rate,
            *((t,) if self.steps else ()),
            domain=ONWARD_DOMAIN,
            outputs=1 + len(names),
            weight_decay=self.decay(parameter),
            **attributes,
        )
        return new, dict(zip(names, state, strict=True))


def _fraction(optimizer: Optimizer, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(optimizer, name) < 1:
            raise ConfigError(
                f"{type(optimizer).__name__}: {name} must be in [0, 1), got {getattr(optimizer, name)}"
            )


@final
@dataclass(frozen=True, kw_only=True)
class SGD(_OneOperator):
    """Stochastic gradient descent, with momentum and Nesterov's form if asked for."""

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction(self, "momentum")
        if self.nesterov and not self.momentum:
            raise ConfigError("SGD: nesterov needs a momentum above 0")

    def slots(self) -> Mapping[str, float]:
        return {"momentum": 0.0} if self.momentum else {}

    def operator(self) -> tuple[str, dict[str, Any]]:
        if not self.momentum:
            return "SGDUpdate", {}
        return "MomentumUpdate", {"momentum": self.momentum, "nesterov": int(self.nesterov)}


def _inner(optimizer: _AdamFamily | RMSprop | Adagrad) -> dict[str, Any]:
    return {"inner_epsilon": 1} if optimizer.inner_epsilon else {}


@dataclass(frozen=True, kw_only=True)
class _AdamFamily(_OneOperator):
    steps: ClassVar[bool] = True
    decoupled: ClassVar[bool]
    learning_rate: float = field(default=0.001, kw_only=False)
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7
    inner_epsilon: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction(self, "beta1", "beta2")

    def slots(self) -> Mapping[str, float]:
        return {"moment1": 0.0, "moment2": 0.0}

    def operator(self) -> tuple[str, dict[str, Any]]:
        return "AdamUpdate", {
            "beta1": self.beta1,
            "beta2": self.beta2,
            "epsilon": self.epsilon,
            "decoupled": int(self.decoupled),
            **_inner(self),
        }


@final
@dataclass(frozen=True, kw_only=True)
class Adam(_AdamFamily):
    """Adam; weight decay is added to the gradient.

    Attributes:
        inner_epsilon: ε is added before the bias of the second moment is taken out, as in Keras; see
            `AdamUpdate`.
    """

    decoupled: ClassVar[bool] = False


@final
@dataclass(frozen=True, kw_only=True)
class AdamW(_AdamFamily):
    """Adam with decoupled weight decay.

    Attributes:
        inner_epsilon: as of `Adam`.
    """

    weight_decay: float = 0.01

    decoupled: ClassVar[bool] = True


@final
@dataclass(frozen=True, kw_only=True)
class RMSprop(_OneOperator):
    """RMSprop, with momentum if asked for.

    Attributes:
        rho: the share that the mean square keeps at an update (alpha in torch).
        inner_epsilon: ε is added before the root is taken, as in Keras.
    """

    learning_rate: float = field(default=0.001, kw_only=False)
    rho: float = 0.9
    epsilon: float = 1e-7
    momentum: float = 0.0
    inner_epsilon: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction(self, "rho", "momentum")

    def slots(self) -> Mapping[str, float]:
        return {"square": 0.0, "momentum": 0.0}

    def operator(self) -> tuple[str, dict[str, Any]]:
        return "RMSpropUpdate", {
            "alpha": self.rho,
            "epsilon": self.epsilon,
            "momentum": self.momentum,
            **_inner(self),
        }


@final
@dataclass(frozen=True, kw_only=True)
class Adagrad(_OneOperator):
    """Adagrad.

    Attributes:
        initial_accumulator: the value that fills the sum of squares at the start.
        inner_epsilon: ε is added before the root is taken, as in Keras.
    """

    learning_rate: float = field(default=0.001, kw_only=False)
    epsilon: float = 1e-7
    initial_accumulator: float = 0.1
    inner_epsilon: bool = False

    def slots(self) -> Mapping[str, float]:
        return {"square": self.initial_accumulator}

    def operator(self) -> tuple[str, dict[str, Any]]:
        return "AdagradUpdate", {"epsilon": self.epsilon, **_inner(self)}


_NAMES: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
}


def optimizer_named(name: str, **options: Any) -> Optimizer:
    """An optimizer by its name in configuration files; `groups` may be a list of tables.

    Raises:
        ConfigError: an unknown name or option.
    """
    if "groups" in options:
        kinds = {"group": Group}
        options["groups"] = tuple(
            g if isinstance(g, Group) else create("parameter", kinds, "group", g) for g in options["groups"]
        )
    return create("optimizer", _NAMES, name, options)
