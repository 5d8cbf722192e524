"""Bodies of operators as bytes, and back."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onward.graph import bodies_of

__all__ = ["body_bytes", "opsets_of", "read_body"]

_IR_VERSION = 10


def body_bytes(body: ir.Graph) -> bytes | None:
    """All of a body in canonical form; None where its tensors are in other files."""
    if _is_elsewhere(body):
        return None
    proto = ir.serde.serialize_model(ir.Model(body, ir_version=_IR_VERSION))
    del proto.opset_import[:]
    for domain, version in opsets_of(body).items():
        proto.opset_import.add(domain=domain, version=version)
    return proto.SerializeToString(deterministic=True)


def opsets_of(graph: ir.Graph) -> dict[str, int]:
    """The opsets that a graph's operators are of, those of its bodies included."""
    used = _domains(graph)
    return {domain: version for domain, version in sorted(graph.opset_imports.items()) if domain in used}


def _domains(graph: ir.Graph) -> set[str]:
    return {d for node in graph for d in (node.domain, *(d for b in bodies_of(node) for d in _domains(b)))}


def read_body(data: bytes) -> ir.Graph:
    """The body.

    Raises:
        ValueError: the bytes are none.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"not a body: {error}") from error
    body = ir.serde.deserialize_model(proto).graph
    _share_imports(body, dict(body.opset_imports))
    return body


def _share_imports(graph: ir.Graph, opsets: dict[str, int]) -> None:
    for node in graph:
        for inner in bodies_of(node):
            inner.opset_imports.update(opsets)
            used = opsets_of(inner)
            inner.opset_imports.clear()
            inner.opset_imports.update(used)
            _share_imports(inner, used)


def _is_elsewhere(graph: ir.Graph) -> bool:
    tensors = [value.const_value for value in graph.initializers.values()]
    for node in graph:
        if any(_is_elsewhere(inner) for inner in bodies_of(node)):
            return True
        tensors += [
            a.value for a in node.attributes.values() if not a.is_ref() and a.type == ir.AttributeType.TENSOR
        ]
    return any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
