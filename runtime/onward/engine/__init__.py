"""Runs graphs: compiled plans, and the interpreter (NumPy, every operator and dtype), behind one session."""

from onward.compile.options import CompileOptions
from onward.engine.interpreter import Interpreter
from onward.engine.session import Session
from onward.engine.stepping import StepSession
from onward.graph.foreign import Foreign, forget_foreign, register_foreign
from onward.graph.run_limits import RunLimits, run_limits

__all__ = [
    "CompileOptions",
    "Foreign",
    "Interpreter",
    "RunLimits",
    "Session",
    "StepSession",
    "forget_foreign",
    "register_foreign",
    "run_limits",
]
