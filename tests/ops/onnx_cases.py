"""The node cases of the ONNX project, generated in memory, as far as their operators are registered."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from tests.ops.harness import OPSET, Array, Case, has_gradient

from onward.graph import has_body, registered

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
        and all(_is_here(node, case.model) for node in case.model.graph.node)
    )


def _is_here(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    if (node.domain, node.op_type) in registered():
        return True
    opset = next(i.version for i in model.opset_import if i.domain == node.domain)
    return has_body(node.domain, node.op_type, opset)


def array_of(content: Any) -> Any:
    """A data set's entry as an array, a list of arrays, or None."""
    if isinstance(content, onnx.TensorProto):
        return onnx.numpy_helper.to_array(content)
    if isinstance(content, list):
        return [array_of(x) for x in content]
    return None if content is None else np.asarray(content)


def has_tensors_only(onnx_case: Any) -> bool:
    """Whether neither sequences nor optionals go in or come out."""
    graph = onnx_case.model.graph
    return all(v.type.WhichOneof("value") == "tensor_type" for v in (*graph.input, *graph.output))


def single_node(onnx_case: Any) -> Case | None:
    """A case of one node and float32 operands in the form of our table; None where it cannot be put so."""
    model = onnx_case.model
    node = model.graph.node[0]
    if len(model.graph.node) != 1 or node.domain or any(a.HasField("g") for a in node.attribute):
        return None
    if not has_tensors_only(onnx_case):
        return None
    data = [array_of(x) for x in onnx_case.data_sets[0][0]]
    arrays = dict(zip([v.name for v in model.graph.input], data, strict=True))
    inputs: list[Array | None] = [arrays[name] if name else None for name in node.input]
    if any(isinstance(x, list) or (x is not None and x.dtype.kind not in "fiub") for x in inputs):
        return None
    floats = {x.dtype for x in inputs if x is not None and x.dtype.kind == "f"}
    if floats != {np.dtype(np.float32)}:
        return None
    attrs = {
        a.name: (a.value if not isinstance(a.value, list) else tuple(a.value))
        for a in (ir.from_proto(p) for p in node.attribute)
    }
    return Case(
        node.op_type,
        inputs,
        attrs,
        opset=next(i.version for i in model.opset_import if i.domain == node.domain),
        outputs=[name and f"o_{name}" for name in node.output],
        name=onnx_case.name,
    )


def as_case(onnx_case: Any) -> Case | None:
    """The same at the opset of gradient rules; None where the operator has no rule."""
    case = single_node(onnx_case)
    if case is None:
        return None
    if not has_gradient(case):
        return None
    return dataclasses.replace(case, opset=OPSET) if _same_at(case.op_type, case.opset, OPSET) else case


def _same_at(op_type: str, opset: int, older: int) -> bool:
    """Whether an operator has the same class, attributes and types at an older opset."""
    schemas = []
    for version in (opset, older):
        try:
            schemas.append(onnx.defs.get_schema(op_type, version, ""))
        except onnx.defs.SchemaError:
            return False
    if any(has_body("", op_type, version) for version in (opset, older)):
        return schemas[0].since_version == schemas[1].since_version
    if any(schema.since_version not in registered()["", op_type] for schema in schemas):
        return False
    newer, old = schemas
    alike = registered()["", op_type][newer.since_version] is registered()["", op_type][old.since_version]
    return alike and set(newer.attributes) == set(old.attributes)
