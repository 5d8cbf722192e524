"""Compares training steps in Onward and in a stock onnxruntime: loss, gradients and all that is new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onward.autodiff import (
    Clip,
    GradientTransform,
    Loss,
    Optimizer,
    TrainingStep,
    training_step,
)
from onward.autodiff.step import OPSET
from onward.engine import Session
from onward.engine.engines import EngineName
from onward.errors import ConfigError
from onward.graph import Array, TensorSpec, canonical_model, dims_of, dtype_of, is_float, numpy_dtype
from onward.passes import in_float32
from onward.verify._steps import Comparison
from onward.verify.inputs import draw, random_inputs
from onward.verify.locate import refuse_random
from onward.verify.report import Report
from onward.verify.tolerance import TRAINING_TOLERANCES, Tolerance, Tolerances

__all__ = ["compare_step", "compare_training", "default_losses"]


def compare_training(
    model: ir.Model,
    losses: Mapping[str, Loss] | None = None,
    optimizer: Optimizer | None = None,
    trainable: Sequence[str] | None = None,
    *,
    inputs: Mapping[str, Array] | None = None,
    targets: Mapping[str, Array] | None = None,
    steps: int = 3,
    seed: int = 0,
    batch: int = 2,
    dims: Mapping[str, int] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    learning_rate: float = 0.01,
    clip: Clip | None = None,
    gradient_transforms: Sequence[GradientTransform] = (),
    accumulate: int = 1,
    tolerance: Tolerances = None,
    engine: EngineName = "auto",
) -> Report:
    """Train a model for some steps in Onward and in onnxruntime and compare every tensor at every step.

    Each engine feeds its own state back. Batches are drawn anew for each step unless they are given.

    Args:
        model: an inference model; at another opset than 21 it is converted, and floats of 16 bits are
            float32, as a trainer has them.
        losses: by output; see `default_losses`.
        optimizer: SGD without momentum by default.
        trainable: names of initializers; by default every weight that the losses depend on.
        inputs: the batch by input name, the same at every step; inputs left out are drawn at random.
        targets: by output name, the same at every step; targets left out are drawn at random.
        steps: how many steps.
        seed: of the random batches and of dropout.
        batch, dims, ranges: see `random_inputs`.
        learning_rate: at every step.
        clip: gradient clipping.
        gradient_transforms: see `training_step`; they come before clipping.
        accumulate: update once in this many steps, and at the last.
        tolerance: in the place of `TRAINING_TOLERANCES`.
        engine: which of our engines is compared; differences are located with the interpreter.

    Raises:
        ConfigError, UnsupportedError, InputError, ShapeError: the step cannot be built, or its inputs drawn.
        VerificationError: onnxruntime refuses the step or fails to run it.
    """
    if steps < 1 or batch < 1 or accumulate < 1:
        raise ConfigError(
            f"steps, batch and accumulate must be at least 1, got {steps}, {batch} and {accumulate}"
        )
    if model.graph.opset_imports.get("") != OPSET:
        from onward.model import upgrade

        model = upgrade(model, OPSET)
    model = in_float32(model)
    if losses is None:
        losses = default_losses(model)
    if optimizer is None:
        from onward.train.optimizers import SGD

        optimizer = SGD()
    if trainable is None:
        trainable = _reached(model, losses)
    step = training_step(
        model,
        losses,
        optimizer,
        trainable,
        gradient_transforms=(*gradient_transforms, *([] if clip is None else [clip])),
        accumulate=accumulate > 1,
        expose_gradients=True,
    )
    if unknown := [name for name in targets or {} if name not in step.targets]:
        raise ConfigError(f"there is a target for {unknown[0]!r}, but no loss; losses: {', '.join(losses)}")
    session = Session(model)
    batches: list[dict[str, Array]] = []
    for i in range(steps):
        feeds = random_inputs(model, seed=seed + i, batch=batch, dims=dims, ranges=ranges, given=inputs)
        shapes = {name: array.shape for name, array in session.run(feeds, list(losses)).items()}
        for index, (output, target) in enumerate(step.targets.items()):
            rng = np.random.default_rng([seed + i, 1_000_000 + index])
            value = next(v for v in model.graph.outputs if v.name == output)
            chosen = (targets or {}).get(output)
            feeds[target] = _target(rng, losses[output], value, shapes[output]) if chosen is None else chosen
        batches.append(feeds)
    return compare_step(
        step,
        batches,
        learning_rate=learning_rate,
        accumulate=accumulate,
        seed=seed,
        tolerance=tolerance,
        engine=engine,
        subject=model.graph.name,
    )


def compare_step(
    step: TrainingStep,
    batches: Sequence[Mapping[str, Array]],
    *,
    learning_rate: float = 0.01,
    accumulate: int = 1,
    seed: int = 0,
    tolerance: Tolerances = None,
    engine: EngineName = "auto",
    subject: str | None = None,
) -> Report:
    """Run a training step over batches in Onward and in onnxruntime, each feeding its own state back.

    Args:
        step: the step.
        batches: for each run the batch's inputs and targets.
        learning_rate: at every step.
        accumulate: of a step that accumulates, update once in this many, and at the last.
        seed: of dropout.
        tolerance: in the place of `TRAINING_TOLERANCES`.
        engine: which of our engines is compared; differences are located with the interpreter.
        subject: what the report calls it.

    Raises:
        UnsupportedError: an engine lacks an operator, or nodes are random; all of them are named.
        InputError, ShapeError: a batch does not fit the step.
        VerificationError: onnxruntime refuses the step or fails to run it.
    """
    if not isinstance(tolerance, Tolerance):
        tolerance = {**TRAINING_TOLERANCES, **(tolerance or {})}
    refuse_random(step.model)
    comparison = Comparison(step, learning_rate, seed, tolerance, engine, accumulate)
    return comparison.run(batches, subject or step.model.graph.name or "model")


def default_losses(model: ir.Model) -> dict[str, Loss]:
    """A loss for every floating-point output: cross-entropy for scores [N, C] with C > 1, else MSE.

    Raises:
        ConfigError: no output is of a floating-point type.
    """
    from onward.train.losses import MSE, CrossEntropy

    losses: dict[str, Loss] = {}
    for value in model.graph.outputs:
        if is_float(value):
            dims = dims_of(value) or ()
            scores = len(dims) == 2 and isinstance(dims[1], int) and dims[1] > 1
            losses[value.name or ""] = CrossEntropy() if scores else MSE()
    if not losses:
        raise ConfigError("the model has no floating-point output to train on")
    return losses


def _reached(model: ir.Model, losses: Mapping[str, Loss]) -> tuple[str, ...]:
    """Weights that the outputs with a loss depend on."""
    from onward.model import trainable_initializers

    pending = [v for v in canonical_model(model).graph.outputs if v.name in losses]
    seen: set[ir.Value] = set(pending)
    while pending:
        node = pending.pop().producer()
        fresh = {v for v in node.inputs if v is not None} - seen if node is not None else set()
        seen |= fresh
        pending += fresh
    names = {v.name for v in seen}
    return tuple(name for name in trainable_initializers(model) if name in names)


def _target(rng: np.random.Generator, loss: Loss, output: ir.Value, shape: tuple[int, ...]) -> Array:
    """Random targets of a loss for an output of this shape."""
    from onward.train.losses import BinaryCrossEntropy, KLDivergence

    shown = ir.Value(name=output.name, type=ir.TensorType(dtype_of(output)), shape=ir.Shape(shape))
    dtype, dims = loss.target(shown)
    extents = [d for d in dims if isinstance(d, int)]
    spec = TensorSpec(f"{output.name}.target", numpy_dtype(dtype), tuple(extents))
    if spec.dtype.kind in "iu":
        return draw(rng, spec, extents, (0, shape[1] if len(shape) > 1 else 2))
    if isinstance(loss, BinaryCrossEntropy):
        return draw(rng, spec, extents, (0.0, 1.0))
    array = draw(rng, spec, extents, None)
    if isinstance(loss, KLDivergence):
        weights = np.exp(array.astype(np.float64))
        return (weights / weights.sum(axis=1, keepdims=True)).astype(spec.dtype)
    return array
