"""`onward.runs`: the same run as the command line's, told as events, stopped by a token."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onward import runs
from onward.errors import ConfigError, StorageError

pytest.importorskip("sklearn")


def config(**fields: object) -> runs.RunConfig:
    return runs.RunConfig.model_validate(
        {
            "model": {"name": "mlp", "options": {"hidden": [8]}},
            "data": {"spec": "iris"},
            "epochs": 3,
            "threads": 1,
            **fields,
        }
    )


def kinds(events: list[runs.Event]) -> list[str]:
    return [type(event).__name__ for event in events if not isinstance(event, runs.MetricsSoFar)]


def test_a_job_and_the_command_line_write_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    result = runs.execute(config(output=tmp_path / "job" / "model.onnx"))
    assert result.report is not None
    assert result.report.passed
    command = [sys.executable, "-m", "onward", "train", "mlp", "--data", "iris", "--epochs", "3"]
    command += ["--threads", "1", "-o", "hidden=[8]", "--output", str(tmp_path / "cli" / "model.onnx")]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    job, cli = (tmp_path / name / "model.onnx" for name in ("job", "cli"))
    assert job.read_bytes() == cli.read_bytes()


def test_events_come_in_order(tmp_path: Path) -> None:
    events: list[runs.Event] = []
    point = tmp_path / "run.ckpt"
    result = runs.execute(
        config(
            output=tmp_path / "m.onnx",
            checkpoint={"path": point},
            data={"spec": "iris", "split": (0.4, 0.2, 0.4)},
        ),
        events=events.append,
    )
    steps = ["StepEnded"] * 2
    assert kinds(events) == [
        "DataRead",
        "Started",
        *[*steps, "EpochEnded", "CheckpointWritten"] * 3,
        "Measured",
        "Exported",
        "Finished",
    ]
    read, started = events[0], events[1]
    assert isinstance(read, runs.DataRead)
    assert (read.train, read.validation, read.test) == (60, 30, 60)
    assert isinstance(started, runs.Started)
    assert started.task == "task: multi-class, 3 classes; loss: cross_entropy; metrics: accuracy"
    told = [event for event in events if isinstance(event, runs.StepEnded)]
    assert [(e.epoch, e.batch, e.step, e.samples) for e in told[:3]] == [
        (1, 1, 1, 32),
        (1, 2, 2, 28),
        (2, 1, 3, 32),
    ]
    rows = [dict(event.row) for event in events if isinstance(event, runs.EpochEnded)]
    assert rows == result.history.rows
    assert result.finished == runs.Finished("completed", "", tmp_path / "m.onnx", point)
    assert result.figures["test_accuracy"] == pytest.approx(
        next(e for e in events if isinstance(e, runs.Measured)).measures.figures["accuracy"]
    )


@pytest.mark.parametrize("step", [1, 5, 8])
def test_a_cancelled_run_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    whole, again, point = tmp_path / "whole.onnx", tmp_path / "again.onnx", tmp_path / "run.ckpt"
    runs.execute(config(output=whole))
    token = runs.CancelToken()
    events: list[runs.Event] = []

    def listen(event: runs.Event) -> None:
        events.append(event)
        if isinstance(event, runs.StepEnded) and event.step == step:
            token.cancel("enough")

    common = {"output": again, "checkpoint": {"path": point}}
    result = runs.execute(config(**common), events=listen, cancel=token)
    assert result.finished == runs.Finished("cancelled", "enough", None, point)
    assert not again.exists()
    assert kinds(events)[-2:] == ["CheckpointWritten", "Finished"]
    assert max(event.step for event in events if isinstance(event, runs.StepEnded)) == step
    done = runs.execute(config(**common), resume=point)
    assert done.finished.status == "completed"
    assert again.read_bytes() == whole.read_bytes()


def test_a_run_is_cancelled_from_another_thread(tmp_path: Path) -> None:
    token, begun = runs.CancelToken(), threading.Event()
    results: list[runs.RunResult] = []

    def listen(event: runs.Event) -> None:
        if isinstance(event, runs.StepEnded):
            begun.set()

    run = config(epochs=100_000, output=tmp_path / "m.onnx")
    thread = threading.Thread(
        target=lambda: results.append(runs.execute(run, events=listen, cancel=token)), daemon=True
    )
    thread.start()
    assert begun.wait(60)
    token.cancel()
    thread.join(60)
    assert results[0].finished == runs.Finished("cancelled", "cancelled", None, None)
    assert not (tmp_path / "m.onnx").exists()


def test_what_a_listener_raises_ends_the_run(tmp_path: Path) -> None:
    def listen(event: runs.Event) -> None:
        if isinstance(event, runs.EpochEnded):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        runs.execute(config(output=tmp_path / "m.onnx"), events=listen)
    assert not (tmp_path / "m.onnx").exists()


def test_early_stopping_is_no_cancellation(tmp_path: Path) -> None:
    run = config(
        epochs=50,
        output=tmp_path / "m.onnx",
        early_stopping={"patience": 0},
        optimizer={"learning_rate": 0.5},
    )
    result = runs.execute(run)
    assert result.finished.status == "stopped"
    assert "val_loss has not improved" in result.finished.reason
    assert result.finished.output == tmp_path / "m.onnx"


def test_configurations_are_frozen_and_checked() -> None:
    run = config()
    with pytest.raises(ValueError, match="frozen"):
        run.epochs = 4  # type: ignore[misc]
    with pytest.raises(ValueError, match="greater than 0"):
        config(epochs=0)
    with pytest.raises(ValueError, match="Extra inputs"):
        config(epoch=3)


def test_refusals_come_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="is there already"):
        runs.execute(config(output=path))
    with pytest.raises(StorageError, match="is a folder"):
        runs.execute(config(output=tmp_path))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    events: list[runs.Event] = []
    with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH"):
        runs.execute(config(output=tmp_path / "n.onnx"), events=events.append)
    assert events == []


def test_the_model_does_not_say_where_it_was_recorded(tmp_path: Path) -> None:
    from onward.model import load, read_provenance

    runs.execute(config(epochs=1, output=tmp_path / "m.onnx", log={"csv": tmp_path / "log.csv"}))
    provenance = read_provenance(load(tmp_path / "m.onnx"))
    assert provenance is not None
    assert str(tmp_path) not in str(provenance)
    assert provenance.configuration["epochs"] == 1


def test_every_option_of_the_command_line_is_a_field() -> None:
    """One source: each field that is an option sets its own key, once."""
    from onward.cli.options import overrides, settings
    from onward.cli.train import PANELS

    known = settings(runs.RunConfig, PANELS)
    parameters = [setting.parameter for setting in known]
    assert len(set(parameters)) == len(parameters)
    assert len(known) > 50
    assert {s.key for s in known} >= {"model.name", "data.spec", "optimizer.learning_rate", "output"}
    values = overrides(known, {"learning_rate": 0.5, "split": "0.5,0.2,0.3", "option": ["hidden=[4]"]})
    assert values == {
        "optimizer.learning_rate": 0.5,
        "data.split": [0.5, 0.2, 0.3],
        "model.options": {"hidden": [4]},
    }


def test_toml_reads_back(tmp_path: Path) -> None:
    run = config(data={"spec": "csv:a.csv", "target": ("x", "y")}, preparation=False, metrics=("accuracy",))
    (tmp_path / "run.toml").write_text(runs.to_toml(run))
    assert runs.read_run(tmp_path / "run.toml", {}) == run
