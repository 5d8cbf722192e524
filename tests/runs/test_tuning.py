"""A study finds better values, ends bad trials early, goes on where it stopped, and keeps its best run."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from onward import runs
from onward.cli import main
from onward.errors import ConfigError, StorageError
from onward.runs import Choice, Range, search_space, tune

pytest.importorskip("optuna")
pytest.importorskip("sklearn")


def config(**tables: Any) -> runs.RunConfig:
    values = {
        "model": {"name": "mlp", "options": {"hidden": [16]}},
        "data": "iris",
        "epochs": 6,
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        **tables,
    }
    return runs.run_of(values)


def test_what_is_searched_is_named_as_on_the_command_line() -> None:
    texts = {
        "lr": "1e-4:1e-1:log",
        "batch-size": "8:64",
        "hidden": [[8], [16, 16]],
        "optimizer": "adam|sgd",
        "schedule.warmup": "0:10",
    }
    assert search_space(texts, "mlp") == {
        "optimizer.learning_rate": Range(1e-4, 1e-1, log=True),
        "batch_size": Range(8, 64),
        "model.options.hidden": Choice(([8], [16, 16])),
        "optimizer.name": Choice(("adam", "sgd")),
        "schedule.warmup": Range(0, 10),
    }
    assert Range(8, 64).whole
    for wrong, message in [
        ({"speed": "1:2"}, "'speed' is neither an option of `onward train` nor of the network mlp"),
        ({"lr": "fast"}, "none of LOW:HIGH"),
        ({"lr": "1:0.1"}, "the lower first"),
        ({"lr": "0:0.1:log"}, "above 0"),
        ({"lr": [0.1]}, "two values or more"),
        ({"lr": "1e-4:1e-1", "learning-rate": "0.1|0.2"}, "is there twice"),
        ({}, "nothing to search"),
    ]:
        with pytest.raises(ConfigError, match=message):
            search_space(wrong, "mlp")


def test_a_study_finds_the_rate_that_learns_and_goes_on(tmp_path: Path) -> None:
    space = search_space({"lr": [1e-6, 0.02]}, "mlp")
    ended: list[runs.Trial] = []
    first = tune(config(), space, folder=tmp_path, trials=3, ended=ended.append)
    assert [trial.number for trial in ended] == [0, 1, 2]
    more = tune(config(), space, folder=tmp_path, trials=6)
    assert [t.number for t in more.trials] == list(range(6))
    assert [(t.number, t.values, t.value) for t in more.trials[:3]] == [
        (t.number, t.values, t.value) for t in first.trials
    ]
    assert more.best is not None
    assert more.best.values == {"optimizer.learning_rate": 0.02}
    assert more.best.value == min(t.value for t in more.trials if t.value is not None)
    assert more.config is not None
    assert len(list(tmp_path.glob("trial-*/model.onnx"))) == 1
    again = runs.read_run(more.config, {"output": tmp_path / "again.onnx"})
    result = runs.execute(again)
    assert result.history["val_loss"][-1] == more.best.value
    assert not tune(config(), space, folder=tmp_path, trials=6).trials[6:]


def test_trials_that_fall_behind_end_early(tmp_path: Path) -> None:
    space = {"optimizer.learning_rate": Choice((1e-6, 0.02))}
    result = tune(config(epochs=8), space, folder=tmp_path, trials=10, objective="val_accuracy")
    pruned = [trial for trial in result.trials if trial.state == "pruned"]
    assert pruned
    assert all(trial.epochs < 8 for trial in pruned)
    assert all(trial.values["optimizer.learning_rate"] == 1e-6 for trial in pruned)
    assert result.best is not None
    assert result.best.value == max(t.value for t in result.trials if t.value is not None)
    whole = tune(config(epochs=3), space, folder=tmp_path / "all", trials=7, prune=False)
    assert {trial.state for trial in whole.trials} == {"complete"}


def test_an_interrupted_study_goes_on(tmp_path: Path) -> None:
    token = runs.CancelToken()

    def listen(number: int, event: Any) -> None:
        if number == 1 and isinstance(event, runs.EpochEnded) and event.epoch == 2:
            token.cancel("interrupted")

    space = search_space({"lr": "1e-3:1e-1:log"}, "mlp")
    result = tune(config(), space, folder=tmp_path, trials=3, events=listen, cancel=token)
    assert result.cancelled
    assert [trial.state for trial in result.trials] == ["complete", "failed"]
    more = tune(config(), space, folder=tmp_path, trials=3)
    assert not more.cancelled
    assert [trial.state for trial in more.trials].count("complete") == 3


def test_a_trial_whose_loss_is_not_finite_fails_alone(tmp_path: Path) -> None:
    space = {"optimizer.learning_rate": Choice((1e25, 0.02))}
    run = config(optimizer={"name": "sgd", "learning_rate": 0.1}, epochs=2)
    result = tune(run, space, folder=tmp_path, trials=6)
    states = {trial.values["optimizer.learning_rate"]: trial.state for trial in result.trials}
    assert states == {1e25: "failed", 0.02: "complete"}


def test_refusals(tmp_path: Path) -> None:
    space = search_space({"lr": "1e-3:1e-1:log"}, "mlp")
    tune(config(epochs=1), space, folder=tmp_path, trials=1)
    with pytest.raises(ConfigError, match="of another search: its configuration is"):
        tune(config(epochs=2), space, folder=tmp_path, trials=1)
    with pytest.raises(ConfigError, match="of another search: its search is"):
        tune(config(epochs=1), search_space({"lr": "1e-3:1"}, "mlp"), folder=tmp_path, trials=1)
    with pytest.raises(ConfigError, match="no figure 'val_speed' to make best; there are loss"):
        tune(config(epochs=1), space, folder=tmp_path / "b", trials=1, objective="val_speed")
    with pytest.raises(StorageError, match="cannot be opened"):
        tune(config(epochs=1), space, folder=tmp_path / "c", storage="nothing://here", trials=1)


def command(*arguments: object) -> tuple[int, str, str]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(
        *("tune", "mlp", "--data", "iris", "--epochs", 2, "--trials", 2),
        *("--search", "lr=1e-3:1e-1:log,hidden=8|[8,8]"),
    )
    assert code == 0, err
    assert "trial 1: complete" in out
    assert "again: onward train --config tuned/iris-mlp/trial-" in out
    (tmp_path / "run.toml").write_text(
        'model = "mlp"\ndata = "iris"\nepochs = 2\n[search]\nlr = "1e-3:1e-1:log"\nhidden = [4, 8]\n'
    )
    code, out, err = command("tune", "--config", "run.toml", "--trials", 1, "--folder", "t", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["best"]["values"].keys() == {"optimizer.learning_rate", "model.options.hidden"}
    code, out, err = command("train", "--config", found["config"], "--output", "m.onnx")
    assert code == 0, err
    code, _, err = command("train", "--config", "run.toml", "--epochs", 1, "--output", "n.onnx")
    assert code == 0, err
    code, _, err = command("tune", "mlp", "--data", "iris", "--search", "lr")
    assert code == 2
    assert "--search 'lr'" in err
