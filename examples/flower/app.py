"""Digits on nodes that each see a few classes only, averaged by Flower.

    pip install "onward[flower,data]" "flwr[simulation]"
    python examples/flower/app.py --nodes 4 --rounds 5

simulates the nodes on this machine and prints loss and accuracy over all of them, which no node could reach
on its own data. As an app of Flower, on real nodes: `flwr run examples/flower`.
"""

from __future__ import annotations

import argparse
import os
import sys

import numpy as np
from flwr.app import Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result

from onward.data import Dataset, load_digits
from onward.federated import Node, arrays_of, client_app, load_arrays
from onward.nn import zoo
from onward.train import Trainer
from onward.verify import export

CLASSES = 10


def network() -> Trainer:
    """The same network on every node."""
    return Trainer(zoo.lenet5(), "cross_entropy", "adam", metrics=["accuracy"], threads=1)


def part(number: int, nodes: int) -> tuple[Dataset, Dataset]:
    """Training and validation samples of one node: mostly of its own classes, a few of all."""
    digits = load_digits()
    labels = np.asarray(digits.targets)
    order = np.random.default_rng(0).permutation(len(labels))
    own = [c for c in range(CLASSES) if c % nodes == number]
    chosen = order[np.isin(labels[order], own) | (order % (4 * nodes) == number)]
    held = len(chosen) // 5
    return digits.take(chosen[held:]), digits.take(chosen[:held])


def node(context: Context) -> Node:
    """The node that Flower's context names."""
    train, validation = part(
        int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    )
    return Node(network(), train, validation, epochs=int(context.run_config.get("local-epochs", 1)))


client = client_app(node)
server = ServerApp()
found: list[Result] = []


def rounds(grid: Grid, count: int) -> Trainer:
    """All rounds; the network that the nodes have trained together."""
    trainer = network()
    result = FedAvg().start(grid, initial_arrays=arrays_of(trainer), num_rounds=count)
    load_arrays(trainer, result.arrays)
    found.append(result)
    return trainer


def main(grid: Grid, context: Context) -> None:
    """What Flower's server runs; the network is written at the end."""
    trainer = rounds(grid, int(context.run_config["num-server-rounds"]))
    export(trainer.model, "digits.onnx")


server.main()(main)


def figures(result: Result) -> dict[int, MetricRecord]:
    """Loss and accuracy of all nodes together, by round."""
    return dict(sorted(result.evaluate_metrics_clientapp.items()))


def simulate(nodes: int, count: int) -> dict[int, MetricRecord]:
    """Nodes as processes of this machine, two at a time."""
    from flwr.simulation import run_simulation

    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    found.clear()

    app = ServerApp()
    app.main()(lambda grid, context: rounds(grid, count))
    resources: dict[str, int | float] = {"num_cpus": 1, "num_gpus": 0.0}
    run_simulation(app, client, nodes, backend_config={"client_resources": resources})
    return figures(found[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for number, record in simulate(options.nodes, options.rounds).items():
        print(f"round {number}: loss {record['loss']:.4f}, accuracy {record['accuracy']:.4f}")
    sys.exit(0)
