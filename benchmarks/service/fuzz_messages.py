"""What `make fuzz` sends: requests with something wrong, for every call that the server has."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from onward_protos import cross_check_pb2, training_pb2
from onward_protos import grpc_service_pb2 as pb

__all__ = ["HTTP_PATHS", "SERVICES", "body", "malformed", "mutated", "valid", "wild"]

SERVICES: list[ServiceDescriptor] = [
    service
    for file in (pb, cross_check_pb2, training_pb2, health_pb2, reflection_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
]
_NAMES = ["mlp", "", "nobody", "../mlp", "/etc/passwd", "mlp\0", "é" * 300, "x" * 100_000, "mlp/1", "."]
_DATATYPES = ["FP32", "INT64", "BYTES", "BF16", "FP8", "", "fp32", "x" * 5000]
_EXTENTS = [0, 1, 2, 784, -1, 2**31, 2**62, -(2**63)]
_RUN = {"model": "mlp", "data": "npz:/nowhere.npz", "epochs": 1}
_WORDS = [
    *_NAMES,
    *_DATATYPES,
    *("job-1", "job-0", "job-99999999999999999999", "1", "0", "-1", "test", "round", "READY", "queued"),
    *(
        "/onward-fuzz",
        "/dev/shm/x",
        "../../etc/passwd",
        "http://127.0.0.1:1/x",
        "s3://bucket/x",
        "file:///etc/passwd",
    ),
    *("grpc_service.proto", "inference.GRPCInferenceService", "onward.v1.Training"),
    *("{", "null", "[]", "model = ", "[[[[", json.dumps(_RUN), json.dumps({**_RUN, "epochs": -1})),
    json.dumps({**_RUN, "model": "../x", "output": "/etc/x", "checkpoint": {"path": "/etc"}}),
]
_KEYS = [
    *("priority", "timeout", "sequence_id", "sequence_start", "binary_data_size", "classification", "config"),
    *(
        "shared_memory_region",
        "shared_memory_offset",
        "shared_memory_byte_size",
        "file:1/model.onnx",
        "file:../x",
    ),
    *("log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"),
    *("trace_file", "trace_level", "trace_rate", "trace_count", "log_frequency", "trace_mode"),
    *("test_accuracy", "test_loss", "", "x" * 3000),
]
_WHOLE = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


def wild(descriptor: Any, random_: random.Random, depth: int = 0) -> Any:
    """A message of any kind, its fields filled with what has a meaning somewhere and with what has none."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if random_.random() < (0.3 if depth < 4 else 0.8):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(message, field, random_, depth)
        elif field.message_type is not None:
            value = wild(field.message_type, random_, depth + 1)
            if field.is_repeated:
                getattr(message, field.name).extend([value] * random_.choice([1, 1, 2, 300]))
            else:
                getattr(message, field.name).CopyFrom(value)
        elif field.is_repeated:
            values = [_scalar(field, random_) for _ in range(random_.choice([1, 1, 2, 40]))]
            getattr(message, field.name).extend(values)
        else:
            setattr(message, field.name, _scalar(field, random_))
    return message


def _fill_map(message: Any, field: Any, random_: random.Random, depth: int) -> None:
    kind = field.message_type.fields_by_name["value"]
    entries = getattr(message, field.name)
    for _ in range(random_.choice([1, 1, 3])):
        key = random_.choice(_KEYS)
        if kind.message_type is None:
            entries[key] = _scalar(kind, random_)
        else:
            entries[key].CopyFrom(wild(kind.message_type, random_, depth + 1))


def _scalar(field: Any, random_: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return random_.choice(_WORDS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return random_.randbytes(random_.choice([0, 1, 4, 3136, 5000]))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return random_.random() < 0.5
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return random_.choice([0.0, -1.0, 1e300, float("inf"), float("nan")])
    if field.enum_type is not None:
        return random_.choice(field.enum_type.values).number
    least, most = _WHOLE[field.type]
    return random_.choice([least, most, 0, 1, 2, min(784, most)])


def valid() -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name="mlp",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 784]}],
        raw_input_contents=[bytes(784 * 4)],
    )


def malformed(random_: random.Random) -> pb.ModelInferRequest:
    """A valid request with one to three things wrong."""
    request = valid()
    for _ in range(random_.randint(1, 3)):
        tensor = request.inputs[0] if request.inputs else request.inputs.add(name="x")
        random_.choice(_defects(random_, request, tensor))()
    return request


def _defects(random_: random.Random, request: Any, tensor: Any) -> list[Callable[[], object]]:
    pick = random_.choice
    return [
        lambda: setattr(request, "model_name", pick(_NAMES)),
        lambda: setattr(request, "model_version", pick(["1", "2", "-1", "x", "9" * 400])),
        lambda: setattr(request, "id", "i" * pick([1, 10_000])),
        lambda: setattr(tensor, "datatype", pick(_DATATYPES)),
        lambda: setattr(tensor, "name", pick(["y", "", "x" * 9000])),
        lambda: tensor.shape.append(pick(_EXTENTS)),
        lambda: tensor.shape.extend([1] * pick([31, 40, 500])),
        lambda: tensor.ClearField("shape"),
        lambda: request.raw_input_contents.append(random_.randbytes(random_.randint(0, 64))),
        lambda: request.ClearField("raw_input_contents"),
        lambda: request.inputs.add(name=pick(["x", "z"]), datatype="FP32", shape=[1]),
        lambda: request.inputs.extend([tensor] * 300),
        lambda: tensor.contents.fp32_contents.extend([1.0] * random_.randint(0, 5)),
        lambda: tensor.contents.bytes_contents.append(b"\xff"),
        lambda: request.outputs.add(name=pick(["y", "z", "", "y" * 5000])),
        lambda: setattr(tensor.parameters["shared_memory_region"], "string_param", "r"),
        lambda: setattr(request.parameters["timeout"], "int64_param", pick([-1, 1, 2**62])),
        lambda: setattr(request.parameters["priority"], "string_param", "high"),
        lambda: setattr(request.parameters["sequence_id"], "uint64_param", 7),
        lambda: setattr(request.outputs.add(name="y").parameters["classification"], "int64_param", -5),
    ]


def mutated(random_: random.Random) -> bytes:
    """Bytes of a request with some of them changed, cut or repeated."""
    data = bytearray(malformed(random_).SerializeToString())
    for _ in range(random_.randint(1, 8)):
        if not data:
            break
        at, kind = random_.randrange(len(data)), random_.randrange(3)
        if kind == 0:
            data[at] = random_.randrange(256)
        elif kind == 1:
            del data[at:]
        else:
            data[at:at] = random_.randbytes(random_.randint(1, 12))
    return bytes(data)


_TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
_INFER = {"inputs": [_TENSOR]}
_ELEMENTS = {
    name: {"inputs": [{"name": "x", "datatype": datatype, "shape": [2], "data": values}]}
    for name, datatype, values in (
        ("wholes", "INT64", [1, 2]),
        ("texts", "BYTES", ["a", "é"]),
        ("floats", "FP32", [0.5, 2]),
    )
}
"""Bodies that are answered, by model; few values in them, so that elements are often among those replaced."""
_BATCH = {"x": {"datatype": "FP32", "shape": [2, 4], "data": [0.5] * 8}}
_START = {"configuration": _RUN, "title": "t", "batches": [_BATCH]}
_PROMOTE = {"model": "mlp", "at_least": {"test_accuracy": 2}, "allow_other_interface": True}
_EVALUATE = {"model": "mlp", "version": "1", "data": "npz:x.npz", "part": "test"}
_REGISTER = {"key": "/onward-fuzz", "offset": 0, "byte_size": 64}
_LOADED = {"parameters": {"config": '{"max_batch_size": 4}', "file:1/model.onnx": "AAAA"}}
_REPOSITORY, _JOBS = "/v2/repository/models", "/v1/training/jobs"
_REGION = "/v2/systemsharedmemory/region"

HTTP_PATHS: list[tuple[str, dict[str, Any]]] = [
    *[("/v2/models/mlp/infer", _INFER)] * 4,
    *[(f"/v2/models/{name}/infer", content) for name, content in _ELEMENTS.items()] * 4,
    ("/v2/models/..%2f..%2fetc/infer", _INFER),
    (f"/v2/models/{'x' * 5000}/infer", _INFER),
    ("/v2/models/mlp/versions/-1", {}),
    ("/v2/models/mlp/config", {}),
    ("/v2/models/mlp/stats", {}),
    ("/v2/repository/index", {"ready": True}),
    (f"{_REPOSITORY}/..%2f/load", _LOADED),
    *[(f"{_REPOSITORY}/mlp/load", _LOADED)] * 2,
    (f"{_REPOSITORY}/nobody/unload", {"parameters": {"unload_dependents": True}}),
    (
        "/v2/logging",
        {"log_verbose_level": 1, "log_info": True, "log_file": "/etc/x", "log_format": "default"},
    ),
    ("/v2/trace/setting", {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_file": "/etc/x"}),
    ("/v2/models/mlp/trace/setting", {"trace_count": "-1", "trace_level": None}),
    ("/v2/systemsharedmemory/status", {}),
    (f"{_REGION}/r/register", _REGISTER),
    (f"{_REGION}/..%2fr/register", _REGISTER),
    (f"{_REGION}/r/unregister", {}),
    *[(_JOBS, _START)] * 3,
    (f"{_JOBS}/job-1/promote", _PROMOTE),
    (f"{_JOBS}/..%2f/cancel", {}),
    (f"{_JOBS}/job-1/resume", {}),
    (f"{_JOBS}/job-1/events?after=-1&wait=x", {}),
    (f"{_JOBS}?limit=1e99&state=x", {}),
    ("/v1/training/evaluate", _EVALUATE),
    ("/v1/training/models/mlp/rollback", {}),
    ("/v1/training/models/..%2f/lineage?version=x", {}),
    ("/%00", {}),
]
"""Paths of the HTTP port, and bodies that would be right there."""


def body(template: dict[str, Any], random_: random.Random) -> bytes:
    """JSON with one to three values of a right body replaced, sometimes cut off."""
    junk: list[Any] = [None, True, -1, 2**70, 1e400, "x", [], {}, [[[]]], "x" * 5000, [None], {"a": []}]
    junk += [0.5, "\ud800", ["\ud800"], 1e39]
    value = copy.deepcopy(template)
    for _ in range(random_.randint(1, 3)):
        owners = _owners(value)
        owner = random_.choice(owners)
        places = range(len(owner)) if isinstance(owner, list) else [*owner, "parameters", "outputs", "id"]
        owner[random_.choice(places)] = copy.deepcopy(random_.choice(junk))
    data = json.dumps(value).encode()
    if random_.random() < 0.2:
        data = data[: random_.randrange(len(data))] + random_.randbytes(random_.randint(0, 20))
    return data


def _owners(value: Any) -> list[Any]:
    """A value and what is in it, as far as it holds others."""
    if isinstance(value, dict):
        return [value, *(owner for entry in value.values() for owner in _owners(entry))]
    if isinstance(value, list) and value:
        return [value, *(owner for entry in value for owner in _owners(entry))]
    return []
