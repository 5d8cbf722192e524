"""A run's edges: where it may be cut, what a second run starts from, and what is refused before it starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.train import networks

from onward.data import Dataset, Loader
from onward.errors import ConfigError, TrainingError
from onward.graph import Builder
from onward.model import save
from onward.train import (
    MSE,
    SGD,
    Adam,
    Callback,
    Checkpoints,
    Clip,
    CrossEntropy,
    EarlyStopping,
    Group,
    KLDivergence,
    Trainer,
)

FLOAT = ir.DataType.FLOAT


def state(trainer: Trainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in trainer._session.state.items()}


def two_heads() -> ir.Model:
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="heads"))
    x = g.input("x", FLOAT, ("N", 4))
    for name, size in (("value", 1), ("scores", 3)):
        w = g.initializer(f"{name}.weight", np.full((4, size), 0.1, np.float32))
        g.output(g.MatMul(x, w), name)
    return ir.Model(g.graph, ir_version=10)


def test_a_checkpoint_at_the_last_step_of_an_epoch(tmp_path: Path) -> None:
    """Cut between an epoch's last step and its end, the run still closes the epoch as it would have."""

    class Cut(Callback):
        def on_step_end(self, run) -> None:
            if run.step == 4:
                run.save(tmp_path / "cut.npz")

    data = networks.blobs()
    whole, resumed = (
        Trainer(networks.mlp(dropout=0.3), optimizer=Adam(), metrics=["accuracy"]) for _ in "ab"
    )
    expected = whole.fit(data, epochs=3, batch_size=15, callbacks=[Cut()])
    found = resumed.fit(data, epochs=3, batch_size=15, resume=tmp_path / "cut.npz")
    assert found.rows == expected.rows
    assert state(resumed) == state(whole)


def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    data = networks.blobs()

    def trained(**options) -> Trainer:
        trainer = Trainer(networks.mlp(), optimizer=SGD(learning_rate=5.0))
        stopping = EarlyStopping(patience=1)
        trainer.fit(
            data, validation=data, epochs=30, callbacks=[stopping, Checkpoints(tmp_path / "c.npz")], **options
        )
        assert trainer.stopped
        return trainer

    first = trained()
    epochs = len(first.history)
    assert epochs < 30
    again = trained(resume=tmp_path / "c.npz")
    assert len(again.history) == epochs
    assert state(again) == state(first)


def test_a_second_fit_is_a_run_of_its_own() -> None:
    """It equals the run of a new trainer of the model that the first one made."""
    data = networks.blobs()

    def trainer(model: ir.Model) -> Trainer:
        return Trainer(model, optimizer=Adam(learning_rate=0.05), accumulate=3)

    twice, stopping = trainer(networks.mlp()), EarlyStopping(monitor="loss", patience=0)
    twice.fit(data, epochs=2, callbacks=[stopping])
    fresh = trainer(twice.model)
    twice.fit(data, epochs=2, callbacks=[stopping])
    fresh.fit(data, epochs=2, callbacks=[EarlyStopping(monitor="loss", patience=0)])
    assert state(twice) == state(fresh)
    assert twice.history.rows == fresh.history.rows


def test_the_callers_model_is_left_as_it_was() -> None:
    model = networks.mlp()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    trainer = Trainer(model, optimizer=SGD(learning_rate=0.5))
    trainer.fit(networks.blobs(), epochs=1)
    trainer.predict(networks.blobs()[0])
    trainer.evaluate(networks.blobs())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_evaluating_in_the_middle_changes_nothing() -> None:
    data = networks.blobs()
    plain, watched = (Trainer(networks.mlp(dropout=0.3), metrics=["accuracy", "f1"]) for _ in "ab")

    class Watch(Callback):
        def on_step_end(self, run) -> None:
            watched.evaluate(data)
            watched.predict(data[0])

    plain.fit(data, epochs=2)
    watched.fit(data, epochs=2, callbacks=[Watch()])
    assert watched.history.rows == plain.history.rows
    assert state(watched) == state(plain)


@pytest.mark.parametrize(
    ("figures", "best"), [([np.nan, 3.0, 2.0, 5.0], 3), ([3.0, np.nan, 2.0, np.nan], 3), ([np.nan] * 4, 0)]
)
@pytest.mark.filterwarnings("ignore:planted loss of epoch . is NaN:RuntimeWarning")
def test_an_epoch_without_a_figure_is_not_the_best(figures: list[float], best: int) -> None:
    class Planted(Callback):
        def on_epoch_end(self, run) -> None:
            run.history.rows[-1]["planted loss"] = figures[len(run.history) - 1]

    stopping = EarlyStopping(monitor="planted loss", patience=9)
    Trainer(networks.mlp()).fit(networks.blobs(), epochs=4, callbacks=[Planted(), stopping])
    assert stopping.best_epoch == best


@pytest.mark.parametrize("changed", [{"clip": Clip(norm=2.0)}, {"clip": None}, {"accumulate": 2}])
def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path, changed: dict) -> None:
    options = {"clip": Clip(norm=1.0)}
    Trainer(networks.mlp(), **options).fit(networks.blobs(), callbacks=[Checkpoints(tmp_path / "c.npz")])
    with pytest.raises(TrainingError, match="is of another run: its training step"):
        Trainer(networks.mlp(), **{**options, **changed}).fit(
            networks.blobs(), epochs=2, resume=tmp_path / "c.npz"
        )


def test_a_checkpoint_over_other_frozen_weights_is_refused(tmp_path: Path) -> None:
    def trainer(seed: int) -> Trainer:
        return Trainer(networks.mlp(seed=seed), freeze=["hidden.*"])

    trainer(0).fit(networks.blobs(), callbacks=[Checkpoints(tmp_path / "c.npz")])
    with pytest.raises(TrainingError, match="is of another run"):
        trainer(1).fit(networks.blobs(), epochs=2, resume=tmp_path / "c.npz")


def test_targets_and_metrics_are_of_the_first_output_with_a_loss() -> None:
    x, y = networks.blobs()
    only_scores = Trainer(
        two_heads(), {"scores": "cross_entropy"}, SGD(learning_rate=0.5), metrics=["accuracy"]
    )
    history = only_scores.fit((x, y), epochs=20)
    predicted = only_scores.predict(x)["scores"].argmax(1)
    assert only_scores.evaluate((x, y))["accuracy"] == np.mean(predicted == y)
    assert history["accuracy"][-1] > 0.8

    data = Dataset({"x": x, "scores.target": y.astype(np.int32)}, x[:, :1] * 2, task="regression")
    both = Trainer(two_heads(), {"scores": CrossEntropy(), "value": MSE()}, metrics=["mae"])
    assert list(both.loss) == ["value", "scores"]
    both.fit(data, epochs=60)
    assert both.evaluate(data)["mae"] < 0.3
    with pytest.raises(
        ConfigError, match=r"has no input 'scores\.target', which the loss of that output needs"
    ):
        both.fit((x, x[:, :1]))


def test_options_that_name_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="there is a weight for 'score', but the losses are for scores"):
        Trainer(networks.mlp(), loss_weights={"score": 2.0})
    with pytest.raises(ConfigError, match=r"no trained parameter matches the pattern 'fc\.\*'"):
        Trainer(networks.mlp(), optimizer=SGD(groups=(Group("fc.*", weight_decay=0.1),)))
    with pytest.raises(ConfigError, match="there is a loss for 'score'"):
        Trainer(networks.mlp(), {"score": MSE()})


@pytest.mark.parametrize(
    ("dims", "axis", "stripped"),
    [
        (("N", 3), -1, True),
        (("N", 3), 1, True),
        (("N", 3), 0, False),
        (("N", 3, 2), 1, True),
        (("N", 3, 2), -1, False),
    ],
)
@pytest.mark.parametrize("loss", [CrossEntropy(), KLDivergence()])
def test_a_final_softmax_over_the_classes_is_trained_on_its_operand(
    loss, dims, axis: int, stripped: bool
) -> None:
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="test"))
    x = g.input("x", FLOAT, dims)
    y = g.Softmax(x, axis=axis)
    assert loss.output(y) is (x if stripped else y)


def test_a_file_whose_weights_are_inputs_too(tmp_path: Path) -> None:
    """IR version 3 lists initializers among the inputs; they are weights all the same, frozen or not."""
    listed = networks.mlp()
    listed.graph.inputs.extend(listed.graph.initializers.values())
    listed.ir_version = 3
    save(listed, tmp_path / "listed.onnx")
    data = networks.blobs()
    for freeze in ([], ["hidden.*"]):
        plain = Trainer(networks.mlp(), freeze=freeze)
        plain.fit(data)
        for given in (listed, tmp_path / "listed.onnx"):
            other = Trainer(given, freeze=freeze)
            assert [s.name for s in other.inputs] == ["x"]
            assert other.fit(data).rows == plain.history.rows
            assert state(other) == state(plain)


def test_dropout_of_an_old_opset_keeps_its_ratio() -> None:
    """Before opset 12 the ratio is an attribute."""
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 10}, name="old"))
    x, w = g.input("x", FLOAT, ("N", 4)), g.initializer("w", np.full((4, 3), 0.1, np.float32))
    g.output(g.MatMul(g.Dropout(x, ratio=0.3), w), "scores")
    trainer = Trainer(ir.Model(g.graph, ir_version=4))
    (drop,) = [n for n in trainer.step.model.graph if n.op_type == "PhiloxDropout"]
    assert drop.attributes.get_float("ratio") == pytest.approx(0.3)
    assert np.isfinite(trainer.fit(networks.blobs())["loss"][0])


def test_labels_of_any_integer_type() -> None:
    x, y = networks.blobs()
    rows = [
        Trainer(networks.mlp()).fit((x, y.astype(dtype))).rows for dtype in (np.int64, np.int32, np.uint8)
    ]
    assert rows[0] == rows[1] == rows[2]


def test_a_loader_that_serves_less_than_an_epoch_counts_what_it_serves() -> None:
    x, y = networks.blobs()
    loader = Loader(Dataset({"x": x}, y, task="classification"), 25, drop_last=True)
    history = Trainer(networks.mlp(), metrics=["accuracy"]).fit(loader)
    assert len(history) == 1
    assert 0 <= history["accuracy"][0] <= 1
