"""The graph language: ONNX operators as classes, type inference, and a builder that emits typed nodes.

A graph is an `onnx_ir` graph and nothing else. This package adds what `onnx_ir` leaves open: what an
operator means (`Op`, found by domain, type and opset), which types its outputs have (`infer_node`), and
how new nodes are written (`Builder`). It holds no operator; those are in `onward.ops`, one file each.
"""

from onward.graph.builder import Builder
from onward.graph.expression import Expression
from onward.graph.infer import infer_node
from onward.graph.op import ONWARD_DOMAIN, Op, bind, find, op, registered
from onward.graph.types import (
    Array,
    Dim,
    TensorSpec,
    dims_of,
    dtype_of,
    is_float,
    numpy_dtype,
    spec_of,
    static_shape,
)
from onward.graph.windows import Extents, Geometry

__all__ = [
    "ONWARD_DOMAIN",
    "Array",
    "Builder",
    "Dim",
    "Expression",
    "Extents",
    "Geometry",
    "Op",
    "TensorSpec",
    "bind",
    "dims_of",
    "dtype_of",
    "find",
    "infer_node",
    "is_float",
    "numpy_dtype",
    "op",
    "registered",
    "spec_of",
    "static_shape",
]
