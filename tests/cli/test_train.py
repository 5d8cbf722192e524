from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import Onward

from onward.data import load_iris, split
from onward.model import load, read_provenance


def test_exports_a_model_with_its_provenance(iris: Path) -> None:
    provenance = read_provenance(load(iris))
    assert provenance is not None
    assert provenance.data_hash == f"sha256:{load_iris().digest()}"
    assert provenance.class_names == ("setosa", "versicolor", "virginica")
    assert provenance.metrics["test_accuracy"] > 0.8
    assert provenance.configuration["data"]["spec"] == "iris"
    assert provenance.configuration["task"] == "classification"
    assert provenance.preparation is not None
    assert provenance.preparation["inside"] is True
    assert provenance.normalisation is None


def test_normalisation_is_measured_on_the_training_part(iris: Path) -> None:
    provenance = read_provenance(load(iris))
    assert provenance is not None
    assert provenance.preparation is not None
    train = split(load_iris(), (0.6, 0.2, 0.2), seed=0).train
    np.testing.assert_allclose(
        provenance.preparation["inputs"]["input"]["mean"], train.inputs["features"].mean(axis=0), rtol=1e-5
    )


def test_shows_epochs_and_figures_where_there_is_no_terminal(onward: Onward, tmp_path: Path) -> None:
    done = onward(
        *("train", "mlp", "--data", "iris", "--epochs", 2, "--output", tmp_path / "m.onnx"),
        *("--csv-log", tmp_path / "log" / "history.csv"),
    )
    assert done.code == 0, done.err
    assert "epoch 2/2" in done.out
    for word in ("precision", "recall", "F1", "Confusion matrix", "accuracy"):
        assert word in done.out
    with (tmp_path / "log" / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_options_come_before_the_file(onward: Onward, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'model = "mlp"\ndata = "iris"\nepochs = 7\n[optimizer]\nname = "sgd"\nlearning_rate = 0.5\n'
    )
    shown = onward("train", "--config", file, "--epochs", 3, "--momentum", 0.9, "--print-config").out
    assert "epochs = 3" in shown
    assert 'name = "sgd"' in shown
    assert "learning_rate = 0.5" in shown
    assert "momentum = 0.9" in shown
    again = tmp_path / "again.toml"
    again.write_text(shown)
    assert onward("train", "--config", again, "--print-config").out == shown


def test_resumed_run_equals_the_uninterrupted_one(onward: Onward, tmp_path: Path) -> None:
    def weights(name: str) -> dict[str, bytes]:
        graph = load(tmp_path / name).graph
        return {k: v.const_value.numpy().tobytes() for k, v in graph.initializers.items() if v.const_value}

    common = ("train", "mlp", "--data", "iris", "--optimizer", "adamw")
    whole = onward(*common, "--epochs", 4, "--output", tmp_path / "whole.onnx")
    assert whole.code == 0, whole.err
    point = tmp_path / "run.ckpt"
    onward(*common, "--epochs", 2, "--checkpoint", point, "--output", tmp_path / "half.onnx")
    resumed = onward(*common, "--epochs", 4, "--resume", point, "--output", tmp_path / "resumed.onnx")
    assert resumed.code == 0, resumed.err
    assert weights("resumed.onnx") == weights("whole.onnx")
    assert weights("half.onnx") != weights("whole.onnx")


def test_a_run_that_is_started_again_goes_on_by_itself(onward: Onward, tmp_path: Path) -> None:
    common = ("train", "mlp", "--data", "iris", "--resume", "auto")
    point = tmp_path / "run.ckpt"
    first = onward(*common, "--epochs", 2, "--checkpoint", point, "--output", tmp_path / "a.onnx")
    again = onward(*common, "--epochs", 3, "--checkpoint", point, "--output", tmp_path / "b.onnx")
    assert first.code == again.code == 0, first.err + again.err
    assert "epoch 1/2" in first.out
    assert "epoch 2/3" not in again.out
    assert "epoch 3/3" in again.out
    nothing = onward(*common, "--epochs", 1)
    assert nothing.code == 2
    assert "--checkpoint" in nothing.err


def test_regression(onward: Onward, tmp_path: Path) -> None:
    done = onward("train", "mlp", "--data", "diabetes", "--epochs", 2, "--output", tmp_path / "d.onnx")
    assert done.code == 0, done.err
    for word in ("mae", "rmse", "r2"):
        assert word in done.out


def test_trains_an_onnx_file_further_with_its_own_normalisation(
    onward: Onward, iris: Path, tmp_path: Path
) -> None:
    path = tmp_path / "further.onnx"
    done = onward(
        *("train", iris, "--data", "iris", "--split-seed", 3, "--epochs", 1),
        *("--freeze", "dense_1.*", "--output", path),
    )
    assert done.code == 0, done.err
    before, after = load(iris), load(path)
    old, new = read_provenance(before), read_provenance(after)
    assert old is not None
    assert new is not None
    assert new.preparation == old.preparation
    changed = {
        name
        for name, value in before.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.numpy().tobytes()
        != after.graph.initializers[name].const_value.numpy().tobytes()  # type: ignore[union-attr]
    }
    assert changed
    assert not any(name.startswith("dense_1.") for name in changed)


def test_text(onward: Onward, reviews: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    done = onward(
        *("train", "textcnn", "--data", f"text:{reviews}", "--tokens", 8, "--epochs", 6, "--output", path),
        *("-o", "embedding_size=8", "-o", "filters=4", "--split", "0.7,0.1,0.2", "--lr", 0.02),
    )
    assert done.code == 0, done.err
    provenance = read_provenance(load(path))
    assert provenance is not None
    assert provenance.vocabulary is not None
    assert "film" in provenance.vocabulary
    said = onward("predict", path, "a great and lovely film", "a poor boring film")
    assert said.code == 0, said.err
    first, second = said.out.splitlines()
    assert first.split(": ")[1].startswith("1 ")
    assert second.split(": ")[1].startswith("0 ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("lenet9", "--data", "iris"), "lenet9"),
        (("lenet5", "--data", "iris"), "images"),
        (("mlp", "--data", "nothing"), "nothing"),
        (("mlp",), "--data"),
        (("mlp", "--data", "iris", "--lr", "-1"), "learning_rate"),
        (("mlp", "--data", "iris", "--optimizer", "newton"), "newton"),
        (("mlp", "--data", "iris", "--beta1", "0.9", "--optimizer", "sgd"), "beta1"),
        (("mlp", "--data", "iris", "--loss", "hinge"), "hinge"),
        (("mlp", "--data", "iris", "--schedule", "wave"), "wave"),
        (("mlp", "--data", "iris", "--metrics", "beauty"), "beauty"),
        (("mlp", "--data", "iris", "--split", "0.5,0.5"), "split"),
        (("mlp", "--data", "iris", "--split", "a,b,c"), "--split"),
        (("mlp", "--data", "iris", "-o", "depth=3"), "depth"),
        (("mlp", "--data", "iris", "-o", "depth"), "NAME=VALUE"),
        (("mlp", "--data", "iris", "--freeze", "conv*"), "conv*"),
        (("mlp", "--data", "iris", "--epochs", "0"), "epochs"),
        (("mlp", "--data", "iris", "--resume", "not-there.ckpt"), "not-there.ckpt"),
        (("mlp", "--data", "iris", "--augment", "flip"), "augment"),
        (("mlp", "--data", "iris", "--checkpoint-every", "5"), "checkpoint"),
        (("not-there.onnx", "--data", "iris"), "not-there.onnx"),
        (("mlp", "--data", "iris", "--momentum", "0.9"), "optimizer 'adam' has no option 'momentum'; it has"),
        (("mlp", "--data", "iris", "--loss", "mse"), "choose cross_entropy"),
        (("mlp", "--data", "iris", "--threads", "0"), "threads"),
        (("mlp", "--data", "iris", "--winograd", "3"), "winograd"),
        (("mlp", "--data", "iris", "--output", "/proc/nowhere/m.onnx"), "/proc/nowhere"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(
    onward: Onward, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = onward("train", *arguments)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert done.err.startswith("error: ")
    assert says in done.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('model = "mlp"\ndata = "iris"\nepoch = 3', "epoch"),
        ('model = "mlp"\ndata = "iris"\n[optimizer]\nrate = 3', "optimizer.rate"),
        ('model = "mlp"\ndata = "iris"\nepochs = "many"', "epochs"),
        ("model = ", "not TOML"),
    ],
)
def test_wrong_keys_of_a_file_are_named(onward: Onward, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    done = onward("train", "--config", file)
    assert done.code == 2
    assert says in done.err
    assert "run.toml" in done.err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_interruption_names_the_checkpoint(
    name: str, onward: Onward, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from onward.cli.train import RunView
    from onward.runs import EpochEnded, Event

    show = RunView.__call__

    def interrupt(self: RunView, event: Event) -> None:
        show(self, event)
        if isinstance(event, EpochEnded) and event.epoch == 2:
            os.kill(os.getpid(), getattr(signal, name))

    monkeypatch.setattr(RunView, "__call__", interrupt)
    point = tmp_path / "run.ckpt"
    done = onward(
        *("train", "mlp", "--data", "iris", "--epochs", 5, "--checkpoint", point),
        *("--output", tmp_path / "m.onnx"),
    )
    assert done.code == 130
    assert f"--resume {point}" in done.err
    assert point.exists()
    assert not (tmp_path / "m.onnx").exists()


def test_labels_that_are_identifiers_are_refused(onward: Onward, tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    labels[7] = 20_000
    np.savez(tmp_path / "ids.npz", x=np.ones((60, 4), np.float32), y=labels)
    done = onward("train", "mlp", "--data", f"npz:{tmp_path / 'ids.npz'}", "--output", tmp_path / "m.onnx")
    assert done.code == 2
    assert "label 20000 would make 20001 classes of 60 samples" in done.err


def test_engine_and_threads_are_options_of_a_run(onward: Onward, tmp_path: Path) -> None:
    made = []
    for engine in ("interpreter", "compiled"):
        path = tmp_path / f"{engine}.onnx"
        done = onward(
            *("train", "mlp", "--data", "iris", "--epochs", 2, "-o", "hidden=[8]"),
            *("--engine", engine, "--threads", 1, "--winograd", 4, "--output", path),
        )
        assert done.code == 0, done.err
        made.append(load(path))
    weights = [{name: v.const_value.numpy() for name, v in m.graph.initializers.items()} for m in made]
    for name, array in weights[0].items():
        np.testing.assert_allclose(array, weights[1][name], rtol=1e-4, atol=1e-6)
    provenance = read_provenance(made[0])
    assert provenance is not None
    assert {key: provenance.configuration[key] for key in ("engine", "threads", "winograd")} == {
        "engine": "interpreter",
        "threads": 1,
        "winograd": 4,
    }


def test_a_log_below_a_file_is_a_refusal(onward: Onward, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_bytes(b"")
    done = onward(
        *("train", "mlp", "--data", "iris", "--epochs", 1, "--tensorboard", tmp_path / "file" / "tb"),
        *("--output", tmp_path / "m.onnx"),
    )
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert "TensorBoard" in done.err
