"""Flower's rounds with this trainer: `make frameworks` runs these, in an environment that has Flower."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward.data import Dataset, Loader
from onward.errors import ConfigError, TrainingError
from onward.nn import zoo
from onward.train import Trainer

if importlib.util.find_spec("flwr") is None:
    pytest.skip(
        "needs Flower, whose protobuf is older than that of the other tests: make frameworks",
        allow_module_level=True,
    )

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Flower's typer on a newer click
    import flwr.serverapp  # noqa: F401
    from flwr.common.config import validate_config

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx
from flwr.supercore.task_identity import TaskIdentity

from onward.federated import Node, arrays_of, client_app, load_arrays

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "flower" / "app.py"


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask which task of which run sends them; here it is this one."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def network(**options: Any) -> Trainer:
    return Trainer(
        zoo.mlp(input_shape=(4,), hidden=(8,), num_classes=3),
        "cross_entropy",
        "sgd",
        seed=3,
        threads=1,
        **options,
    )


def data(number: int, count: int = 60) -> Dataset:
    """Points in three heaps; node n sees mostly the nth."""
    rng = np.random.default_rng(number)
    labels = np.where(rng.random(count) < 0.7, number % 3, rng.integers(0, 3, count))
    centres = np.array([[2, 0, 0, 1], [0, 2, 0, -1], [0, 0, 2, 0]], np.float32)
    return Dataset({"x": (centres[labels] + rng.standard_normal((count, 4))).astype(np.float32)}, labels)


class HereGrid(Grid):
    """Nodes that are called in this process, one after the other."""

    def __init__(self, nodes: int, app: Any) -> None:
        self._nodes, self._app = nodes, app
        self.replies: list[Message] = []

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return range(1, self._nodes + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        found = [self._app(m, context(m.metadata.dst_node_id)) for m in messages]
        self.replies += found
        return found


def context(node: int) -> Context:
    return Context(
        run_id=1, node_id=node, node_config={"partition-id": node - 1}, state=RecordDict(), run_config={}
    )


def make(given: Context) -> Node:
    number = int(given.node_config["partition-id"])
    return Node(network(), data(number, 60 + 20 * number), data(10 + number), epochs=2, batch_size=20)


def ask(kind: str, content: dict[str, Any], app: Any, node: int = 1) -> Message:
    message = Message(content=RecordDict(content), message_type=kind, dst_node_id=node)
    return app(message, context(node))


def test_rounds_lower_the_loss_of_all_nodes() -> None:
    trainer = network()
    app = client_app(make)
    before = np.mean([trainer.evaluate(data(10 + number))["loss"] for number in range(3)])
    grid = HereGrid(3, app)
    result = FedAvg().start(grid, initial_arrays=arrays_of(trainer), num_rounds=4)
    losses = [record["loss"] for _, record in sorted(result.evaluate_metrics_clientapp.items())]
    assert before > losses[0] > losses[-1]
    load_arrays(trainer, result.arrays)
    after = np.mean([trainer.evaluate(data(10 + number))["loss"] for number in range(3)])
    np.testing.assert_allclose(after, losses[-1], rtol=1e-5)


def test_a_round_is_training_from_the_servers_weights_averaged_by_samples() -> None:
    app = client_app(make)
    start = network()
    grid = HereGrid(2, app)
    result = FedAvg(fraction_evaluate=0.0).start(grid, initial_arrays=arrays_of(start), num_rounds=1)
    alone, sizes = [], []
    for number in range(2):
        node = make(context(number + 1))
        node.trainer.fit(Loader(node.train, 20, (3 + 1_000_003) % (1 << 31)), epochs=2, progress=False)
        alone.append(node.trainer.weights())
        sizes.append(len(node.train))
    for name, array in result.arrays.items():
        wanted = np.average([weights[name] for weights in alone], axis=0, weights=sizes)
        np.testing.assert_allclose(array.numpy(), wanted, rtol=1e-5, atol=1e-6, err_msg=name)


def test_each_round_goes_through_the_data_anew() -> None:
    app, arrays = client_app(make), arrays_of(network())
    replies = [
        ask("train", {"arrays": arrays, "config": ConfigRecord({"server-round": number})}, app)
        for number in (1, 1, 2)
    ]
    first, again, second = ([a.numpy() for a in r.content["arrays"].values()] for r in replies)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_running_statistics_travel_too() -> None:
    trainer = Trainer(zoo.build("resnet20"), "cross_entropy", threads=1)
    assert set(arrays_of(trainer)) == set(trainer.weights())
    assert len(trainer.step.statistics) > 0


def test_the_server_may_say_epochs_and_batch_size() -> None:
    app, arrays = client_app(make), arrays_of(network())
    config = ConfigRecord({"epochs": 1, "batch-size": 60})
    reply = ask("train", {"arrays": arrays, "config": config}, app)
    figures = reply.content["metrics"]
    assert isinstance(figures, MetricRecord)
    assert figures["num-examples"] == 60
    assert figures["loss"] > 0


def test_what_a_client_does_not_do_is_refused() -> None:
    app = client_app(make)
    grid = HereGrid(2, app)
    with pytest.raises(ConfigError, match="proximal-mu"):
        FedProx(proximal_mu=0.1).start(grid, initial_arrays=arrays_of(network()), num_rounds=1)


def test_weights_of_another_network_are_refused() -> None:
    trainer = network()
    other = Trainer(zoo.mlp(input_shape=(5,), hidden=(8,), num_classes=3), "cross_entropy", threads=1)
    with pytest.raises(ConfigError, match="shape"):
        load_arrays(trainer, arrays_of(other))
    some = arrays_of(trainer)
    name = next(iter(some))
    del some[name]
    with pytest.raises(ConfigError, match="missing"):
        load_arrays(trainer, some)
    broken = arrays_of(trainer)
    broken[name] = Array(np.full_like(trainer.weights()[name], np.nan))
    with pytest.raises(TrainingError, match="NaN"):
        load_arrays(trainer, ArrayRecord(dict(broken)))


def test_the_example_is_an_app_to_flower() -> None:
    """It looks for the objects in the source, without running it."""
    config = tomllib.loads((EXAMPLE.parent / "pyproject.toml").read_text("utf-8"))
    valid, errors, warned = validate_config(config, True, EXAMPLE.parent)
    assert (valid, errors, warned) == (True, [], [])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs flwr[simulation]: make frameworks")
def test_the_example_runs_in_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--nodes", "3", "--rounds", "3"],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rounds = [line for line in done.stdout.splitlines() if line.startswith("round ")]
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in rounds]
    assert len(losses) == 3
    assert losses[0] > losses[-1]
