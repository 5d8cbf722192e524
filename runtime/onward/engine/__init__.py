"""Runs graphs: the interpreter (NumPy, every operator and dtype) behind one session interface."""

from onward.engine.interpreter import Interpreter
from onward.engine.session import Session
from onward.engine.stepping import StepSession

__all__ = ["Interpreter", "Session", "StepSession"]
