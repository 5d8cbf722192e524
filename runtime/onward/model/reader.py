"""ONNX files and bytes → checked `onnx_ir` models."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable

import google.protobuf.message
import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onward.errors import InvalidModelError, OnwardError, ShapeError, StorageError, UnsupportedError
from onward.graph.op import has_schemas, versions_of
from onward.model import tensors
from onward.model.external import ModelFolder, read_whole
from onward.model.leniency import LENIENCIES, forgive, with_types
from onward.model.limits import Limits
from onward.model.shapes import KEEP_BYTES, infer_shapes, root_cause, skeleton
from onward.model.structure import all_nodes, check_count, check_structure

__all__ = ["TRAINING_INFO", "check_model", "from_bytes", "load"]

TRAINING_INFO = "onward.training_info"
"""Key of `ir.Model.meta`: the file's TrainingInfoProto messages, serialised, as a tuple of bytes."""

_LAST_IR_WITH_FORCED_INPUTS = 3
_HAS_LAYER_NORM = 17
_MICROSOFT_DOMAIN = "com.microsoft"


def load(path: str | os.PathLike[str], *, limits: Limits | None = None, mapped: bool = False) -> ir.Model:
    """Read an ONNX file, with its external data, into memory.

    The result is checked (structure, `onnx.checker`), has model-local functions inlined, sparse initialisers
    made dense, tensor constants of two or more elements and the initialisers of subgraphs turned into
    initialisers of the main graph, and types and shapes inferred. Every tensor is a read-only NumPy array:
    nothing refers to a file any more, unless `mapped`. A file of IR version 3 or older, which had to list its
    initialisers as inputs, becomes version 4 with those inputs gone.

    Args:
        path: the .onnx file. External data must be regular files in the same folder, not links.
        limits: bounds on size, nodes and nesting; `Limits()` when left out.
        mapped: read large external tensors where the file has them, so that processes that use the model
            share their memory. The file must then neither change nor become shorter while the model is used:
            a process that reads what is no longer there is ended. Replacing it by another file is safe.

    Raises:
        StorageError: the file is missing, not a regular file, or cannot be read.
        InvalidModelError: the file is no sound ONNX model; the message says what is wrong and where.
        ShapeError: inferred shapes contradict one another or the declared ones.
        UnsupportedError: newer than the installed onnx, or of a type that the graph library lacks.
    """
    bounds = Limits() if limits is None else limits
    name = os.fspath(path)
    with ModelFolder(os.path.dirname(name), bounds.max_external_bytes, mapped=mapped) as folder:
        return _named(lambda: _parse(_read(name, bounds)), name, bounds, folder)


def from_bytes(data: bytes, *, name: str = "model", limits: Limits | None = None) -> ir.Model:
    """Read a serialised ModelProto as `load` does; external data is refused, having no folder.

    Args:
        data: the bytes of a .onnx file.
        name: what messages call the model.
        limits: bounds; `Limits()` when left out.

    Raises:
        InvalidModelError, ShapeError, UnsupportedError: see `load`.
    """
    bounds = Limits() if limits is None else limits
    if len(data) > bounds.max_file_bytes:
        raise InvalidModelError(
            f"{name}: {len(data)} bytes; Limits.max_file_bytes allows {bounds.max_file_bytes}"
        )
    return _named(lambda: _parse(data), name, bounds, None)


def check_model(model: ir.Model) -> None:
    """Run `onnx.checker` on a model, the bytes of large initialisers left out.

    Raises:
        InvalidModelError: with the first useful line of the checker's message.
    """
    _run_checker(skeleton(model))


def _named(
    read: Callable[[], onnx.ModelProto], name: str, limits: Limits, folder: ModelFolder | None
) -> ir.Model:
    try:
        return _build(read(), limits, folder)
    except StorageError:
        raise
    except OnwardError as error:
        raise type(error)(f"{name}: {error}") from error
    except (RecursionError, MemoryError) as error:
        raise InvalidModelError(f"{name}: too large or too deep to read ({type(error).__name__})") from error
    except Exception as error:
        raise InvalidModelError(f"{name}: the model cannot be understood: {root_cause(error)}") from error


def _read(path: str, limits: Limits) -> bytes:
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"{path}: the model file cannot be opened ({reason})") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = (
                "a folder: give the .onnx file in it"
                if stat.S_ISDIR(status.st_mode)
                else "not a regular file"
            )
            raise StorageError(f"{path}: it is {kind}")
        if status.st_size > limits.max_file_bytes:
            raise InvalidModelError(
                f"{status.st_size} bytes; Limits.max_file_bytes allows {limits.max_file_bytes}"
            )
        return read_whole(descriptor, status.st_size)
    except OSError as error:
        raise StorageError(f"{path}: the model file cannot be read ({error.strerror or error})") from error
    finally:
        os.close(descriptor)


def _build(proto: onnx.ModelProto, limits: Limits, folder: ModelFolder | None) -> ir.Model:
    check_count(proto, limits)
    forgiven = list(forgive(proto))
    check_structure(proto, limits)
    _call_default_domain_empty(proto, proto.graph.node)
    _name_domain_of_fused(proto)
    for function in proto.functions:
        _call_default_domain_empty(function, function.node)
    _complete_calls(proto)
    weights, emptied = _take_tensors(proto, limits, folder, forgiven.append)
    _run_checker(_with_inputs_for(proto, emptied))
    training_info = tuple(info.SerializeToString() for info in proto.training_info)
    try:
        model = ir.serde.deserialize_model(proto)
    except (ir.serde.SerdeError, KeyError, ValueError, TypeError, NotImplementedError) as error:
        raise InvalidModelError(f"the graph cannot be built: {root_cause(error)}") from error
    del proto
    _attach(model, weights)
    if training_info:
        model.meta[TRAINING_INFO] = training_info
    model = _inferred(_normalise(model), forgiven.append)
    if forgiven:
        model.meta[LENIENCIES] = tuple(forgiven)
    return model


def _inferred(model: ir.Model, say: Callable[[str], None]) -> ir.Model:
    """Types and shapes; of a declared shape that contradicts what follows, the latter counts."""
    made = [value for graph in model.graphs() for node in graph for value in node.outputs]
    declared = {value: value.shape for value in made}
    try:
        return infer_shapes(model)
    except ShapeError as error:
        for value in made:
            value.shape = None
        try:
            infer_shapes(model)
        except OnwardError:
            raise error from None
    wrong = [(v, s) for v, s in declared.items() if s is not None and v.shape is not None and v.shape != s]
    for value, shape in wrong:
        assert value.shape is not None
        if not _fits(shape, value.shape):
            say(f"{value.name!r} is declared with shape {shape}, but {value.shape} follows: read as that")
    return model


def _complete_calls(proto: onnx.ModelProto) -> None:
    """Leave functions out that nothing calls, and name the trailing outputs of calls that nothing uses."""
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    called: set[tuple[str, str, str]] = set()
    pending = [proto.graph.node]
    while pending:
        for node in all_nodes(pending.pop()):
            key = (node.domain, node.op_type, node.overload)
            if key not in functions:
                continue
            for name in functions[key].output[len(node.output) :]:
                node.output.append(f"{node.output[0] if node.output else node.name}/unused/{name}")
            if key not in called:
                called.add(key)
                pending.append(functions[key].node)
    for i in reversed(range(len(proto.functions))):
        f = proto.functions[i]
        if (f.domain, f.name, f.overload) not in called:
            del proto.functions[i]


def _call_default_domain_empty(
    owner: onnx.ModelProto | onnx.FunctionProto, nodes: Iterable[onnx.NodeProto]
) -> None:
    """`ai.onnx` is another spelling of the default domain; keep one."""
    imports = {
        "" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in owner.opset_import
    }
    del owner.opset_import[:]
    for domain, version in imports.items():
        owner.opset_import.add(domain=domain, version=version)
    for node in all_nodes(nodes):
        if node.domain == "ai.onnx":
            node.domain = ""


def _name_domain_of_fused(proto: onnx.ModelProto) -> None:
    """Operators that onnxruntime's optimiser writes into the default domain are those of its own domain.

    They are SimplifiedLayerNormalization, which the standard does not have, and LayerNormalization before
    opset 17.
    """
    opset = next((entry.version for entry in proto.opset_import if not entry.domain), 0)
    names = {"SimplifiedLayerNormalization"} | ({"LayerNormalization"} if opset < _HAS_LAYER_NORM else set())
    found = [n for n in all_nodes(proto.graph.node) if not n.domain and n.op_type in names]
    for node in found:
        node.domain = _MICROSOFT_DOMAIN
    if found and not any(entry.domain == _MICROSOFT_DOMAIN for entry in proto.opset_import):
        proto.opset_import.add(domain=_MICROSOFT_DOMAIN, version=1)


def _parse(data: bytes) -> onnx.ModelProto:
    if not data:
        raise InvalidModelError("the file is empty: download or export it again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (google.protobuf.message.DecodeError, UnicodeDecodeError, RuntimeError, ValueError):
        kind = _other_kind(data)
        raise InvalidModelError(
            f"it is {kind}, not an ONNX model"
            if kind
            else "it is not an ONNX model, or the file is damaged or cut off: download or export it again"
        ) from None
    if not proto.HasField("graph") and (kind := _other_kind(data)):
        raise InvalidModelError(f"it is {kind}, not an ONNX model")
    return proto


def _other_kind(data: bytes) -> str | None:
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, kind in (
        (b"version https://git-lfs", "a Git LFS pointer (fetch the file itself with `git lfs pull`)"),
        (b"PK\x03\x04", "a zip archive (unpack it, or export the PyTorch file in it to ONNX)"),
        (b"\x1f\x8b", "gzip-compressed (unpack it)"),
        (b"\x89HDF", "an HDF5 file (export the Keras model to ONNX)"),
        (b"\x80\x02", "a Python pickle (export the PyTorch model to ONNX)"),
        (b"<", "an HTML or XML page (the download probably failed)"),
        (b"{", "JSON text"),
        (b"[", "JSON text"),
    ):
        if head.startswith(start):
            return kind
    if data[4:8] == b"TFL3":
        return "a TensorFlow Lite file (convert it to ONNX)"
    if data[4:8] == b"ORTM":
        return "in onnxruntime's own format (use the .onnx file it was made from)"
    try:
        text = data[:512].decode("ascii")
    except UnicodeDecodeError:
        return None
    return "a text file" if text.isprintable() or re.fullmatch(r"[\x20-\x7e\s]+", text) else None


def _take_tensors(
    proto: onnx.ModelProto, limits: Limits, folder: ModelFolder | None, say: Callable[[str], None]
) -> tuple[dict[str, ir.TensorProtocol], set[str]]:
    """Decode the main graph's initialisers and empty the large ones in `proto`, bring other data inline.

    Returns:
        The initialisers by name, and the names of those that are now empty.
    """
    _make_dense(proto.graph, limits, say)
    weights: dict[str, ir.TensorProtocol] = {}
    emptied: set[str] = set()
    for tensor in proto.graph.initializer:
        weights[tensor.name] = _decode(tensor, "graph:", folder)
        if tensor.data_type != onnx.TensorProto.STRING and weights[tensor.name].nbytes > KEEP_BYTES:
            emptied.add(tensor.name)
            for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(field)
        elif tensor.data_location == onnx.TensorProto.EXTERNAL:
            _forget_location(tensor)
            tensor.raw_data = weights[tensor.name].tobytes()
        _forget_location(tensor)
    others = list(tensors.nodes_tensors(proto.graph.node))
    for function in proto.functions:
        _make_nodes_dense(function.node, limits, say)
        others += tensors.nodes_tensors(function.node)
    for training in proto.training_info:
        others += tensors.graph_tensors(training.initialization)
        others += tensors.graph_tensors(training.algorithm)
    for tensor in others:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raw = _external(tensor, "graph:", folder).tobytes()
            _forget_location(tensor)
            tensor.raw_data = raw
    return weights, emptied


def _decode(tensor: onnx.TensorProto, where: str, folder: ModelFolder | None) -> ir.TensorProtocol:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return tensors.decode(tensor, where)
    data = _external(tensor, where, folder)
    dtype = ir.DataType(tensor.data_type)
    if dtype.bitwidth < 8:
        inline = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        inline.raw_data = data.tobytes()
        return tensors.decode(inline, where)
    array = data.view(dtype.numpy().newbyteorder("<")).reshape(tuple(tensor.dims))
    return tensors.from_array(array, dtype, tensor.name, where)


def _external(tensor: onnx.TensorProto, where: str, folder: ModelFolder | None) -> np.ndarray:
    if folder is None:
        raise InvalidModelError(
            f"{where} tensor {tensor.name!r} keeps its data in another file, which bytes alone cannot reach: "
            "load the model from its folder"
        )
    return folder.read(tensor, tensors.storage_bytes(ir.DataType(tensor.data_type), tensor.dims), where)


def _forget_location(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def _make_dense(graph: onnx.GraphProto, limits: Limits, say: Callable[[str], None]) -> None:
    for sparse in graph.sparse_initializer:
        graph.initializer.append(tensors.densify(sparse, "graph:", limits.max_file_bytes, say))
    del graph.sparse_initializer[:]
    _make_nodes_dense(graph.node, limits, say)


def _make_nodes_dense(nodes: list[onnx.NodeProto], limits: Limits, say: Callable[[str], None]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                if (node.op_type, attribute.name) != ("Constant", "sparse_value"):
                    raise UnsupportedError(
                        f"node {node.name!r} ({node.op_type}): sparse attribute {attribute.name!r}"
                    )
                attribute.t.CopyFrom(
                    tensors.densify(attribute.sparse_tensor, "graph:", limits.max_file_bytes, say)
                )
                attribute.ClearField("sparse_tensor")
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
            if attribute.HasField("g"):
                _make_dense(attribute.g, limits, say)
            for graph in attribute.graphs:
                _make_dense(graph, limits, say)


def _with_inputs_for(proto: onnx.ModelProto, emptied: set[str]) -> onnx.ModelProto:
    """What the checker sees: emptied initialisers are graph inputs."""
    view = onnx.ModelProto()
    view.CopyFrom(proto)
    graph = view.graph
    inputs = {value.name for value in graph.input}
    kept = []
    for tensor in graph.initializer:
        if tensor.name not in emptied:
            kept.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return view


def _run_checker(proto: onnx.ModelProto) -> None:
    """Check a copy that is nobody else's."""
    with_types(proto.graph)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:
        raise InvalidModelError(f"onnx.checker: {_first_useful(str(error))}") from error


def _first_useful(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    useful = lines[0] if lines else "refused without a reason"
    context = next((line for line in lines if "Bad node spec" in line), None)
    if context is not None and context != useful:
        useful = f"{useful} ({context.removeprefix('==> Context:').strip()})"
    return useful[:400]


def _attach(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> None:
    """Replace every tensor that refers to the protobuf by a NumPy-backed one."""
    for name, tensor in weights.items():
        value = model.graph.initializers[name]
        if value.type is not None and value.type.dtype != tensor.dtype:
            raise ShapeError(
                f"initialiser {name!r} is declared {value.type.dtype.name}, but holds {tensor.dtype.name}"
            )
        actual = ir.Shape(tensor.shape.numpy())
        if value.shape is not None and not _fits(value.shape, actual):
            raise ShapeError(f"initialiser {name!r} is declared with shape {value.shape}, but holds {actual}")
        if value.shape is None or not value.is_graph_input():  # another value may be given for an input
            value.shape = actual
        value.type, value.const_value = ir.TensorType(tensor.dtype), tensor
    bodies = [function.graph for function in model.functions.values()]
    for graph in (*model.graphs(), *bodies):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _detach(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.AttrTensor(name, _detach(attribute.as_tensor()))
                elif attribute.type == ir.AttributeType.TENSORS:
                    node.attributes[name] = ir.AttrTensors(name, [_detach(t) for t in attribute.as_tensors()])


def _fits(declared: ir.Shape, actual: ir.Shape) -> bool:
    return declared.rank() == actual.rank() and all(
        not isinstance(dim, int) or dim == real for dim, real in zip(declared, actual, strict=True)
    )


def _detach(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return tensors.decode(tensor.raw, "graph:") if isinstance(tensor, ir.serde.TensorProtoTensor) else tensor


def _normalise(model: ir.Model) -> ir.Model:
    for key in list(model.functions):
        if versions_of(*key[:2]) and not has_schemas(key[0]):
            del model.functions[key]  # the class registered for it says more than its body
    if model.functions:
        for function in model.functions.values():
            if "" in function.opset_imports and "" in model.opset_imports:
                # The checker has compared every operator: both versions mean the same here.
                function.opset_imports[""] = model.opset_imports[""]
        names = [value.name for value in model.graph.outputs]
        given = [value.name for value in model.graph.inputs]
        try:
            common.InlinePass()(model)
        except Exception as error:
            raise UnsupportedError(f"its functions cannot be inlined: {root_cause(error)}") from error
        model.functions.clear()
        for value, name in zip(model.graph.inputs, given, strict=True):
            value.name = name
        for i, name in enumerate(names):  # a function may hand on what it is given
            if model.graph.outputs[i].name != name:
                handed = ir.node("Identity", [model.graph.outputs[i]])
                handed.outputs[0].name = name
                model.graph.append(handed)
                model.graph.outputs[i] = handed.outputs[0]
    if model.ir_version <= _LAST_IR_WITH_FORCED_INPUTS:
        common.RemoveInitializersFromInputsPass()(model)
        model.ir_version = _LAST_IR_WITH_FORCED_INPUTS + 1
    common.LiftConstantsToInitializersPass(size_limit=2)(model)
    if common.LiftSubgraphInitializersToMainGraphPass()(model).modified:
        common.NameFixPass()(model)
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value.name = value.name
    return model
