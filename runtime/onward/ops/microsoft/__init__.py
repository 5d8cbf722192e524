"""Operators of `com.microsoft`, which onnxruntime's optimiser and quantiser write, in standard ones.

Each file has one operator as a rule that writes it in current operators: both engines, gradients and exports
see these only. What onnxruntime computes in 8 bits between its inputs and outputs is computed here in floats:
results of quantised operators are within one step of their scale.
"""

DOMAIN = "com.microsoft"

__all__ = ["DOMAIN"]
