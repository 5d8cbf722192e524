"""Shared memory, log and trace settings, traces, the response cache, aliases: each as a client sees it."""

from __future__ import annotations

import http.client
import http.server
import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import TensorProto
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from onward_protos import grpc_service_pb2 as pb
from onward_protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from onward_server import ServerThread
from onward_server.dataplane.shared_memory import Placement, SharedMemory
from onward_server.errors import RequestError
from serving import RIGHT, identity, put, settings, two_by_two


@pytest.fixture
def region() -> Iterator[Path]:
    path = Path("/dev/shm") / f"onward-test-{uuid.uuid4().hex}"
    path.write_bytes(bytes(4096))
    yield path
    path.unlink(missing_ok=True)


def asked(name: str = "arithmetic", **fields: Any) -> pb.ModelInferRequest:
    a, b = np.float32([[1, 2, 3]]), np.float32([[4, 5, 6]])
    return pb.ModelInferRequest(
        model_name=name,
        inputs=[{"name": key, "datatype": "FP32", "shape": [1, 3]} for key in ("a", "b")],
        raw_input_contents=[a.tobytes(), b.tobytes()],
        **fields,
    )


def code_of(call: Any, *given: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*given)
    return caught.value.code().name, caught.value.details()


def over_http(address: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_tensors_travel_through_shared_memory(tmp_path: Path, region: Path) -> None:
    put(tmp_path, "arithmetic", 1, two_by_two())
    chosen = settings(tmp_path, http_listen="127.0.0.1:0", shared_memory=True)
    with ServerThread(chosen, RIGHT) as server, grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert "system_shared_memory" in stub.ServerMetadata(pb.ServerMetadataRequest()).extensions
        stub.SystemSharedMemoryRegister(
            pb.SystemSharedMemoryRegisterRequest(name="r", key=f"/{region.name}", offset=1024, byte_size=2048)
        )
        status = stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())
        assert status.regions["r"].byte_size == 2048
        with region.open("r+b") as file:
            file.seek(1024 + 64)
            file.write(np.float32([1, 2, 3]).tobytes())
        request = asked(outputs=[{"name": "product"}, {"name": "total"}])
        # one input in shared memory, one raw; one output in each
        del request.raw_input_contents[0]
        for name, value in (("byte_size", 12), ("offset", 64)):
            request.inputs[0].parameters[f"shared_memory_{name}"].int64_param = value
        request.inputs[0].parameters["shared_memory_region"].string_param = "r"
        request.outputs[0].parameters["shared_memory_region"].string_param = "r"
        request.outputs[0].parameters["shared_memory_byte_size"].int64_param = 100
        answer = stub.ModelInfer(request)
        assert answer.outputs[0].parameters["shared_memory_byte_size"].int64_param == 12
        assert answer.raw_output_contents[0] == b""
        assert np.frombuffer(answer.raw_output_contents[1], np.float32).tolist() == [5, 7, 9]
        assert np.frombuffer(region.read_bytes()[1024:1036], np.float32).tolist() == [4, 10, 18]
        # the same over HTTP
        where = {"shared_memory_region": "r", "shared_memory_byte_size": 12}
        body = {
            "inputs": [
                {"name": "a", "datatype": "FP32", "shape": [1, 3], "parameters": where},
                {"name": "b", "datatype": "FP32", "shape": [1, 3], "data": [2, 2, 2]},
            ],
            "outputs": [{"name": "total", "parameters": {**where, "shared_memory_offset": 256}}],
        }
        found, output = over_http(server.http_address, "POST", "/v2/models/arithmetic/infer", body)
        assert found == 200
        assert "data" not in output["outputs"][0]
        assert np.frombuffer(region.read_bytes()[1280:1292], np.float32).tolist() == [6, 12, 20]
        listed = over_http(server.http_address, "GET", "/v2/systemsharedmemory/status")[1]
        assert [entry["name"] for entry in listed] == ["r"]
        # refusals name what is wrong
        request.outputs[0].parameters["shared_memory_byte_size"].int64_param = 11
        assert code_of(stub.ModelInfer, request)[0] == "INVALID_ARGUMENT"
        request.inputs[0].parameters["shared_memory_offset"].int64_param = 2040
        assert "not in region 'r'" in code_of(stub.ModelInfer, request)[1]
        assert over_http(server.http_address, "POST", "/v2/systemsharedmemory/unregister")[0] == 200
        assert "no shared memory region 'r'" in code_of(stub.ModelInfer, request)[1]
        cuda = channel.unary_unary("/inference.GRPCInferenceService/CudaSharedMemoryStatus")
        assert code_of(cuda, b"")[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    "key", ["../etc/passwd", "/..", "", "a/b", "nobody-has-made-this", "x" * 300, "a\0b"]
)
def test_only_shared_memory_objects_are_opened(key: str) -> None:
    with pytest.raises(RequestError):
        SharedMemory(True).register("r", key, 0, 1)


def test_a_region_that_shrinks_is_an_error_and_not_the_end(region: Path) -> None:
    memory = SharedMemory(True)
    memory.register("r", region.name, 0, 4096)
    link = region.with_name(f"{region.name}-link")
    link.symlink_to("/etc/passwd")
    try:
        with pytest.raises(RequestError):
            memory.register("link", link.name, 0, 1)
    finally:
        link.unlink()
    os.truncate(region, 10)
    with pytest.raises(RequestError, match="smaller"):
        memory.read("x", Placement("r", 100))
    with pytest.raises(RequestError, match="smaller"):
        memory.write("x", Placement("r", 100), bytes(100))
    memory.close()


@pytest.fixture
def levels() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("onward", "onward_server")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.mark.usefixtures("levels")
def test_log_settings_are_seen_and_changed_where_that_is_allowed(tmp_path: Path) -> None:
    put(tmp_path, "m", 1, identity(TensorProto.FLOAT))
    chosen = settings(tmp_path, http_listen="127.0.0.1:0", remote_settings=True)
    with ServerThread(chosen, RIGHT) as server, grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        request = pb.LogSettingsRequest()
        request.settings["log_verbose_level"].uint32_param = 1
        assert stub.LogSettings(request).settings["log_verbose_level"].uint32_param == 1
        assert logging.getLogger("onward_server").isEnabledFor(logging.DEBUG)
        changes = {"log_verbose_level": 0, "log_info": False, "log_warning": False}
        found, body = over_http(server.http_address, "POST", "/v2/logging", changes)
        assert (found, body["log_info"], body["log_error"]) == (200, False, True)
        assert not logging.getLogger("onward_server.x").isEnabledFor(logging.WARNING)
        for wrong in (
            {"log_file": "/etc/passwd"},
            {"nothing": 1},
            {"log_info": 3},
            {"log_verbose_level": -1},
        ):
            assert over_http(server.http_address, "POST", "/v2/logging", wrong)[0] == 400
        assert code_of(stub.TraceSetting, pb.TraceSettingRequest())[0] == "UNIMPLEMENTED"
    with ServerThread(settings(tmp_path), RIGHT) as server, grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.LogSettings(pb.LogSettingsRequest()).settings["log_error"].bool_param
        assert code_of(stub.LogSettings, request)[0] == "FAILED_PRECONDITION"


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans as an OpenTelemetry collector does."""

    spans: list[Any] = []  # noqa: RUF012 - the library makes an instance a request

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            data = gzip.decompress(data)
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        pass


def test_requests_are_traced_as_children_of_their_callers(tmp_path: Path) -> None:
    put(tmp_path, "arithmetic", 1, two_by_two())
    Collector.spans.clear()
    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    try:
        endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        chosen = settings(
            tmp_path,
            http_listen="127.0.0.1:0",
            remote_settings=True,
            trace={"endpoint": endpoint, "rate": 4},
        )
        with ServerThread(chosen, RIGHT) as server, grpc.insecure_channel(server.address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            headers = [("traceparent", f"00-{trace}-{parent}-01")]
            stub.ModelInfer(asked(id="child"), metadata=headers)
            # a caller that is not traced decides too
            stub.ModelInfer(asked(id="no"), metadata=[("traceparent", f"00-{trace}-{parent}-00")])
            for number in range(8):
                stub.ModelInfer(asked(id=f"own {number}"))
            code_of(stub.ModelInfer, asked("arithmetic", model_version="9"))
            request = pb.TraceSettingRequest(model_name="arithmetic")
            request.settings["trace_level"].value.append("OFF")
            assert stub.TraceSetting(request).settings["trace_level"].value == ["OFF"]
            assert stub.TraceSetting(pb.TraceSettingRequest()).settings["trace_level"].value == ["TIMESTAMPS"]
            stub.ModelInfer(asked(id="off"), metadata=headers)
            changes: dict[str, Any] = {"trace_level": None, "trace_count": "1", "trace_rate": 1}
            path = "/v2/models/arithmetic/trace/setting"
            found, body = over_http(server.http_address, "POST", path, changes)
            assert (found, body["trace_level"], body["trace_rate"]) == (200, ["TIMESTAMPS"], "1")
            stub.ModelInfer(asked(id="counted"))
            stub.ModelInfer(asked(id="beyond the count"))
            for wrong in ({"trace_level": "TENSORS"}, {"trace_rate": "0"}, {"trace_file": "/x"}):
                assert over_http(server.http_address, "POST", "/v2/trace/setting", wrong)[0] == 400
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    spans = {span.span_id: span for span in Collector.spans}
    ids = {
        next((a.value.string_value for a in span.attributes if a.key == "onward.request_id"), ""): span
        for span in spans.values()
        if span.name == "infer"
    }
    assert set(ids) - {""} == {"child", "own 0", "own 4", "counted"}
    child = ids["child"]
    assert (child.trace_id.hex(), child.parent_span_id.hex()) == (trace, parent)
    inner = {span.name: span for span in spans.values() if span.parent_span_id == child.span_id}
    assert set(inner) == {"queue", "compute"}
    begun, ended = child.start_time_unix_nano, child.end_time_unix_nano
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano <= ended for span in inner.values())
    assert inner["compute"].end_time_unix_nano > begun


def test_equal_requests_are_answered_from_the_cache(tmp_path: Path) -> None:
    put(tmp_path, "arithmetic", 1, two_by_two())
    put(tmp_path, "plain", 1, two_by_two())
    (tmp_path / "arithmetic" / "config.toml").write_text("response_cache = true\n")
    chosen = settings(
        tmp_path, http_listen="127.0.0.1:0", response_cache_bytes=3000, model_control="explicit"
    )
    with ServerThread(chosen, RIGHT) as server, grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)

        def counts(name: str) -> tuple[int, int, int]:
            (found,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name=name)).model_stats
            stats = found.inference_stats
            return stats.cache_hit.count, stats.cache_miss.count, found.execution_count

        for name in ("arithmetic", "plain"):
            answers = [stub.ModelInfer(asked(name)).raw_output_contents for _ in range(3)]
            assert answers[0] == answers[1] == answers[2]
        assert counts("arithmetic") == (2, 1, 1)
        assert counts("plain") == (0, 0, 3)
        other = asked()
        other.raw_input_contents[0] = np.float32([9, 9, 9]).tobytes()
        assert stub.ModelInfer(other).raw_output_contents != answers[0]
        assert stub.ModelInfer(asked(outputs=[{"name": "product"}])).outputs[0].name == "product"
        assert counts("arithmetic") == (2, 3, 3)
        # what was used longest ago makes room
        for number in range(20):
            other.raw_input_contents[0] = np.float32([number, 0, 0]).tobytes()
            stub.ModelInfer(other)
        assert 0 < server.server.plane.cache.used <= 3000
        # a file that was replaced answers for itself
        put(tmp_path, "arithmetic", 1, two_by_two())
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="arithmetic"))
        stub.ModelInfer(other)
        assert counts("arithmetic") == (0, 1, 1)
        connection = http.client.HTTPConnection(server.http_address, timeout=10)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        assert 'nv_cache_num_misses_per_model{model="arithmetic",version="1"} 1.0' in text


def test_an_alias_is_another_name_of_a_model_or_a_version(tmp_path: Path) -> None:
    for version in (1, 2):
        put(tmp_path, "arithmetic", version, two_by_two())
    aliases = {"live": "arithmetic", "old": "arithmetic/1", "gone": "nobody", "arithmetic": "nobody"}
    with ServerThread(settings(tmp_path, aliases=aliases), RIGHT) as server:
        channel = grpc.insecure_channel(server.address)
        with channel:
            stub = GRPCInferenceServiceStub(channel)
            for name, version in (("live", "2"), ("old", "1"), ("arithmetic", "2")):
                answer = stub.ModelInfer(asked(name))
                assert (answer.model_name, answer.model_version) == ("arithmetic", version)
                assert stub.ModelReady(pb.ModelReadyRequest(name=name)).ready
            assert code_of(stub.ModelInfer, asked("gone"))[0] == "NOT_FOUND"
