"""Runs graphs: the interpreter (NumPy, every operator and dtype) behind one session interface."""

from onward.compile.options import CompileOptions
from onward.engine.interpreter import Interpreter
from onward.engine.session import Session
from onward.engine.stepping import StepSession

__all__ = ["CompileOptions", "Interpreter", "Session", "StepSession"]
