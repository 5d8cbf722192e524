from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from onward.data import load_csv, split
from onward.errors import ConfigError, DataError, StorageError

TEXT = "a,b,kind\n1,2.5,cat\n-3,4e2,dog\n\n5,6,cat\n"


def csv_file(folder: Path, content: str | bytes = TEXT) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_classification(tmp_path: Path) -> None:
    data = load_csv(csv_file(tmp_path), "kind")
    np.testing.assert_array_equal(data.inputs["features"], np.float32([[1, 2.5], [-3, 400], [5, 6]]))
    assert data.inputs["features"].dtype == np.float32
    assert data.classes == ("cat", "dog")
    assert data.targets is not None
    assert data.targets.tolist() == [0, 1, 0]
    assert data.name == "table"


def test_regression_on_chosen_features_from_gzip_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = csv_file(tmp_path, gzip.compress(TEXT.encode("utf-8-sig")))
    data = load_csv(path, "b", task="regression", exclude=["kind"])
    assert data.targets is not None
    assert data.targets.tolist() == [[2.5], [400], [6]]
    assert data.inputs["features"].tolist() == [[1], [-3], [5]]
    assert load_csv(path, "kind", features=["b"]).inputs["features"].shape == (3, 1)


def test_integer_classes_are_in_numerical_order(tmp_path: Path) -> None:
    data = load_csv(csv_file(tmp_path, "x,y\n1,10\n2,9\n3,-1\n"), "y")
    assert data.classes == ("-1", "9", "10")
    assert data.targets is not None
    assert data.targets.tolist() == [2, 1, 0]


@pytest.mark.parametrize("label", ["nan", "NaN", "-nan"])
def test_nan_is_no_class(tmp_path: Path, label: str) -> None:
    with pytest.raises(DataError, match=f"row 3, column 'y': '{label}' is no class"):
        load_csv(csv_file(tmp_path, f"x,y\n1,10\n2,9\n3,{label}\n"), "y")


def test_a_group_column_keeps_rows_together(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i % 2},patient{i // 4}\n" for i in range(40))
    data = load_csv(csv_file(tmp_path, "x,y,patient\n" + rows), "y", group="patient")
    assert data.inputs["features"].shape == (40, 1)
    parts = split(data, (0.5, 0.25, 0.25), seed=3)
    groups = [set(p.groups.tolist()) for p in (parts.train, parts.validation, parts.test)]  # type: ignore[union-attr]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert set.union(*groups) == set(range(10))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "file is empty"),
        ("a,kind\n", "data set is empty"),
        ("a,a,kind\n1,2,x\n", "column name 'a'"),
        ("a,,kind\n1,2,x\n", "column name ''"),
        ("a,kind\n1,x\n2\n", "row 2 has 1 fields, the header has 2"),
        ("a,kind\n1,x\n,y\n", "row 2, column 'a': the value is missing"),
        ("a,kind\n1,x\n2,y\none,z\n", "row 3, column 'a': 'one' is not a finite number"),
        ("a,kind\nnan,x\n", "row 1, column 'a': 'nan'"),
        ("a,kind\n1e39,x\n", "row 1, column 'a': '1e39'"),
        ("a,kind\n1_0,x\n", "row 1, column 'a': '1_0'"),
        ("a,kind\n1,x\n2, \n", "row 2, column 'kind': the target is missing"),
        ("b,label\n1,x\n", "no column 'kind'; the columns are b, label"),
        ("kind\nx\n", "no feature columns"),
        (b"a,kind\n1,\xff\xfe\n", "not UTF-8"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-8], "gzip stream"),
        ("a,kind\n1," + "x" * 200_000 + "\n", "field larger than field limit"),
    ],
    ids=range(16),
)
def test_unusable_files_are_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_csv(csv_file(tmp_path, content), "kind")


def test_unusable_options_are_refused(tmp_path: Path) -> None:
    path = csv_file(tmp_path)
    with pytest.raises(DataError, match="row 1, column 'kind': 'cat'"):
        load_csv(path, "kind", task="regression")
    with pytest.raises(DataError, match="no column 'c'; the columns are a, b, kind"):
        load_csv(path, "kind", features=["a", "c"])
    with pytest.raises(ConfigError, match="at once"):
        load_csv(path, "kind", features=["kind"])
    with pytest.raises(ConfigError, match="'ranking'"):
        load_csv(path, "kind", task="ranking")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="one character"):
        load_csv(path, "kind", delimiter="tab")
    with pytest.raises(StorageError, match="absent"):
        load_csv(tmp_path / "absent.csv", "kind")
    with pytest.raises(StorageError):
        load_csv(tmp_path, "kind")
