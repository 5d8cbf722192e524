"""One protocol: what is recorded can be read back, from CSV files and from MLflow."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.train import networks

from onward import runs
from onward.errors import ConfigError, StorageError, TrainingError
from onward.train import SGD, Callback, CSVTracker, MLflowTracker, Tracking, Trainer


class Broken(Callback):
    def on_epoch_end(self, run: Any) -> None:
        raise RuntimeError("broken on purpose")


def fit(*callbacks: Callback, rate: float = 0.1, **options: Any) -> Trainer:
    x, y = networks.blobs()
    trainer = Trainer(networks.mlp(), optimizer=SGD(rate), metrics=["accuracy"])
    trainer.fit(x, y, epochs=2, progress=False, callbacks=callbacks, **options)
    return trainer


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_csv_files_say_what_a_fit_did(tmp_path: Path) -> None:
    tracker = CSVTracker(tmp_path / "tracked")
    with Tracking(tracker, "my run/1", {"hidden": 8}) as tracking:
        trainer = fit(tracking)
    assert tracker.run == tmp_path / "tracked" / "my_run_1-1"
    parameters = json.loads((tracker.run / "parameters.json").read_text())
    assert parameters["hidden"] == 8
    assert parameters["epochs"] == 2
    assert "learning_rate=0.1" in parameters["optimizer"]
    found = rows(tracker.run / "figures.csv")
    assert [row["epoch"] for row in found] == ["1", "2"]
    assert float(found[-1]["loss"]) == trainer.history.rows[-1]["loss"]
    assert (tracker.run / "status.txt").read_text() == "completed\n"
    with Tracking(tracker, "my run/1") as tracking:
        fit(tracking)
    assert tracker.run.name == "my_run_1-2"


def test_a_run_that_fails_is_closed_as_failed(tmp_path: Path) -> None:
    tracker = CSVTracker(tmp_path)
    with pytest.raises(RuntimeError, match="on purpose"), Tracking(tracker) as tracking:
        fit(tracking, Broken())
    assert (tracker.run / "status.txt").read_text() == "failed\n"
    with pytest.raises(TrainingError), Tracking(tracker) as tracking:
        fit(tracking, rate=1e30)
    assert (tracker.run / "status.txt").read_text() == "failed\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        fit(Tracking(CSVTracker(tmp_path / "file" / "below")))


def config(folder: Path, **log: Any) -> runs.RunConfig:
    pytest.importorskip("sklearn")
    return runs.run_of(
        {
            "model": {"name": "mlp", "options": {"hidden": [8]}},
            "data": "iris",
            "epochs": 2,
            "output": str(folder / "iris.onnx"),
            "log": log,
        }
    )


def test_a_whole_run_with_its_model(tmp_path: Path) -> None:
    result = runs.execute(config(tmp_path, track=str(tmp_path / "tracked")))
    folder = tmp_path / "tracked" / "iris-1"
    assert json.loads((folder / "parameters.json").read_text())["model.options.hidden"] == [8]
    assert (folder / "iris.onnx").read_bytes() == (tmp_path / "iris.onnx").read_bytes()
    last = rows(folder / "figures.csv")[-1]
    assert float(last["test_accuracy"]) == result.figures["test_accuracy"]
    assert (folder / "status.txt").read_text() == "completed\n"


@pytest.mark.parametrize("reason", ["cancelled", "failed"])
def test_runs_that_do_not_end_well(tmp_path: Path, reason: str) -> None:
    token = runs.CancelToken()

    def listen(event: Any) -> None:
        if isinstance(event, runs.EpochEnded):
            if reason == "failed":
                raise RuntimeError("broken on purpose")
            token.cancel()

    run = config(tmp_path, track=str(tmp_path / "tracked"))
    if reason == "failed":
        with pytest.raises(RuntimeError):
            runs.execute(run, events=listen)
    else:
        runs.execute(run, events=listen, cancel=token)
    assert (tmp_path / "tracked" / "iris-1" / "status.txt").read_text() == f"{reason}\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_parameters_figures_and_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    before = mlflow.get_tracking_uri()
    result = runs.execute(config(tmp_path, mlflow=uri, experiment="flowers"))
    assert mlflow.get_tracking_uri() == before
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("flowers")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "iris"
    assert run.data.params["model.name"] == "mlp"
    assert run.data.params["epochs"] == "2"
    assert run.data.metrics["test_accuracy"] == pytest.approx(result.figures["test_accuracy"])
    losses = [metric.value for metric in client.get_metric_history(run.info.run_id, "loss")]
    assert losses == pytest.approx(result.history["loss"])
    mlflow.set_tracking_uri(uri)
    try:
        loaded = mlflow.onnx.load_model(f"runs:/{run.info.run_id}/model")
    finally:
        mlflow.set_tracking_uri(before)
    assert loaded.SerializeToString() == _parsed(tmp_path / "iris.onnx")
    token = runs.CancelToken()
    token.cancel()
    runs.execute(
        config(tmp_path, mlflow=uri, experiment="flowers").model_copy(update={"overwrite": True}),
        cancel=token,
    )
    states = [each.info.status for each in client.search_runs([experiment.experiment_id])]
    assert sorted(states) == ["FINISHED", "KILLED"]


def _parsed(path: Path) -> bytes:
    import onnx

    return onnx.load(path).SerializeToString()


def test_what_is_not_installed_is_said_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'onward\[mlflow\]'"):
        MLflowTracker("sqlite:///x.db")
    with pytest.raises(ConfigError, match=r"pip install 'onward\[mlflow\]'"):
        runs.execute(config(tmp_path, mlflow="sqlite:///x.db"))
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'onward\[tune\]'"):
        runs.tune(config(tmp_path), runs.search_space({"lr": "1e-3:1e-1"}, "mlp"), folder=tmp_path)
