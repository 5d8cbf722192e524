"""Does a server speak the Open Inference Protocol and the extensions that it advertises?

    python -m tests.conformance --write-models DIR
    python -m tests.conformance --grpc HOST:PORT --http HOST:PORT

The first writes the models that the second asks for: any server that serves ONNX files from
`<name>/<version>/model.onnx` can be looked at. One line a check; the exit code is 1 when one failed. What a
server does not advertise is skipped: Onward's advertises all of it with

    ONWARD_SERVER_SHARED_MEMORY=true ONWARD_SERVER_TRACE__ENDPOINT=http://127.0.0.1:4318/v1/traces \\
        onward serve DIR --http-listen 127.0.0.1:8000 --model-control explicit

(nothing has to listen at the endpoint). Shared memory is looked at on the server's own machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import grpc
import numpy as np
import onnx
from onnx import TensorProto, helper

from onward_protos import grpc_service_pb2 as pb
from onward_protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from onward_protos.tensors import DATATYPES, decode_raw, encode_raw

TYPES = {
    "BOOL": (TensorProto.BOOL, [True, False]),
    "INT8": (TensorProto.INT8, [-128, 127]),
    "INT16": (TensorProto.INT16, [-32768, 5]),
    "INT32": (TensorProto.INT32, [-(2**31), 2**31 - 1]),
    "INT64": (TensorProto.INT64, [-(2**63), 2**63 - 1]),
    "UINT8": (TensorProto.UINT8, [0, 255]),
    "UINT16": (TensorProto.UINT16, [0, 65535]),
    "UINT32": (TensorProto.UINT32, [0, 2**32 - 1]),
    "UINT64": (TensorProto.UINT64, [0, 2**64 - 1]),
    "FP32": (TensorProto.FLOAT, [1.5, -2.0]),
    "FP64": (TensorProto.DOUBLE, [0.1, 1e300]),
    "FP16": (TensorProto.FLOAT16, [1.5, -2.0]),
    "BYTES": (TensorProto.STRING, ["", "é"]),
}
RAW_ONLY = ("FP16",)
"""Types that have neither typed contents nor a JSON form."""
FIELDS = {
    "BOOL": "bool_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
}
NUMBERS = {"x": (TensorProto.FLOAT, ["n"])}
INPUTS = [("a", "FP32", [-1, 3]), ("b", "FP32", [-1, 3])]
CHECKS: list[tuple[str, str, str, Callable[[Any], None]]] = []
"""Transport, extension ("" for the core), name, check."""


def write_models(folder: Path) -> None:
    """A model y = x for each datatype, and one with two inputs and two outputs."""
    for datatype, (element, _) in TYPES.items():
        kind = (element, ["n"])
        _write(folder, f"identity_{datatype.lower()}", [("Identity", ["x"], ["y"])], {"x": kind}, {"y": kind})
    kind = (TensorProto.FLOAT, ["n", 3])
    nodes = [("Add", ["a", "b"], ["total"]), ("Mul", ["a", "b"], ["product"])]
    _write(folder, "arithmetic", nodes, {"a": kind, "b": kind}, {"total": kind, "product": kind})


def model(name: str, nodes: Any, inputs: Any, outputs: Any) -> onnx.ModelProto:
    """A model of these nodes; inputs and outputs by name, as element type and shape."""
    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        name,
        [helper.make_tensor_value_info(key, *kind) for key, kind in inputs.items()],
        [helper.make_tensor_value_info(key, *kind) for key, kind in outputs.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _write(folder: Path, name: str, nodes: Any, inputs: Any, outputs: Any) -> None:
    path = folder / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model(name, nodes, inputs, outputs), path)


def check(transport: str, extension: str = "") -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a check; its name is what the function is called."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        CHECKS.append((transport, extension, function.__name__.replace("_", " "), function))
        return function

    return register


@final
class Rest:
    """A connection to the HTTP port."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        kind = "octet-stream" if "Inference-Header-Content-Length" in named else "json"
        named.setdefault("Content-Type", f"application/{kind}")
        connection.request(method, path, data, named)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        length = response.headers.get("Inference-Header-Content-Length")
        if length is not None:
            return response.status, json.loads(content[: int(length)]), content[int(length) :]
        try:
            return response.status, json.loads(content) if content else None, b""
        except ValueError:
            return response.status, content, b""


def same(found: object, wanted: object) -> None:
    """Fail unless the two are equal."""
    if found != wanted:
        raise AssertionError(f"{found!r} instead of {wanted!r}")


def refused(call: Callable[[], Any], *codes: str) -> str:
    """Fail unless the call ends with one of the codes; gives the text."""
    try:
        call()
    except grpc.RpcError as error:
        if error.code().name not in codes:
            raise AssertionError(f"{error.code().name} instead of {' or '.join(codes)}") from None
        return str(error.details())
    raise AssertionError("no error")


def pair(**fields: Any) -> pb.ModelInferRequest:
    """A request to `arithmetic`."""
    tensors = [{"name": name, "datatype": "FP32", "shape": [1, 3]} for name in ("a", "b")]
    raw = [np.float32([1, 2, 3]).tobytes(), np.float32([4, 5, 6]).tobytes()]
    return pb.ModelInferRequest(
        **{"model_name": "arithmetic", "inputs": tensors, "raw_input_contents": raw, **fields}
    )


def elements(answer: pb.ModelInferResponse) -> list[Any]:
    """The elements of the first output, in either form."""
    output = answer.outputs[0]
    if not answer.raw_output_contents:
        return list(getattr(output.contents, FIELDS[output.datatype]))
    found: list[Any] = (
        decode_raw(output.datatype, output.shape, answer.raw_output_contents[0]).ravel().tolist()
    )
    return found


def floats(raw: bytes) -> list[float]:
    return np.frombuffer(raw, np.float32).tolist()


@check("grpc")
def the_server_is_live_and_ready(stub: Any) -> None:
    same(stub.ServerLive(pb.ServerLiveRequest()).live, True)
    same(stub.ServerReady(pb.ServerReadyRequest()).ready, True)


@check("grpc")
def a_model_is_ready_and_an_unknown_one_is_not(stub: Any) -> None:
    same(stub.ModelReady(pb.ModelReadyRequest(name="arithmetic")).ready, True)
    same(stub.ModelReady(pb.ModelReadyRequest(name="nobody")).ready, False)


@check("grpc")
def metadata_names_inputs_outputs_and_versions(stub: Any) -> None:
    found = stub.ModelMetadata(pb.ModelMetadataRequest(name="arithmetic"))
    same(
        [(t.name, t.datatype, list(t.shape)) for t in found.inputs],
        INPUTS,
    )
    same([t.name for t in found.outputs], ["total", "product"])
    same(list(found.versions), ["1"])


@check("grpc")
def raw_contents_are_answered(stub: Any) -> None:
    answer = stub.ModelInfer(pair(id="seven"))
    same((answer.model_name, answer.model_version, answer.id), ("arithmetic", "1", "seven"))
    same([o.name for o in answer.outputs], ["total", "product"])
    same(floats(answer.raw_output_contents[0]), [5, 7, 9])


@check("grpc")
def typed_contents_of_every_type_are_answered(stub: Any) -> None:
    for datatype, (_, values) in TYPES.items():
        if datatype in RAW_ONLY:
            continue
        given = [value.encode() if isinstance(value, str) else value for value in values]
        array = np.array(given, dtype=DATATYPES[datatype])
        form = {"name": "x", "datatype": datatype, "shape": [2]}
        for fields in (
            {"inputs": [{**form, "contents": {FIELDS[datatype]: given}}]},
            {"inputs": [form], "raw_input_contents": [encode_raw(array)]},
        ):
            request = pb.ModelInferRequest(model_name=f"identity_{datatype.lower()}", **fields)
            answer = stub.ModelInfer(request)
            same((answer.outputs[0].datatype, elements(answer)), (datatype, array.tolist()))


@check("grpc")
def half_precision_travels_raw(stub: Any) -> None:
    raw = np.float16(TYPES["FP16"][1]).tobytes()
    tensor = {"name": "x", "datatype": "FP16", "shape": [2]}
    request = pb.ModelInferRequest(model_name="identity_fp16", inputs=[tensor], raw_input_contents=[raw])
    answer = stub.ModelInfer(request)
    same((answer.outputs[0].datatype, answer.raw_output_contents[0]), ("FP16", raw))


@check("grpc")
def only_requested_outputs_are_answered(stub: Any) -> None:
    answer = stub.ModelInfer(pair(outputs=[{"name": "product"}]))
    same([o.name for o in answer.outputs], ["product"])
    same(floats(answer.raw_output_contents[0]), [4, 10, 18])


@check("grpc")
def a_tensor_without_elements_is_answered(stub: Any) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [0]}
    request = pb.ModelInferRequest(model_name="identity_fp32", inputs=[tensor], raw_input_contents=[b""])
    same(list(stub.ModelInfer(request).outputs[0].shape), [0])


@check("grpc")
def compressed_requests_are_answered(stub: Any) -> None:
    answer = stub.ModelInfer(pair(), compression=grpc.Compression.Gzip)
    same(floats(answer.raw_output_contents[0]), [5, 7, 9])


@check("grpc")
def unknown_models_and_versions_are_not_found(stub: Any) -> None:
    refused(lambda: stub.ModelInfer(pair(model_name="nobody")), "NOT_FOUND")
    refused(lambda: stub.ModelInfer(pair(model_version="9")), "NOT_FOUND")
    refused(lambda: stub.ModelMetadata(pb.ModelMetadataRequest(name="nobody")), "NOT_FOUND")


@check("grpc")
def contradictions_are_invalid_arguments(stub: Any) -> None:
    a, b = ({"name": name, "datatype": "FP32", "shape": [1, 3]} for name in ("a", "b"))
    raw = [bytes(12), bytes(12)]
    for change in (
        {"raw_input_contents": raw[:1]},
        {"raw_input_contents": [bytes(12), bytes(11)]},
        {"inputs": [a, {**b, "name": "z"}]},
        {"inputs": [a, a]},
        {"inputs": [a], "raw_input_contents": raw[:1]},
        {"inputs": [a, {**b, "datatype": "INT32"}]},
        {"inputs": [a, {**b, "datatype": "FLOAT"}]},
        {"inputs": [a, {**b, "shape": [3, 1]}]},
        {"inputs": [a, {**b, "shape": [-1, -3]}]},
        {"inputs": [a, {**b, "shape": [2**62, 4]}]},
        {"outputs": [{"name": "z"}]},
        {"inputs": [{**a, "contents": {"fp32_contents": [1, 2, 3]}}, b]},
    ):
        text = refused(lambda change=change: stub.ModelInfer(pair(**change)), "INVALID_ARGUMENT")
        if not text:
            raise AssertionError(f"no text for {change}")


@check("grpc")
def garbage_is_an_invalid_argument(channel: Any) -> None:
    call = channel.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    refused(lambda: call(b"\x0a\xff\xff\xff\xff\x0f"), "INVALID_ARGUMENT")


@check("grpc")
def a_stream_answers_in_order_and_survives_an_error(stub: Any) -> None:
    requests = [pair(id="0"), pair(id="1", outputs=[{"name": "z"}]), pair(id="2")]
    answers = list(stub.ModelStreamInfer(iter(requests)))
    same([bool(answer.error_message) for answer in answers], [False, True, False])
    same([answers[0].infer_response.id, answers[2].infer_response.id], ["0", "2"])


@check("grpc", "model_repository")
def a_load_takes_a_configuration_and_files(stub: Any) -> None:
    content = model("sent", [("Neg", ["x"], ["y"])], NUMBERS, {"y": NUMBERS["x"]}).SerializeToString()
    request = pb.RepositoryModelLoadRequest(model_name="conformance_sent")
    request.parameters["config"].string_param = json.dumps({"backend": "onnxruntime", "max_batch_size": 0})
    request.parameters["file:1/model.onnx"].bytes_param = content
    stub.RepositoryModelLoad(request)
    tensor = {"name": "x", "datatype": "FP32", "shape": [2]}
    raw = [np.float32([1, -2]).tobytes()]
    asked = pb.ModelInferRequest(model_name="conformance_sent", inputs=[tensor], raw_input_contents=raw)
    same(floats(stub.ModelInfer(asked).raw_output_contents[0]), [-1, 2])
    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="conformance_sent"))
    same(stub.ModelReady(pb.ModelReadyRequest(name="conformance_sent")).ready, False)


@check("grpc", "statistics")
def statistics_count_requests(stub: Any) -> None:
    def count() -> int:
        found = stub.ModelStatistics(pb.ModelStatisticsRequest(name="arithmetic")).model_stats
        return int(found[0].inference_stats.success.count)

    before = count()
    stub.ModelInfer(pair())
    same(count(), before + 1)


@check("grpc", "model_configuration")
def the_configuration_names_inputs(stub: Any) -> None:
    config = stub.ModelConfig(pb.ModelConfigRequest(name="arithmetic")).config
    same([entry.name for entry in config.input], ["a", "b"])


@check("grpc", "model_repository")
def models_are_listed_unloaded_and_loaded(stub: Any) -> None:
    def state() -> str:
        models = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
        return next((m.state for m in models if m.name == "identity_bool"), "")

    same(state(), "READY")
    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="identity_bool"))
    if state() == "READY":
        raise AssertionError("READY after it was unloaded")
    same(stub.ModelReady(pb.ModelReadyRequest(name="identity_bool")).ready, False)
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="identity_bool"))
    same(state(), "READY")


@check("grpc", "classification")
def classification_over_grpc(stub: Any) -> None:
    request = pair(outputs=[{"name": "total"}])
    request.outputs[0].parameters["classification"].int64_param = 1
    answer = stub.ModelInfer(request)
    same((answer.outputs[0].datatype, list(answer.outputs[0].shape)), ("BYTES", [1, 1]))
    if not answer.raw_output_contents[0][4:].startswith(b"9.0"):
        raise AssertionError(repr(answer.raw_output_contents[0]))


@check("grpc", "schedule_policy")
def priority_and_timeout_are_taken(stub: Any) -> None:
    request = pair()
    request.parameters["priority"].uint64_param = 1
    request.parameters["timeout"].int64_param = 60_000_000
    same(floats(stub.ModelInfer(request).raw_output_contents[0]), [5, 7, 9])


@check("grpc", "logging")
def log_settings_are_told(stub: Any) -> None:
    found = stub.LogSettings(pb.LogSettingsRequest()).settings
    same(found["log_info"].WhichOneof("parameter_choice"), "bool_param")
    same(found["log_format"].WhichOneof("parameter_choice"), "string_param")


@check("grpc", "trace")
def trace_settings_are_told(stub: Any) -> None:
    found = stub.TraceSetting(pb.TraceSettingRequest(model_name="arithmetic")).settings
    if not found["trace_level"].value or not found["trace_rate"].value:
        raise AssertionError(f"{found!r}")


@check("grpc", "system_shared_memory")
def tensors_lie_in_shared_memory(stub: Any) -> None:
    with region(np.float32([1, 2, 3]).tobytes() + bytes(12)) as (key, path):
        stub.SystemSharedMemoryRegister(
            pb.SystemSharedMemoryRegisterRequest(name="conformance", key=key, byte_size=24)
        )
        try:
            request = pb.ModelInferRequest(
                model_name="identity_fp32",
                inputs=[{"name": "x", "datatype": "FP32", "shape": [3]}],
                outputs=[{"name": "y"}],
            )
            for tensor, offset in ((request.inputs[0], 0), (request.outputs[0], 12)):
                tensor.parameters["shared_memory_region"].string_param = "conformance"
                tensor.parameters["shared_memory_byte_size"].int64_param = 12
                tensor.parameters["shared_memory_offset"].int64_param = offset
            answer = stub.ModelInfer(request)
            same(
                (list(answer.outputs[0].shape), answer.raw_output_contents[0]),
                ([3], b""),
            )
            same(floats(path.read_bytes()[12:]), [1, 2, 3])
            status = stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())
            same(status.regions["conformance"].byte_size, 24)
        finally:
            stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name="conformance"))
    status = stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())
    same("conformance" in status.regions, False)


@contextmanager
def region(content: bytes) -> Iterator[tuple[str, Path]]:
    """An object of shared memory: its key, and its file; the server has to run on this machine."""
    path = Path(f"/dev/shm/conformance-{os.getpid()}")
    path.write_bytes(content)
    try:
        yield f"/{path.name}", path
    finally:
        path.unlink()


A = {"name": "a", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
B = {"name": "b", "datatype": "FP32", "shape": [1, 3], "data": [4, 5, 6]}


@check("http")
def health_over_http(rest: Rest) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/arithmetic/ready"):
        same(rest("GET", path)[0], 200)
    if rest("GET", "/v2/models/nobody/ready")[0] == 200:
        raise AssertionError("an unknown model is ready")


@check("http")
def metadata_over_http(rest: Rest) -> None:
    same(set(rest("GET", "/v2")[1]) >= {"name", "version", "extensions"}, True)
    found = rest("GET", "/v2/models/arithmetic")[1]
    same(
        [(t["name"], t["datatype"], t["shape"]) for t in found["inputs"]],
        INPUTS,
    )


@check("http")
def json_of_every_type_is_answered(rest: Rest) -> None:
    for datatype, (_, values) in TYPES.items():
        if datatype in RAW_ONLY:
            continue
        tensor = {"name": "x", "datatype": datatype, "shape": [2], "data": values}
        status, answer, _ = rest(
            "POST", f"/v2/models/identity_{datatype.lower()}/infer", {"inputs": [tensor]}
        )
        same((status, answer["outputs"][0]["datatype"]), (200, datatype))
        same(answer["outputs"][0]["data"], values)


@check("http")
def ids_versions_and_outputs_over_http(rest: Rest) -> None:
    body = {"id": "7", "inputs": [A, B], "outputs": [{"name": "product"}]}
    status, answer, _ = rest("POST", "/v2/models/arithmetic/versions/1/infer", body)
    same((status, answer["id"], answer["model_name"]), (200, "7", "arithmetic"))
    same([(o["name"], o["data"]) for o in answer["outputs"]], [("product", [4, 10, 18])])


@check("http")
def nested_data_is_taken(rest: Rest) -> None:
    status, answer, _ = rest(
        "POST", "/v2/models/arithmetic/infer", {"inputs": [A, {**B, "data": [[4, 5, 6]]}]}
    )
    same((status, answer["outputs"][0]["data"]), (200, [5, 7, 9]))


@check("http")
def bad_requests_are_400_with_an_error(rest: Rest) -> None:
    for body in (
        b"{",
        {},
        {"inputs": [A]},
        {"inputs": [A, A]},
        {"inputs": [A, {**B, "data": [1]}]},
        {"inputs": [A, {**B, "data": ["x", "y", "z"]}]},
        {"inputs": [A, {**B, "datatype": "FLOAT"}]},
        {"inputs": [A, {**B, "shape": [-1, 3]}]},
        {"inputs": [A, B], "outputs": [{"name": "z"}]},
    ):
        status, answer, _ = rest("POST", "/v2/models/arithmetic/infer", body)
        same(status, 400)
        if not isinstance(answer, dict) or not answer.get("error"):
            raise AssertionError(f"no error text for {body!r}: {answer!r}")


@check("http")
def elements_of_another_type_are_refused(rest: Rest) -> None:
    for datatype, value in (("FP32", None), ("INT64", None), ("INT64", 0.5), ("BOOL", None), ("INT8", 300)):
        tensor = {"name": "x", "datatype": datatype, "shape": [1], "data": [value]}
        path = f"/v2/models/identity_{datatype.lower()}/infer"
        status, answer, _ = rest("POST", path, {"inputs": [tensor]})
        if not 400 <= status < 500:
            raise AssertionError(f"{status} for {value!r} as {datatype}: {answer!r}")


@check("http")
def a_tensor_without_elements_is_answered_over_http(rest: Rest) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [0], "data": []}
    status, answer, _ = rest("POST", "/v2/models/identity_fp32/infer", {"inputs": [tensor]})
    same((status, answer["outputs"][0]["shape"], answer["outputs"][0]["data"]), (200, [0], []))


@check("http")
def unknown_models_are_refused_over_http(rest: Rest) -> None:
    status, answer, _ = rest("POST", "/v2/models/nobody/infer", {"inputs": [A, B]})
    if status not in (400, 404) or "error" not in answer:
        raise AssertionError(f"{status} {answer!r}")


@check("http", "binary_tensor_data")
def binary_tensors_both_ways(rest: Rest) -> None:
    raw = np.float32([1, 2, 3]).tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": [3], "parameters": {"binary_data_size": 12}}
    header = json.dumps(
        {"inputs": [tensor], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
    ).encode()
    status, answer, tail = rest(
        "POST",
        "/v2/models/identity_fp32/infer",
        header + raw,
        Inference_Header_Content_Length=str(len(header)),
    )
    same((status, tail), (200, raw))
    same(answer["outputs"][0]["parameters"]["binary_data_size"], 12)


@check("http", "binary_tensor_data")
def json_and_binary_tensors_in_one_request(rest: Rest) -> None:
    raw = np.float32([4, 5, 6]).tobytes()
    second = {"name": "b", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    wanted = [{"name": "total"}, {"name": "product", "parameters": {"binary_data": True}}]
    header = json.dumps({"inputs": [A, second], "outputs": wanted}).encode()
    status, answer, tail = rest(
        "POST",
        "/v2/models/arithmetic/infer",
        header + raw,
        Inference_Header_Content_Length=str(len(header)),
    )
    same((status, answer["outputs"][0]["data"], floats(tail)), (200, [5, 7, 9], [4, 10, 18]))


@check("http", "binary_tensor_data")
def half_precision_travels_binary(rest: Rest) -> None:
    raw = np.float16(TYPES["FP16"][1]).tobytes()
    tensor = {"name": "x", "datatype": "FP16", "shape": [2], "parameters": {"binary_data_size": 4}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    found = rest(
        "POST",
        "/v2/models/identity_fp16/infer",
        header + raw,
        Inference_Header_Content_Length=str(len(header)),
    )
    same((found[0], found[2]), (200, raw))


@check("http", "model_repository")
def the_repository_over_http(rest: Rest) -> None:
    index = {entry["name"]: entry for entry in rest("POST", "/v2/repository/index")[1]}
    same(index["identity_int8"]["state"], "READY")
    same(rest("POST", "/v2/repository/models/identity_int8/unload")[0], 200)
    if rest("GET", "/v2/models/identity_int8/ready")[0] == 200:
        raise AssertionError("ready after it was unloaded")
    same(rest("POST", "/v2/repository/models/identity_int8/load")[0], 200)
    same(rest("GET", "/v2/models/identity_int8/ready")[0], 200)


@check("http", "logging")
def log_settings_over_http(rest: Rest) -> None:
    status, found, _ = rest("GET", "/v2/logging")
    same((status, type(found["log_info"])), (200, bool))


@check("http", "trace")
def trace_settings_over_http(rest: Rest) -> None:
    status, found, _ = rest("GET", "/v2/models/arithmetic/trace/setting")
    same((status, type(found["trace_level"])), (200, list))


@check("http", "system_shared_memory")
def shared_memory_over_http(rest: Rest) -> None:
    base = "/v2/systemsharedmemory"
    with region(bytes(24)) as (key, _):
        status = rest(
            "POST",
            f"{base}/region/conformance/register",
            {"key": key, "offset": 0, "byte_size": 24},
        )
        same(status[0], 200)
        same(rest("GET", f"{base}/region/conformance/status")[1][0]["byte_size"], 24)
        same(rest("POST", f"{base}/region/conformance/unregister")[0], 200)


@check("http", "statistics")
def statistics_over_http(rest: Rest) -> None:
    found = rest("GET", "/v2/models/arithmetic/stats")[1]["model_stats"][0]
    same(isinstance(found["inference_stats"]["success"]["count"], int), True)


@check("http", "classification")
def classification_over_http(rest: Rest) -> None:
    wanted = [{"name": "total", "parameters": {"classification": 1}}]
    answer = rest("POST", "/v2/models/arithmetic/infer", {"inputs": [A, B], "outputs": wanted})[1]
    same(answer["outputs"][0]["data"][0].split(":")[1], "2")


@final
class Grpc:
    """A stub, and its channel."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self._stub = GRPCInferenceServiceStub(self.channel)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)
        return lambda request, **options: method(request, timeout=60, **options)


def results(grpc_address: str, http_address: str) -> Iterator[tuple[str, str, str]]:
    """`PASS`, `FAIL` or `SKIP`, the check, and why."""
    peers: dict[str, Any] = {}
    extensions: set[str] = set()
    if grpc_address:
        peers["grpc"] = Grpc(grpc_address)
        extensions |= set(peers["grpc"].ServerMetadata(pb.ServerMetadataRequest()).extensions)
    if http_address:
        peers["http"] = Rest(http_address)
        extensions |= set(peers["http"]("GET", "/v2")[1].get("extensions", []))
    for transport, extension, name, function in CHECKS:
        title = f"{transport}: {name}"
        if transport not in peers:
            continue
        if extension and extension not in extensions:
            yield "SKIP", title, f"{extension} is not advertised"
            continue
        try:
            function(peers[transport])
        except AssertionError as error:
            yield "FAIL", title, str(error)
        except grpc.RpcError as error:
            yield "FAIL", title, f"{error.code().name}: {error.details()}".splitlines()[0]
        except Exception as error:  # noqa: BLE001 - whatever a server makes a client raise is a finding
            yield "FAIL", title, f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            yield "PASS", title, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write-models", type=Path, metavar="DIR", help="write the models and end")
    parser.add_argument("--grpc", default="", metavar="ADDRESS", help="host:port of the gRPC port")
    parser.add_argument("--http", default="", metavar="ADDRESS", help="host:port of the HTTP port")
    options = parser.parse_args()
    if options.write_models is not None:
        write_models(options.write_models)
        return 0
    if not options.grpc and not options.http:
        parser.error("give --grpc, --http or both")
    counts = dict.fromkeys(("PASS", "FAIL", "SKIP"), 0)
    for outcome, title, why in results(options.grpc, options.http):
        counts[outcome] += 1
        print(f"{outcome} {title}" + (f": {why}" if why else ""))
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return 1 if counts["FAIL"] or not counts["PASS"] else 0


if __name__ == "__main__":
    sys.exit(main())
