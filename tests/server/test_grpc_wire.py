"""Requests before they are decoded: tensors taken out of the bytes of messages, names in their beginning."""

from __future__ import annotations

import random

import numpy as np
import pytest

from onward_protos.grpc_service_pb2 import ModelInferRequest
from onward_server.errors import RequestError
from onward_server.grpc_convert import decode_inputs
from onward_server.grpc_wire import model_of, split_infer
from onward_server.settings import Limits


def request(sizes: list[int], **fields: str) -> ModelInferRequest:
    message = ModelInferRequest(model_name="mlp", **fields)
    for number, size in enumerate(sizes):
        message.inputs.add(name=f"x{number}", datatype="FP32", shape=[size])
        message.raw_input_contents.append(np.full(size, number + 0.5, np.float32).tobytes())
    message.parameters["priority"].int64_param = 7
    message.parameters["note"].string_param = "x" * 5000
    return message


@pytest.mark.parametrize("sizes", [[], [0], [1], [10_000], [3, 0, 50_000, 1]])
def test_taking_tensors_out_of_a_message_changes_nothing(sizes: list[int]) -> None:
    message = request(sizes, model_version="3", id="ü")
    rest, raw = split_infer(memoryview(message.SerializeToString()))
    assert raw is not None
    assert list(map(bytes, raw)) == list(message.raw_input_contents)
    read = ModelInferRequest.FromString(rest)
    found = decode_inputs(read, Limits(), taken=raw)
    wanted = decode_inputs(message, Limits())
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.aligned
    del message.raw_input_contents[:]
    assert read == message


def test_arrays_do_not_keep_what_was_read_alive() -> None:
    data = bytearray(request([10_000]).SerializeToString())
    rest, raw = split_infer(memoryview(data))
    array = decode_inputs(ModelInferRequest.FromString(rest), Limits(), taken=raw)["x0"]
    data[:] = bytes(len(data))
    assert array[0] == 0.5


def test_small_messages_and_those_of_many_fields_are_left_to_the_library() -> None:
    small = request([1]).SerializeToString()[:100]
    assert split_infer(small) == (small, None)
    many = b"\x3a\x00" * 5000
    assert split_infer(many) == (many, None)
    # a group, which only the library knows how to skip
    group = request([5000]).SerializeToString() + b"\x7b\x7c"
    assert split_infer(group)[1] is None


def test_bytes_that_are_no_message_are_refused_or_left_to_the_library() -> None:
    data = request([2000, 2000], id="1").SerializeToString()
    for at in range(5000, len(data), 131):
        with pytest.raises(RequestError, match="ends too early"):
            split_infer(data[:at])
    with pytest.raises(RequestError, match="no end"):
        split_infer(b"\xff" * 5000)
    generator = random.Random(0)
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(3):
            broken[generator.randrange(len(broken))] = generator.randrange(256)
        try:
            ModelInferRequest.FromString(bytes(broken))
        except Exception:  # noqa: BLE001 - whatever the library says, it is no message
            continue
        rest, raw = split_infer(bytes(broken))
        whole = ModelInferRequest.FromString(bytes(broken))
        if raw is not None:
            assert list(map(bytes, raw)) == list(whole.raw_input_contents)
            del whole.raw_input_contents[:]
        assert ModelInferRequest.FromString(bytes(rest)).SerializeToString(deterministic=True) == (
            whole.SerializeToString(deterministic=True)
        )


def test_a_model_is_known_by_the_first_bytes() -> None:
    data = request([100], model_version="12").SerializeToString()
    assert model_of(data[:40]) == ("mlp", "12")
    assert model_of(memoryview(request([100]).SerializeToString())[:60]) == ("mlp", "")
    for start in (b"", data[:3], b"\x0a\xff\xff\xff\xff", b"\x0a\x02\xff\xfe" + data, b"\x1a\x00" + data):
        assert model_of(start) is None
