"""`onnx_ir` models → ONNX files and bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onward.errors import InvalidModelError, StorageError
from onward.model.atomic import atomic_write
from onward.model.reader import TRAINING_INFO
from onward.model.shapes import root_cause

__all__ = ["save", "to_bytes"]

PROTOBUF_LIMIT = 2**31 - 1
_INLINE_BYTES = 1024
_GRAPH_FIELD, _INITIALIZER_FIELD, _RAW_DATA_FIELD = 7, 5, 9
_Chunk = bytes | memoryview


def to_bytes(model: ir.Model) -> bytes:
    """The model as a serialised ModelProto, equal models giving equal bytes.

    Raises:
        InvalidModelError: the model holds something that ONNX cannot express, or is larger than the 2 GiB
            at which protobuf ends (`save` stores such a model with external data).
    """
    chunks = list(_model_chunks(model, None))
    size = sum(len(chunk) for chunk in chunks)
    if size > PROTOBUF_LIMIT:
        raise InvalidModelError(
            f"the model has {size} bytes, beyond protobuf's 2 GiB: save it with external data"
        )
    return b"".join(chunks)


def save(
    model: ir.Model, path: str | os.PathLike[str], *, external_data_threshold: int = 1_900_000_000
) -> None:
    """Write a model so that `path` holds the old file or the new one, whatever happens.

    When the initialisers have more bytes than `external_data_threshold`, those above 1 KiB go to a file
    beside the model, `<name>.<16 hex digits of its SHA-256>.data`. It is complete on the device before the
    model that refers to it takes its place; data files of earlier models at `path` are removed afterwards.
    The model itself is not changed.

    Args:
        model: the model; every tensor must be in memory, as `load` leaves it.
        path: the .onnx file to create or replace, in a folder that exists.
        external_data_threshold: bytes of initialisers above which they are stored beside the model.

    Raises:
        StorageError: the folder or the device refuses; the old file is unchanged.
        InvalidModelError: the model holds something that ONNX cannot express.
    """
    target = Path(path)
    total = sum(tensor.nbytes for value in _initialisers(model) if (tensor := value.const_value) is not None)
    if total <= external_data_threshold:
        _write(model, target, None)
        return
    large = [
        value
        for value in _initialisers(model)
        if (tensor := value.const_value) is not None and tensor.nbytes > _INLINE_BYTES and _is_numeric(tensor)
    ]
    places: dict[str, tuple[int, int]] = {}
    digest, offset = hashlib.sha256(), 0
    for value in large:
        data = _raw(value)
        digest.update(data)
        places[value.name or ""] = (offset, len(data))
        offset += len(data)
    data_file = target.with_name(f"{target.name}.{digest.hexdigest()[:16]}.data")
    with atomic_write(data_file) as file:
        for value in large:
            file.write(_raw(value))
    _write(model, target, (data_file.name, places))
    _remove_stale(target, data_file.name)


def _write(model: ir.Model, target: Path, external: tuple[str, dict[str, tuple[int, int]]] | None) -> None:
    chunks = list(_model_chunks(model, external))
    size = sum(len(chunk) for chunk in chunks)
    if size > PROTOBUF_LIMIT:
        raise StorageError(
            f"{target}: the model file would have {size} bytes, beyond protobuf's 2 GiB; "
            "lower external_data_threshold"
        )
    with atomic_write(target) as file:
        for chunk in chunks:
            file.write(chunk)


def _remove_stale(target: Path, current: str) -> None:
    """Data files that only an earlier model at `target` can have referred to."""
    ours = re.compile(re.escape(target.name) + r"\.[0-9a-f]{16}\.data")
    with contextlib.suppress(OSError):
        for name in os.listdir(target.parent):
            if name != current and ours.fullmatch(name):
                os.unlink(target.parent / name)


def _initialisers(model: ir.Model) -> list[ir.Value]:
    return list(model.graph.initializers.values())


def _is_numeric(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING


def _raw(value: ir.Value) -> _Chunk:
    """A tensor's bytes as `raw_data` has them, without a copy where memory holds them so already."""
    tensor = value.const_value
    assert tensor is not None
    array = tensor.numpy()
    if (
        tensor.dtype.bitwidth >= 8
        and array.flags.c_contiguous
        and array.dtype.byteorder != ">"
        and array.size
    ):
        little = np.little_endian or array.dtype.itemsize == 1
        if little:
            return array.reshape(-1).view(np.uint8).data
    return tensor.tobytes()


def _model_chunks(
    model: ir.Model, external: tuple[str, dict[str, tuple[int, int]]] | None
) -> Iterator[_Chunk]:
    """ModelProto's wire format in pieces, so that weights are never copied into a protobuf.

    Source: protobuf encoding guide; field numbers from onnx.proto (ModelProto.graph = 7,
    GraphProto.initializer = 5, TensorProto.raw_data = 9).
    """
    values = _initialisers(model)
    graph = model.graph
    view: Any = ir.GraphView(
        graph.inputs,
        graph.outputs,
        nodes=tuple(graph),
        name=graph.name or "graph",
        doc_string=graph.doc_string,
        metadata_props=graph.metadata_props,
    )
    shell = ir.Model(
        ir.Graph((), (), nodes=(), opset_imports=model.opset_imports),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        functions=(),
        metadata_props=dict(model.metadata_props),
        device_configurations=model.device_configurations,
    )
    body = onnx.GraphProto()
    try:
        head = ir.serde.serialize_model(shell)
        for function in model.functions.values():
            ir.serde.serialize_function_into(head.functions.add(), function)
        ir.serde.serialize_graph_into(body, view, model_ir_version=model.ir_version)
    except (ir.serde.SerdeError, TypeError, ValueError, NotImplementedError) as error:
        raise InvalidModelError(
            f"graph {graph.name!r} cannot be written as ONNX: {root_cause(error)}"
        ) from error
    head.ClearField("graph")
    for value in values:
        if annotation := value.meta.get("quant_parameter_tensor_names"):
            entry = body.quantization_annotation.add(tensor_name=value.name)
            for key in sorted(annotation):
                entry.quant_parameter_tensor_names.add(key=key, value=annotation[key])
    for info in model.meta.get(TRAINING_INFO, ()):
        head.training_info.add().ParseFromString(info)
    pieces = [chunk for value in values for chunk in _tensor_chunks(value, external)]
    start = body.SerializeToString(deterministic=True)
    yield head.SerializeToString(deterministic=True)
    yield _tag(_GRAPH_FIELD, len(start) + sum(len(piece) for piece in pieces))
    yield start
    yield from pieces


def _tensor_chunks(
    value: ir.Value, external: tuple[str, dict[str, tuple[int, int]]] | None
) -> Iterator[_Chunk]:
    tensor = value.const_value
    if tensor is None:
        raise InvalidModelError(f"initialiser {value.name!r} has no data: give it a value before saving")
    proto = onnx.TensorProto(name=value.name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    for key in sorted(tensor.metadata_props):
        proto.metadata_props.add(key=key, value=tensor.metadata_props[key])
    if external is not None and value.name in external[1]:
        offset, length = external[1][value.name]
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, entry in (("location", external[0]), ("offset", str(offset)), ("length", str(length))):
            proto.external_data.add(key=key, value=entry)
        head = proto.SerializeToString(deterministic=True)
        yield _tag(_INITIALIZER_FIELD, len(head)) + head
    elif not _is_numeric(tensor):
        proto.string_data.extend(ir.serde.serialize_tensor(tensor).string_data)
        head = proto.SerializeToString(deterministic=True)
        yield _tag(_INITIALIZER_FIELD, len(head)) + head
    else:
        head, data = proto.SerializeToString(deterministic=True), _raw(value)
        inner = _tag(_RAW_DATA_FIELD, len(data))
        yield _tag(_INITIALIZER_FIELD, len(head) + len(inner) + len(data)) + head + inner
        yield data


def _tag(field: int, length: int) -> bytes:
    """Field number and length of a length-delimited field."""
    out = bytearray([field << 3 | 2])
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)
