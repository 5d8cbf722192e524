"""Joined requests: no lost, mixed or wrongly split answer; each equal to its answer alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onward_server.dataplane import DataPlane, InferRequest, RequestedOutput
from onward_server.dataplane.batching import filled_size, joined, rows_of, split
from onward_server.errors import RequestError
from serving import model, put, settings

ULPS = 8
"""Bound on the distance of an element of a batched answer from the unbatched one, in units in the last place
of the largest element of its row."""


def network() -> onnx.ModelProto:
    """softmax(relu(x w) v): rows by 16."""
    generator = np.random.default_rng(0)
    w = generator.standard_normal((16, 24)).astype(np.float32)
    v = generator.standard_normal((24, 5)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "v"], ["z"]),
            helper.make_node("Softmax", ["z"], ["y"], axis=-1),
        ],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 5]) for name in ("y", "z")],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture
async def planes() -> AsyncIterator[Any]:
    opened: list[DataPlane] = []

    async def open_plane(repository: Path, **fields: Any) -> DataPlane:
        opened.append(await DataPlane.open(settings(repository, **fields)))
        return opened[-1]

    yield open_plane
    for plane in opened:
        plane.close()


def configure(repository: Path, name: str, text: str) -> None:
    (repository / name / "config.toml").write_text(text)


async def test_answers_equal_those_of_requests_alone(repository: Path, planes: Any) -> None:
    for name in ("batched", "alone"):
        put(repository, name, 1, network())
    configure(
        repository,
        "batched",
        "instances = 2\nqueue_size = 10000\n[batching]\nmax_batch = 32\nmax_delay_ms = 1",
    )
    configure(repository, "alone", "queue_size = 10000\nin_process = 'never'")
    plane = await planes(repository, limits={"pending": 10_000})
    generator = np.random.default_rng(1)
    inputs = [
        generator.standard_normal((int(rows), 16)).astype(np.float32)
        for rows in generator.integers(0, 12, 400)
    ]
    wanted = [None, [RequestedOutput("z")], [RequestedOutput("z"), RequestedOutput("y")]]

    async def ask(name: str) -> list[Any]:
        return await asyncio.gather(
            *(
                plane.infer(InferRequest(name, {"x": x}, outputs=wanted[i % 3], id=str(i)))
                for i, x in enumerate(inputs)
            )
        )

    batched, alone = await ask("batched"), await ask("alone")
    for number, (x, found, expected) in enumerate(zip(inputs, batched, alone, strict=True)):
        assert found.id == str(number)
        assert list(found.outputs) == list(expected.outputs)
        for name, array in expected.outputs.items():
            assert found.outputs[name].shape == (len(x), 5)
            unit = np.spacing(np.abs(array).max(axis=1, keepdims=True)) if len(x) else 0
            assert (np.abs(found.outputs[name] - array) <= ULPS * unit).all()
    statistics = plane.model("batched").infer_statistics
    assert statistics.success_count == 400
    assert statistics.inference_count == sum(map(len, inputs))
    assert statistics.execution_count < 200
    assert max(statistics.batches) <= 32
    assert sum(size * batch.count for size, batch in statistics.batches.items()) == statistics.inference_count


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 3))
@hypothesis_settings(max_examples=200, deadline=None)
def test_splitting_undoes_joining(rows: list[int], more: int) -> None:
    start = np.cumsum([0, *rows])
    requests = [
        {"x": np.arange(start[i], start[i + 1]), "y": np.arange(start[i], start[i + 1])[:, None] * [1, 2]}
        for i in range(len(rows))
    ]
    size = sum(rows) + (more if sum(rows) else 0)
    batch = joined(requests, size)
    assert rows_of(batch) == size
    for request, answer in zip(requests, split(batch, rows, size), strict=True):
        for name, array in request.items():
            np.testing.assert_array_equal(answer[name], array)


def test_batches_are_filled_up_to_few_sizes() -> None:
    assert [filled_size(rows, 24) for rows in (1, 2, 3, 5, 16, 17, 24)] == [1, 2, 4, 8, 16, 24, 24]


async def test_a_model_whose_rows_depend_on_each_other_is_not_batched(repository: Path, planes: Any) -> None:
    kind = {"x": (TensorProto.FLOAT, ["n", 3])}
    put(repository, "m", 1, model("Softmax", kind, {"y": kind["x"]}, axis=0))
    configure(repository, "m", "[batching]\nmax_batch = 8")
    plane = await planes(repository)
    assert "depends on the rows beside it" in plane.problems["m", 1]


async def test_a_model_without_a_free_first_dimension_is_not_batched(repository: Path, planes: Any) -> None:
    kind = {"x": (TensorProto.FLOAT, [2, 3])}
    put(repository, "m", 1, model("Neg", kind, {"y": kind["x"]}))
    configure(repository, "m", "[batching]\nmax_batch = 8")
    plane = await planes(repository)
    assert "no first dimension that varies" in plane.problems["m", 1]


async def test_a_request_beyond_the_largest_batch_is_refused(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, network())
    configure(repository, "m", "[batching]\nmax_batch = 4")
    plane = await planes(repository)
    with pytest.raises(RequestError, match="5 rows; the model takes up to 4"):
        await plane.infer(InferRequest("m", {"x": np.zeros((5, 16), np.float32)}))


async def test_one_bad_request_does_not_cost_its_batch(repository: Path, planes: Any) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        "gather",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.float32([5, 6, 7]), "table")],
    )
    put(
        repository,
        "m",
        1,
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
    )
    configure(repository, "m", "instances = 1\n[batching]\nmax_batch = 8\nmax_delay_ms = 50")
    plane = await planes(repository)
    asked = [[0], [1, 2], [9], [2]]
    answers = await asyncio.gather(
        *(plane.infer(InferRequest("m", {"i": np.array(i)})) for i in asked), return_exceptions=True
    )
    assert [a.outputs["y"].tolist() if not isinstance(a, Exception) else "error" for a in answers] == [
        [5],
        [6, 7],
        "error",
        [7],
    ]


async def test_higher_priority_goes_first(repository: Path, planes: Any) -> None:
    put(repository, "m", 1, network())
    configure(repository, "m", "instances = 1\nin_process = 'never'")
    plane = await planes(repository)
    order: list[int] = []

    async def ask(number: int, priority: int) -> None:
        await plane.infer(InferRequest("m", {"x": np.zeros((1, 16), np.float32)}, priority=priority))
        order.append(number)

    await asyncio.gather(ask(0, 1), ask(1, 3), ask(2, 0), ask(3, 2), ask(4, 2))
    assert order == [0, 3, 4, 1, 2]
