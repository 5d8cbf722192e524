"""Read, check, write, convert and describe ONNX models. The graph language is `onnx_ir`."""

from __future__ import annotations

from onward.model.adapter_file import read_adapter, write_adapter
from onward.model.atomic import atomic_write
from onward.model.inspection import LayerReport, ModelReport, ValueReport, inspect_model
from onward.model.limits import Limits
from onward.model.provenance import Provenance, current_versions, read_provenance, write_provenance
from onward.model.reader import check_model, from_bytes, load
from onward.model.shapes import infer_shapes
from onward.model.versions import upgrade
from onward.model.weights import trainable_initializers
from onward.model.writer import save, to_bytes

__all__ = [
    "LayerReport",
    "Limits",
    "ModelReport",
    "Provenance",
    "ValueReport",
    "atomic_write",
    "check_model",
    "current_versions",
    "from_bytes",
    "infer_shapes",
    "inspect_model",
    "load",
    "read_adapter",
    "read_provenance",
    "save",
    "to_bytes",
    "trainable_initializers",
    "upgrade",
    "write_adapter",
    "write_provenance",
]
