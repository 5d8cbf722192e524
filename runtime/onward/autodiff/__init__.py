"""Differentiation, graph → graph: gradients of values, and the whole training step as one ONNX model."""

from onward.autodiff.beside import Average
from onward.autodiff.gradient_nodes import expand_gradients
from onward.autodiff.gradients import MissingGradientsError, NoGradient, gradients, sum_to
from onward.autodiff.objective import Loss, Weighted, with_loss
from onward.autodiff.pieces import Pieces
from onward.autodiff.ranks import Ranks
from onward.autodiff.step import OPSET, TrainingStep, training_step
from onward.autodiff.transforms import Clip, Collective, GradientTransform
from onward.autodiff.update import Optimizer, UpdateCount

__all__ = [
    "OPSET",
    "Average",
    "Clip",
    "Collective",
    "GradientTransform",
    "Loss",
    "MissingGradientsError",
    "NoGradient",
    "Optimizer",
    "Pieces",
    "Ranks",
    "TrainingStep",
    "UpdateCount",
    "Weighted",
    "expand_gradients",
    "gradients",
    "sum_to",
    "training_step",
    "with_loss",
]
