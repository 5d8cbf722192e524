"""Training jobs through the clients, the command line, and HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward_client import AsyncClient, Client
from onward_client.errors import (
    AuthenticationError,
    InvalidRequestError,
    JobNotFoundError,
    ModelNotFoundError,
)
from onward_server import ServerThread, load_settings

KEYS = {
    "trainer": ["train", "predict"],
    "manager": ["manage"],
    "guest": [],
    "both": ["train", "manage", "predict"],
}
RUN = {"model": {"name": "mlp", "options": {"hidden": [8]}}, "data": "iris", "epochs": 3}


@pytest.fixture
def server(tmp_path: Path, repository: Path) -> Iterator[ServerThread]:
    settings = load_settings(
        repository=repository,
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        instances=1,
        keys=[
            {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "roles": roles}
            for name, roles in KEYS.items()
        ],
        training={"folder": tmp_path / "training", "nice": 0},
    )
    with ServerThread(settings) as thread:
        yield thread


def http(
    server: ServerThread, method: str, path: str, body: Any = None, key: str = "", **headers: str
) -> Any:
    request = urllib.request.Request(
        f"http://{server.http_address}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={**headers, **({"Authorization": f"Bearer {key}"} if key else {})},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.slow
async def test_clients_train_promote_and_go_back(server: ServerThread, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('model = "mlp"\ndata = "iris"\nepochs = 2\n')
    command = [sys.executable, "-m", "onward", "client", "train"]
    at = ["--address", server.address]
    environment = {**os.environ, "ONWARD_CLIENT_KEY": "trainer"}

    def train(*arguments: str, key: str = "trainer") -> tuple[int, str, str]:
        done = subprocess.run(
            [*command, *arguments, *at],
            capture_output=True,
            text=True,
            check=False,
            env={**environment, "ONWARD_CLIENT_KEY": key},
        )
        return done.returncode, done.stdout, done.stderr

    code, out, err = train("start", str(tmp_path / "run.toml"), "--watch", "--title", "from a shell")
    assert (code, out.splitlines()[-1]) == (0, "job-1 is completed"), err
    assert sum(line.startswith("epoch ") for line in out.splitlines()) == 2

    with Client(server.address, key="trainer") as client:
        with pytest.raises(AuthenticationError):
            client.training.promote("job-1", "m")
        with pytest.raises(JobNotFoundError):
            client.training.get("job-7")
        with pytest.raises(InvalidRequestError, match="epochs"):
            client.training.start({**RUN, "epochs": -1})
        rows = [{"x": np.eye(3, dtype=np.float32)[[i % 3] * 5], "y": np.full(5, i % 3)} for i in range(30)]
        sent = client.training.start({"model": "mlp"}, batches=rows, title="sent")
        kinds = [event.kind for event in client.training.watch(sent.id)]
        assert kinds[-1] == "completed"
        assert [job.title for job in client.training.list("completed")] == ["sent", "from a shell"]
    with Client(server.address, key="guest") as client, pytest.raises(AuthenticationError):
        client.training.cancel(sent.id)

    assert train("promote", "job-1", "--model", "m")[0] == 2
    code, out, err = train("promote", "job-1", "--model", "m", "--at-least", "test_accuracy=0", key="manager")
    assert (code, json.loads(out)["version"]) == (0, "1"), err
    async with AsyncClient(server.address, key="manager") as manager:
        again = await manager.training.promote("job-1", "m", timeout=120)
        assert again.version == "2"
        assert await manager.training.rollback("m") == ("2", "1")
        with pytest.raises(ModelNotFoundError):
            await manager.training.lineage("nobody")
        assert [entry.version for entry in await manager.training.lineage("m")] == ["2", "1"]
    async with AsyncClient(server.address, key="trainer") as trainer:
        found = await trainer.training.evaluate(model="m", timeout=120)
        assert found.agrees
        assert found.confusion is not None
        assert found.confusion.shape == (3, 3)


@pytest.mark.slow
def test_http_says_the_same(server: ServerThread) -> None:
    start = {"configuration": RUN, "title": "over HTTP"}
    assert http(server, "POST", "/v1/training/jobs", start)[0] == 401
    assert http(server, "POST", "/v1/training/jobs", start, "manager")[0] == 403
    status, text = http(server, "POST", "/v1/training/jobs", start, "trainer")
    assert (status, json.loads(text)["id"]) == (200, "job-1"), text
    status, text = http(server, "GET", "/v1/training/jobs/job-1/events?follow=1", key="guest")
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["kind"] == "completed"
    job = json.loads(http(server, "GET", "/v1/training/jobs/job-1", key="guest")[1])
    assert (job["state"], job["title"], job["epoch"]) == ("completed", "over HTTP", 3)
    status, text = http(server, "GET", "/v1/training/jobs/job-1/events?after=3", key="guest")
    assert json.loads(text)["events"][0]["sequence"] == 4
    evaluation = http(server, "POST", "/v1/training/evaluate", {"id": "job-1"}, "trainer")
    assert json.loads(evaluation[1])["accuracy"] == pytest.approx(job["figures"]["test_accuracy"])
    promote = "/v1/training/jobs/job-1/promote"
    assert http(server, "POST", promote, {"model": "m"}, "manager", Origin="http://elsewhere")[0] == 403
    status, text = http(server, "POST", promote, {"model": "m"}, "manager")
    assert (status, json.loads(text)["version"]) == (200, "1"), text
    lineage = json.loads(http(server, "GET", "/v1/training/models/m/lineage", key="guest")[1])
    assert lineage["versions"][0]["sha256"] == job["sha256"]
    assert http(server, "POST", "/v1/training/models/m/rollback", {}, "manager")[0] == 409
    status, page = http(server, "GET", "/")
    assert (status, "<title>Onward</title>" in page) == (200, True)
    for path, body, wanted in (
        ("/v1/training/jobs", {"configuration": 3}, "configuration is not of type object"),
        ("/v1/training/jobs", {"configuration": RUN, "toml": ""}, "give configuration, an object, or toml"),
        ("/v1/training/jobs", {"oops": 1}, "unknown field 'oops'"),
        (
            "/v1/training/jobs",
            {"configuration": {**RUN, "data": {}}, "batches": [3]},
            "batches: give objects",
        ),
        ("/v1/training/evaluate", {"id": "job-1", "part": "all of it"}, "part 'all of it'"),
        ("/v1/training/evaluate", {"id": "job-1", "data": "csv:/etc/passwd"}, "data 'csv:"),
        ("/v1/training/evaluate", {}, "give the id of a job"),
    ):
        status, text = http(server, "POST", path, body, "trainer")
        assert (status, wanted in json.loads(text)["error"]) == (400, True), text
    assert http(server, "GET", "/v1/training/jobs?state=odd", key="guest")[0] == 400
    assert http(server, "GET", "/v1/training/jobs?limit=-1", key="guest")[0] == 400
    assert http(server, "POST", "/v1/training/jobs/job-9/cancel", {}, "trainer")[0] == 404
    assert http(server, "POST", "/v1/training/jobs/job-1/cancel", {}, "trainer")[0] == 409


@pytest.mark.slow
async def test_deltas_are_averaged_by_weight(server: ServerThread) -> None:
    async with AsyncClient(server.address, key="both", timeout=120) as client:
        job = await client.training.start(RUN)
        assert [event.kind async for event in client.training.watch(job.id)][-1] == "completed"
        await client.training.promote(job.id, "m")
        base = await client.training.parameters("m")
        assert (base.version, base.values.size) == ("1", sum(int(np.prod(shape)) for shape in base.shapes))
        round_one: Any = {"model": "m", "version": "1", "round": "one"}
        delta = np.linspace(-1, 1, base.values.size, dtype=np.float32)
        with pytest.raises(InvalidRequestError, match="bytes"):
            await client.training.submit_delta(delta=delta[1:], contributor="a", weight=1, **round_one)
        with pytest.raises(InvalidRequestError, match="not finite"):
            await client.training.submit_delta(delta=delta * np.nan, contributor="a", weight=1, **round_one)
        with pytest.raises(InvalidRequestError, match="weight"):
            await client.training.submit_delta(delta=delta, contributor="a", weight=-1, **round_one)
        with pytest.raises(InvalidRequestError, match="contributor"):
            await client.training.submit_delta(delta=delta, contributor="../a", weight=1, **round_one)
        for contributor, weight, values in (("a", 9, delta * 7), ("a", 1, delta), ("b", 3, -delta)):
            sent = await client.training.submit_delta(
                delta=values, contributor=contributor, weight=weight, **round_one
            )
        assert sent == (2, 4.0), "a second delta replaces a contributor's first"
        with pytest.raises(InvalidRequestError, match="2 contributors; 3 are asked for"):
            await client.training.average_deltas(**round_one, at_least=3)
        averaged = await client.training.average_deltas(**round_one, at_least=2)
        assert (averaged.state, averaged.parent_version) == ("completed", "1")
        assert (await client.training.promote(averaged.id)).version == "2"
        mean = (await client.training.parameters("m", "2")).values
        np.testing.assert_allclose(mean, base.values - delta / 2, rtol=0, atol=1e-6)
        back = await client.training.set_parameters("m", "2", base.values)
        await client.training.promote(back.id)
        np.testing.assert_array_equal((await client.training.parameters("m", "3")).values, base.values)
        x = np.ones((2, 4), np.float32)
        first, second, third = [await client.predict("m", [x], version=v) for v in ("1", "2", "3")]
        assert all(np.array_equal(first[name], third[name]) for name in first)
        assert not all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_model_of_files_that_a_client_sent_is_measured_and_trained_like_others(
    tmp_path: Path, repository: Path
) -> None:
    settings = load_settings(
        repository=repository,
        listen="127.0.0.1:0",
        instances=1,
        model_control="explicit",
        training={"folder": tmp_path / "training", "nice": 0},
    )
    with ServerThread(settings) as server, Client(server.address, timeout=120) as client:
        training = client.training
        job = training.start(RUN)
        assert [event.kind for event in training.watch(job.id)][-1] == "completed"
        training.promote(job.id, "kept")
        assert training.lineage("kept")[0].agrees
        content = (repository / "kept" / "1" / "model.onnx").read_bytes()
        client.load("sent", config={}, files={"3/model.onnx": content})
        assert training.evaluate(model="sent", data="iris").figures == training.evaluate(job.id).figures
        assert training.parameters("sent", "3").values.size == training.parameters("kept").values.size
        further = training.start({"data": "iris", "epochs": 1}, model="sent")
        assert [event.kind for event in training.watch(further.id)][-1] == "completed"
        # its folder in the repository, which there is not, is not what is served
        for refused in (lambda: training.rollback("sent"), lambda: training.promote(job.id, "sent")):
            with pytest.raises(InvalidRequestError, match="files that a client sent; unload it first"):
                refused()
