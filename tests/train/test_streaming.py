"""Training on data that are not in memory equals training on those that are, and resumes to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.train import networks

from onward.data import ArrayRows, StreamLoader
from onward.errors import ConfigError, DataError
from onward.train import Adam, Callback, Checkpoints, Trainer

RNG = np.random.default_rng(1)
X = RNG.standard_normal((100, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 100)


class Pairs:
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return X[index], Y[index]


def pieces(epoch: int = 0):
    order = np.random.default_rng(epoch).permutation(100)
    for start in range(0, 100, 10):
        part = order[start : start + 10]
        yield X[part], Y[part]


def trainer(dropout: float = 0.2) -> Trainer:
    return Trainer(networks.mlp(dropout=dropout), "cross_entropy", Adam(0.01), metrics=["accuracy"], seed=3)


def weights(trainer: Trainer) -> bytes:
    return b"".join(a.tobytes() for _, a in sorted(trainer.weights().items()))


class Interrupt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, run) -> None:
        if run.step == self.step:
            raise KeyboardInterrupt


def test_a_map_style_data_set_trains_as_arrays_do() -> None:
    memory, streamed = trainer(), trainer()
    memory.fit(X, Y, epochs=2, batch_size=16, validation=(X, Y))
    streamed.fit(Pairs(), epochs=2, batch_size=16, validation=Pairs())
    assert weights(memory) == weights(streamed)
    assert memory.history.rows == streamed.history.rows
    assert memory.evaluate(X, Y) == streamed.evaluate(Pairs())


@pytest.mark.parametrize("what", ["list", "function", "map-style", "rows", "memmap"])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, what: str) -> None:
    np.save(tmp_path / "x.npy", X)

    def data() -> dict:
        match what:
            case "list":
                return {"data": list(pieces())}
            case "function":
                return {"data": pieces}
            case "map-style":
                return {"data": Pairs(), "batch_size": 10}
            case "rows":
                return {"data": ArrayRows({"x": tmp_path / "x.npy"}, Y), "batch_size": 10}
            case _:
                return {"data": np.load(tmp_path / "x.npy", mmap_mode="r"), "targets": Y, "batch_size": 10}

    whole = trainer()
    whole.fit(**data(), epochs=3)
    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        trainer().fit(**data(), epochs=3, callbacks=[Checkpoints(path, every=4), Interrupt(17)])
    resumed = trainer()
    resumed.fit(**data(), epochs=3, resume=path)
    assert weights(resumed) == weights(whole)
    assert resumed.history.rows == whole.history.rows


def test_a_generator_trains_and_cannot_be_resumed(tmp_path: Path) -> None:
    def endless():
        while True:
            yield from pieces()

    path = tmp_path / "run.ckpt"
    run = trainer()
    run.fit(endless(), steps_per_epoch=7, epochs=3, callbacks=[Checkpoints(path)])
    assert [row["epoch"] for row in run.history.rows] == [1, 2, 3]
    with pytest.raises(ConfigError, match="a generator cannot be resumed"):
        trainer().fit(endless(), steps_per_epoch=7, epochs=4, resume=path)
    with pytest.raises(DataError, match=r"pieces ended after 3 batches of epoch 2, an epoch has 7"):
        trainer().fit(pieces(), steps_per_epoch=7, epochs=2)
    with pytest.raises(ConfigError, match="validation data are each epoch"):
        trainer().fit(X, Y, validation=pieces())


def test_weights_come_with_batches() -> None:
    counted = np.arange(100) % 3 == 0
    by_weight, plain = trainer(0), trainer(0)
    by_weight.fit([(X, Y, counted.astype(np.float32))], epochs=2)
    plain.fit(X, Y, sample_weight=counted, epochs=2, batch_size=100)
    np.testing.assert_allclose(by_weight.history.rows[0]["loss"], plain.history.rows[0]["loss"], rtol=1e-6)
    with pytest.raises(DataError, match="weights in a later batch and none in the first"):
        trainer().fit(lambda: [(X, Y), (X, Y, np.ones(100))], epochs=1)


def test_a_label_without_a_class_is_named_by_its_row() -> None:
    y = Y.copy()
    y[73] = 3
    with pytest.raises(DataError, match=r"row 73: label 3 is out of range; output 'scores' has 3 classes"):
        trainer().fit(StreamLoader(ArrayRows({"x": X}, y), 10))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((X, Y), {"steps_per_epoch": 3}, "their own length"),
        ((Pairs(),), {"steps_per_epoch": 3}, "their own length"),
        ((Pairs(),), {"validation_split": 0.5}, "cannot be cut"),
        ((pieces,), {"workers": 2}, "leave workers at 0"),
        (([(X, Y)],), {"steps_per_epoch": 0}, "at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(data, options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer().fit(*data, **options)
