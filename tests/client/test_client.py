"""Both clients against a server on loopback."""

from __future__ import annotations

import inspect
import itertools
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from onnx import TensorProto

import onward_client
from onward_client import (
    AsyncClient,
    Client,
    ClientError,
    CrossCheckError,
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    UnavailableError,
    _calls,
    _training,
    errors,
)
from onward_protos import cross_check_pb2, grpc_service_pb2, training_pb2
from onward_server import ServerThread
from serving import FLOAT_PAIR, RIGHT, engines, identity, put, settings, two_by_two

TYPES = {
    "bool": TensorProto.BOOL,
    "int8": TensorProto.INT8,
    "uint64": TensorProto.UINT64,
    "int64": TensorProto.INT64,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "fp32": TensorProto.FLOAT,
    "fp64": TensorProto.DOUBLE,
    "bytes": TensorProto.STRING,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    repository: Path = tmp_path_factory.mktemp("models")
    for name, element in TYPES.items():
        put(repository, name, 1, identity(element))
    put(repository, "matrix", 1, identity(TensorProto.FLOAT, ("rows", 2)))
    put(repository, "arithmetic", 1, two_by_two())
    put(repository, "arithmetic", 2, two_by_two())
    put(repository, "broken", 1, b"\x08nonsense")
    with ServerThread(settings(repository, cross_check={"policy": "every"}), RIGHT) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerThread) -> Iterator[Client]:
    with Client(server.address, timeout=30) as opened:
        yield opened


def test_inputs_by_name(client: Client) -> None:
    outputs = client.predict("arithmetic", FLOAT_PAIR)
    assert list(outputs) == ["total", "product"]
    np.testing.assert_array_equal(outputs["total"], FLOAT_PAIR["a"] + 2)
    np.testing.assert_array_equal(outputs["product"], FLOAT_PAIR["a"] * 2)
    assert outputs["total"].dtype == np.float32
    outputs["total"][0] = 0


def test_inputs_by_position(client: Client) -> None:
    by_name = client.predict("arithmetic", FLOAT_PAIR)
    by_position = client.predict("arithmetic", [FLOAT_PAIR["a"], FLOAT_PAIR["b"]])
    np.testing.assert_array_equal(by_position["product"], by_name["product"])
    single = client.predict("fp32", np.array([1.0, 2.0], dtype=np.float32))
    assert single["y"].tolist() == [1.0, 2.0]


def test_a_subset_of_outputs(client: Client) -> None:
    assert list(client.predict("arithmetic", FLOAT_PAIR, ["product"])) == ["product"]
    assert list(client.predict("arithmetic", FLOAT_PAIR, ["product", "total"])) == ["product", "total"]


def test_infer_tells_everything(client: Client) -> None:
    result = client.infer("arithmetic", FLOAT_PAIR, version="1", request_id="7")
    assert (result.model, result.version, result.id) == ("arithmetic", "1", "7")
    assert result.parameters == {"cross_check": "passed", "engine": "onward"}
    assert client.infer("arithmetic", FLOAT_PAIR).version == "2"


@pytest.mark.parametrize(
    ("model", "array"),
    [
        ("bool", np.array([True, False])),
        ("int8", np.array([-128, 127], dtype=np.int8)),
        ("uint64", np.array([2**64 - 1], dtype=np.uint64)),
        ("int64", np.array([-(2**63)])),
        ("fp16", np.array([0.1, np.nan], dtype=np.float16)),
        ("fp32", np.array([0.1, -np.inf], dtype=np.float32)),
        ("fp32", np.array([], dtype=np.float32)),
        ("fp32", np.array([1, 2], dtype=">f4")),
        ("matrix", np.arange(6, dtype=np.float32).reshape(2, 3).T),
        ("fp64", np.array([0.1])),
    ],
)
def test_arrays_come_back_exactly(client: Client, model: str, array: Any) -> None:
    answer = client.predict(model, {"x": array})["y"]
    assert answer.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(answer, array)


def test_strings_come_back_as_bytes(client: Client) -> None:
    expected = [b"a", "é".encode()]
    for value in (np.array(["a", "é"]), np.array([b"a", "é"], dtype=object), ["a", "é".encode()]):
        answer = client.predict("bytes", {"x": value})["y"]
        assert answer.dtype == object
        assert answer.tolist() == expected


def test_bfloat16_comes_back_as_float32(client: Client) -> None:
    exact = np.array([1.0, -2.5, np.inf], dtype=ml_dtypes.bfloat16)
    answer = client.predict("bf16", {"x": exact})["y"]
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, exact.astype(np.float32))
    values = [0.1, 3.14159, 1e38, -1.00390625, float("nan")]
    rounded = np.array(values, dtype=np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(client.predict("bf16", {"x": values})["y"], rounded)


@pytest.mark.parametrize(
    ("model", "value", "expected"),
    [
        ("fp32", [1, 2.5], np.array([1, 2.5], dtype=np.float32)),
        ("fp64", [0.1], np.array([0.1])),
        ("int64", [1, -2], np.array([1, -2])),
        ("int8", (1, 2), np.array([1, 2], dtype=np.int8)),
        ("bool", [True], np.array([True])),
        ("matrix", [[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], dtype=np.float32)),
    ],
)
def test_python_values_take_the_models_type(client: Client, model: str, value: Any, expected: Any) -> None:
    for inputs in ({"x": value}, [value]):
        answer = client.predict(model, inputs)["y"]
        assert answer.dtype == expected.dtype
        np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize(
    ("model", "inputs", "text"),
    [
        ("int64", {"x": [1.5]}, "1.5 is a Python float"),
        ("int64", {"x": [True]}, "True is a Python bool"),
        ("int8", {"x": [300]}, "input 'x' as INT8"),
        ("bool", {"x": [1]}, "1 is a Python int"),
        ("fp32", {"x": ["1"]}, "'1' is a Python str"),
        ("matrix", {"x": [[1, 2], [3]]}, "input 'x' as FP32"),
        ("bytes", {"x": [["a"], ["b", "c"]]}, "input 'x' as BYTES"),
        ("bytes", {"x": np.array([1, None], dtype=object)}, "give str or bytes"),
        ("fp32", {"x": {"a": 1}}, "dict is neither"),
        ("fp32", {"x": [np.float64(1)]}, "list is neither"),
        ("fp32", {"x": np.zeros(2, dtype=np.complex64)}, "complex64"),
        ("fp32", {"y": [1.0]}, "no input 'y'; its inputs are 'x'"),
        ("arithmetic", [np.zeros((1, 3))], "1 inputs by position; model 'arithmetic' has 2: a, b"),
        ("fp32", 3.0, "inputs is a float"),
    ],
)
def test_values_that_do_not_fit_are_refused_before_they_are_sent(
    client: Client, model: str, inputs: Any, text: str
) -> None:
    with pytest.raises(InvalidRequestError, match=text.replace("[", r"\[")) as caught:
        client.predict(model, inputs)
    assert caught.value.code == ""


def test_an_array_is_never_cast(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="datatype of FP64") as caught:
        client.predict("fp32", {"x": np.array([1.0])})
    assert caught.value.code == "INVALID_ARGUMENT"
    with pytest.raises(InvalidRequestError, match="datatype of INT64"):
        client.predict("fp32", np.array([1]))


def test_errors_name_the_call_and_hide_grpc(client: Client) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        client.predict("nobody", FLOAT_PAIR)
    assert str(caught.value).startswith(
        f"prediction of model 'nobody' from {client.address}: NOT_FOUND: no model"
    )
    assert caught.value.code == "NOT_FOUND"
    assert caught.value.__suppress_context__
    with pytest.raises(ModelNotFoundError, match="version '3'"):
        client.predict("arithmetic", FLOAT_PAIR, version="3")
    with pytest.raises(UnavailableError, match="could not be loaded"):
        client.metadata("broken")
    with pytest.raises(InvalidRequestError, match="no output 'sum'"):
        client.predict("arithmetic", FLOAT_PAIR, ["sum"])
    with pytest.raises(InvalidRequestError, match="give a list of names"):
        client.predict("arithmetic", FLOAT_PAIR, "total")
    with pytest.raises(InvalidRequestError, match="timeout is 0"):
        client.predict("arithmetic", FLOAT_PAIR, timeout=0)


def test_health_metadata_and_configuration(client: Client) -> None:
    assert client.server_live()
    assert client.server_ready()
    assert client.wait_until_ready(10)
    assert client.model_ready("arithmetic", "1")
    assert not client.model_ready("arithmetic", "7")
    assert not client.model_ready("broken")
    assert client.server_metadata().name == "onward"
    metadata = client.metadata("arithmetic")
    assert metadata.versions == ("1", "2")
    assert [(t.name, t.datatype, t.shape) for t in metadata.inputs] == [
        ("a", "FP32", (-1, 3)),
        ("b", "FP32", (-1, 3)),
    ]
    config = client.config("arithmetic")
    assert config.parameters["cross_check.policy"] == "every"
    assert (config.instances, config.versions) == (2, ("1", "2"))


def test_statistics_and_cross_checks(client: Client) -> None:
    def counts() -> tuple[int, int]:
        (served,) = client.statistics("arithmetic", "1")
        (checked,) = client.cross_checks("arithmetic", "1")
        assert checked.failed == 0
        return served.success_count, checked.passed

    before = counts()
    client.predict("arithmetic", FLOAT_PAIR, version="1")
    assert counts() == (before[0] + 1, before[1] + 1)
    assert {entry.name for entry in client.statistics()} >= {"arithmetic", "fp32"}
    assert len(client.cross_checks("arithmetic")) == 2


def test_the_repository_says_why_a_version_is_not_ready(client: Client) -> None:
    entries = {(entry.name, entry.version): entry for entry in client.repository()}
    assert entries["arithmetic", "2"].state == "READY"
    assert entries["broken", "1"].state == "UNAVAILABLE"
    assert "model.onnx" in entries["broken", "1"].reason
    assert ("broken", "1") not in {(e.name, e.version) for e in client.repository(ready_only=True)}
    with pytest.raises(InvalidRequestError, match="model_control"):
        client.load("arithmetic")


def test_models_are_loaded_and_unloaded(repository: Path) -> None:
    put(repository, "m", 1, two_by_two())
    explicit = settings(repository, model_control="explicit", startup_models=[])
    with ServerThread(explicit, RIGHT) as server, Client(server.address, timeout=30) as client:
        assert not client.model_ready("m")
        client.load("m", config={"batching": {"max_batch": 4, "preferred": [2], "max_delay_ms": 1.5}})
        config = client.config("m")
        assert (config.max_batch_size, config.preferred_batch_sizes, config.max_queue_delay) == (
            4,
            (2,),
            0.0015,
        )
        client.predict("m", FLOAT_PAIR)
        (found,) = client.statistics("m")
        assert [(batch.rows, batch.count) for batch in found.batches] == [(2, 1)]
        assert (found.inference_count, found.execution_count) == (2, 1)
        assert abs(found.last_inference - time.time()) < 60
        client.load("n", config={}, files={"1/model.onnx": two_by_two().SerializeToString()})
        assert client.model_ready("n")
        client.unload("m")
        assert not client.model_ready("m")
        with pytest.raises(ModelNotFoundError):
            client.load("nobody")
        with pytest.raises(InvalidRequestError, match="config: "):
            client.load("m", config={"batching": {1, 2}})


def test_requests_have_parameters(client: Client) -> None:
    client.predict("arithmetic", FLOAT_PAIR, parameters={"priority": 1})
    with pytest.raises(InvalidRequestError, match="priority"):
        client.predict("arithmetic", FLOAT_PAIR, parameters={"priority": "high"})
    with pytest.raises(InvalidRequestError, match=r"parameters\['priority'\] is a list"):
        client.predict("arithmetic", FLOAT_PAIR, parameters={"priority": [1]})  # type: ignore[dict-item]
    with pytest.raises(InvalidRequestError, match=r"parameters\['priority'\]: "):
        client.predict("arithmetic", FLOAT_PAIR, parameters={"priority": 1 << 70})


def filled(message: Any, numbers: Iterator[int]) -> list[tuple[str, Any]]:
    """Give every field of a message a value that no other has; their paths and values."""
    found: list[tuple[str, Any]] = []
    for field in message.DESCRIPTOR.fields:
        number = next(numbers)
        value: Any = {"string": f"text {number}", "bool": True}.get(_KINDS[field.type], number)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)[f"key {number}"] = number
            found.append((field.name, number))
        elif field.message_type is not None:
            part = getattr(message, field.name)
            below = filled(part.add() if field.is_repeated else part, numbers)
            found += [(f"{field.name}.{name}", inner) for name, inner in below]
        elif field.is_repeated:
            getattr(message, field.name).append(value)
            found.append((field.name, value))
        else:
            setattr(message, field.name, value)
            found.append((field.name, value))
    return found


_KINDS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}


def held(value: Any) -> list[Any]:
    """All values in what the client returns, however deep."""
    if is_dataclass(value):
        return held([getattr(value, field.name) for field in fields(value)])
    if isinstance(value, Mapping):
        return held(list(value.values()))
    if isinstance(value, np.ndarray):
        return held(value.ravel().tolist())
    return [x for entry in value for x in held(entry)] if isinstance(value, (list, tuple)) else [value]


@pytest.mark.parametrize(
    ("message", "convert", "same_as_others"),
    [
        (cross_check_pb2.CrossCheckStatistics, _calls._cross_check, ""),
        (
            grpc_service_pb2.ModelStatistics,
            _calls._statistics,
            "(queue|compute_.*|batch.*compute_.*put).count",
        ),
        (grpc_service_pb2.RepositoryIndexResponse.ModelIndex, _calls._entry, ""),
        (training_pb2.Job, _training._job, ""),
        (training_pb2.Lineage, _training._lineage, ""),
        (training_pb2.Evaluation, _training._evaluation, ""),
    ],
)
def test_no_field_of_an_answer_is_dropped(message: Any, convert: Any, same_as_others: str) -> None:
    sent = message()
    values = filled(sent, itertools.count(1000))
    known = held(convert(sent))
    for name, value in values:
        forms = [value] if isinstance(value, (str, bool)) else [value, value / 1e3, value / 1e9]
        assert any(form in known for form in forms) or (
            same_as_others and re.search(same_as_others, name) is not None
        ), name


async def test_the_asyncio_client_does_the_same(server: ServerThread) -> None:
    async with AsyncClient(server.address, timeout=30) as client:
        outputs = await client.predict("arithmetic", FLOAT_PAIR)
        np.testing.assert_array_equal(outputs["total"], FLOAT_PAIR["a"] + 2)
        by_position = await client.predict("arithmetic", [FLOAT_PAIR["a"], FLOAT_PAIR["b"]], ["product"])
        assert list(by_position) == ["product"]
        assert (await client.predict("fp32", [[1, 2]]))["y"].tolist() == [1.0, 2.0]
        assert (await client.infer("arithmetic", FLOAT_PAIR, request_id="9")).id == "9"
        assert await client.server_live()
        assert await client.wait_until_ready(10)
        assert await client.model_ready("arithmetic")
        assert (await client.metadata("arithmetic")).versions == ("1", "2")
        assert (await client.config("arithmetic")).backend == "onward"
        assert await client.statistics("arithmetic")
        assert await client.cross_checks("arithmetic")
        assert await client.repository()
        with pytest.raises(ModelNotFoundError) as caught:
            await client.predict("nobody", FLOAT_PAIR)
        assert caught.value.__suppress_context__
        with pytest.raises(InvalidRequestError, match="datatype of FP64"):
            await client.predict("fp32", {"x": np.array([1.0])})


def test_both_clients_have_the_same_methods() -> None:
    def surface(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert surface(Client) == surface(AsyncClient)


def test_the_error_tree_is_public() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(onward_client, name), ClientError)
        assert name in onward_client.__all__


def test_a_deadline_ends_a_call(repository: Path) -> None:
    release = threading.Event()

    def held(outputs: dict[str, Any]) -> dict[str, Any]:
        assert release.wait(30)
        return outputs

    put(repository, "m", 1, two_by_two())
    with ServerThread(settings(repository), engines(held)) as server, Client(server.address) as client:
        try:
            with pytest.raises(DeadlineExceededError, match="prediction of model 'm'"):
                client.predict("m", FLOAT_PAIR, timeout=0.2)
        finally:
            release.set()


def test_engines_that_disagree_are_an_error_of_their_own(repository: Path) -> None:
    put(repository, "m", 1, two_by_two())
    wrong = engines(lambda outputs: {name: array * 2 for name, array in outputs.items()})
    check = {"policy": "every", "on_mismatch": "fail"}
    chosen = settings(repository, cross_check=check)
    with ServerThread(chosen, wrong) as server, Client(server.address) as client:
        with pytest.raises(CrossCheckError, match="engines disagree"):
            client.predict("m", FLOAT_PAIR)
        (counts,) = client.cross_checks("m")
    assert (counts.checks, counts.failed) == (1, 1)
    assert counts.last_mismatch.startswith("output 'total'")


def test_messages_are_bounded_on_this_side_too(server: ServerThread) -> None:
    with Client(server.address, max_message_bytes=10_000) as client:
        with pytest.raises(OverloadedError, match="RESOURCE_EXHAUSTED"):
            client.predict("fp32", np.zeros(10_000, dtype=np.float32))
        assert client.predict("fp32", np.zeros(100, dtype=np.float32))["y"].shape == (100,)


def test_no_server_is_unavailable() -> None:
    with Client("127.0.0.1:9", timeout=10) as client:
        with pytest.raises(UnavailableError, match=r"from 127\.0\.0\.1:9"):
            client.server_live()
        with pytest.raises(DeadlineExceededError):
            client.wait_until_ready(0.2)


def test_changed_metadata_is_read_again_after_a_refusal(repository: Path) -> None:
    put(repository, "m", 1, identity(TensorProto.FLOAT))
    with ServerThread(settings(repository), RIGHT) as server:
        client = Client(server.address)
        assert client.predict("m", [[1.0]])["y"].dtype == np.float32
    put(repository, "m", 1, identity(TensorProto.DOUBLE))
    with client, ServerThread(settings(repository, listen=server.address), RIGHT):
        assert client.wait_until_ready(30)
        with pytest.raises(InvalidRequestError, match="datatype of FP32"):
            client.predict("m", [[1.0]])
        assert client.predict("m", [[1.0]])["y"].dtype == np.float64
