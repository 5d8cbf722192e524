"""The graph language: ONNX operators as classes, type inference, and a builder that emits typed nodes.

A graph is an `onnx_ir` graph and nothing else. This package adds what `onnx_ir` leaves open: what an
operator means (`Op`, found by domain, type and opset), which types its outputs have (`infer_node`), and
how new nodes are written (`Builder`). It holds no operator; those are in `onward.ops`, one file each.
"""

from onward.graph.bodies import BodyOp, RunBody, around, bodies_of, capture, infer_body, inline, inlined
from onward.graph.builder import Builder
from onward.graph.canonical import canonical_graph, canonical_model, current_versions
from onward.graph.evaluate import Evaluator, Observer
from onward.graph.expression import Expression
from onward.graph.functions import has_body
from onward.graph.infer import infer_node
from onward.graph.op import (
    ONWARD_DOMAIN,
    Op,
    attributes_of,
    bind,
    find,
    has_schemas,
    is_weight_operand,
    op,
    registered,
)
from onward.graph.origin import opset_of
from onward.graph.own import import_file
from onward.graph.replace import replace_node
from onward.graph.resampling import Resampling
from onward.graph.types import (
    Array,
    Dim,
    TensorSpec,
    TextTensor,
    dims_of,
    dtype_of,
    is_float,
    is_tensor,
    numpy_dtype,
    spec_of,
    static_shape,
)
from onward.graph.windows import Extents, Geometry

__all__ = [
    "ONWARD_DOMAIN",
    "Array",
    "BodyOp",
    "Builder",
    "Dim",
    "Evaluator",
    "Expression",
    "Extents",
    "Geometry",
    "Observer",
    "Op",
    "Resampling",
    "RunBody",
    "TensorSpec",
    "TextTensor",
    "around",
    "attributes_of",
    "bind",
    "bodies_of",
    "canonical_graph",
    "canonical_model",
    "capture",
    "current_versions",
    "dims_of",
    "dtype_of",
    "find",
    "has_body",
    "has_schemas",
    "import_file",
    "infer_body",
    "infer_node",
    "inline",
    "inlined",
    "is_float",
    "is_tensor",
    "is_weight_operand",
    "numpy_dtype",
    "op",
    "opset_of",
    "registered",
    "replace_node",
    "spec_of",
    "static_shape",
]
