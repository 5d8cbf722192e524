"""Pruned weights are 0 and stay 0, as many as the schedule says, at any batching and on any ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.train import networks

from onward.errors import ConfigError, TrainingError
from onward.parallel import run_ranks
from onward.train import SGD, Adam, Callback, Checkpoints, EarlyStopping, Pruning, Trainer
from onward.train.schedules import Progress

WEIGHTS = ("hidden.weight", "out.weight")


class Seen(Callback):
    def __init__(self) -> None:
        self.weights: list[dict[str, np.ndarray]] = []

    def on_step_end(self, run: Any) -> None:
        self.weights.append({name: run.session.state[name].copy() for name in WEIGHTS})

    def zeros(self) -> list[int]:
        return [sum(int((a == 0).sum()) for a in w.values()) for w in self.weights]


class Interrupt(Callback):
    def on_step_end(self, run: Any) -> None:
        if run.step == 8:
            raise KeyboardInterrupt


def trained(pruning: Pruning, **options: Any) -> tuple[Trainer, Seen]:
    x, y = networks.blobs()
    fit = options.pop("fit", {})
    seen = Seen()
    options = {"optimizer": Adam(0.02), "seed": 1, "threads": 1, **options}
    trainer = Trainer(networks.mlp(hidden=16), pruning=pruning, **options)
    hooks = [seen, *fit.pop("callbacks", [])]
    trainer.fit(x, y, **{"epochs": 4, "batch_size": 13, "progress": False, "callbacks": hooks, **fit})
    return trainer, seen


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_each_weight_gets_its_sparsity_along_the_schedule(engine: str) -> None:
    trainer, seen = trained(Pruning(sparsity=0.75, start=0.25, end=0.75, every=1), engine=engine)
    updates = 20
    wanted = []
    for t in range(1, updates + 1):
        left = min(max((15 - t) / 10, 0), 1)
        share = 0.75 * (1 - left**3) if t >= 5 else 0.0
        wanted.append(sum(round(share * size) for size in (64, 48)))
    assert seen.zeros() == wanted
    assert trainer.sparsity() == {"hidden.weight": 0.75, "out.weight": 0.75}
    for before, after in zip(seen.weights, seen.weights[1:], strict=False):
        for name in WEIGHTS:
            assert not after[name][before[name] == 0].any()
    assert np.count_nonzero(seen.weights[-1]["hidden.weight"] - seen.weights[-3]["hidden.weight"]) == 16
    assert np.count_nonzero(trainer.weights()["hidden.bias"]) == 16


def test_the_smallest_go_first_alone_and_together() -> None:
    for scope in ("layer", "global"):
        rule = Pruning(sparsity=0.5, start=0, end=0, scope=scope)  # type: ignore[arg-type]
        _, seen = trained(rule, optimizer=SGD(0.0))
        before = networks.mlp(hidden=16)
        arrays = {n: before.graph.initializers[n].const_value.numpy() for n in WEIGHTS}
        limits = {n: np.median(np.abs(a)) for n, a in arrays.items()}
        if scope == "global":
            everything = np.concatenate([np.abs(a).reshape(-1) for a in arrays.values()])
            limits = dict.fromkeys(WEIGHTS, np.median(everything))
        for name, array in arrays.items():
            np.testing.assert_array_equal(seen.weights[-1][name] == 0, np.abs(array) < limits[name])


@pytest.mark.parametrize("options", [{}, {"averaging": "ema"}, {"accumulate": 2}], ids=["", "ema", "windows"])
def test_a_resumed_run_is_as_sparse(tmp_path: Path, options: dict[str, Any]) -> None:
    rule = Pruning(sparsity=0.6, every=2)
    whole, _ = trained(rule, **options)
    path = tmp_path / "run.npz"
    with pytest.raises(KeyboardInterrupt):
        trained(rule, fit={"callbacks": [Checkpoints(path, every=1), Interrupt()]}, **options)
    second, _ = trained(rule, fit={"resume": path}, **options)
    assert {n: a.tobytes() for n, a in second.state.items()} == {
        n: a.tobytes() for n, a in whole.state.items()
    }
    graph = whole.model.graph
    for name, size in (("hidden.weight", 64), ("out.weight", 48)):
        value = graph.initializers[name].const_value
        assert value is not None
        assert np.count_nonzero(value.numpy() == 0) == round(0.6 * size)
    with pytest.raises(TrainingError, match="its pruning is"):
        trained(Pruning(sparsity=0.5), fit={"resume": path}, **options)


def test_early_stopping_goes_back_to_no_epoch_that_is_denser() -> None:
    x, y = networks.blobs()
    stopping = EarlyStopping("loss", patience=1, mode="max")  # the first epoch is the best one
    trainer, _ = trained(Pruning(sparsity=0.9, end=0.5), fit={"epochs": 8, "callbacks": [stopping]})
    assert stopping.best_epoch >= 4
    assert trainer.sparsity()["hidden.weight"] == pytest.approx(0.9, abs=0.01)
    assert len(x) == len(y)


def test_ranks_prune_alike() -> None:
    def run(ranks: Any) -> dict[str, np.ndarray]:
        trainer, _ = trained(Pruning(sparsity=0.5), parallel=ranks, optimizer=SGD(0.05))
        return {name: array.copy() for name, array in trainer.weights().items()}

    alone = run(None)
    for found in run_ranks(2, run):
        for name in WEIGHTS:
            np.testing.assert_array_equal(found[name] == 0, alone[name] == 0)
            np.testing.assert_allclose(found[name], alone[name], rtol=1e-4, atol=1e-6)


def test_masks_are_renewed_a_few_times_by_default() -> None:
    rule = Pruning(sparsity=0.8, start=0.1, end=0.5)
    due = [t for t in range(1, 10_001) if rule.due(Progress(t, 10_000, 0)) is not None]
    assert due[0] == 1000
    assert due[-1] == 5000
    assert len(due) == 51
    assert rule.due(Progress(5000, 10_000, 0)) == 0.8


def test_refusals() -> None:
    for options, text in [
        ({"sparsity": 1.0}, r"sparsity must be in \(0, 1\)"),
        ({"start": 0.8, "end": 0.5}, "start <= end"),
        ({"every": 0}, "at least 1 update"),
        ({"scope": "all"}, "layer or global"),
    ]:
        with pytest.raises(ConfigError, match=text):
            Pruning(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no trained weight of two axes or more matches '\*\.bias'"):
        trained(Pruning(targets=("*.bias",)))
