"""The node cases of the ONNX project, generated in memory, as far as their operators are registered."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from tests.ops.harness import OPSET, Array, Case

from onward.graph import find, registered

GENERATOR_WARNINGS = (
    "overflow encountered in cast",
    "divide by zero encountered in divide",
    "divide by zero encountered in log",
    "invalid value encountered in divide",
)
"""What NumPy says while the project computes its expected values."""


@functools.cache
def onnx_cases() -> tuple[Any, ...]:
    """The cases whose operators are all registered; functions are not expanded."""
    with warnings.catch_warnings():
        for message in GENERATOR_WARNINGS:
            warnings.filterwarnings("ignore", message, RuntimeWarning)
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    return tuple(
        case
        for case in found
        if not case.name.endswith("_expanded")
        and all((node.domain, node.op_type) in registered() for node in case.model.graph.node)
    )


def array_of(content: Any) -> Any:
    """A data set's entry as an array, a list of arrays, or None."""
    if isinstance(content, onnx.TensorProto):
        return onnx.numpy_helper.to_array(content)
    if isinstance(content, list):
        return [array_of(x) for x in content]
    return None if content is None else np.asarray(content)


def as_case(onnx_case: Any) -> Case | None:
    """A case of one node and float32 operands in the form of our table, at the opset of gradient rules.

    None where it cannot be put so: several nodes, other types, or a version that has no rule.
    """
    model = onnx_case.model
    if len(model.graph.node) != 1:
        return None
    node = model.graph.node[0]
    opset = next(i.version for i in model.opset_import if i.domain == node.domain)
    if node.domain or not hasattr(find("", node.op_type, opset), "gradient"):
        return None
    if onnx.defs.get_schema(node.op_type, opset).since_version > OPSET:
        try:
            same = find("", node.op_type, OPSET) is find("", node.op_type, opset)
        except Exception:  # noqa: BLE001 the operator is newer than the opset
            same = False
        opset = OPSET if same else opset
    else:
        opset = OPSET if opset > OPSET else opset
    if opset < OPSET and find("", node.op_type, opset) is find("", node.op_type, OPSET):
        opset = OPSET
    data = [array_of(x) for x in onnx_case.data_sets[0][0]]
    arrays = dict(zip([v.name for v in model.graph.input], data, strict=True))
    inputs: list[Array | None] = [arrays[name] if name else None for name in node.input]
    if any(isinstance(x, list) or (x is not None and x.dtype.kind not in "fiub") for x in inputs):
        return None
    if any(x is not None and x.dtype.kind == "f" and x.dtype != np.float32 for x in inputs):
        return None
    if not any(x is not None and x.dtype == np.float32 for x in inputs):
        return None
    attrs = {
        a.name: (a.value if not isinstance(a.value, list) else tuple(a.value))
        for a in (ir.from_proto(p) for p in node.attribute)
    }
    return Case(
        node.op_type,
        inputs,
        attrs,
        opset=opset,
        outputs=[name and f"o_{name}" for name in node.output],
        name=onnx_case.name,
    )
