"""`batches:FOLDER`: graphs and the like, given whole, trained and measured by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.train.test_any_layout import _graph_network, _graphs

from onward import runs
from onward.errors import ConfigError, DataError, StorageError
from onward.model import load, read_provenance


def _folder(path: Path, **extra: Any) -> Path:
    path.mkdir()
    for number, (inputs, labels) in enumerate(_graphs()):
        np.savez(path / f"{number:02}.npz", y=labels, **inputs, **extra)
    return path


def _config(tmp_path: Path, **fields: Any) -> runs.RunConfig:
    file = tmp_path / "graph.onnx"
    if not file.exists():
        _graph_network(file)
    given = {
        "model": {"name": str(file)},
        "data": {"spec": f"batches:{tmp_path / 'graphs'}", "split": (0.7, 0.1, 0.2)},
        "output": tmp_path / "trained.onnx",
        "optimizer": {"learning_rate": 0.02},
        "engine": "interpreter",
        "epochs": 25,
    }
    return runs.RunConfig.model_validate({**given, **fields})


def test_graphs_in_files_are_trained_on_measured_and_written(tmp_path: Path) -> None:
    _folder(tmp_path / "graphs")
    events: list[runs.Event] = []
    result = runs.execute(_config(tmp_path), events=events.append)
    (read,) = (event for event in events if isinstance(event, runs.DataRead))
    assert (read.train, read.validation, read.test) == (9, 1, 2)
    assert result.figures["test_accuracy"] > 0.85
    assert result.report is not None
    assert result.report.passed
    assert read_provenance(load(tmp_path / "trained.onnx")) is not None
    found = runs.evaluate(tmp_path / "trained.onnx")
    assert found.measures.figures["accuracy"] == pytest.approx(result.figures["test_accuracy"])
    assert not found.notes
    everything = runs.evaluate(tmp_path / "trained.onnx", part="all")
    assert len(everything.samples) == sum(len(labels) for _, labels in _graphs())


def test_two_runs_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    _folder(tmp_path / "graphs")
    files = [tmp_path / name for name in ("one.onnx", "two.onnx")]
    for file in files:
        runs.execute(_config(tmp_path, output=file, epochs=2))
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"batch_size": 4}, "--batch-size"),
        ({"folds": 3}, "--folds"),
        ({"data": {"spec": "batches:graphs", "augment": "noise=0.1"}}, "--augment"),
    ],
)
def test_options_for_samples_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], option: str
) -> None:
    _folder(tmp_path / "graphs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"{option} needs data in samples"):
        runs.execute(_config(tmp_path, **fields))


def test_data_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=r"no folder with an \.npz file for each batch"):
        runs.execute(_config(tmp_path))
    _folder(tmp_path / "graphs")
    zoo = {"model": {"name": "mlp"}, "data": {"spec": "batches:graphs"}}
    with pytest.raises(ConfigError, match=r"whole batches train an \.onnx file"):
        runs.execute(_config(tmp_path, **zoo))
    with pytest.raises(DataError, match=r"00\.npz: no array 'label'; the arrays are"):
        runs.execute(_config(tmp_path, data={"spec": "batches:graphs", "target": "label"}))
    np.savez(tmp_path / "graphs" / "00.npz", y=np.zeros(3, np.int64), **_graphs()[0][0])
    with pytest.raises(ConfigError, match="3 targets, but the output has shape"):
        runs.evaluate(tmp_path / "graph.onnx", {"spec": "batches:graphs"}, part="all")


def test_weights_of_targets_count(tmp_path: Path) -> None:
    """Nodes that weigh nothing are not learned from."""
    folder = tmp_path / "graphs"
    folder.mkdir()
    for number, (inputs, labels) in enumerate(_graphs()):
        wrong = np.arange(len(labels)) % 2 == 0
        weights = (~wrong).astype(np.float32)
        np.savez(folder / f"{number:02}.npz", y=np.where(wrong, 1 - labels, labels), w=weights, **inputs)
    data = {"spec": f"batches:{folder}", "weight": "w"}
    result = runs.execute(_config(tmp_path, data=data))
    assert result.trainer is not None
    for inputs, labels in _graphs():
        found = result.trainer.predict(inputs)["y"].argmax(1)
        assert (found == labels).mean() > 0.7
