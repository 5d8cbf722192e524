"""An unmodified tritonclient, in its own environment, against our server.

ONWARD_TRITONCLIENT_PYTHON names an interpreter that has `tritonclient[grpc,http]`.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from onnx import TensorProto

from onward_protos import grpc_service_pb2, model_config_pb2
from onward_server import ServerThread
from serving import RIGHT, identity, put, settings, two_by_two

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = os.environ.get("ONWARD_TRITONCLIENT_PYTHON", "")

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="ONWARD_TRITONCLIENT_PYTHON does not name an interpreter with tritonclient[grpc,http]"
)


def run(*arguments: str, path: str = "") -> str:
    done = subprocess.run(
        [PYTHON, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Any:
    repository: Path = tmp_path_factory.mktemp("models")
    for name, element in {
        "int64": TensorProto.INT64,
        "bool": TensorProto.BOOL,
        "fp16": TensorProto.FLOAT16,
        "uint8": TensorProto.UINT8,
        "bytes": TensorProto.STRING,
    }.items():
        put(repository, name, 1, identity(element))
    put(repository, "arithmetic", 4, two_by_two())
    put(repository, "broken", 1, b"\x08nonsense")
    put(repository, "batched", 1, two_by_two())
    (repository / "batched" / "config.toml").write_text("[batching]\nmax_batch = 8\nmax_delay_ms = 1\n")
    chosen = settings(
        repository, cross_check={"policy": "every"}, http_listen="127.0.0.1:0", model_control="explicit"
    )
    with ServerThread(chosen, RIGHT) as server:
        yield server.address, server.http_address, str(repository / "bool" / "1" / "model.onnx")


@pytest.fixture(scope="module")
def seen(address: tuple[str, ...]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(run(str(HERE / "tritonclient_script.py"), *address[:3]))
    return result


def test_health_and_metadata(seen: dict[str, Any]) -> None:
    assert seen["live"] == [True, True]
    assert seen["model_ready"] == [True, False]
    assert seen["server"]["name"] == "onward"
    kind = {"datatype": "FP32", "shape": ["-1", "3"]}
    assert seen["metadata"] == {
        "name": "arithmetic",
        "versions": ["4"],
        "platform": "onnx",
        "inputs": [{"name": "a", **kind}, {"name": "b", **kind}],
        "outputs": [{"name": "total", **kind}, {"name": "product", **kind}],
    }
    config = seen["config"]["config"]
    assert config["input"][0] == {"name": "a", "data_type": "TYPE_FP32", "dims": ["-1", "3"]}
    assert config["parameters"]["cross_check.policy"] == {"string_value": "every"}
    states = {model["name"]: model["state"] for model in seen["index"]["models"]}
    assert (states["arithmetic"], states["broken"]) == ("READY", "UNAVAILABLE")


def test_predictions(seen: dict[str, Any]) -> None:
    assert seen["fp32"] == [[0, 1, 4], [9, 16, 25]]
    assert seen["absent"]
    assert seen["answer"] == ["arithmetic", "4", "42"]
    assert seen["cross_check"] == "passed"
    assert seen["int64"] == [-(2**63), 2**63 - 1]
    assert seen["bool"] == [True, False, True]
    assert seen["fp16"] == [0.5, -2]
    assert seen["uint8"] == [0, 255]
    assert seen["bytes"] == ["a", "é"]


@pytest.mark.parametrize(
    ("case", "status", "text"),
    [
        ("unknown model", "NOT_FOUND", "no model 'nobody'"),
        ("unknown version", "NOT_FOUND", "no version '9'"),
        ("unknown input", "INVALID_ARGUMENT", "no input 'z'"),
        ("missing input", "INVALID_ARGUMENT", "input 'b' is missing"),
        ("wrong datatype", "INVALID_ARGUMENT", "datatype of FP32"),
        ("wrong shape", "INVALID_ARGUMENT", "shape of FP32[3, 2]"),
        ("unknown output", "INVALID_ARGUMENT", "no output 'z'"),
        ("metadata", "NOT_FOUND", "no model 'nobody'"),
        ("broken model", "UNAVAILABLE", "could not be loaded"),
        ("load", "NOT_FOUND", "no model 'nobody'"),
        ("shared memory", "UNIMPLEMENTED", ""),
    ],
)
def test_errors_arrive_as_status_codes(seen: dict[str, Any], case: str, status: str, text: str) -> None:
    assert seen["errors"][case][0] == f"StatusCode.{status}"
    assert text in seen["errors"][case][1]


def test_statistics(seen: dict[str, Any]) -> None:
    (entry,) = seen["statistics"]["model_stats"]
    assert (entry["name"], entry["version"], entry["inference_count"]) == ("arithmetic", "4", "1")


def test_everything_that_we_declare_has_tritons_names_numbers_and_types() -> None:
    theirs = json.loads(run(str(HERE / "descriptor_script.py")))
    ours: dict[str, list[object]] = {}

    def visit(prefix: str, message: descriptor_pb2.DescriptorProto) -> None:
        name = f"{prefix}.{message.name}"
        for field in message.field:
            oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
            ours[f"{name}.{field.name}"] = [field.number, field.type, field.label, field.type_name, oneof]
        for enum in message.enum_type:
            for value in enum.value:
                ours[f"{name}.{enum.name}.{value.name}"] = [value.number]
        for nested in message.nested_type:
            visit(name, nested)

    for module in (model_config_pb2, grpc_service_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        for message in file.message_type:
            visit(file.package, message)
        for enum in file.enum_type:
            for value in enum.value:
                ours[f"{file.package}.{enum.name}.{value.name}"] = [value.number]
        for method in file.service[0].method if file.service else ():
            ours[f"{file.package}.{file.service[0].name}.{method.name}"] = [
                method.input_type,
                method.output_type,
                method.client_streaming,
                method.server_streaming,
            ]
    assert len(ours) > 150
    assert {name: kind for name, kind in ours.items() if theirs.get(name) != kind} == {}


def test_our_client_runs_on_the_protobuf_of_that_environment(address: tuple[str, ...]) -> None:
    code = (
        "import sys, google.protobuf, onward_client\n"
        "with onward_client.Client(sys.argv[1], timeout=30) as client:\n"
        "    print(google.protobuf.__version__, client.predict('int64', [[7]])['y'].tolist())"
    )
    path = os.pathsep.join(str(ROOT / part) for part in ("protos", "client"))
    version, answer = run("-W", "error", "-c", code, address[0], path=path).split()
    assert answer == "[7]"
    assert int(version.partition(".")[0]) < 7, "this environment is meant to have an older protobuf"


def test_a_stream_answers_in_order(seen: dict[str, Any]) -> None:
    assert seen["stream"] == [["0", 0], ["1", 1], ["2", "error"], ["3", 3]]


def test_models_are_loaded_and_unloaded(seen: dict[str, Any]) -> None:
    assert seen["unloaded"] == [True, False, True]
    assert seen["overridden"] == "5"


def test_batching_is_configured_and_used(seen: dict[str, Any]) -> None:
    config = seen["batched"]
    assert config["max_batch_size"] == 8
    assert config["input"][0]["dims"] == ["3"]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == "1000"


def test_classification(seen: dict[str, Any]) -> None:
    assert seen["classes"] == [["25.000000:2", "16.000000:1"]]


def test_http_gives_the_same_answers(seen: dict[str, Any]) -> None:
    http = seen["http"]
    assert http["live"] == [True, True, True, False]
    assert http["fp32"] == {"json": [[0, 1, 4], [9, 16, 25]], "binary": [[0, 1, 4], [9, 16, 25]]}
    assert http["fp16"] == [0.5, -2]
    assert http["bytes"] == ["a", "é"]
    assert http["classes"] == [["25.000000:2", "16.000000:1"]]
    assert http["compressed"] == [[0, 1, 4], [9, 16, 25]]
    assert http["metadata"]["inputs"][0] == {"name": "a", "datatype": "FP32", "shape": [-1, 3]}
    assert http["config"]["max_batch_size"] == 8
    assert http["statistics"]["model_stats"][0]["name"] == "arithmetic"
    assert {entry["name"]: entry["state"] for entry in http["index"]}["broken"] == "UNAVAILABLE"
    assert "input 'b' is missing" in http["error"]
    assert http["unloaded"] == [False, True]


def test_shared_memory_and_log_settings_through_both_clients(tmp_path: Path) -> None:
    put(tmp_path, "int64", 1, identity(TensorProto.INT64))
    chosen = settings(tmp_path, http_listen="127.0.0.1:0", shared_memory=True, remote_settings=True)
    loggers = [logging.getLogger(name) for name in ("onward", "onward_server")]
    before = [logger.level for logger in loggers]
    try:
        with ServerThread(chosen, RIGHT) as server:
            given = (server.address, server.http_address, str(os.getpid()))
            seen = json.loads(run(str(HERE / "tritonclient_memory_script.py"), *given))
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
    assert seen["grpc"] == seen["http"] == ["y", [0, 1, 2, 3, 4, 5], 1]
    assert seen["grpc log"]["log_error"] == {"bool_param": True}
    assert seen["http log"]["log_verbose_level"] == 1
