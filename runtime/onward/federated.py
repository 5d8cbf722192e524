"""Federated training: Flower's rounds, this project's trainer (the extra `onward[flower]`).

A node trains on data that never leave it; what travels are weights, by their names in the graph, and figures.
The server averages them (B. McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017), or does whatever else a strategy of Flower does with arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from onward.data import Dataset, Loader
from onward.errors import ConfigError, TrainingError
from onward.train import Trainer

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Context, Message
    from flwr.clientapp import ClientApp

__all__ = ["Node", "arrays_of", "client_app", "load_arrays"]

_ARRAYS, _CONFIG, _METRICS, _EXAMPLES = "arrays", "config", "metrics", "num-examples"
_KNOWN = {"server-round", "epochs", "batch-size"}
_ROUNDS_APART = 1_000_003


@final
@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """What one node trains.

    Attributes:
        trainer: of the network that all nodes have. Its optimizer begins anew in each round.
        train: this node's data.
        validation: on which the weights of all nodes together are measured; None: nothing is measured here.
        epochs: passes over `train` in a round, where the server's configuration has no `epochs`.
        batch_size: samples a step, where it has no `batch-size`.
    """

    trainer: Trainer
    train: Dataset
    validation: Dataset | None = None
    epochs: int = 1
    batch_size: int = 32


def arrays_of(trainer: Trainer) -> ArrayRecord:
    """The weights of a trainer, running statistics among them, by their names: what a server begins with.

    Raises:
        ConfigError: Flower is not installed.
    """
    app = _flower()
    return app.ArrayRecord({name: app.Array(array) for name, array in trainer.weights().items()})


def load_arrays(trainer: Trainer, arrays: ArrayRecord) -> None:
    """Give a trainer the weights that a server sent, or ended with.

    Raises:
        ConfigError: they are another network's: names or shapes differ.
        TrainingError: one is not finite.
    """
    own = trainer.weights()
    missing, unknown = sorted(own.keys() - arrays.keys()), sorted(arrays.keys() - own.keys())
    if missing or unknown:
        what = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is not one of it"
        raise ConfigError(f"the arrays are not those of {trainer.model.graph.name!r}: {what}")
    given = {name: arrays[name].numpy() for name in own}
    for name, array in given.items():
        if array.shape != own[name].shape:
            raise ConfigError(
                f"the arrays are another network's: {name!r} has shape {list(array.shape)}, "
                f"{list(own[name].shape)} is needed"
            )
        if not np.isfinite(array).all():
            raise TrainingError(f"weight {name!r} that was received has elements that are NaN or infinite")
    trainer.load_state({**trainer.state, **{n: a.astype(own[n].dtype, copy=False) for n, a in given.items()}})


def client_app(make: Callable[[Context], Node]) -> ClientApp:
    """A `ClientApp` that trains and measures.

    A round's reply has the node's weights, `num-examples`, and the figures of its last epoch; a measurement
    has `num-examples`, the loss and the metrics. Strategies weigh both by `num-examples`.

    Args:
        make: a node's network and data. It is called in the process that computes, with Flower's context,
            whose `node_config` says which node it is; what it gives is kept there until another node's turn.

    Raises:
        ConfigError: Flower is not installed.
    """
    app = _flower()
    from flwr.clientapp import ClientApp

    client = ClientApp()
    held: dict[tuple[int, int], Node] = {}

    def node_of(context: Context) -> Node:
        key = (context.run_id, context.node_id)
        if key not in held:
            held.clear()
            held[key] = make(context)
        return held[key]

    def reply(message: Message, figures: dict[str, Any], arrays: ArrayRecord | None = None) -> Message:
        records: dict[str, Any] = {_METRICS: app.MetricRecord(figures)}
        if arrays is not None:
            records[_ARRAYS] = arrays
        return app.Message(content=app.RecordDict(records), reply_to=message)

    def train(message: Message, context: Context) -> Message:
        node = node_of(context)
        config = _options(message)
        load_arrays(node.trainer, message.content[_ARRAYS])
        # each round goes through the data in orders of its own
        seed = (node.trainer.seed + _ROUNDS_APART * int(config.get("server-round", 0))) % (1 << 31)
        loader = Loader(node.train, int(config.get("batch-size", node.batch_size)), seed)
        epochs = int(config.get("epochs", node.epochs))
        history = node.trainer.fit(loader, epochs=epochs, progress=False)
        row = {k: v for k, v in history.rows[-1].items() if k not in ("epoch", "learning_rate")}
        return reply(message, {_EXAMPLES: len(node.train), **row}, arrays_of(node.trainer))

    def evaluate(message: Message, context: Context) -> Message:
        node = node_of(context)
        _options(message)
        load_arrays(node.trainer, message.content[_ARRAYS])
        if node.validation is None:
            return reply(message, {_EXAMPLES: 0})
        figures = node.trainer.evaluate(node.validation)
        plain = {k: float(v) if np.ndim(v) == 0 else np.ravel(v).tolist() for k, v in figures.items()}
        return reply(message, {_EXAMPLES: len(node.validation), **plain})

    client.train()(train)
    client.evaluate()(evaluate)
    return client


def _options(message: Message) -> dict[str, Any]:
    """What a server asks of a round.

    Raises:
        ConfigError: it asks for something that is not done here.
    """
    config = dict(message.content.get(_CONFIG, {}))
    if unknown := sorted(config.keys() - _KNOWN):
        raise ConfigError(
            f"the server asks for {unknown[0]!r}, which this client does not know: it takes "
            f"{', '.join(sorted(_KNOWN))}"
        )
    return config


def _flower() -> Any:
    try:
        import flwr.app
    except ImportError:
        raise ConfigError("federated training needs Flower: install the extra onward[flower]") from None
    return flwr.app
