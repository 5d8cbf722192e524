"""The gRPC services: both input forms, contradictions, statuses, health, reflection."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from onnx import TensorProto

from faulty import blow_up, long_loop
from onward.graph.memory import largest_tensor
from onward_protos import cross_check_pb2, grpc_service_pb2
from onward_protos.cross_check_pb2 import GetStatisticsRequest
from onward_protos.cross_check_pb2_grpc import CrossCheckServiceStub
from onward_protos.grpc_service_pb2 import (
    InferTensorContents,
    ModelConfigRequest,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelReadyRequest,
    ModelStatisticsRequest,
    ModelStreamInferResponse,
    RepositoryIndexRequest,
    RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
    ServerLiveRequest,
    ServerMetadataRequest,
    ServerReadyRequest,
)
from onward_protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from onward_protos.tensors import decode_raw, encode_raw
from onward_server import ServerThread
from serving import RIGHT, identity, put, settings, two_by_two

TYPES = {
    "bool": TensorProto.BOOL,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16,
    "int32": TensorProto.INT32,
    "uint32": TensorProto.UINT32,
    "int64": TensorProto.INT64,
    "uint64": TensorProto.UINT64,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "fp32": TensorProto.FLOAT,
    "fp64": TensorProto.DOUBLE,
    "bytes": TensorProto.STRING,
}


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    repository: Path = tmp_path_factory.mktemp("models")
    for name, element in TYPES.items():
        put(repository, name, 1, identity(element))
    put(repository, "arithmetic", 3, two_by_two())
    put(repository, "scalar", 1, identity(TensorProto.FLOAT, ()))
    put(repository, "broken", 1, b"\x08nonsense")
    chosen = settings(
        repository, cross_check={"policy": "every"}, engine="onnxruntime", max_message_bytes=100_000
    )
    with ServerThread(chosen, RIGHT) as server, grpc.insecure_channel(server.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return GRPCInferenceServiceStub(channel)


def tensor(name: str, datatype: str, shape: list[int], **contents: Any) -> ModelInferRequest.InferInputTensor:
    result = ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        result.contents.CopyFrom(InferTensorContents(**contents))
    return result


def arrays(response: ModelInferResponse) -> dict[str, Any]:
    return {
        output.name: decode_raw(output.datatype, output.shape, raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


TYPED = [
    ("bool", "BOOL", "bool_contents", [True, False]),
    ("int8", "INT8", "int_contents", [-128, 127]),
    ("int16", "INT16", "int_contents", [-32768, 5]),
    ("int32", "INT32", "int_contents", [-(2**31), 2**31 - 1]),
    ("int64", "INT64", "int64_contents", [-(2**63), 2**63 - 1]),
    ("uint8", "UINT8", "uint_contents", [0, 255]),
    ("uint16", "UINT16", "uint_contents", [0, 65535]),
    ("uint32", "UINT32", "uint_contents", [0, 2**32 - 1]),
    ("uint64", "UINT64", "uint64_contents", [0, 2**64 - 1]),
    ("fp32", "FP32", "fp32_contents", [1.5, float("-inf")]),
    ("fp64", "FP64", "fp64_contents", [0.1, 1e300]),
    ("bytes", "BYTES", "bytes_contents", [b"", "é".encode()]),
]


@pytest.mark.parametrize(("model", "datatype", "field", "values"), TYPED)
def test_typed_contents_and_raw_bytes_give_the_same_answer(
    stub: Any, model: str, datatype: str, field: str, values: list[Any]
) -> None:
    typed = ModelInferRequest(model_name=model, inputs=[tensor("x", datatype, [2], **{field: values})])
    answer = stub.ModelInfer(typed)
    assert answer.outputs[0].datatype == datatype
    assert not answer.outputs[0].HasField("contents")
    assert arrays(answer)["y"].tolist() == values
    raw = ModelInferRequest(
        model_name=model,
        inputs=[tensor("x", datatype, [2])],
        raw_input_contents=answer.raw_output_contents,
    )
    assert stub.ModelInfer(raw).raw_output_contents == answer.raw_output_contents


@pytest.mark.parametrize(
    ("model", "datatype", "dtype"), [("fp16", "FP16", np.float16), ("bf16", "BF16", ml_dtypes.bfloat16)]
)
def test_half_precision_travels_raw(stub: Any, model: str, datatype: str, dtype: type) -> None:
    raw = encode_raw(np.array([1.5, -0.0, np.inf], dtype=dtype))
    request = ModelInferRequest(
        model_name=model, inputs=[tensor("x", datatype, [3])], raw_input_contents=[raw]
    )
    answer = stub.ModelInfer(request)
    assert (answer.outputs[0].datatype, list(answer.raw_output_contents)) == (datatype, [raw])
    assert answer.parameters["cross_check"].string_param == "passed"


@pytest.mark.parametrize(
    ("model", "shape", "raw"),
    [
        ("fp32", [0], b""),
        ("scalar", [], bytes(4)),
    ],
)
def test_unusual_shapes_are_answered(stub: Any, model: str, shape: list[int], raw: bytes) -> None:
    request = ModelInferRequest(
        model_name=model, inputs=[tensor("x", "FP32", shape)], raw_input_contents=[raw]
    )
    answer = stub.ModelInfer(request)
    assert list(answer.outputs[0].shape) == shape
    assert list(answer.raw_output_contents) == [raw]


def test_an_empty_tensor_needs_no_contents(stub: Any) -> None:
    answer = stub.ModelInfer(ModelInferRequest(model_name="fp32", inputs=[tensor("x", "FP32", [0])]))
    assert list(answer.raw_output_contents) == [b""]


def arithmetic(**fields: Any) -> ModelInferRequest:
    given: dict[str, Any] = {
        "model_name": "arithmetic",
        "inputs": [tensor("a", "FP32", [1, 3]), B],
        "raw_input_contents": [np.float32([1, 2, 3]).tobytes(), np.float32([4, 5, 6]).tobytes()],
        **fields,
    }
    return ModelInferRequest(**given)


def test_an_answer_names_its_request_model_and_check(stub: Any) -> None:
    answer = stub.ModelInfer(arithmetic(id="request 7"))
    assert (answer.id, answer.model_name, answer.model_version) == ("request 7", "arithmetic", "3")
    assert answer.parameters["cross_check"].string_param == "passed"
    assert answer.parameters["engine"].string_param == "onnxruntime"
    assert arrays(answer)["total"].tolist() == [[5, 7, 9]]
    assert arrays(answer)["product"].tolist() == [[4, 10, 18]]


def test_only_the_outputs_asked_for_are_answered(stub: Any) -> None:
    wanted = [ModelInferRequest.InferRequestedOutputTensor(name="product")]
    assert list(arrays(stub.ModelInfer(arithmetic(outputs=wanted)))) == ["product"]


ONES = bytes(12)
FP32 = {"fp32_contents": [1.0] * 3}
A_TYPED = tensor("a", "FP32", [1, 3], **FP32)
B = tensor("b", "FP32", [1, 3])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"raw_input_contents": [ONES]}, "raw_input_contents has 1 entries for 2 inputs"),
        ({"raw_input_contents": [ONES] * 3}, "raw_input_contents has 3 entries for 2 inputs"),
        ({"raw_input_contents": [ONES, bytes(11)]}, "raw_input_contents[1] for inputs[1] ('b'): FP32"),
        ({"raw_input_contents": []}, "inputs[0] ('a').contents: fp32_contents has 0 elements"),
        (
            {"inputs": [A_TYPED, B]},
            "inputs[0] ('a').contents: the request uses raw_input_contents too",
        ),
        (
            {
                "inputs": [
                    A_TYPED,
                    tensor("b", "FP32", [1, 3], int_contents=[1]),
                ],
                "raw_input_contents": [],
            },
            "inputs[1] ('b').contents: int_contents is filled; FP32 belongs in fp32_contents",
        ),
        (
            {
                "inputs": [A_TYPED, tensor("b", "FP16", [1, 3], **FP32)],
                "raw_input_contents": [],
            },
            "inputs[1] ('b').contents: FP16 has no typed contents",
        ),
        ({"inputs": [tensor("a", "FP32", [1, 3])] * 2}, "inputs[1] ('a'): the name is given twice"),
        ({"inputs": [tensor("", "FP32", [1, 3]), B]}, "inputs[0].name is empty"),
        ({"inputs": [tensor("a", "FP32", [1, 3]), tensor("c", "FP32", [1, 3])]}, "no input 'c'"),
        (
            {"inputs": [tensor("a", "FP32", [1, 3])], "raw_input_contents": [ONES]},
            "input 'b' is missing: the model takes FP32[batch, 3]",
        ),
        ({"inputs": [], "raw_input_contents": []}, "input 'a' is missing"),
        (
            {"inputs": [tensor("a", "FP32", [-1, -3]), B]},
            "inputs[0] ('a'): shape [-1, -3] has a negative dimension",
        ),
        (
            {"inputs": [tensor("a", "FP32", [2**62, 4]), B]},
            "more than 1073741824 elements",
        ),
        (
            {"inputs": [tensor("a", "FP32", [3, 1]), B]},
            "input 'a': shape of FP32[3, 1]",
        ),
        (
            {"inputs": [tensor("a", "INT32", [1, 3]), B]},
            "input 'a': datatype of INT32",
        ),
        (
            {"inputs": [tensor("a", "float", [1, 3]), B]},
            "datatype 'float' is unknown",
        ),
        ({"outputs": [{"name": "sum"}]}, "no output 'sum'; its outputs are 'total', 'product'"),
        ({"outputs": [{"name": "total"}] * 2}, "output 'total' is requested twice"),
    ],
)
def test_contradictions_are_invalid_arguments_that_name_the_field(
    stub: Any, change: dict[str, Any], text: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(arithmetic(**change))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in caught.value.details()


def test_a_run_beyond_the_engines_limits_is_refused_without_a_word_of_the_machine(repository: Path) -> None:
    put(repository, "blow_up", 1, blow_up())
    put(repository, "long", 1, long_loop())
    large = [tensor("shape", "INT64", [1], int64_contents=[10**14])]
    endless = [
        tensor("n", "INT64", [], int64_contents=[2**62]),
        tensor("x", "FP32", [], fp32_contents=[1.0]),
    ]
    asked = [
        (
            "blow_up",
            large,
            "operator ConstantOfShape, opset 21: its result would take 400,000,000,000,000 bytes, "
            "more than the machine has",
        ),
        (
            "long",
            endless,
            "node 'roots', operator Loop, opset 21: it asks for 4,611,686,018,427,387,904 iterations",
        ),
    ]
    for isolation in ("process", "thread"):
        with (
            ServerThread(settings(repository, isolation=isolation)) as server,
            grpc.insecure_channel(server.address) as opened,
        ):
            for name, inputs, text in asked:
                with pytest.raises(grpc.RpcError) as caught:
                    GRPCInferenceServiceStub(opened).ModelInfer(
                        ModelInferRequest(model_name=name, inputs=inputs)
                    )
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert text in caught.value.details()
                assert str(largest_tensor()) not in caught.value.details().replace(",", "")


def test_strings_have_to_be_utf8(stub: Any) -> None:
    request = ModelInferRequest(
        model_name="bytes", inputs=[tensor("x", "BYTES", [1])], raw_input_contents=[b"\1\0\0\0\xff"]
    )
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not UTF-8" in caught.value.details()


@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_extensions_that_are_missing_are_not_ignored(stub: Any, where: str) -> None:
    request = arithmetic(outputs=[{"name": "total"}])
    getattr(request, where)[0].parameters["shared_memory_region"].string_param = "region"
    getattr(request, where)[0].parameters["shared_memory_byte_size"].int64_param = 12
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert f"{where}[0]" in caught.value.details()


@pytest.mark.parametrize(
    ("name", "version", "code"),
    [
        ("nobody", "", grpc.StatusCode.NOT_FOUND),
        ("arithmetic", "4", grpc.StatusCode.NOT_FOUND),
        ("../arithmetic", "3", grpc.StatusCode.NOT_FOUND),
        ("broken", "", grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_models_that_are_not_served(stub: Any, name: str, version: str, code: grpc.StatusCode) -> None:
    calls = [
        lambda: stub.ModelInfer(arithmetic(model_name=name, model_version=version)),
        lambda: stub.ModelMetadata(ModelMetadataRequest(name=name, version=version)),
        lambda: stub.ModelConfig(ModelConfigRequest(name=name, version=version)),
        lambda: stub.ModelStatistics(ModelStatisticsRequest(name=name, version=version)),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is code
    assert not stub.ModelReady(ModelReadyRequest(name=name, version=version)).ready


def test_long_error_texts_are_cut(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(arithmetic(outputs=[{"name": "é" * 100}] * 2))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(caught.value.details().encode()) <= 1024


@pytest.mark.parametrize("field", ["model_name", "model_version", "id"])
def test_giant_names_are_refused_and_not_repeated(stub: Any, field: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(arithmetic(**{field: "é" * 20_000}))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in caught.value.details()
    assert len(caught.value.details().encode()) < 300


def test_a_request_beyond_the_message_bound_is_refused(stub: Any) -> None:
    request = ModelInferRequest(
        model_name="fp32", inputs=[tensor("x", "FP32", [50_000])], raw_input_contents=[bytes(200_000)]
    )
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_request_that_is_large_when_it_is_unpacked_is_refused(channel: grpc.Channel, stub: Any) -> None:
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        call(bytes(50_000_000), compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stub.ServerReady(ServerReadyRequest()).ready


def test_server_health_and_metadata(stub: Any) -> None:
    assert stub.ServerLive(ServerLiveRequest()).live
    assert stub.ServerReady(ServerReadyRequest()).ready
    assert stub.ModelReady(ModelReadyRequest(name="arithmetic", version="3")).ready
    metadata = stub.ServerMetadata(ServerMetadataRequest())
    assert metadata.name == "onward"
    assert "statistics" in metadata.extensions


def test_model_metadata_and_config(stub: Any) -> None:
    metadata = stub.ModelMetadata(ModelMetadataRequest(name="arithmetic"))
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("arithmetic", ["3"], "onnx")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("a", "FP32", [-1, 3]),
        ("b", "FP32", [-1, 3]),
    ]
    assert [t.name for t in metadata.outputs] == ["total", "product"]
    config = stub.ModelConfig(ModelConfigRequest(name="bytes")).config
    assert (config.name, config.max_batch_size, config.default_model_filename) == ("bytes", 0, "model.onnx")
    assert (config.input[0].data_type, list(config.input[0].dims)) == (13, [-1])
    assert config.parameters["cross_check.policy"].string_value == "every"


def test_statistics_count_requests_and_checks(stub: Any, channel: grpc.Channel) -> None:
    def counts() -> tuple[int, int, int]:
        (served,) = stub.ModelStatistics(ModelStatisticsRequest(name="arithmetic")).model_stats
        (checked,) = (
            CrossCheckServiceStub(channel)
            .GetStatistics(GetStatisticsRequest(model_name="arithmetic"))
            .statistics
        )
        assert checked.passed == checked.checks
        return served.inference_stats.success.count, checked.requests, checked.checks

    before = counts()
    stub.ModelInfer(arithmetic())
    stub.ModelInfer(arithmetic())
    assert counts() == tuple(count + 2 for count in before)
    everything = stub.ModelStatistics(ModelStatisticsRequest()).model_stats
    assert {entry.name for entry in everything} >= {"arithmetic", "fp32", "bytes"}


def test_the_repository_index_tells_what_is_wrong(stub: Any) -> None:
    models = {m.name: m for m in stub.RepositoryIndex(RepositoryIndexRequest()).models}
    assert (models["arithmetic"].state, models["arithmetic"].version) == ("READY", "3")
    assert models["broken"].state == "UNAVAILABLE"
    assert models["broken"].reason
    ready = stub.RepositoryIndex(RepositoryIndexRequest(ready=True)).models
    assert "broken" not in {m.name for m in ready}


def test_loading_is_off_unless_enabled(stub: Any) -> None:
    for call in (
        lambda: stub.RepositoryModelLoad(RepositoryModelLoadRequest(model_name="fp32")),
        lambda: stub.RepositoryModelUnload(RepositoryModelUnloadRequest(model_name="fp32")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "model_control" in caught.value.details()


def test_what_is_no_message_is_an_invalid_argument(channel: grpc.Channel) -> None:
    for service in (
        grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        cross_check_pb2.DESCRIPTOR.services_by_name["CrossCheckService"],
    ):
        for method in service.methods:
            if method.name == "ModelStreamInfer":
                continue
            call = channel.unary_unary(f"/{service.full_name}/{method.name}")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"\x0a\xff\xff\xff\xff\x0fgarbage")
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method.name
            assert "cannot be decoded" in caught.value.details()


def test_a_stream_answers_in_order_and_goes_on_after_an_error(channel: grpc.Channel, stub: Any) -> None:
    requests = [arithmetic(id=str(number)) for number in range(40)]
    requests[7].inputs[0].datatype = "INT32"
    answers = list(stub.ModelStreamInfer(iter(requests)))
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(40)]
    assert [bool(answer.error_message) for answer in answers] == [number == 7 for number in range(40)]
    assert "INVALID_ARGUMENT" in answers[7].error_message
    assert answers[8].infer_response.parameters["triton_final_response"].bool_param
    raw = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    broken, whole = raw(iter([b"\xff\xff", arithmetic(id="after").SerializeToString()]))
    assert "cannot be decoded" in ModelStreamInferResponse.FromString(broken).error_message
    assert ModelStreamInferResponse.FromString(whole).infer_response.id == "after"


def test_a_stream_can_ask_to_end_with_its_first_error(stub: Any) -> None:
    requests = [arithmetic(id="0"), arithmetic(model_name="nobody"), arithmetic(id="2")]
    answers = stub.ModelStreamInfer(iter(requests), metadata=[("triton_grpc_error", "true")])
    assert next(answers).infer_response.id == "0"
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_classification_gives_the_highest_of_each_row(stub: Any) -> None:
    request = arithmetic(outputs=[{"name": "total"}])
    request.outputs[0].parameters["classification"].int64_param = 2
    answer = stub.ModelInfer(request)
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [1, 2])
    assert arrays(answer)["total"].tolist() == [[b"9.000000:2", b"7.000000:1"]]


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("sequence_id", {"int64_param": 4}, grpc.StatusCode.UNIMPLEMENTED),
        ("priority", {"string_param": "high"}, grpc.StatusCode.INVALID_ARGUMENT),
        ("timeout", {"int64_param": -1}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_parameters_are_not_ignored(stub: Any, name: str, value: Any, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(arithmetic(parameters={name: value}))
    assert caught.value.code() is code
    assert name in caught.value.details()


def test_priority_and_timeout_are_taken(stub: Any) -> None:
    parameters = {"priority": {"uint64_param": 1}, "timeout": {"int64_param": 5_000_000}}
    assert arrays(stub.ModelInfer(arithmetic(parameters=parameters)))["total"].tolist() == [[5, 7, 9]]


def test_only_extensions_that_work_are_advertised(stub: Any) -> None:
    extensions = set(stub.ServerMetadata(ServerMetadataRequest()).extensions)
    assert extensions >= {"classification", "statistics", "schedule_policy", "model_repository(index)"}
    assert not extensions & {"system_shared_memory", "sequence", "model_repository", "binary_tensor_data"}


def test_health_knows_the_server_its_services_and_its_models(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "inference.GRPCInferenceService", "onward.v1.CrossCheckService", "arithmetic"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="broken"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_and_describes_the_services(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
    ]
    listed, described = stub.ServerReflectionInfo(iter(requests))
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {"inference.GRPCInferenceService", "onward.v1.CrossCheckService", "grpc.health.v1.Health"}
    assert described.file_descriptor_response.file_descriptor_proto


def test_everything_that_reflection_lists_is_described(channel: grpc.Channel) -> None:
    v1 = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    request = reflection_pb2.ServerReflectionRequest
    ask = channel.stream_stream(
        v1,
        request_serializer=request.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (listed,) = ask(iter([request(list_services="")]))
    services = [service.name for service in listed.list_services_response.service]
    methods = ["inference.GRPCInferenceService.ModelInfer", "inference.ModelInferRequest.model_name"]
    symbols = [*services, *methods, "grpc.reflection.v1.ServerReflectionRequest", "nobody", "no.body"]
    pool = descriptor_pool.DescriptorPool()
    missing = []
    for symbol, answer in zip(symbols, ask(request(file_containing_symbol=s) for s in symbols), strict=True):
        if answer.WhichOneof("message_response") == "error_response":
            missing.append((symbol, answer.error_response.error_code))
        for data in reversed(answer.file_descriptor_response.file_descriptor_proto):
            with contextlib.suppress(TypeError):  # it is there already
                pool.AddSerializedFile(data)
    assert missing == [("nobody", 5), ("no.body", 5)]
    for service in services:
        assert pool.FindServiceByName(service).methods
    v1_messages = pool.FindServiceByName("grpc.reflection.v1.ServerReflection").methods[0]
    assert v1_messages.input_type.full_name == "grpc.reflection.v1.ServerReflectionRequest"
