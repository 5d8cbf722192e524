"""TensorProto in, NumPy-backed `onnx_ir` tensors out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
import onnx_ir as ir

from onward.errors import InvalidModelError
from onward.graph.types import TextTensor

__all__ = [
    "check_tensor",
    "check_tensor_header",
    "decode",
    "densify",
    "graph_tensors",
    "node_tensors",
    "storage_bytes",
]

MAX_RANK = 64
MAX_BYTES = 2**48
_PAYLOADS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_ELSEWHERE = (
    "UNDEFINED",
    "FLOAT",
    "COMPLEX64",
    "DOUBLE",
    "COMPLEX128",
    "INT64",
    "UINT64",
    "UINT32",
    "STRING",
)
_INT32_TYPES = tuple(dtype for dtype in ir.DataType if dtype.name not in _ELSEWHERE)
_FIELD_OF = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.COMPLEX64: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT64: "uint64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.STRING: "string_data",
    **dict.fromkeys(_INT32_TYPES, "int32_data"),
}
_COMPLEX = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)


def storage_bytes(dtype: ir.DataType, dims: Iterable[int]) -> int:
    """Bytes that `raw_data` or an external file holds for a tensor (sub-byte types are packed)."""
    return -(-math.prod(dims) * dtype.bitwidth // 8)


def check_tensor_header(tensor: onnx.TensorProto, where: str) -> ir.DataType:
    """Refuse a tensor whose type or dims cannot be meant; returns its dtype.

    Raises:
        InvalidModelError: unknown or undefined dtype; a negative dim, more than 64 dims, or a size that no
            machine addresses.
    """
    label = f"{where} tensor {tensor.name!r}"
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        raise InvalidModelError(
            f"{label} has data type number {tensor.data_type}, which ONNX does not define"
        ) from None
    if dtype not in _FIELD_OF:
        raise InvalidModelError(f"{label} has data type {dtype.name}: a tensor needs a defined element type")
    if len(tensor.dims) > MAX_RANK:
        raise InvalidModelError(f"{label} has {len(tensor.dims)} dimensions; at most {MAX_RANK} are possible")
    if any(dim < 0 for dim in tensor.dims):
        raise InvalidModelError(f"{label} has a negative dimension in {list(tensor.dims)}")
    bits = 64 if dtype == ir.DataType.STRING else dtype.bitwidth
    if math.prod(dim for dim in tensor.dims if dim) * bits // 8 > MAX_BYTES:
        raise InvalidModelError(f"{label} has dims {list(tensor.dims)}: more than any machine holds")
    return dtype


def check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    """Refuse a tensor whose payload does not hold exactly what its dtype and dims say.

    External tensors are checked by header only; their file is checked when it is read.

    Raises:
        InvalidModelError: see `check_tensor_header`; payload in several fields, in the wrong field, or of
            the wrong length.
    """
    dtype = check_tensor_header(tensor, where)
    label = f"{where} tensor {tensor.name!r}"
    present = [field for field in _PAYLOADS if len(getattr(tensor, field))]
    if tensor.HasField("raw_data"):
        present.insert(0, "raw_data")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if any(field != "raw_data" or tensor.raw_data for field in present):
            raise InvalidModelError(f"{label} has both external and inline data")
        if dtype == ir.DataType.STRING:
            raise InvalidModelError(f"{label} holds strings, which cannot be external data")
        return
    if len(present) > 1:
        raise InvalidModelError(f"{label} stores its data more than once: in {' and '.join(present)}")
    count = math.prod(tensor.dims)
    field = present[0] if present else _FIELD_OF[dtype]
    if field == "raw_data" and dtype != ir.DataType.STRING:
        expected, found, unit = storage_bytes(dtype, tensor.dims), len(tensor.raw_data), "bytes"
    elif field == _FIELD_OF[dtype]:
        found, unit = len(getattr(tensor, field)), "values"
        if dtype in _COMPLEX:
            expected = 2 * count
        elif dtype.bitwidth < 6 if dtype != ir.DataType.STRING else False:
            expected = -(-count * dtype.bitwidth // 8)
        else:
            expected = count
    else:
        raise InvalidModelError(f"{label} of type {dtype.name} stores its data in {field}")
    if found != expected:
        raise InvalidModelError(
            f"{label} of type {dtype.name} and dims {list(tensor.dims)} needs {expected} {unit} in {field}, "
            f"but has {found}: the file is damaged or was written wrongly"
        )


def decode(tensor: onnx.TensorProto, where: str) -> ir.TensorProtocol:
    """A checked inline tensor as a read-only NumPy-backed one that does not keep the protobuf alive."""
    shape = ir.Shape(tuple(tensor.dims))
    metadata = {entry.key: entry.value for entry in tensor.metadata_props} or None
    doc = tensor.doc_string or None
    if tensor.data_type == onnx.TensorProto.STRING:
        return TextTensor(
            list(tensor.string_data), shape=shape, name=tensor.name, doc_string=doc, metadata_props=metadata
        )
    dtype = ir.DataType(tensor.data_type)
    if 0 in tensor.dims:
        array = np.zeros(tuple(tensor.dims), dtype=dtype.numpy())
    else:
        array = ir.serde.TensorProtoTensor(tensor).numpy()
    return from_array(array, dtype, tensor.name, where, doc, metadata)


def from_array(
    array: np.ndarray,
    dtype: ir.DataType,
    name: str,
    where: str,
    doc: str | None = None,
    metadata: dict[str, str] | None = None,
) -> ir.Tensor[np.ndarray]:
    """Wrap an array, read-only.

    Raises:
        InvalidModelError: a boolean that is neither 0 nor 1.
    """
    if dtype == ir.DataType.BOOL and array.size and int(array.view(np.uint8).max()) > 1:
        raise InvalidModelError(f"{where} tensor {name!r} holds booleans that are neither 0 nor 1")
    array.flags.writeable = False
    return ir.Tensor(array, dtype=dtype, name=name, doc_string=doc, metadata_props=metadata)


def densify(
    sparse: onnx.SparseTensorProto, where: str, max_bytes: int, say: Callable[[str], None] = lambda _: None
) -> onnx.TensorProto:
    """The dense tensor that a COO sparse tensor stands for.

    Source: ONNX IR specification, SparseTensorProto: `values` [NNZ]; `indices` [NNZ] linear, or
    [NNZ, rank] by coordinate, in strictly ascending order. Others are read, and said: of an index that is
    there twice, the last value counts.

    Raises:
        InvalidModelError: the parts do not fit together, or the dense form exceeds `max_bytes`.
    """
    name = sparse.values.name
    label = f"{where} sparse tensor {name!r}"
    values, indices = sparse.values, sparse.indices
    for part in (values, indices):
        check_tensor(part, where)
        if part.data_location == onnx.TensorProto.EXTERNAL:
            raise InvalidModelError(f"{label} keeps its data in another file; export it as a dense tensor")
    header = onnx.TensorProto(name=name, data_type=values.data_type, dims=sparse.dims)
    dtype = check_tensor_header(header, where)
    if dtype == ir.DataType.STRING or dtype.bitwidth < 8:
        raise InvalidModelError(f"{label} has type {dtype.name}; export it as a dense tensor")
    if storage_bytes(dtype, sparse.dims) > max_bytes:
        raise InvalidModelError(
            f"{label} of dims {list(sparse.dims)} is larger than {max_bytes} bytes when dense"
        )
    count, rank = len(values.dims) == 1 and values.dims[0], len(sparse.dims)
    if indices.data_type != onnx.TensorProto.INT64 or list(indices.dims) not in ([count], [count, rank]):
        raise InvalidModelError(
            f"{label}: indices have dims {list(indices.dims)} for {list(values.dims)} values"
        )
    position = decode(indices, where).numpy()
    if position.ndim == 2:
        if (position < 0).any() or (position >= np.asarray(sparse.dims)).any():
            raise InvalidModelError(f"{label}: an index lies outside dims {list(sparse.dims)}")
        position = (
            np.ravel_multi_index(tuple(position.T), tuple(sparse.dims)) if position.size else position[:, 0]
        )
    total = math.prod(sparse.dims)
    if position.size and (position.min() < 0 or position.max() >= total):
        raise InvalidModelError(f"{label}: an index lies outside dims {list(sparse.dims)}")
    if (np.diff(position) <= 0).any():
        say(f"{label}: indices do not ascend: each value is put where its index says")
    dense = np.zeros(total, dtype=dtype.numpy())
    dense[position] = decode(values, where).numpy()
    header.raw_data = dense.astype(dense.dtype.newbyteorder("<"), copy=False).tobytes()
    return header


def node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    """Tensors among a node's attributes, those of its subgraphs left out."""
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor of a graph and its subgraphs."""
    yield from graph.initializer
    yield from nodes_tensors(graph.node)


def nodes_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Every dense tensor among the attributes of nodes, subgraphs included."""
    for node in nodes:
        yield from node_tensors(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graph_tensors(attribute.g)
            for subgraph in attribute.graphs:
                yield from graph_tensors(subgraph)
