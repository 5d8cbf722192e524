"""Onward's side: a training step or an inference model on the compiled engine."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from benchmarks.suite.cases import Case, find

from onward.autodiff import training_step
from onward.engine.compiled import CompiledEngine
from onward.model import trainable_initializers
from onward.nn import zoo
from onward.passes import to_inference
from onward.train import SGD, CrossEntropy

__all__ = [
    "LEARNING_RATE",
    "MOMENTUM",
    "Ours",
    "deployed",
    "inference",
    "inference_model",
    "model",
    "training",
    "weights",
]

LEARNING_RATE = 0.001
"""Small, so that rounding does not grow: at 0.01 torch's layouts differ by 3 % in ResNet-50's third loss."""
MOMENTUM = 0.9


@dataclass(frozen=True)
class Ours:
    """An engine, what to feed it, the output to compare (the loss, or the logits), and the first state."""

    engine: CompiledEngine
    feeds: Mapping[str, np.ndarray[Any, Any]]
    result: str
    start: Mapping[str, np.ndarray[Any, Any]]

    def run(self) -> np.ndarray[Any, Any]:
        """One step."""
        return self.engine.run(self.feeds)[self.result]

    def times(
        self, count: int, clock: Callable[[], float] = time.perf_counter
    ) -> tuple[list[float], list[np.ndarray[Any, Any]]]:
        """Seconds and results of some steps in a row."""
        seconds, results = [], []
        for _ in range(count):
            started = clock()
            result = self.run()
            seconds.append(clock() - started)
            results.append(result)
        return seconds, results

    def reset(self) -> None:
        """Back to the initial weights and state."""
        self.engine.load(self.start)

    def missing(self) -> Sequence[str]:
        """Operators that run their NumPy kernel, each with the reason; empty when all are compiled."""
        plan = self.engine.plan({name: array.shape for name, array in self.feeds.items()})
        if plan is None:
            return ["everything: shapes depend on data"]
        return sorted({f"{row.operators.split(' ')[0]}: {row.reason}" for row in plan.rows if row.reason})


def model(case: Case) -> ir.Model:
    """The network with its initial weights; the same object for calls in a row, so not to be changed."""
    return _model(case.network)


@functools.lru_cache(maxsize=1)
def _model(network: str) -> ir.Model:
    return zoo.build(network, **find(network).options).model


def weights(network: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    """Parameters and statistics by name."""
    return {
        name: np.array(value.const_value.numpy())
        for name, value in network.graph.initializers.items()
        if value.const_value is not None
    }


def training(case: Case, batch: int, threads: int) -> Ours:
    """The training step with SGD and momentum."""
    network = model(case)
    step = training_step(
        network,
        {_only(network.graph.outputs): CrossEntropy()},
        SGD(learning_rate=LEARNING_RATE, momentum=MOMENTUM),
        trainable_initializers(network),
    )
    x, target = case.batch(batch)
    feeds = {
        step.inputs[0]: x,
        next(iter(step.targets.values())): target,
        step.learning_rate: np.array(LEARNING_RATE, np.float32),
        step.step: np.array(0, np.int64),
    }
    if step.seed is not None:
        feeds[step.seed] = np.array(0, np.int64)
    taken = {v.name for v in step.model.graph.inputs}
    feeds = {name: array for name, array in feeds.items() if name in taken}
    engine = CompiledEngine(step.model, step.bindings, threads)
    return Ours(engine, feeds, step.loss, {name: engine.fixed[name].copy() for name in step.bindings})


def inference_model(case: Case) -> ir.Model:
    """The network as it is deployed."""
    return to_inference(model(case))


def deployed(case: Case) -> bytes:
    """The file of that network."""
    data: bytes = ir.to_proto(inference_model(case)).SerializeToString()
    return data


def inference(case: Case, batch: int, threads: int) -> Ours:
    """The forward pass of the deployed network."""
    network = inference_model(case)
    x, _ = case.batch(batch)
    name = _only([v for v in network.graph.inputs if v.name not in network.graph.initializers])
    return Ours(CompiledEngine(network, None, threads), {name: x}, _only(network.graph.outputs), {})


def _only(values: Sequence[ir.Value]) -> str:
    (value,) = values
    return value.name or ""
