"""A schedule that is as long as its run, resumed with another number of epochs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.train import networks

from onward.data import Dataset, Loader
from onward.errors import ConfigError, TrainingError
from onward.train import SGD, Callback, Checkpoints, Constant, Cosine, Schedule, Step, Trainer
from onward.train.schedules import Progress

DATA = networks.blobs()


class Rates(Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_step_end(self, run) -> None:
        self.rates.append(run.last["learning_rate"])


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """A schedule of a user's own that reads the run's length and says nothing of it."""

    def _factor(self, at: Progress, state: dict[str, float]) -> float:
        return 1 - at.update / at.updates


def run(path: Path, schedule: Schedule, epochs: int, resume: bool = False, **options) -> list[float]:
    rates = Rates()
    trainer = Trainer(networks.mlp(), optimizer=SGD(learning_rate=0.1), schedule=schedule, **options)
    trainer.fit(
        DATA,
        epochs=epochs,
        batch_size=20,
        callbacks=[rates, Checkpoints(path)],
        resume=path if resume else None,
    )
    return rates.rates


@pytest.mark.parametrize("schedule", [Cosine(), Cosine(warmup=2, minimum=0.1)])
def test_cosine_says_what_to_do_and_that_works(tmp_path: Path, schedule: Cosine) -> None:
    path = tmp_path / "run.npz"
    first = run(path, schedule, 2)
    with pytest.raises(
        TrainingError,
        match=r"is of a run of 2 epochs, and the schedule Cosine depends on that number: over 4 epochs .* "
        r"would be others\. Resume with 2 epochs, or give the schedule a length of its own: "
        r"Cosine\(epochs=2\), on the command line --schedule-epochs 2, keeps",
    ):
        run(path, schedule, 4, resume=True)
    options = {"warmup": schedule.warmup, "minimum": schedule.minimum}
    further = run(path, Cosine(epochs=2, **options), 4, resume=True)
    assert further == pytest.approx([0.1 * schedule.minimum] * 6)
    assert first[-1] > further[0]


def test_a_schedule_with_a_length_of_its_own_is_the_same_in_any_run(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole.npz", Cosine(epochs=3), 5)
    path = tmp_path / "run.npz"
    assert run(path, Cosine(epochs=3), 2) + run(path, Cosine(epochs=3), 5, resume=True) == whole
    assert whole[:9] == run(tmp_path / "short.npz", Cosine(), 3)
    assert whole[9:] == [0.0] * 6


def test_schedules_of_epochs_take_any_length(tmp_path: Path) -> None:
    for name, schedule in (("constant", Constant(warmup=4)), ("step", Step(every=1, gamma=0.5))):
        path = tmp_path / f"{name}.npz"
        run(path, schedule, 1)
        assert len(run(path, schedule, 3, resume=True)) == 6


def test_a_users_schedule_that_reads_the_length_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    run(path, Linear(), 2)
    with pytest.raises(
        TrainingError, match=r"the schedule Linear depends on that number.*begin a new run from"
    ):
        run(path, Linear(), 3, resume=True)
    assert run(path, Linear(), 2, resume=True) == []


def test_another_schedule_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    run(path, Cosine(), 2)
    for other in (Constant(), Cosine(minimum=0.5), Cosine(epochs=3)):
        with pytest.raises(TrainingError, match=r"is of another run: its schedule is 'Cosine.*this run's is"):
            run(path, other, 2, resume=True)


@pytest.mark.parametrize("options", [{"accumulate": 2}])
def test_windows_are_part_of_what_a_run_is(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "run.npz"
    run(path, Constant(), 1, accumulate=3)
    with pytest.raises(TrainingError, match="its number of batches to an update is 3, this run's is 2"):
        run(path, Constant(), 2, resume=True, **options)


def test_rates_follow_updates_and_not_batches(tmp_path: Path) -> None:
    """Windows of two of three batches: two updates an epoch, the second of one batch."""
    rates = run(tmp_path / "run.npz", Cosine(), 2, accumulate=2)
    factors = [0.5 * (1 + np.cos(np.pi * u / 4)) for u in (0, 0, 1, 2, 2, 3)]
    assert rates == pytest.approx([0.1 * f for f in factors])


def test_a_loader_that_serves_fewer_batches_is_another_run(tmp_path: Path) -> None:
    path, (x, y) = tmp_path / "run.npz", DATA
    data = Dataset({"x": x}, y)
    Trainer(networks.mlp()).fit(Loader(data, 25), callbacks=[Checkpoints(path)])
    with pytest.raises(TrainingError, match="its number of batches in an epoch is 3, this run's is 2"):
        Trainer(networks.mlp()).fit(Loader(data, 25, drop_last=True), epochs=2, resume=path)


def test_a_length_is_checked() -> None:
    with pytest.raises(ConfigError, match="epochs must be at least 1, got 0"):
        Cosine(epochs=0)
