"""Graph → graph: each pass takes a model and returns a model; the argument is left as it was."""

from onward.passes.cast import cast_floats
from onward.passes.expand import expand_onward
from onward.passes.to_inference import to_inference
from onward.passes.to_training import TrainingForm, to_training

__all__ = ["TrainingForm", "cast_floats", "expand_onward", "to_inference", "to_training"]
