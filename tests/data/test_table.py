from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from onward.data import load_table, split
from onward.errors import ConfigError, DataError, StorageError

TEXT = "a,b,kind\n1,2.5,cat\n-3,4e2,dog\n\n5,6,cat\n"


def csv_file(folder: Path, content: str | bytes = TEXT) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_classification(tmp_path: Path) -> None:
    data = load_table(csv_file(tmp_path), "kind")
    np.testing.assert_array_equal(data.inputs["features"], [[1, 2.5], [-3, 400], [5, 6]])
    assert data.inputs["features"].dtype == np.float64
    assert data.table
    assert data.classes == ("cat", "dog")
    assert data.targets is not None
    assert data.targets.tolist() == [0, 1, 0]
    assert data.name == "table"


def test_regression_on_chosen_features_from_gzip_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = csv_file(tmp_path, gzip.compress(TEXT.encode("utf-8-sig")))
    data = load_table(path, "b", task="regression", exclude=["kind"])
    assert data.targets is not None
    assert data.targets.tolist() == [[2.5], [400], [6]]
    assert data.inputs["features"].tolist() == [[1], [-3], [5]]
    assert load_table(path, "kind", include=["b"]).inputs["features"].shape == (3, 1)


def test_integer_classes_are_in_numerical_order(tmp_path: Path) -> None:
    data = load_table(csv_file(tmp_path, "x,y\n1,10\n2,9\n3,-1\n"), "y")
    assert data.classes == ("-1", "9", "10")
    assert data.targets is not None
    assert data.targets.tolist() == [2, 1, 0]


@pytest.mark.parametrize("label", ["nan", "NaN", "-nan"])
def test_nan_is_no_class(tmp_path: Path, label: str) -> None:
    path = csv_file(tmp_path, f"x,y\n1,10\n2,9\n3,{label}\n")
    with pytest.raises(DataError, match=f"row 3, column 'y': '{label}' is no class"):
        load_table(path, "y")
    data = load_table(path, "y", skip_bad_rows=True)
    assert len(data) == 2
    assert data.notes == (f"{path}: 1 row left out: 1 with no 'y'",)


def test_a_group_column_keeps_rows_together(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i % 2},patient{i // 4}\n" for i in range(40))
    data = load_table(csv_file(tmp_path, "x,y,patient\n" + rows), "y", group="patient")
    assert data.inputs["features"].shape == (40, 1)
    assert data.columns == ("x",)
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
        ("5.1,0.2,kind\n1,2,x\n", r"first row holds values \(5.1, 0.2, kind\)"),
        ("a,kind\n1,x\n2,kind\n", "'kind' is the name of the target and one of its values"),
        ("a,kind\n1,x\n2\n", "row 2 has 1 fields, the header has 2"),
        (
            "a,kind\n" + "1,x\n" * 20 + "one,z\n",
            "row 21, column 'a': 'one' is not a finite number, as 20 others",
        ),
        ("a,kind\n" + "1,x\n" * 20 + "inf,z\n", "row 21, column 'a': 'inf' is not a finite number"),
        ("a,kind\n" + "1,x\n" * 20 + "1_0,z\n", "row 21, column 'a': '1_0' is not a finite number"),
        ("a,kind\n1,x\n2, \n", "row 2, column 'kind': the target is missing"),
        ("b,label\n1,x\n", "no column 'kind'; the columns are b, label"),
        ("kind\nx\n", "no feature columns"),
        (b"a,kind\n1,\xff\xfe\n", "not UTF-8"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-8], "gzip stream"),
        ("a,kind\n1," + "x" * 200_000 + "\n", "field larger than field limit"),
    ],
    ids=range(15),
)
def test_unusable_files_are_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_table(csv_file(tmp_path, content), "kind")


def test_columns_without_a_name_are_called_as_in_pandas(tmp_path: Path) -> None:
    data = load_table(csv_file(tmp_path, ",a, ,kind\n0,1,2,x\n1,3,4,y\n"), "kind")
    assert data.columns == ("Unnamed: 0", "a", "Unnamed: 2")
    np.testing.assert_array_equal(data.inputs["features"], [[0, 1, 2], [1, 3, 4]])


def test_names_may_be_numbers_that_ascend(tmp_path: Path) -> None:
    data = load_table(csv_file(tmp_path, "400.5,401.0,kind\n1,2,x\n3,4,y\n"), "kind")
    assert data.columns == ("400.5", "401.0")
    data = load_table(csv_file(tmp_path, "0,1,2\n1,2,0\n3,4,1\n"))
    assert data.target_columns == ("2",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encodings_that_say_so_are_read(tmp_path: Path, encoding: str, delimiter: str) -> None:
    content = (
        delimiter.join(("Größe", "a", "kind"))
        + "\n"
        + "".join(
            delimiter.join((f"{i}.5", "München" if i % 2 else "Łódź", "ja" if i % 2 else "nein")) + "\n"
            for i in range(4)
        )
    )
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    data = load_table(csv_file(tmp_path, mark + content.encode(encoding)), "kind")
    assert list(data.inputs) == ["Größe", "a"]
    assert data.inputs["a"][:, 0].tolist() == ["Łódź", "München"] * 2


def test_other_encodings_are_refused_with_the_place(tmp_path: Path) -> None:
    content = "a,kind\n" + "1,x\n" * 9000 + "2,Zürich\n"
    with pytest.raises(DataError, match=r"not UTF-8 near '.*2,Zürich' .*iconv -f CP1252 -t UTF-8"):
        load_table(csv_file(tmp_path, content.encode("latin-1")), "kind")
    with pytest.raises(DataError, match="begins as UTF-16, but is not"):
        load_table(csv_file(tmp_path, b"\xff\xfea"), "kind")


def test_times_with_zones_are_ordered_as_they_were(tmp_path: Path) -> None:
    stamps = (
        "2020-01-01T10:00:00Z",
        "2020-01-01T10:30:00+01:00",
        "2020-01-01 05:00:00.5-0530",
        "2020-01-01 10:00 UTC",
        "2020-01-02",
    )
    rows = "".join(f"{i},{stamp},{i % 2}\n" for i, stamp in enumerate(stamps))
    data = load_table(csv_file(tmp_path, f"a,when,kind\n{rows}"), "kind", time="when")
    assert data.times is not None
    hour = 3600.0
    assert (data.times - 18262 * 24 * hour).tolist() == [
        10 * hour,
        9.5 * hour,
        10.5 * hour + 0.5,
        10 * hour,
        24 * hour,
    ]


def test_unusable_options_are_refused(tmp_path: Path) -> None:
    path = csv_file(tmp_path)
    with pytest.raises(DataError, match="row 1, column 'kind': 'cat'"):
        load_table(path, "kind", task="regression")
    with pytest.raises(DataError, match="no column 'c'; the columns are a, b, kind"):
        load_table(path, "kind", include=["a", "c"])
    with pytest.raises(ConfigError, match="at once"):
        load_table(path, "kind", include=["kind"])
    with pytest.raises(ConfigError, match="'ranking'"):
        load_table(path, "kind", task="ranking")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no column 'c'"):
        load_table(path, "kind", exclude=["c"])
    with pytest.raises(ConfigError, match="one character"):
        load_table(path, "kind", delimiter="tab")
    with pytest.raises(StorageError, match="absent"):
        load_table(tmp_path / "absent.csv", "kind")
    with pytest.raises(StorageError):
        load_table(tmp_path, "kind")


@pytest.mark.parametrize(
    ("content", "names", "first"),
    [
        ("size;price;label\n1,5;-2;x\n;1e3;y\n", ("size", "price"), [1.5, -2.0]),
        ("size\tprice\tlabel\n1.5\t-2\tx\n3\t4\ty\n", ("size", "price"), [1.5, -2.0]),
        ("size|price|label\n1.5|-2|x\n3|4|y\n", ("size", "price"), [1.5, -2.0]),
        ("size,a;b,label\n1.5,-2,x\n3,4,y\n", ("size", "a;b"), [1.5, -2.0]),
    ],
)
def test_the_header_tells_the_delimiter(
    tmp_path: Path, content: str, names: tuple[str, ...], first: list[float]
) -> None:
    """As spreadsheets write tables where the comma is in numbers."""
    (tmp_path / "t.csv").write_text(content)
    found = load_table(tmp_path / "t.csv")
    assert found.columns == names
    assert found.classes == ("x", "y")
    np.testing.assert_array_equal(found.inputs["features"][0], first)


def test_decimal_commas_are_read_where_a_column_has_only_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("kind;size;label\n1,5 kg;1,5;x\n2;2;y\n")
    found = load_table(tmp_path / "t.csv", skip_bad_rows=False, kinds={"kind": "text"})
    assert found.inputs["kind"][:, 0].tolist() == ["1,5 kg", "2"]
    assert found.inputs["size"][:, 0].tolist() == [1.5, 2.0]


def test_parts_are_by_time_or_by_groups(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "a,t,p,kind\n1,1,x,u\n2,2,x,v\n")
    with pytest.raises(ConfigError, match=r"by time \('t'\) or by groups \('p'\)"):
        load_table(path, "kind", time="t", group="p")


def test_a_target_that_names_rows_is_told(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "a,kind\n" + "".join(f"{i},row {i}\n" for i in range(40)))
    (note,) = load_table(path, "kind").notes
    assert "column 'kind' has 40 classes in 40 rows, too few rows a class" in note
    path = csv_file(tmp_path, "a,kind\n" + "".join(f"{i},kind {i % 20}\n" for i in range(40)))
    assert load_table(path, "kind").notes == ()
