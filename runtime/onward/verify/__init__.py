"""Compares Onward with onnxruntime, forward and through whole training steps, and exports what passes."""

from onward.verify.calibration import calibrate
from onward.verify.conversion import ConvertedTensor, compare_models
from onward.verify.exporting import export
from onward.verify.forward import compare
from onward.verify.inputs import random_inputs
from onward.verify.quantised import quantised_tolerances
from onward.verify.report import Difference, Report, TensorRow
from onward.verify.tolerance import TOLERANCES, TRAINING_TOLERANCES, Tolerance
from onward.verify.training import compare_step, compare_training, default_losses

__all__ = [
    "TOLERANCES",
    "TRAINING_TOLERANCES",
    "ConvertedTensor",
    "Difference",
    "Report",
    "TensorRow",
    "Tolerance",
    "calibrate",
    "compare",
    "compare_models",
    "compare_step",
    "compare_training",
    "default_losses",
    "export",
    "quantised_tolerances",
    "random_inputs",
]
