"""What a trainer makes of the model and the options that it is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias, cast

import onnx_ir as ir

from onward.autodiff import OPSET, expand_gradients
from onward.errors import ConfigError
from onward.graph import Builder, canonical_model
from onward.model import load, trainable_initializers, upgrade
from onward.passes.lora import LoRA, adapters_of, add_lora
from onward.passes.quantization import in_floats
from onward.train.losses import FunctionLoss, Loss, loss_named
from onward.train.optimizers import Optimizer

LossLike: TypeAlias = "Loss | str | Callable[[Builder, ir.Value, ir.Value], ir.Value]"
"""A loss, its name, or a function that writes it: see `FunctionLoss`."""

_MICROSOFT_DOMAIN = "com.microsoft"

__all__ = [
    "LossLike",
    "adapted",
    "check_groups",
    "choose_parameters",
    "order_losses",
    "prepare_model",
    "read_model",
]


def read_model(model: ir.Model | str | Path | Any) -> ir.Model:
    """What is meant by a model: itself, what has it as `model`, or a file.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(model, str | Path):
        model = load(model)
    model = getattr(model, "model", model)
    if not isinstance(model, ir.Model):
        raise ConfigError(f"a model is an onnx_ir.Model, a network or a path, not {type(model).__name__}")
    return model


def prepare_model(model: ir.Model | str | Path | Any) -> ir.Model:
    """A model of the trainer's own at the opset that gradients are written in.

    What is quantised is there as floats and their rounding, see `onward.passes.in_floats`. Floats of 16 bits
    stay: they are what the trained model has again, and `onward.passes.in_float32` is what is trained.

    Raises:
        ConfigError: neither a model, nor something that has one, nor a path.
    """
    model = expand_gradients(read_model(model))
    current = upgrade(model, OPSET) if model.graph.opset_imports.get("") != OPSET else model
    if any(n.op_type == "DequantizeLinear" or n.domain == _MICROSOFT_DOMAIN for n in current.graph):
        current = in_floats(canonical_model(current), trainable=True)
    return current.clone() if current is model else current  # the caller may change its own


def order_losses(losses: Mapping[str, LossLike], outputs: Sequence[str]) -> dict[str, Loss]:
    """Losses by output in the model's order; names that are no outputs stay, to be refused with the step."""
    names = sorted(losses, key=lambda name: outputs.index(name) if name in outputs else len(outputs))
    chosen = {name: losses[name] for name in names}
    return {name: _loss(loss) for name, loss in chosen.items()}


def _loss(loss: LossLike) -> Loss:
    if isinstance(loss, str):
        return loss_named(loss)
    return FunctionLoss(loss) if inspect.isroutine(loss) else cast(Loss, loss)


def check_groups(optimizer: Optimizer, trainable: Sequence[str]) -> None:
    """Refuse parameter groups that no trained parameter belongs to, with a `ConfigError`."""
    for group in optimizer.groups:
        if not any(fnmatchcase(name, group.pattern) for name in trainable):
            raise ConfigError(
                f"no trained parameter matches the pattern {group.pattern!r} of a parameter group; "
                f"there are {', '.join(trainable[:20])}"
            )


def choose_parameters(
    model: ir.Model, outputs: Collection[str], patterns: Sequence[str] | None, freeze: Sequence[str]
) -> list[str]:
    """Names of the parameters to train: chosen by globs, or all weights that these outputs depend on."""
    names = trainable_initializers(model, patterns)
    frozen = set(trainable_initializers(model, freeze)) if freeze else set()
    if patterns is None:
        graph = canonical_model(model).graph
        reached = _ancestors(v for v in graph.outputs if v.name in outputs)
        names = tuple(name for name in names if graph.initializers[name] in reached)
    return [name for name in names if name not in frozen]


def adapted(model: ir.Model, lora: LoRA, trained: Sequence[str], seed: int) -> tuple[ir.Model, list[str]]:
    """The model with adapters, and what is trained: their matrices, and weights as they are."""
    model = add_lora(model, lora, leave=trained, seed=seed)
    matrices = [name for each in adapters_of(model) for name in (each.a, each.b)]
    return model, [*matrices, *trained]


def _ancestors(values: Iterable[ir.Value]) -> set[ir.Value]:
    """The values that these are computed from, themselves included."""
    found: set[ir.Value] = set()
    pending = list(values)
    while pending:
        value = pending.pop()
        if value in found:
            continue
        found.add(value)
        if (node := value.producer()) is not None:
            pending.extend(v for v in node.inputs if v is not None)
    return found
