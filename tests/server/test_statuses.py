"""The table from domain errors to status codes."""

from __future__ import annotations

from http import HTTPStatus

import grpc
import pytest

import onward.errors
import onward_server.errors
from onward_server.statuses import MAX_TEXT_BYTES, STATUSES, cut, public_text, status_of

ALL = [getattr(module, name) for module in (onward.errors, onward_server.errors) for name in module.__all__]


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_every_error_has_a_status_that_is_an_error(error: type[onward.errors.OnwardError]) -> None:
    code, status = status_of(error("text"))
    assert grpc.StatusCode[code] not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
    assert HTTPStatus(status) >= 400


def test_the_nearest_class_decides() -> None:
    assert status_of(onward_server.errors.RequestError("")) is STATUSES[onward.errors.InputError]
    assert status_of(onward.errors.InvalidModelError("")) is STATUSES[onward.errors.ModelError]
    assert status_of(onward.errors.UnsupportedError("")) == ("UNIMPLEMENTED", 501)


@pytest.mark.parametrize("text", ["", "short", "x" * MAX_TEXT_BYTES, "x" * 5000, "é" * 3000, "\ud800" * 900])
def test_texts_are_cut_at_a_character(text: str) -> None:
    result = cut(text)
    assert len(result.encode()) <= MAX_TEXT_BYTES
    assert result == text or result.endswith("…")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/srv/models/m/1/model.onnx: No such file", "model.onnx: No such file"),
        ("/srv/models/m leads out, to /etc/passwd", "m leads out, to passwd"),
        ("file:///a/b.bin and http://host/a/b", "file:///a/b.bin and http://host/a/b"),
        ("input 'a/b': 3/4 of /", "input 'a/b': 3/4 of /"),
        ("load('/opt/x/y.so') failed", "load('y.so') failed"),
    ],
)
def test_clients_are_told_no_folders(text: str, told: str) -> None:
    assert public_text(onward.errors.ModelError(text)) == told


def test_clients_are_not_told_what_a_library_said() -> None:
    error = onward_server.errors.ExecutionError("onnxruntime: [ONNXRuntimeError] : 6 : core/graph.cc:12")
    assert "onnxruntime" not in public_text(error)
