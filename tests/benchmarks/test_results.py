from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.suite.results import Row, geometric_mean, load, merge, missed, save

ROW = Row("training", "mlp", 32, "torch", 1.0, 4.0, 0.25, 0.3)


def test_a_goal_is_missed_when_the_ratio_is_above_it_or_absent() -> None:
    assert not missed(ROW)
    assert missed(replace(ROW, ratio=0.31))
    assert missed(replace(ROW, ratio=None))
    assert not missed(replace(ROW, ratio=5.0, goal=None))


def test_a_newer_row_takes_the_place_of_the_same_measurement() -> None:
    other = replace(ROW, batch=64)
    newer = replace(ROW, ratio=0.5)
    assert merge([ROW, other], [newer]) == [newer, other]


def test_rows_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results" / "latest.json"
    assert load(path) == []
    save(path, [ROW, replace(ROW, ratio=None, note="missing")])
    assert load(path) == [ROW, replace(ROW, ratio=None, note="missing")]


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0, 1.0]) == pytest.approx(1.0)
