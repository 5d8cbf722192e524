"""The HTTP port: JSON and binary tensors, the repository, statistics, metrics, refusals."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from onward_server import ServerThread
from serving import identity, put, settings, two_by_two

A = {"name": "a", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
B = {"name": "b", "datatype": "FP32", "shape": [1, 3], "data": [[4, 5, 6]]}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository: Path = tmp_path_factory.mktemp("models")
    for name, element in {
        "fp16": TensorProto.FLOAT16,
        "bf16": TensorProto.BFLOAT16,
        "fp32": TensorProto.FLOAT,
        "bytes": TensorProto.STRING,
        "bool": TensorProto.BOOL,
        "uint8": TensorProto.UINT8,
        "int64": TensorProto.INT64,
    }.items():
        put(repository, name, 1, identity(element))
    put(repository, "arithmetic", 3, two_by_two())
    (repository / "arithmetic" / "labels.txt").write_text("one\ntwo\n")
    (repository / "arithmetic" / "config.toml").write_text("labels = 'labels.txt'")
    put(repository, "broken", 1, b"\x08nonsense")
    chosen = settings(
        repository,
        http_listen="127.0.0.1:0",
        isolation="thread",
        engine="onnxruntime",
        model_control="explicit",
        max_message_bytes=100_000,
    )
    with ServerThread(chosen) as server:
        yield server.http_address


def call(
    address: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, Any]:
    connection = http.client.HTTPConnection(address, timeout=30)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    kind = response.headers.get("Content-Type", "")
    if response.headers.get("Content-Encoding") == "gzip":
        content = gzip.decompress(content)
    return (
        response.status,
        json.loads(content) if content and kind.startswith("application/json") else content,
        response,
    )


def infer(address: str, model: str, **fields: Any) -> tuple[int, Any]:
    return call(address, "POST", f"/v2/models/{model}/infer", fields)[:2]


def test_json_in_json_out(address: str) -> None:
    status, answer = infer(address, "arithmetic", id="7", inputs=[A, B])
    assert status == 200
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("arithmetic", "3", "7")
    total, product = answer["outputs"]
    assert total == {"name": "total", "datatype": "FP32", "shape": [1, 3], "data": [5.0, 7.0, 9.0]}
    assert product["data"] == [4.0, 10.0, 18.0]
    status, answer = infer(address, "arithmetic/versions/3", inputs=[A, B], outputs=[{"name": "product"}])
    assert [output["name"] for output in answer["outputs"]] == ["product"]


@pytest.mark.parametrize(
    ("model", "datatype", "values"),
    [
        ("bool", "BOOL", [True, False]),
        ("uint8", "UINT8", [0, 255]),
        ("int64", "INT64", [-(2**63), 2**63 - 1]),
        ("bytes", "BYTES", ["", "é"]),
        ("fp32", "FP32", [0.5, -2.0]),
    ],
)
def test_every_json_type(address: str, model: str, datatype: str, values: list[Any]) -> None:
    tensor = {"name": "x", "datatype": datatype, "shape": [2], "data": values}
    status, answer = infer(address, model, inputs=[tensor])
    assert (status, answer["outputs"][0]["data"]) == (200, values)


def test_not_a_number_survives_json(address: str) -> None:
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[3],"data":[NaN,Infinity,-Infinity]}]}'
    status, answer, _ = call(address, "POST", "/v2/models/fp32/infer", body)
    assert status == 200
    np.testing.assert_array_equal(answer["outputs"][0]["data"], [np.nan, np.inf, -np.inf])


@pytest.mark.parametrize("model", ["fp16", "bf16"])
@pytest.mark.parametrize("by", ["output", "default"])
def test_binary_tensors_both_ways(address: str, model: str, by: str) -> None:
    raw = np.array([1, 2, 3], "<u2").tobytes()
    tensor = {"name": "x", "datatype": model.upper(), "shape": [3], "parameters": {"binary_data_size": 6}}
    asked = (
        {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
        if by == "output"
        else {"parameters": {"binary_data_output": True}}
    )
    header = json.dumps({"inputs": [tensor], **asked}).encode()
    path, length = f"/v2/models/{model}/infer", {"Inference-Header-Content-Length": str(len(header))}
    status, content, response = call(address, "POST", path, header + raw, length)
    assert status == 200
    size = int(response.headers["Inference-Header-Content-Length"])
    answer = json.loads(content[:size])
    assert answer["outputs"][0]["parameters"]["binary_data_size"] == 6
    assert content[size:] == raw


def test_compression_both_ways(address: str) -> None:
    x = list(range(1000))
    body = json.dumps({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1000], "data": x}]}).encode()
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    status, content, response = call(address, "POST", "/v2/models/int64/infer", gzip.compress(body), headers)
    assert (status, response.headers["Content-Encoding"]) == (200, "gzip")
    assert content["outputs"][0]["data"] == x


def test_a_bomb_is_refused_before_it_is_unpacked(address: str) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    status, answer, _ = call(address, "POST", "/v2/models/fp32/infer", bomb, {"Content-Encoding": "gzip"})
    assert status == 413
    assert "100000 bytes" in answer["error"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "x"])
def test_a_body_not_encoded_as_it_says_is_refused(address: str, coding: str) -> None:
    status, *_ = call(
        address, "POST", "/v2/models/fp32/infer", b"not compressed", {"Content-Encoding": coding}
    )
    assert status == 400


def test_classification_with_labels(address: str) -> None:
    wanted = [{"name": "total", "parameters": {"classification": 2}}]
    _, answer = infer(address, "arithmetic", inputs=[A, {**B, "data": [9, 5, 1]}], outputs=wanted)
    assert answer["outputs"][0]["data"] == ["10.000000:0:one", "7.000000:1:two"]


BAD = [
    ({"inputs": [A, {**B, "data": [1, 2]}]}, "inputs[1] ('b'): data has 2 elements; shape [1, 3] takes 3"),
    ({"inputs": [A, {**B, "data": [1, 2, "x"]}]}, '"x" is no element of FP32'),
    ({"inputs": [A, {**B, "data": "xyz"}]}, "data is not a list"),
    ({"inputs": [A, {**B, "data": [[1], 2, 3]}]}, "data mixes lists and elements"),
    ({"inputs": [A, {**B, "data": [1, None, 3]}]}, "null is no element of FP32"),
    ({"inputs": [A, {**B, "data": [1, True, 3]}]}, "true is no element of FP32"),
    ({"inputs": [A, {**B, "data": [1, 1e39, 3]}]}, "a value is outside FP32's range"),
    ({"inputs": [A, {**B, "data": [[1, 2], [3]]}]}, "data is nested otherwise than shape [1, 3]"),
    ({"inputs": [A, {**B, "data": [[1], [2], [3]]}]}, "data is nested otherwise than shape [1, 3]"),
    ({"inputs": [A, {**B, "shape": [2, 2], "data": [[1, 2, 3], [4]]}]}, "nested otherwise than shape [2, 2]"),
    ({"inputs": [A, B], "parameters": {"binary_data_output": "false"}}, "is not true or false"),
    ({"inputs": [A, B], "outputs": [{"name": "total", "parameters": {"binary_data": 1}}]}, "true or false"),
    ({"inputs": [A, {**B, "shape": [-1, 3]}]}, "negative dimension"),
    ({"inputs": [A, {**B, "shape": "3"}]}, "shape is not a list"),
    ({"inputs": [A, {**B, "shape": [2**70, 3]}]}, "more than"),
    ({"inputs": [A, {**B, "datatype": "FLOAT"}]}, "datatype 'FLOAT' is unknown"),
    ({"inputs": [A, {**B, "datatype": "FP16"}]}, "FP16 has no JSON form"),
    ({"inputs": [A, A]}, "given twice"),
    ({"inputs": [A]}, "input 'b' is missing"),
    ({"inputs": [A, {"name": ""}]}, "inputs[1].name"),
    ({"inputs": {"a": 1}}, "inputs is not a list"),
    ({}, "inputs is not a list"),
    ({"inputs": [A, B], "outputs": [{"name": "sum"}]}, "no output 'sum'"),
    ({"inputs": [A, B], "parameters": {"priority": "x"}}, "priority"),
    ({"inputs": [A, B], "id": 7}, "id is not a string"),
    ({"inputs": [A, {**B, "parameters": {"binary_data_size": 12}}]}, "0 bytes are left"),
    (b"[1]", "not a JSON object"),
    (b"{", "not JSON"),
    (b"[" * 50_000, "not JSON"),
    (b"\xff\xfe", "not JSON"),
]


@pytest.mark.parametrize(("body", "text"), BAD)
def test_bad_requests_are_400_and_say_what_is_wrong(address: str, body: Any, text: str) -> None:
    status, answer, _ = call(address, "POST", "/v2/models/arithmetic/infer", body)
    assert status == 400
    assert text in answer["error"]


@pytest.mark.parametrize("length", ["-1", "x", "999999", "0x5", ""])
def test_bad_header_lengths(address: str, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length}
    status, answer, _ = call(address, "POST", "/v2/models/fp32/infer", {"inputs": []}, headers)
    assert status == 400
    assert "Inference-Header-Content-Length" in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nobody", 404),
        ("POST", "/v2/models/nobody/infer", 404),
        ("GET", "/v2/models/arithmetic/versions/9", 404),
        ("GET", "/v2/models/broken", 503),
        ("GET", "/v2/models/..%2F..%2Fetc%2Fpasswd", 404),
        ("GET", "/v2/cudasharedmemory/status", 501),
        ("POST", "/v2/cudasharedmemory/region/r/register", 501),
        ("GET", "/nothing", 404),
        ("DELETE", "/v2/models/arithmetic", 405),
        ("POST", "/v2/repository/models/nobody/load", 404),
        ("POST", "/v2/repository/models/..%2Fm/load", 400),
    ],
)
def test_what_is_not_there(address: str, method: str, path: str, status: int) -> None:
    body = {"inputs": []} if method == "POST" and path.endswith("infer") else None
    found, answer, _ = call(address, method, path, body)
    assert found == status
    assert answer["error"]
    assert str(Path.home()) not in answer["error"]
    assert "/tmp" not in answer["error"]


def test_a_body_beyond_the_bound_is_refused(address: str) -> None:
    status, answer, _ = call(address, "POST", "/v2/models/fp32/infer", b"x" * 200_000)
    assert (status, answer["error"]) == (413, "the body is larger than 100000 bytes")


def test_health_metadata_and_configuration(address: str) -> None:
    for path in ("/health", "/v2/health/live", "/v2/health/ready", "/v2/models/arithmetic/ready"):
        assert call(address, "GET", path)[0] == 200
    assert call(address, "GET", "/v2/models/nobody/ready")[0] == 400
    server = call(address, "GET", "/v2")[1]
    assert server["name"] == "onward"
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(server["extensions"])
    metadata = call(address, "GET", "/v2/models/arithmetic")[1]
    assert metadata["versions"] == ["3"]
    assert metadata["inputs"][0] == {"name": "a", "datatype": "FP32", "shape": [-1, 3]}
    config = call(address, "GET", "/v2/models/arithmetic/config")[1]
    assert config["max_batch_size"] == 0
    assert config["parameters"]["cross_check.rate"] == {"string_value": "0.05"}


def test_the_repository_is_listed_loaded_and_unloaded(address: str) -> None:
    index = call(address, "POST", "/v2/repository/index")[1]
    states = {entry["name"]: entry for entry in index}
    assert (states["fp32"]["state"], states["broken"]["state"]) == ("READY", "UNAVAILABLE")
    assert "/" not in states["broken"]["reason"]
    ready = call(address, "POST", "/v2/repository/index", {"ready": True})[1]
    assert "broken" not in {entry["name"] for entry in ready}
    assert call(address, "POST", "/v2/repository/models/bool/unload")[0] == 200
    assert call(address, "GET", "/v2/models/bool/ready")[0] == 503
    content = base64.b64encode(identity(TensorProto.BOOL).SerializeToString()).decode()
    load = {"parameters": {"config": "{}", "file:4/model.onnx": content}}
    assert call(address, "POST", "/v2/repository/models/bool/load", load)[0] == 200
    assert call(address, "GET", "/v2/models/bool")[1]["versions"] == ["4"]
    status, answer, _ = call(
        address, "POST", "/v2/repository/models/bool/load", {"parameters": {"config": "{}", "file:4/x": "?"}}
    )
    assert (status, "base64" in answer["error"]) == (400, True)
    assert call(address, "POST", "/v2/repository/models/bool/load")[0] == 200


def test_metrics_have_tritons_names_and_ours(address: str) -> None:
    infer(address, "arithmetic", inputs=[A, B])
    infer(address, "arithmetic", inputs=[A])
    status, content, _ = call(address, "GET", "/metrics")
    text = content.decode()
    assert status == 200
    found = {
        name: float(value)
        for name, value in re.findall(r'^(\w+)\{model="arithmetic",version="3"\} (\S+)$', text, re.MULTILINE)
    }
    statistics = call(address, "GET", "/v2/models/arithmetic/stats")[1]["model_stats"][0]
    assert found["nv_inference_request_success"] == statistics["inference_stats"]["success"]["count"] > 0
    assert found["nv_inference_count"] == statistics["inference_count"]
    assert found["nv_inference_exec_count"] == statistics["execution_count"]
    assert found["onward_request_duration_seconds_count"] == found["nv_inference_request_success"]
    for name in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        assert f"nv_inference_{name}_duration_us" in found
    assert found["nv_inference_pending_request_count"] == 0
    assert 'nv_inference_request_failure{model="arithmetic",reason="REJECTED",version="3"}' in text.replace(
        'model="arithmetic",version="3",reason="REJECTED"', 'model="arithmetic",reason="REJECTED",version="3"'
    )
    assert "onward_requests_in_server" in text
    (memory,) = re.findall(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)
    assert float(memory) > 1e6


def test_a_request_id_comes_back(address: str) -> None:
    for given, same in (("abc-1", True), ("x" * 500, False)):
        _, _, response = call(address, "GET", "/v2", headers={"x-request-id": given})
        assert (response.headers["x-request-id"] == given) is same


@pytest.mark.parametrize(
    ("model", "datatype", "value", "text"),
    [
        ("int64", "INT64", None, "null is no element of INT64"),
        ("int64", "INT64", 1.0, "1.0 is no element of INT64"),
        ("bool", "BOOL", None, "null is no element of BOOL"),
        ("bytes", "BYTES", None, "an element of BYTES is not a string"),
        ("bytes", "BYTES", "\ud800", "half of a surrogate pair"),
    ],
)
def test_an_element_of_another_kind_is_refused(
    address: str, model: str, datatype: str, value: Any, text: str
) -> None:
    tensor = {"name": "x", "datatype": datatype, "shape": [1], "data": [value]}
    status, answer, _ = call(address, "POST", f"/v2/models/{model}/infer", {"inputs": [tensor]})
    assert status == 400
    assert text in answer["error"]


def test_fields_that_may_be_left_out_may_be_null(address: str) -> None:
    inputs = [{**A, "parameters": None}, B]
    absent = {"id": None, "parameters": None, "outputs": None}
    _, answer = infer(address, "arithmetic", inputs=inputs, **absent)
    assert [output["data"] for output in answer["outputs"]] == [[5, 7, 9], [4, 10, 18]]
    outputs = [{"name": "total", "parameters": None}]
    assert infer(address, "arithmetic", inputs=inputs, outputs=outputs)[1]["outputs"][0]["data"] == [5, 7, 9]


@pytest.mark.parametrize("model", ["fp16", "bf16"])
def test_what_has_no_json_form_is_answered_as_it_came(address: str, model: str) -> None:
    raw = bytes([0, 60, 0, 64])
    tensor = {"name": "x", "datatype": model.upper(), "shape": [2], "parameters": {"binary_data_size": 4}}
    path = f"/v2/models/{model}/infer"

    def ask(**more: Any) -> tuple[int, Any, Any]:
        head = json.dumps({"inputs": [tensor], **more}).encode()
        return call(address, "POST", path, head + raw, {"Inference-Header-Content-Length": str(len(head))})

    status, answer, response = ask()
    length = int(response.headers["Inference-Header-Content-Length"])
    assert (status, answer[length:]) == (200, raw)
    assert json.loads(answer[:length])["outputs"][0]["parameters"] == {"binary_data_size": 4}
    status, answer, _ = ask(outputs=[{"name": "y", "parameters": {"binary_data": False}}])
    assert (status, "has no JSON form" in answer["error"]) == (501, True)


@pytest.mark.parametrize(
    "path", ["/health", "/v2/health/live", "/v2/health/ready", "/metrics", "/", "/v2/models/fp32/ready"]
)
def test_load_balancers_may_ask_for_the_head_alone(address: str, path: str) -> None:
    status, content, _ = call(address, "HEAD", path)
    assert (status, content or b"") == (200, b"")


def test_the_servers_metadata_may_be_asked_for_with_a_slash(address: str) -> None:
    assert call(address, "GET", "/v2/")[:2] == call(address, "GET", "/v2")[:2]
