from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onward.errors import (
    ConfigError,
    InvalidModelError,
    OnwardError,
    ShapeError,
    StorageError,
    UnsupportedError,
)
from onward.model import Limits, from_bytes, load, to_bytes

Write = Callable[..., Path]
HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def parse(text: str, head: str = HEAD) -> onnx.ModelProto:
    return onnx.parser.parse_model(head + text)


def refuse(proto: onnx.ModelProto, message: str, kind: type[OnwardError] = InvalidModelError) -> None:
    with pytest.raises(kind, match=message):
        from_bytes(proto.SerializeToString(), name="net")


def test_loads_with_types_and_arrays(mlp: onnx.ModelProto, write: Write) -> None:
    model = load(write(mlp))
    hidden = next(node for node in model.graph if node.name == "first").outputs[0]
    assert hidden.dtype == ir.DataType.FLOAT
    assert hidden.shape is not None
    assert [str(dim) for dim in hidden.shape] == ["N", "4"]
    for value in model.graph.initializers.values():
        assert isinstance(value.const_value, ir.Tensor)
        assert not value.const_value.numpy().flags.writeable


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing.onnx", "cannot be opened"),
        ("folder", "it is a folder"),
        ("fifo", "not a regular file"),
        ("n\0l", "null"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StorageError, match=message):
        load(tmp_path / place)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        load(tmp_path / "missing" / "model.onnx")


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"hello, this is no model\n" * 20, "a text file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (json.dumps({"irVersion": 8}).encode(), "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (zip_bytes(), "a zip archive"),
        (b"\x1f\x8b\x08\x00" + b"\0" * 40, "gzip"),
        (b"\x1c\0\0\0TFL3" + b"\0" * 40, "TensorFlow Lite"),
        (b"\xff" * 64, "not an ONNX model"),
        (np.random.default_rng(0).bytes(4096), "not an ONNX model"),
    ],
)
def test_files_that_are_something_else(write: Write, content: bytes, message: str) -> None:
    path = write(content)
    with pytest.raises(InvalidModelError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_protobuf_that_is_no_model() -> None:
    refuse(onnx.ModelProto(ir_version=8), "no graph")
    model = onnx.ModelProto(ir_version=8)
    model.graph.name = "g"
    refuse(model, "imports no operator set")
    model.opset_import.add(version=21)
    refuse(model, "no outputs")


def test_every_truncation_is_refused_or_loads(mlp: onnx.ModelProto) -> None:
    data = mlp.SerializeToString()
    refused = 0
    for end in range(len(data)):
        try:
            from_bytes(data[:end])
        except OnwardError:
            refused += 1
    assert refused >= len(data) - 5


SUBJECT = parse(
    """
    g (float[N, 3] x, bool c) => (float[N, 3] z)
    <float[3] w = {1, 2, 3}, int64[2] s = {0, 3}>
    {
        a = Add(x, w)
        y = Reshape(a, s)
        z = If (c) <
            then_branch = t () => (float[N, 3] u) { u = Mul(y, w) },
            else_branch = e () => (float[N, 3] v) { v = Softmax<axis = 1>(y) }
        >
    }
    """
).SerializeToString()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(st.tuples(st.integers(0, len(SUBJECT) * 8 - 1)), min_size=1, max_size=4))
def test_flipped_bits_are_refused_or_load(flips: list[tuple[int]]) -> None:
    data = bytearray(SUBJECT)
    for (bit,) in flips:
        data[bit // 8] ^= 1 << bit % 8
    try:
        model = from_bytes(bytes(data))
    except OnwardError:
        return
    to_bytes(model)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_random_bytes_never_escape(data: bytes) -> None:
    with pytest.raises(OnwardError):
        from_bytes(data)


def test_names() -> None:
    relu = "g (float[2] x) => (float[2] y) { %s }"
    refuse(parse(relu % "[n] y = Relu(q)"), r"node 'n' \(Relu\): input 'q' is defined nowhere")
    refuse(parse(relu % "[n] a = Relu(b) [m] b = Relu(a) y = Relu(a)"), r"a cycle: node .* -> node")
    refuse(parse(relu % "[n] y = Relu(x) [m] y = Relu(x)"), r"node 'm' \(Relu\): an output named 'y'")
    refuse(parse(relu % "[n] x = Relu(x) y = Relu(x)"), "already taken")
    refuse(parse("g (float[2] x, float[2] x) => (float[2] y) { y = Relu(x) }"), "an input named 'x'")
    refuse(parse("g (float[2] x) => (float[2] z) { y = Relu(x) }"), "output 'z' is produced by no node")


def test_a_branch_does_not_see_into_another() -> None:
    proto = parse(
        """g (float[2] x, bool c) => (float[2] y) {
            [pick] y = If (c) <then_branch = t () => (float[2] u) { [in] u = Relu(late) },
                        else_branch = e () => (float[2] v) { v = Relu(x) }>
            other = If (c) <then_branch = t2 () => (float[2] p) { late = Relu(x) p = Relu(late) },
                        else_branch = e2 () => (float[2] q) { q = Relu(x) }>
        }"""
    )
    refuse(proto, r"node 'pick' \(If\) then_branch: node 'in' \(Relu\): input 'late' is defined nowhere")


def tensor_model() -> tuple[onnx.ModelProto, onnx.TensorProto]:
    proto = parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    tensor = proto.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.raw_data = np.float32([1, 2]).tobytes()
    return proto, tensor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raw_data": b"\0" * 7}, "needs 8 bytes in raw_data, but has 7"),
        ({"raw_data": b"\0" * 9}, "needs 8 bytes"),
        ({"raw_data": b""}, "needs 8 bytes"),
        ({"dims": [3]}, "needs 12 bytes"),
        ({"dims": [-2]}, "negative dimension"),
        ({"dims": [2**62, 2]}, "more than any machine"),
        ({"dims": [2**40, 2**40, 0]}, "more than any machine"),
        ({"dims": [1] * 65 + [2]}, "65 dimensions|66 dimensions"),
        ({"data_type": 0}, "defined element type"),
        ({"data_type": 999}, "data type number 999"),
        ({"data_type": onnx.TensorProto.STRING}, "stores its data in raw_data"),
    ],
)
def test_tensors_that_do_not_hold_what_they_say(change: dict[str, object], message: str) -> None:
    proto, tensor = tensor_model()
    for field, value in change.items():
        if isinstance(value, list):
            del getattr(tensor, field)[:]
            getattr(tensor, field).extend(value)
        else:
            setattr(tensor, field, value)
    refuse(proto, message)


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "int4", "uint4", "float8e4m3fn", "int8", "uint64", "complex64"]
)
def test_every_stored_type_survives(dtype: str) -> None:
    kind = ir.DataType[dtype.upper()]
    array = np.array([[1, 0, 3], [2, 5, 7]]).astype(kind.numpy())
    value = ir.Value(name="w", const_value=ir.Tensor(array, dtype=kind, name="w"), type=ir.TensorType(kind))
    value.shape = ir.Shape(array.shape)
    node = ir.node("Identity", [value])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", value.type, value.shape
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 21}, name="g")
    back = from_bytes(to_bytes(ir.Model(graph, ir_version=10)))
    tensor = back.graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.dtype == kind
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_declared_dimensions() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    dim = proto.graph.input[0].type.tensor_type.shape.dim[0]
    dim.dim_value = 2**60
    refuse(proto, "more elements than any machine")


def test_versions_from_the_future() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.opset_import[0].version = 9999
    refuse(proto, "opset 9999 is newer", UnsupportedError)
    proto.opset_import[0].version = 21
    proto.ir_version = 999
    refuse(proto, "IR version 999 is newer", UnsupportedError)


def test_the_default_domain_has_one_spelling() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.opset_import.add(domain="ai.onnx", version=21)
    proto.graph.node[0].domain = "ai.onnx"
    model = from_bytes(proto.SerializeToString())
    assert model.opset_imports == {"": 21}
    assert model.graph[0].domain == ""


def test_the_checker_speaks_in_one_line() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { [n] y = Relu<alpha = 1.0>(x) }")
    with pytest.raises(
        InvalidModelError, match=r"net: onnx\.checker: Unrecognized attribute: alpha.*Name: n"
    ) as caught:
        from_bytes(proto.SerializeToString(), name="net")
    assert "\n" not in str(caught.value)
    refuse(
        parse("g (float[2] x) => (float[2] y) { [n] y = NoSuchOperator(x) }"), "No Op registered for NoSuchOp"
    )


def test_names_that_are_not_utf8() -> None:
    data = parse("g (float[2] x) => (float[2] y) { abc = Relu(x) y = Relu(abc) }").SerializeToString()
    with pytest.raises(InvalidModelError, match="not UTF-8"):
        from_bytes(data.replace(b"abc", b"\xff\xfe\xfd"))


def nested(depth: int) -> onnx.ModelProto:
    body = f"r{depth} = Relu(x)"
    for level in range(depth - 1, -1, -1):
        body = (
            f"r{level} = If (c) <then_branch = t () => (float[2] r{level + 1}) {{ {body} }},"
            f" else_branch = e () => (float[2] q{level}) {{ q{level} = Relu(x) }}>"
        )
    return parse(f"g (float[2] x, bool c) => (float[2] r0) {{ {body} }}")


def test_nesting() -> None:
    from_bytes(nested(5).SerializeToString())
    from_bytes(nested(30).SerializeToString())
    with pytest.raises(InvalidModelError, match="nest more than 3 deep") as caught:
        from_bytes(nested(5).SerializeToString(), limits=Limits(max_depth=3))
    assert len(str(caught.value)) < 200


def test_protobuf_deeper_than_its_parser_allows() -> None:
    inner = b""
    for _ in range(400):
        for field in (5, 6, 1):
            inner = bytes([field << 3 | 2]) + onnx_length(len(inner)) + inner
    with pytest.raises(InvalidModelError):
        from_bytes(b"\x3a" + onnx_length(len(inner)) + inner)


def onnx_length(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_limits(mlp: onnx.ModelProto, write: Write) -> None:
    path = write(mlp)
    with pytest.raises(InvalidModelError, match="max_file_bytes"):
        load(path, limits=Limits(max_file_bytes=10))
    with pytest.raises(InvalidModelError, match="max_file_bytes"):
        from_bytes(path.read_bytes(), limits=Limits(max_file_bytes=10))
    with pytest.raises(InvalidModelError, match=r"3 nodes, more than 2; raise Limits\.max_nodes"):
        load(path, limits=Limits(max_nodes=2))
    load(path, limits=Limits(max_nodes=3, max_depth=1))
    with pytest.raises(ConfigError, match="max_nodes"):
        Limits(max_nodes=0)


FUNCTIONS = """
<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
g (float[2] x, bool c) => (float[2] y, float[2] z)
{
    a = own.twice(x)
    y = own.four_times(a)
    z = If (c) <then_branch = t () => (float[2] u) { u = own.same(a) },
                else_branch = e () => (float[2] v) { v = own.twice(a) }>
}
<domain: "own", opset_import: ["" : 21]> twice (p) => (q)
{ k = Constant<value = float {2.0}>() q = Mul(p, k) }
<domain: "own", opset_import: ["" : 21, "own" : 1]> four_times (p) => (q)
{ k = own.twice(p) q = own.twice(k) }
<domain: "own", opset_import: ["" : 21]> same (p) => (q) { q = Identity(p) }
"""


def test_functions_are_inlined(run_ort: Callable[..., list[np.ndarray]]) -> None:
    proto = onnx.parser.parse_model(FUNCTIONS)
    model = from_bytes(proto.SerializeToString())
    assert not model.functions
    assert {node.domain for node in model.graph.all_nodes()} == {""}
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert sum(node.op_type == "If" for node in model.graph) == 1
    assert all(output.shape is not None for node in model.graph for output in node.outputs)
    for before, after in zip(run_ort(proto.SerializeToString()), run_ort(to_bytes(model)), strict=True):
        np.testing.assert_array_equal(before, after)


def test_functions_that_call_themselves() -> None:
    text = FUNCTIONS.replace("k = own.twice(p) q = own.twice(k)", "k = own.four_times(p) q = own.twice(k)")
    refuse(onnx.parser.parse_model(text), "functions call themselves")


def test_functions_that_grow_without_bound() -> None:
    proto = onnx.parser.parse_model(FUNCTIONS)
    for level in range(40):
        callee = f"f{level - 1}" if level else "twice"
        function = onnx.parser.parse_function(
            f'<domain: "own", opset_import: ["own" : 1]> f{level} (p) => (q)'
            f"{{ k = own.{callee}(p) q = own.{callee}(k) }}"
        )
        proto.functions.append(function)
    proto.graph.node[0].op_type = "f39"
    refuse(proto, "calls of functions, those inside functions included")


def test_functions_of_another_opset() -> None:
    proto = onnx.parser.parse_model(FUNCTIONS)
    own = {function.name: function for function in proto.functions}
    own["same"].opset_import[0].version = 20
    refuse(proto, "FunctionOp imports version 20 whereas model imports version 21")
    own["same"].node[0].op_type = "Abs"
    model = from_bytes(proto.SerializeToString())
    assert "Abs" in {node.op_type for node in model.graph.all_nodes()}


def test_constants_and_initialisers_of_branches_become_weights() -> None:
    proto = parse(
        """g (float[2] x, bool c) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] u) { k = Constant<value = float[2] {1, 2}>() u = Add(x, k) },
                        else_branch = e () => (float[2] v) <float[2] w = {3, 4}> { v = Mul(x, w) }>
        }"""
    )
    model = from_bytes(proto.SerializeToString())
    assert set(model.graph.initializers) == {"k", "w"}
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", "Add", "Mul"]


def test_old_files_lose_the_inputs_that_are_weights() -> None:
    proto = parse("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([1, 2]), "w"))
    proto.ir_version, proto.opset_import[0].version = 3, 8
    model = from_bytes(proto.SerializeToString())
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert model.ir_version == 4
    proto.ir_version = 8
    assert [value.name for value in from_bytes(proto.SerializeToString()).graph.inputs] == ["x", "w"]


def test_sparse_initialisers_become_dense() -> None:
    proto = parse("g (float[3, 2] x) => (float[3, 2] y) { y = Add(x, w) }")
    values = onnx.numpy_helper.from_array(np.float32([5, 6]), "w")
    indices = onnx.numpy_helper.from_array(np.int64([[0, 1], [2, 0]]), "i")
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [3, 2]))
    tensor = from_bytes(proto.SerializeToString()).graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), np.float32([[0, 5], [0, 0], [6, 0]]))
    proto.graph.sparse_initializer[0].indices.CopyFrom(onnx.numpy_helper.from_array(np.int64([1, 6]), "i"))
    refuse(proto, "lies outside dims")
    proto.graph.sparse_initializer[0].dims[:] = [2**30, 2**16]
    refuse(proto, "larger than")


def test_maps_are_unsupported() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.graph.output[0].type.map_type.key_type = onnx.TensorProto.INT64
    refuse(proto, "zipmap", UnsupportedError)


def test_an_initialiser_that_is_declared_otherwise() -> None:
    proto = parse("g (float[2] x, float[400] w) => (float[2] y) { y = Relu(x) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(401, np.float32), "w"))
    refuse(proto, "declared with shape", ShapeError)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.zeros(400), "w"))
    refuse(proto, "declared FLOAT, but holds DOUBLE", ShapeError)


def test_training_info_is_carried() -> None:
    proto = parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    proto.training_info.add().algorithm.name = "step"
    back = onnx.load_from_string(to_bytes(from_bytes(proto.SerializeToString())))
    assert [info.algorithm.name for info in back.training_info] == ["step"]
