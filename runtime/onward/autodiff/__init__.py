"""Differentiation, graph → graph: gradients of values, and the whole training step as one ONNX model."""

from onward.autodiff.gradients import gradients, sum_to

__all__ = ["gradients", "sum_to"]
