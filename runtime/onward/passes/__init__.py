"""Graph → graph: each pass takes a model and returns a model; the argument is left as it was."""

from onward.passes.cast import cast_floats
from onward.passes.expand import expand_onward

__all__ = ["cast_floats", "expand_onward"]
