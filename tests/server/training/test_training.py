"""Training jobs of a real server, from outside: what a client starts, watches, promotes and takes back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from aiohttp import ClientSession

from onward_protos import grpc_service_pb2 as infer_messages
from onward_protos import training_pb2 as messages
from onward_server import load_settings, running
from onward_server.server import RunningServer

STAMP = "1700000000"
MLP = {
    "model": {"name": "mlp", "options": {"hidden": [8]}},
    "data": {"spec": "npz:digits.npz"},
    "epochs": 2,
    "batch_size": 10,
    "optimizer": {"learning_rate": 0.05},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with two hundred digits-like samples of three classes."""
    folder = tmp_path / "data"
    folder.mkdir()
    generator = np.random.default_rng(0)
    y = np.arange(200) % 3
    x = generator.normal(size=(200, 6)).astype(np.float32)
    x[np.arange(200), y] += 4
    np.savez(folder / "digits.npz", x=x, y=y)
    return folder


class Outside:
    """A client of raw messages."""

    def __init__(self, server: RunningServer, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.channel = channel

    async def call(self, name: str, request: Any, answer: Any, **options: Any) -> Any:
        method = self.channel.unary_unary(
            f"/onward.v1.Training/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return await method(request, timeout=120, **options)

    async def start(self, configuration: Any = MLP, **fields: Any) -> Any:
        request = messages.StartJobRequest(json=json.dumps(configuration), **fields)
        return await self.call("Start", request, messages.Job)

    async def events(self, identity: str) -> list[Any]:
        watch = self.channel.unary_stream(
            "/onward.v1.Training/Watch",
            request_serializer=messages.WatchJobRequest.SerializeToString,
            response_deserializer=messages.JobEvent.FromString,
        )
        return [event async for event in watch(messages.WatchJobRequest(id=identity), timeout=120)]

    async def done(self, identity: str) -> Any:
        await self.events(identity)
        return await self.call("Get", messages.JobRequest(id=identity), messages.Job)

    async def promote(self, identity: str, model: str = "m", **fields: Any) -> Any:
        request = messages.PromoteRequest(id=identity, model=model, **fields)
        return await self.call("Promote", request, messages.Lineage)

    async def ask(self, x: Any, model: str = "m") -> tuple[str, bytes]:
        array = np.asarray(x, np.float32)
        tensor = {"name": "input", "datatype": "FP32", "shape": array.shape}
        request = infer_messages.ModelInferRequest(
            model_name=model, inputs=[tensor], raw_input_contents=[array.tobytes()]
        )
        method = self.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=infer_messages.ModelInferRequest.SerializeToString,
            response_deserializer=infer_messages.ModelInferResponse.FromString,
        )
        answer = await method(request, timeout=60)
        return answer.model_version, answer.raw_output_contents[0]

    async def code(self, call: Any) -> str:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            text = f"{error.code().name}: {error.details()}"
        else:
            text = "OK"
        assert "/tmp" not in text
        return text


@pytest.fixture
async def servers(tmp_path: Path, repository: Path, data: Path) -> AsyncIterator[Any]:
    opened: list[Any] = []

    async def open_server(training: dict[str, Any] | None = None, **fields: Any) -> Outside:
        bounds = {"folder": tmp_path / "training", "data_roots": [str(data)], "nice": 0, **(training or {})}
        chosen = load_settings(
            repository=repository, listen="127.0.0.1:0", instances=1, training=bounds, **fields
        )
        context = running(chosen)
        server = await context.__aenter__()
        channel = grpc.aio.insecure_channel(server.address)
        opened.append((context, channel))
        return Outside(server, channel)

    async def close_last() -> None:
        context, channel = opened.pop()
        await channel.close()
        await context.__aexit__(None, None, None)

    open_server.close_last = close_last  # type: ignore[attr-defined]
    yield open_server
    while opened:
        await close_last()


@pytest.mark.slow
async def test_a_job_and_the_command_line_give_the_same_bytes(
    servers: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", STAMP)
    outside = await servers()
    job = await outside.start(title="first")
    events = await outside.events(job.id)
    kinds = [event.kind for event in events]
    assert kinds[:3] == ["queued", "running", "data_read"], [event.json for event in events]
    assert kinds[-1] == "completed", events[-1]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert Counter(kinds)["epoch"] == 2
    job = await outside.done(job.id)
    assert job.figures["test_accuracy"] > 0.5
    (tmp_path / "job.toml").write_text(job.configuration)
    command = ["train", "--config", str(tmp_path / "job.toml"), "--output", str(tmp_path / "own.onnx")]
    subprocess.run([sys.executable, "-m", "onward", *command], cwd=data, check=True, capture_output=True)
    trained = tmp_path / "training" / "jobs" / job.id / "trained" / "model.onnx"
    assert trained.read_bytes() == (tmp_path / "own.onnx").read_bytes()


@pytest.mark.slow
async def test_promoted_and_taken_back_while_requests_flow(servers: Any, repository: Path) -> None:
    outside = await servers(training={"at_least": {"test_accuracy": 0.6}})
    first = await outside.done((await outside.start()).id)
    assert first.state == "completed", first.reason
    lineage = await outside.promote(first.id)
    assert (lineage.version, lineage.sha256, lineage.parent_version) == ("1", first.sha256, "")
    x = np.ones((1, 6), np.float32)
    version, one = await outside.ask(x)
    assert version == "1"

    further = {key: value for key, value in MLP.items() if key != "model"}
    second = await outside.done((await outside.start(further, model="m")).id)
    assert (second.state, second.parent_version) == ("completed", "1"), second.reason

    code = await outside.code(outside.promote(second.id, at_least={"test_accuracy": 1.5}))
    assert code.startswith("FAILED_PRECONDITION: test_accuracy of job-2 is")
    code = await outside.code(outside.promote(second.id, at_most={"nothing": 1}))
    assert code.startswith("INVALID_ARGUMENT: job-2 has no figure 'nothing'; it has test_accuracy")
    assert (repository / "m" / "1").is_dir()
    assert not (repository / "m" / "2").exists()

    answers: Counter[tuple[str, bytes]] = Counter()
    flowing = True

    async def flow() -> None:
        while flowing:
            answers[await outside.ask(x)] += 1

    clients = [asyncio.create_task(flow()) for _ in range(4)]
    lineage = await outside.promote(second.id, model="")
    assert (lineage.version, lineage.parent_model, lineage.parent_version) == ("2", "m", "1")
    version, two = await outside.ask(x)
    assert (version, two != one) == ("2", True)
    before = sum(answers.values())
    while sum(answers.values()) < before + 200:
        await asyncio.sleep(0.01)
    request = messages.RollbackRequest(model="m")
    back = await outside.call("Rollback", request, messages.RollbackResponse)
    assert (back.withdrawn, back.serving) == ("2", "1")
    assert await outside.ask(x) == ("1", one)
    flowing = False
    await asyncio.gather(*clients)
    assert set(answers) == {("1", one), ("2", two)}, "each answer is one version's, and none failed"

    code = await outside.code(outside.call("Rollback", request, messages.RollbackResponse))
    assert code == "FAILED_PRECONDITION: model 'm' has no version before 1"
    again = await outside.promote(second.id, model="")
    assert again.version == "3", "a number that was withdrawn is not used again"
    asked = messages.GetLineageRequest(model="m")
    found = (await outside.call("GetLineage", asked, messages.GetLineageResponse)).versions
    assert [(entry.version, entry.job, entry.withdrawn > 0) for entry in found] == [
        ("3", "job-2", False),
        ("2", "job-2", True),
        ("1", "job-1", False),
    ]
    assert found[0].data_hash.startswith("sha256:")
    assert found[0].metrics["test_accuracy"] >= 0.6

    other = {**MLP, "data": {"spec": "iris"}}
    third = await outside.done((await outside.start(other)).id)
    code = await outside.code(outside.promote(third.id))
    assert code.startswith("FAILED_PRECONDITION: its inputs are"), code
    evaluation = await outside.call("Evaluate", messages.EvaluateRequest(id=third.id), messages.Evaluation)
    assert evaluation.figures["accuracy"] == pytest.approx(third.figures["test_accuracy"])
    assert (evaluation.cross_check.passed, len(evaluation.confusion)) == (True, 9)


@pytest.mark.slow
async def test_jobs_outlive_the_server_and_end_as_if_nothing_had_been(
    servers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", STAMP)
    outside = await servers()
    long = {**MLP, "epochs": 60, "batch_size": 2, "checkpoint": {"every": 50}}
    plain = await outside.start(long)
    stopped = await outside.start(long, title="stopped")
    waiting = await outside.start(long)
    assert (
        await outside.code(outside.call("Resume", messages.JobRequest(id=plain.id), messages.Job))
    ).startswith("FAILED_PRECONDITION")
    await outside.call("Cancel", messages.JobRequest(id=waiting.id), messages.Job)
    assert (await outside.done(plain.id)).state == "completed"
    while not (await outside.call("Get", messages.JobRequest(id=stopped.id), messages.Job)).resumable:
        await asyncio.sleep(0.02)
    await servers.close_last()
    outside = await servers()
    job = await outside.done(stopped.id)
    events = [event.kind for event in await outside.events(stopped.id)]
    assert (job.state, "interrupted" in events) == ("completed", True), events
    assert job.sha256 == (await outside.done(plain.id)).sha256
    job = await outside.done(waiting.id)
    assert (job.state, job.reason) == ("cancelled", "cancelled")
    await outside.call("Resume", messages.JobRequest(id=waiting.id), messages.Job)
    while (await outside.call("Get", messages.JobRequest(id=waiting.id), messages.Job)).step < 1:
        await asyncio.sleep(0.02)
    await outside.call("Cancel", messages.JobRequest(id=waiting.id), messages.Job)
    job = await outside.done(waiting.id)
    assert (job.state, job.resumable) == ("cancelled", True)


@pytest.mark.slow
async def test_data_that_are_sent_or_fetched(servers: Any, data: Path) -> None:
    outside = await servers(training={"data_bytes": 20_000, "data_roots": [f"file://{data}/"]})
    fetched = await outside.start({**MLP, "data": {"spec": f"npz:file://{data}/digits.npz"}})
    fetched = await outside.done(fetched.id)
    assert (fetched.state, 'spec = "npz:fetched/digits.npz"' in fetched.configuration) == ("completed", True)
    (data / "large.csv").write_text("a,b\n" * 10_000)
    large = await outside.done(
        (await outside.start({**MLP, "data": {"spec": f"csv:file://{data}/large.csv"}})).id
    )
    assert (large.state, large.reason) == ("failed", "the data have more than 20000 bytes")
    start = messages.StartJobRequest(json=json.dumps({**MLP, "data": {}}))
    method = outside.channel.stream_unary(
        "/onward.v1.Training/StartStream",
        request_serializer=messages.StartStreamRequest.SerializeToString,
        response_deserializer=messages.Job.FromString,
    )

    def stream(batches: int, rows: int = 20, width: int = 6) -> list[Any]:
        y = np.arange(rows) % 3
        x = np.zeros((rows, width), np.float32)
        x[np.arange(rows), y] = 3
        kinds = [("x", "FP32", x), ("y", "INT64", y)]
        tensors = [
            {"name": name, "datatype": kind, "shape": a.shape, "raw": a.tobytes()} for name, kind, a in kinds
        ]
        batch = messages.StartStreamRequest(batch=messages.Batch(tensors=tensors))
        return [messages.StartStreamRequest(start=start), *[batch] * batches]

    job = await outside.done((await method(iter(stream(10)), timeout=60)).id)
    assert (job.state, job.figures["test_accuracy"]) == ("completed", 1.0), job.reason
    assert (await outside.code(method(iter(stream(40))))).startswith("RESOURCE_EXHAUSTED: the data have more")
    assert (await outside.code(method(iter(stream(0))))) == "INVALID_ARGUMENT: no samples were sent"
    mixed = [*stream(1), stream(1, width=7)[1]]
    assert (await outside.code(method(iter(mixed)))).startswith(
        "INVALID_ARGUMENT: a batch's tensors have other"
    )
    assert (await outside.code(method(iter(stream(1)[1:])))).startswith("INVALID_ARGUMENT: the first message")
    listed = await outside.call("List", messages.ListJobsRequest(), messages.ListJobsResponse)
    assert [job.id for job in listed.jobs] == ["job-3", "job-2", "job-1"]


REFUSED = [
    ({"json": "{"}, "INVALID_ARGUMENT: configuration: not JSON"),
    ({"json": "[]"}, "INVALID_ARGUMENT: configuration: give an object"),
    ({"json": "[" * 100_000}, "INVALID_ARGUMENT: configuration: not JSON"),
    ({"toml": "a ="}, "INVALID_ARGUMENT: configuration: not TOML"),
    ({}, "INVALID_ARGUMENT: configuration: give json or toml"),
    ({"json": "{}"}, "INVALID_ARGUMENT: configuration: a model is missing"),
    ({**MLP, "epochs": 0}, "INVALID_ARGUMENT: configuration: epochs: Input should be greater than 0"),
    ({**MLP, "oops": 0}, "INVALID_ARGUMENT: configuration: unknown key 'oops'"),
    ({**MLP, "output": "/tmp/x"}, "INVALID_ARGUMENT: configuration: leave output out"),
    ({**MLP, "checkpoint": {"path": "x"}}, "INVALID_ARGUMENT: configuration: leave checkpoint.path out"),
    ({**MLP, "log": {"csv": "x"}}, "INVALID_ARGUMENT: configuration: leave log out"),
    ({**MLP, "model": "/etc/passwd"}, "INVALID_ARGUMENT: configuration: model 'passwd' is no network"),
    ({**MLP, "model": "x.onnx"}, "INVALID_ARGUMENT: configuration: model 'x.onnx' is no network"),
    ({**MLP, "model": 3}, "INVALID_ARGUMENT: configuration: model"),
    ({**MLP, "threads": 64}, "INVALID_ARGUMENT: configuration: threads is 64; a job may have 1"),
    *(
        ({**MLP, "data": {"spec": spec}}, "INVALID_ARGUMENT: data '")
        for spec in (
            *("csv:/etc/passwd", "npz:../digits.npz", "npz:out", "npz:absent.npz", "images:digits.npz"),
            *("csv:https://other.example/x.csv", "csv:file:///etc/passwd", "nothing", "csv:", "csv:a\0b"),
            *("csv:simplecache::file:///etc/passwd", "csv:file:///nowhere/../x", "idx:file:///nowhere/x"),
            "csv:" + "x" * 5000,
        )
    ),
]


async def test_bad_requests_get_one_clear_status(
    servers: Any, data: Path, tmp_path: Path, repository: Path
) -> None:
    (tmp_path / "secret.npz").write_bytes((data / "digits.npz").read_bytes())
    (data / "out").symlink_to(tmp_path / "secret.npz")
    outside = await servers(training={"data_roots": [str(data), "file:///nowhere/"]})
    for given, wanted in REFUSED:
        fields = given if set(given) <= {"json", "toml"} else {"json": json.dumps(given)}
        request = messages.StartJobRequest(**fields)
        code = await outside.code(outside.call("Start", request, messages.Job))
        assert code.startswith(wanted), (given, code)
    for model, version in (("..", ""), ("nobody", ""), ("../x", "1"), ("m", "../1")):
        code = await outside.code(outside.start({}, model=model, version=version))
        assert code.startswith("NOT_FOUND: no model"), code
    unknown = messages.JobRequest(id="../job-1")
    for name in ("Get", "Cancel", "Resume"):
        assert (await outside.code(outside.call(name, unknown, messages.Job))).startswith(
            "NOT_FOUND: there is no job"
        )
    assert (await outside.code(outside.promote("job-9"))).startswith("NOT_FOUND")
    assert (await outside.code(outside.events("job-9"))).startswith("NOT_FOUND")
    for name in ("..", "nobody", "a/b"):
        request = messages.RollbackRequest(model=name)
        code = await outside.code(outside.call("Rollback", request, messages.RollbackResponse))
        assert code.startswith("NOT_FOUND"), code
    assert not list((tmp_path / "training").glob("jobs/*"))
    assert not list((tmp_path / "training").glob("incoming/*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bound", "reason"),
    [
        ({"memory_bytes": 80 << 20}, "the job needs more memory than it may have"),
        ({"max_seconds": 0.5}, "it ran longer than 0.5 s"),
    ],
)
async def test_a_job_beyond_its_bounds_fails_alone(servers: Any, bound: Any, reason: str) -> None:
    outside = await servers(training=bound)
    job = await outside.done((await outside.start()).id)
    assert (job.state, job.reason) == ("failed", reason)
    assert await outside.code(outside.start()) == "OK", "the server goes on"


async def test_metrics_tell_of_jobs(servers: Any, data: Path) -> None:
    server = await servers(http_listen="127.0.0.1:0")

    async def metrics() -> dict[str, float]:
        async with (
            ClientSession() as session,
            session.get(f"http://{server.server.http_address}/metrics") as got,
        ):
            lines = [line for line in (await got.text()).splitlines() if line.startswith("onward_training_")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = await metrics()
    assert before['onward_training_jobs{state="running"}'] == 0
    assert before['onward_training_jobs_ended_total{state="completed"}'] == 0
    long = await server.start({**MLP, "epochs": 100_000})
    waits = await server.start()
    for _ in range(600):
        during = await metrics()
        if during["onward_training_rows_per_second"] > 0:
            break
        await asyncio.sleep(0.1)
    assert during["onward_training_rows_per_second"] > 0
    assert during["onward_training_rows_total"] > 0
    assert during['onward_training_jobs{state="running"}'] == 1
    assert during['onward_training_jobs{state="queued"}'] == 1
    assert during["onward_training_run_duration_seconds_count"] == 0
    await server.call("Cancel", messages.JobRequest(id=long.id), messages.Job)
    assert (await server.done(long.id)).state == "cancelled"
    assert (await server.done(waits.id)).state == "completed"
    after = await metrics()
    assert after['onward_training_jobs_ended_total{state="cancelled"}'] == 1
    assert after['onward_training_jobs_ended_total{state="completed"}'] == 1
    assert after['onward_training_jobs_ended_total{state="failed"}'] == 0
    assert after["onward_training_run_duration_seconds_count"] == 2
    assert after["onward_training_run_duration_seconds_sum"] > 0
    assert (
        after['onward_training_jobs{state="running"}'] == after['onward_training_jobs{state="queued"}'] == 0
    )
    assert after["onward_training_rows_per_second"] == 0


@pytest.mark.slow
async def test_a_full_disk_refuses_new_jobs_and_fails_the_running_one_which_goes_on_later(
    servers: Any,
) -> None:
    outside = await servers()
    service = outside.server.training

    def bound(pages: int) -> None:
        service._store._base.execute(f"PRAGMA max_page_count = {pages}")

    job = await outside.start({**MLP, "epochs": 300, "checkpoint": {"every": 5}})
    while not (await outside.call("Get", messages.JobRequest(id=job.id), messages.Job)).resumable:
        await asyncio.sleep(0.02)
    await service.stored(bound, 1)
    codes = [await outside.code(outside.start()) for _ in range(12)]
    assert codes[-1] == "RESOURCE_EXHAUSTED: the store of jobs cannot be written: the server's disk is full"
    failed = await outside.done(job.id)
    assert (failed.state, failed.resumable) == ("failed", True)
    assert failed.reason == "the store of jobs cannot be written: the server's disk is full"
    await service.stored(bound, 1_000_000)
    await outside.call("Resume", messages.JobRequest(id=job.id), messages.Job)
    assert (await outside.done(job.id)).state == "completed"
