"""`onward new` writes a file that trains, for every kind of data, and says what it saw."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path

import numpy as np
import pytest

from onward import runs
from onward.errors import ConfigError
from onward.runs.drafts import draft, spec_of

RNG = np.random.default_rng(0)


def table(path: Path, *, text: bool = False) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        if text:
            writer.writerow(["text", "label"])
            for i in range(60):
                kind = "good" if i % 2 else "bad"
                writer.writerow([f"this film was very {kind} indeed and number {i}", kind])
            return path
        writer.writerow(["age", "city", "bought"])
        for i in range(120):
            writer.writerow([i % 50, "ab"[i % 2], "yes" if i % 12 == 0 else "no"])
    return path


def images(folder: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(12):
            pixels = RNG.integers(0, 255, (20, 20, 3)).astype(np.uint8)
            image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def short(found: runs.Draft, folder: Path) -> runs.RunResult:
    """A short run of the draft as a file."""
    (folder / "run.toml").write_text(found.text)
    run = runs.read_run(folder / "run.toml", {"epochs": 1, "output": folder / "m.onnx"})
    return runs.execute(run)


def test_a_table(tmp_path: Path) -> None:
    found = draft(str(table(tmp_path / "shop.csv")))
    assert found.config.model.name == "mlp"
    assert found.config.data.target == "bought"
    assert "120 rows of 2 columns: age, city" in found.seen[0]
    assert found.config.loss.class_weights == "balanced"
    assert "classes: no 110, yes 10" in found.seen
    assert short(found, tmp_path).finished.status in ("completed", "stopped")
    # what follows from the rows is left open
    assert "optimizer" not in tomllib.loads(found.text)


def test_texts(tmp_path: Path) -> None:
    found = draft(str(table(tmp_path / "films.csv", text=True)))
    assert found.config.data.spec.startswith("text:")
    assert found.config.model.name == "textcnn"
    assert 8 <= found.config.data.tokens <= 12
    assert short(found, tmp_path).figures


def test_a_folder_of_images(tmp_path: Path) -> None:
    found = draft(str(images(tmp_path / "photos")))
    assert found.config.data.spec == f"images:{tmp_path / 'photos'}"
    assert found.config.model.name == "lenet5"
    assert short(found, tmp_path).report is not None


def test_a_folder_with_one_table_and_what_is_built_in(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = table(tmp_path / "data" / "shop.csv")
    assert spec_of(str(tmp_path / "data")) == str(path)
    pytest.importorskip("sklearn")
    assert spec_of("iris") == "iris"
    assert draft("diabetes").config.data.spec == "diabetes"
    assert "regression" in draft("diabetes").seen[1]
    assert draft("digits").config.model.name == "lenet5"


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there"):
        draft(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="holds nothing that is known"):
        draft(str(tmp_path))
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(ConfigError, match="of no kind that is known"):
        draft(str(tmp_path / "a.pdf"))
    (tmp_path / "b.png").write_text("x")
    with pytest.raises(ConfigError, match="no sub-folder for each class"):
        draft(str(tmp_path))
    table(tmp_path / "a.csv")
    table(tmp_path / "b.csv")
    with pytest.raises(ConfigError, match=r"several tables: name one of a\.csv, b\.csv"):
        draft(str(tmp_path))
    (tmp_path / "x.sqlite").write_text("")
    with pytest.raises(ConfigError, match="is a data base"):
        draft(str(tmp_path / "x.sqlite"))


@pytest.mark.parametrize("goal", ["bought", "age"])
def test_the_metrics_that_are_named_can_be_chosen(tmp_path: Path, goal: str) -> None:
    text = draft(str(table(tmp_path / "t.csv")), goal).text
    (line,) = [line for line in text.splitlines() if line.startswith("metrics = ")]
    names = [name.strip() for name in line.partition("# also ")[2].split(",")]
    assert len(names) == 3
    config = runs.run_of(
        {
            "model": {"name": "mlp", "options": {"hidden": [4]}},
            "epochs": 1,
            "metrics": names,
            "data": {"spec": str(tmp_path / "t.csv"), "target": goal},
            "output": str(tmp_path / "m.onnx"),
        },
        "test",
    )
    result = runs.execute(config)
    assert result.history is not None
    assert set(names) <= set(result.history.rows[-1])
