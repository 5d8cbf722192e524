"""Runs whose data are read while they go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from onward.data import ArrayRows, Dataset, Preparation, StreamLoader, fit_in_one_pass, load_npy
from onward.errors import ConfigError, DataError
from onward.model import load, read_provenance
from onward.runs import DataRead, RunConfig, execute

RNG = np.random.default_rng(2)
Y = RNG.integers(0, 3, 400)
X = (RNG.standard_normal((400, 5)) * [1, 10, 0.1, 3, 7] + 4 * Y[:, None]).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    np.save(tmp_path / "made" / "x.npy", X)
    np.save(tmp_path / "made" / "y.npy", Y)
    return tmp_path / "made"


def config(spec: str, output: Path, **options) -> RunConfig:
    options = {"epochs": 4, "seed": 1, "optimizer": {"name": "adam", "learning_rate": 0.01}, **options}
    found = {"model": {"name": "mlp"}, "data": {"spec": spec}, "output": output, **options}
    return RunConfig.model_validate(found)


def test_a_folder_is_trained_on_measured_and_exported(folder: Path, tmp_path: Path) -> None:
    events = []
    result = execute(config(f"npy:{folder}", tmp_path / "a.onnx"), events=events.append)
    assert result.figures["test_accuracy"] > 0.8
    (read,) = [event for event in events if isinstance(event, DataRead)]
    assert (read.train, read.validation, read.test) == (320, 40, 40)
    assert "read while the run goes on" in read.notes[0]
    provenance = read_provenance(load(tmp_path / "a.onnx"))
    whole = load_npy(folder)
    named = Dataset(whole.inputs, whole.targets, classes=("0", "1", "2"))
    assert provenance.data_hash == f"sha256:{named.digest()}"
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    raw = session.run(None, {session.get_inputs()[0].name: X})[0]
    assert (raw.argmax(axis=1) == Y).mean() > 0.8


def test_who_reads_changes_nothing_in_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    execute(config(f"npy:{folder}", tmp_path / "a.onnx", prefetch=0))
    execute(config(f"npy:{folder}", tmp_path / "b.onnx", prefetch=5))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_bad_row_is_named_by_its_place_in_the_file(folder: Path, tmp_path: Path) -> None:
    x = X.copy()
    x[317, 2] = np.nan
    np.save(folder / "x.npy", x)
    with pytest.raises(DataError, match=r"row 317, element \[2\]: nan"):
        execute(config(f"npy:{folder}", tmp_path / "a.onnx"))


@pytest.mark.parametrize("labels", [Y, Y * 2 + 1])
def test_a_large_table_of_numbers_is_read_by_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: np.ndarray
) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    columns = {f"c{i}": X[:, i] for i in range(5)} | {"note": ["text"] * 400, "label": labels}
    path = tmp_path / "rows.parquet"
    parquet.write_table(arrow.table(columns), path, row_group_size=50)
    monkeypatch.setattr("onward.runs.streamed._STREAMED_BYTES", 1)
    data = {"spec": str(path), "exclude": ["note"]}
    events = []
    result = execute(config("", tmp_path / "a.onnx", data=data), events=events.append)
    assert result.figures["test_accuracy"] > 0.8
    notes = next(event.notes for event in events if isinstance(event, DataRead))
    assert "'label' is predicted" in notes[0]
    provenance = read_provenance(load(tmp_path / "a.onnx"))
    assert provenance.class_names == tuple(str(i) for i in np.unique(labels))
    assert provenance.preparation["columns"] == ["c0", "c1", "c2", "c3", "c4"]
    told = []
    execute(config("", tmp_path / "b.onnx", data={"spec": str(path)}, epochs=1), events=told.append)
    notes = next(event.notes for event in told if isinstance(event, DataRead))
    assert not any("read while" in note for note in notes)


def test_options_that_need_memory_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--folds needs data in memory"):
        execute(config(f"npy:{folder}", tmp_path / "a.onnx", folds=3))
    (folder / "y.npy").unlink()
    with pytest.raises(ConfigError, match=r"y\.npy is missing"):
        execute(config(f"npy:{folder}", tmp_path / "a.onnx"))


@pytest.mark.parametrize("weights", [None, np.arange(400) % 3])
def test_one_pass_measures_what_two_do(weights: np.ndarray | None) -> None:
    whole = Preparation.fit(Dataset({"x": X * 1e3 + 1e5}, Y, weights=weights))
    found = fit_in_one_pass(StreamLoader(ArrayRows({"x": X * 1e3 + 1e5}, Y, weights), 33))
    a, b = whole.numbers["x"].normalization, found.numbers["x"].normalization
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-6)
    np.testing.assert_allclose(a.std, b.std, rtol=1e-6)
