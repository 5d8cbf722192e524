"""The table from domain errors to status codes."""

from __future__ import annotations

import grpc
import pytest

import onward.errors
import onward_server.errors
from onward_server.grpc_status import MAX_TEXT_BYTES, STATUS_CODES, cut, status_of

ALL = [getattr(module, name) for module in (onward.errors, onward_server.errors) for name in module.__all__]


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_every_error_has_a_status_that_is_an_error(error: type[onward.errors.OnwardError]) -> None:
    assert status_of(error("text")) not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)


def test_the_nearest_class_decides() -> None:
    assert status_of(onward_server.errors.RequestError("")) is STATUS_CODES[onward.errors.InputError]
    assert status_of(onward.errors.InvalidModelError("")) is STATUS_CODES[onward.errors.ModelError]
    assert status_of(onward.errors.UnsupportedError("")) is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("text", ["", "short", "x" * MAX_TEXT_BYTES, "x" * 5000, "é" * 3000, "\ud800" * 900])
def test_texts_are_cut_at_a_character(text: str) -> None:
    result = cut(text)
    assert len(result.encode()) <= MAX_TEXT_BYTES
    assert result == text or result.endswith("…")
