"""Operators of `ai.onnx.ml`: what converters of classical models write.

Most are rules that write standard operators, so that they compile and differentiate. Trees become
`ai.onward.DecisionForest` with standard operators behind it. Where the specification leaves something open,
onnxruntime's results stand.
"""

DOMAIN = "ai.onnx.ml"

__all__ = ["DOMAIN"]
