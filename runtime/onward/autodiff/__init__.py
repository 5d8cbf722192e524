"""Differentiation, graph → graph: gradients of values, and the whole training step as one ONNX model."""

from onward.autodiff.gradients import gradients, sum_to
from onward.autodiff.step import OPSET, Clip, Loss, Optimizer, TrainingStep, training_step, with_loss

__all__ = [
    "OPSET",
    "Clip",
    "Loss",
    "Optimizer",
    "TrainingStep",
    "gradients",
    "sum_to",
    "training_step",
    "with_loss",
]
