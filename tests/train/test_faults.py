"""Numbers that are not finite: named, never taken for progress, never left in a trained model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.train import networks

from onward.data import Dataset, Loader
from onward.errors import TrainingError
from onward.graph import Builder
from onward.train import (
    MSE,
    SGD,
    Adam,
    Callback,
    Checkpoints,
    EarlyStopping,
    ReduceOnPlateau,
    Trainer,
    read_checkpoint,
)
from onward.train.faults import first_fault

FLOAT = ir.DataType.FLOAT
ENGINES = pytest.mark.parametrize("engine", ["interpreter", "compiled"])


def root() -> ir.Model:
    """y = sqrt(w x): its slope at w x = 0 is infinite, below there is no value."""
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="root"))
    x, w = g.input("x", FLOAT, ("N", 1)), g.initializer("w", np.full((1, 1), 4, np.float32))
    g.output(g.Sqrt(g.MatMul(x, w), name="the root"), "y")
    return ir.Model(g.graph, ir_version=10)


def column(*values: float) -> Dataset:
    x = np.array(values, np.float32)[:, None]
    return Dataset({"x": x}, np.ones_like(x), task="regression")


class Planted(Callback):
    """Puts figures into the history in the place of a loss."""

    def __init__(self, figures: list[float]) -> None:
        self.figures = figures

    def on_epoch_end(self, run) -> None:
        run.history.rows[-1]["val_loss"] = self.figures[len(run.history) - 1]


@ENGINES
def test_the_node_that_made_it_is_named(engine: str) -> None:
    trainer = Trainer(root(), "mse", SGD(learning_rate=0.1), engine=engine)
    with pytest.raises(
        TrainingError,
        match=r"the loss became nan in epoch 1, step 3; step 3: node 'the root', operator Sqrt, opset 21, "
        r"is the first whose result is not finite for finite operands \(1 of 2 elements\); lower the",
    ):
        trainer.fit(Loader(column(1, 2, 3, 4, 5, -1), 2, shuffle=False))


@ENGINES
def test_a_gradient_that_made_it_is_named_and_its_step(engine: str) -> None:
    """The loss of step 2 is finite and its slope is not."""
    trainer = Trainer(root(), "mse", SGD(learning_rate=0.1), engine=engine)
    seen: list[np.ndarray] = []

    class Watch(Callback):
        def on_step_end(self, run) -> None:
            seen.append(run.session.state["w"].copy())

    with pytest.raises(
        TrainingError,
        match=r"loss became nan in epoch 1, step 3; step 2: node 'grad/the root/Div\w*', operator Div",
    ):
        trainer.fit(Loader(column(1, 2, 3, 0, 5, 6), 2, shuffle=False), callbacks=[Watch()])
    # the weights from before the step that spoilt them
    np.testing.assert_array_equal(trainer.weights()["w"], seen[0])
    assert not np.isfinite(seen[1]).all()


@ENGINES
def test_a_run_whose_last_step_spoils_the_weights_is_no_success(engine: str) -> None:
    trainer = Trainer(root(), "mse", SGD(learning_rate=0.1), engine=engine)
    with pytest.raises(
        TrainingError, match=r"weight 'w' became NaN or infinite in epoch 1, step 2; step 2: node"
    ):
        trainer.fit(Loader(column(1, 2, 3, 0), 2, shuffle=False), epochs=1)
    assert np.isfinite(trainer.weights()["w"]).all()
    assert np.isfinite(trainer.predict(np.ones((1, 1), np.float32))["y"]).all()


def test_what_a_matrix_product_reads_of_a_branch_not_taken_is_named() -> None:
    """Rows without a logarithm are left out of the loss, but the gradient of w multiplies by them."""
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="rows"))
    x, w = g.input("x", FLOAT, ("N", 1)), g.initializer("w", np.ones((1, 1), np.float32))
    y = g.MatMul(g.Log(x, name="the logarithm"), w)
    g.output(g.Where(g.Greater(x, 0.0), y, 0.0), "y")
    trainer = Trainer(ir.Model(g.graph, ir_version=10), "mse", SGD(learning_rate=0.1))
    with pytest.raises(
        TrainingError, match=r"weight 'w' became .*; step 1: node 'the logarithm', operator Log"
    ):
        trainer.fit(column(1, -2, 3))
    np.testing.assert_array_equal(trainer.weights()["w"], [[1]])


def test_a_gradient_that_waits_in_a_window_is_named_where_it_was_made() -> None:
    trainer = Trainer(root(), "mse", SGD(learning_rate=0.1), accumulate=3)
    with pytest.raises(
        TrainingError, match=r"weight 'w' became .* in epoch 1, step 3; step 2: node 'grad/the root"
    ):
        trainer.fit(Loader(column(1, 2, 3, 0, 5, 6), 2, shuffle=False))


def test_steps_done_again_are_the_same_steps() -> None:
    """From a copy some steps ago, with dropout, momentum, accumulated batches and a schedule."""
    x, y = networks.blobs(300)
    x[217] = 3e38
    trainer = Trainer(
        networks.mlp(dropout=0.3),
        optimizer=Adam(learning_rate=0.01),
        accumulate=3,
        schedule=ReduceOnPlateau(patience=1),
        metrics=["accuracy"],
    )
    seen: list[bytes] = []

    class Watch(Callback):
        def on_step_end(self, run) -> None:
            seen.append(b"".join(a.tobytes() for a in run.session.state.values()))

    with pytest.raises(TrainingError, match=r"step 218; step 218: node '\w+', operator \w+, opset"):
        trainer.fit(Loader(Dataset({"x": x}, y), 1, shuffle=False), callbacks=[Watch()])
    assert b"".join(a.tobytes() for a in trainer._session.state.values()) == seen[216]


def test_a_checkpoint_never_holds_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    trainer = Trainer(root(), "mse", SGD(learning_rate=0.1))
    with pytest.raises(TrainingError, match="weight 'w' became NaN or infinite in epoch 1, step 2"):
        trainer.fit(
            Loader(column(1, 2, 3, 0, 5, 6), 2, shuffle=False), callbacks=[Checkpoints(path, every=1)]
        )
    saved = read_checkpoint(path)
    assert saved.meta["step"] == 1
    assert np.isfinite(saved.state["w"]).all()


def test_infinities_on_purpose_are_left_alone() -> None:
    """A mask of −∞ before a softmax, and a frozen or trained weight that began infinite."""
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="masked"))
    x = g.input("x", FLOAT, ("N", 4))
    w = g.initializer("w", np.full((4, 3), 0.1, np.float32))
    mask = g.initializer("mask", np.array([0, 0, -np.inf], np.float32))
    g.output(g.Add(g.MatMul(x, w), mask), "scores")
    x, y = networks.blobs()
    history = Trainer(ir.Model(g.graph, ir_version=10)).fit((x, np.minimum(y, 1)), epochs=2)
    assert np.isfinite(history["loss"]).all()


def test_the_first_fault_is_on_the_way_to_the_output() -> None:
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="faults"))
    x = g.input("x", FLOAT, (2,))
    log = g.Log(x, name="harmless")
    kept = g.Where(g.Greater(x, 0.0), log, 0.0)
    g.output(g.Add(g.Reciprocal(x, name="guilty"), kept), "y")
    model = ir.Model(g.graph, ir_version=10)
    assert "node 'guilty', operator Reciprocal, opset 21" in first_fault(
        model, {"x": np.array([0, 1], np.float32)}
    )
    assert first_fault(model, {"x": np.array([2, 1], np.float32)}) == ""


@pytest.mark.parametrize(
    ("figures", "patience", "epochs", "best", "says"),
    [
        ([3.0, math.nan, math.nan, 1.0], 2, 3, 1, r"has not improved since epoch 1 \(NaN in the last\)"),
        ([math.nan] * 4, 3, 3, 0, "was NaN in each of the 3 epochs"),
        ([math.nan, 2.0, 3.0, 1.0], 1, 3, 2, "has not improved since epoch 2$"),
        ([math.nan, math.nan, 2.0, 1.0], 9, 4, 4, "^$"),
        ([math.inf, math.nan, 5.0, 5.0], 2, 4, 3, "^$"),
    ],
)
def test_nan_is_no_improvement(
    figures: list[float], patience: int, epochs: int, best: int, says: str
) -> None:
    import re

    stopping = EarlyStopping(patience=patience)
    data = networks.blobs()
    trainer = Trainer(networks.mlp())
    with pytest.warns(RuntimeWarning, match=r"val_loss of epoch \d is NaN"):
        history = trainer.fit(data, validation=data, epochs=4, callbacks=[Planted(figures), stopping])
    assert (len(history), stopping.best_epoch) == (epochs, best)
    assert re.search(says, trainer.stopped)


def test_a_plateau_counts_nan_among_the_bad_epochs() -> None:
    schedule, state = ReduceOnPlateau(patience=2, gamma=0.5), dict[str, float]()
    schedule.observe(1.0, state)
    for expected in (1.0, 0.5):
        with pytest.warns(RuntimeWarning, match="is NaN"):
            schedule.observe(math.nan, state)
        assert state.get("factor", 1.0) == expected
    schedule.observe(0.5, state)
    assert state["best"] == 0.5


def test_validation_of_nan_does_not_stop_training_without_a_watcher() -> None:
    """The training data are sound: the figures say NaN, the weights are good."""
    trainer = Trainer(root(), MSE(), SGD(learning_rate=0.01))
    history = trainer.fit(column(1, 2), validation=column(-1, 2), epochs=2)
    assert np.isnan(history["val_loss"]).all()
    assert np.isfinite(trainer.weights()["w"]).all()
