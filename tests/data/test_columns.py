"""Columns of tables: what is decided, what the formulas give, and that onnxruntime gives the same."""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from onward.data import Dataset, Preparation, TablePreparation, load_table, resolve
from onward.engine import Session
from onward.errors import ConfigError, DataError
from onward.graph import Builder
from onward.model import to_bytes

N = 60
RNG = np.random.default_rng(0)


def table(**columns: Any) -> Dataset:
    count = len(next(iter(columns.values())))
    return load_table({**columns, "target": np.arange(count) % 2}, "target")


def features(data: Dataset, options: Mapping[str, Mapping[str, Any]] | None = None) -> np.ndarray:
    return TablePreparation.fit(data, options).apply(data).inputs["features"]


def report(data: Dataset, options: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, str]:
    return {name: f"{kind}: {what}" for name, kind, what in TablePreparation.fit(data, options).report()}


def graph_of(preparation: TablePreparation) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="table")
    g = Builder(graph)
    kinds = {
        name: ir.DataType.STRING if dtype.kind == "O" else ir.DataType.from_numpy(dtype)
        for name, dtype in preparation.takes.items()
    }
    width = len(preparation.names) if preparation.matrix else 1
    inputs = {name: g.input(name, kind, ["N", width]) for name, kind in kinds.items()}
    g.output(preparation.write(g, inputs), "y")
    return ir.Model(graph, ir_version=10)


MIXED = {
    "age": np.where(np.arange(N) % 7 == 0, np.nan, RNG.normal(40, 10, N)),
    "fare": np.exp(RNG.normal(0, 2, N)),
    "stamp": 1.7e9 + np.arange(N) / 8,
    "city": np.array(["Köln", "Rome", "", "Oslo"] * (N // 4), dtype=object),
    "code": np.array([f"c{i % 9}" for i in range(N)], dtype=object),
    "when": np.array(
        [
            "" if i % 11 == 0 else f"2024-{1 + i % 12:02}-{1 + i % 28}" + (" 13:45" if i % 2 else "")
            for i in range(N)
        ],
        dtype=object,
    ),
}
OPTIONS = {
    "age": {"scale": "yeo-johnson", "impute": "mean"},
    "fare": {"scale": "quantile"},
    "code": {"encode": "embedding", "size": 3},
}


@pytest.mark.parametrize("engine", ["interpreter", "compiled", "onnxruntime"])
@pytest.mark.parametrize(
    "options",
    [{}, OPTIONS, {"code": {"encode": "hashing", "size": 4}, "city": {"encode": "ordinal"}}],
    ids=["plain", "scaled", "encoded"],
)
def test_every_engine_gives_what_training_saw(engine: Any, options: dict[str, Any]) -> None:
    data = table(**MIXED)
    preparation = TablePreparation.fit(data, options)
    again = TablePreparation.from_json(json.loads(json.dumps(preparation.to_json())))
    seen = again.apply(data).inputs["features"]
    assert seen.shape == (N, preparation.width)
    unseen = {
        **MIXED,
        "city": np.array(["Atlantis"] * N, dtype=object),
        "when": np.array(["soon"] * N, dtype=object),
    }
    for given in (data, table(**unseen)):
        raw = preparation.raw(given)
        if engine == "onnxruntime":
            session = onnxruntime.InferenceSession(to_bytes(graph_of(preparation)))
            (found,) = session.run(["y"], raw)
        else:
            found = Session(graph_of(preparation), engine=engine).run(raw)["y"]
        np.testing.assert_allclose(found, again.apply(given).inputs["features"], rtol=2e-5, atol=2e-6)
    assert np.isfinite(seen).all()


def test_missing_numbers_are_filled_and_told() -> None:
    values = np.array([1.0, 2.0, np.nan, 9.0] * 6)
    for how, fill in (("mean", 4.0), ("median", 2.0), ("mode", 1.0), (-5, -5.0)):
        options = {"x": {"impute": how, "scale": "none", "pieces": 0}}
        found = features(table(x=values), options)
        np.testing.assert_array_equal(found[:4], [[1, 0], [2, 0], [fill, 1], [9, 0]])
    bare = {"x": {"scale": "none", "pieces": 0, "indicator": False}}
    assert features(table(x=values), bare).shape == (24, 1)
    assert report(table(x=values))["x"].startswith("number: 25 % missing: median 2 and indicator")


def test_numbers_are_scaled() -> None:
    values = np.exp(np.random.default_rng(1).normal(0, 2, 500))
    one = {"pieces": 0}
    plain = features(table(x=values), {"x": {**one, "scale": "standard"}})[:, 0]
    np.testing.assert_allclose(plain, np.minimum((values - values.mean()) / values.std(), 10), atol=1e-4)
    assert "log" in report(table(x=values))["x"]
    assert abs(features(table(x=values), {"x": one})[:, 0].mean()) < 1e-5
    ranks = features(table(x=values), {"x": {**one, "scale": "quantile"}})[:, 0]
    assert np.corrcoef(ranks, values.argsort().argsort())[0, 1] > 0.999
    power = pytest.importorskip("sklearn.preprocessing").PowerTransformer()
    expected = power.fit_transform(values.astype(np.float32).astype(np.float64)[:, None])[:, 0]
    found = features(table(x=values), {"x": {**one, "scale": "yeo-johnson"}})[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_pieces_say_how_much_of_each_interval_is_below() -> None:
    values = np.arange(9.0)
    found = features(table(x=values), {"x": {"pieces": 2, "scale": "none"}})
    np.testing.assert_allclose(found[:, 1], np.clip(values / 4, 0, 1))
    np.testing.assert_allclose(found[:, 2], np.clip((values - 4) / 4, 0, 1))


def test_numbers_that_float32_cannot_tell_apart_stay_float64() -> None:
    stamps = 1.7e9 + np.arange(50.0)
    preparation = TablePreparation.fit(table(x=stamps))
    assert preparation.takes == {"features": np.dtype(np.float64)}
    found = preparation.apply(table(x=stamps)).inputs["features"][:, 0]
    np.testing.assert_allclose(found, (stamps - stamps.mean()) / stamps.std(), atol=1e-5)


def test_categories() -> None:
    texts = np.array(["a", "b", "b", "?", "a", "zz"] * 10 + ["rare"], dtype=object)
    data = table(x=texts)
    found = features(data, {"x": {"levels": 2}})
    # a, b, missing, others
    np.testing.assert_array_equal(
        found[:6], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    )
    np.testing.assert_array_equal(found[-1], [0, 0, 0, 1])
    ordinal = features(table(x=np.array(["10", "9", "x9"] * 9, dtype=object)), {"x": {"encode": "ordinal"}})
    np.testing.assert_allclose(ordinal[:3, 0], [1 / 3, 2 / 3, 1])
    hashed = features(data, {"x": {"encode": "hashing", "size": 3}})
    assert set(hashed[:, :3].sum(axis=1)) == {0.0, 1.0}
    numbers = features(data, {"x": {"encode": "embedding"}})[:, 0]
    np.testing.assert_array_equal(numbers[:6], [1, 2, 2, 0, 1, 4])


@pytest.mark.parametrize(
    "form",
    [
        *("%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%Y/%m/%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"),
        *("%Y-%m-%d %H:%M:%S+00:00", "%Y-%m-%dT%H:%M -0330", "%Y-%m-%d %H:%M:%S.25 UTC", "%Y-%m-%dT%H:%MUTC"),
    ],
)
def test_dates_become_parts(form: str) -> None:
    days = [datetime.datetime(1999, 12, 25, 7) + datetime.timedelta(days=31 * i, hours=i) for i in range(50)]
    data = table(when=np.array([day.strftime(form) for day in days], dtype=object))
    parts = ("year", "month", "day", "weekday", "elapsed", *(["hour"] if "%H" in form else []))
    found = features(data, {"when": {"scale": "none", "pieces": 0, "parts": parts}})
    expected = [
        [d.year, d.month, d.day, d.weekday(), (d.date() - days[0].date()).days, d.hour][: len(parts)]
        for d in days
    ]
    np.testing.assert_array_equal(found, expected)


def test_columns_that_are_left_out_are_not_asked_for() -> None:
    number = np.arange(float(N))
    data = table(row_id=number, x=np.sin(number), constant=np.ones(N), y=np.cos(number))
    preparation = TablePreparation.fit(data)
    assert preparation.matrix
    assert preparation.names == ("x", "y")
    model = graph_of(preparation)
    raw = preparation.raw(table(y=np.cos(number), x=np.sin(number)))
    assert raw["features"].shape == (N, 2)
    np.testing.assert_array_equal(raw["features"][:, 0], np.sin(number).astype(np.float32))
    session = onnxruntime.InferenceSession(to_bytes(model))
    assert session.get_inputs()[0].shape[1] == 2
    np.testing.assert_allclose(
        session.run(["y"], raw)[0], preparation.apply(data).inputs["features"], rtol=2e-5, atol=2e-6
    )


def test_numbers_whose_squares_are_infinite_are_scaled() -> None:
    values = np.random.default_rng(0).normal(size=200)
    small = features(table(x=values), {"x": {"scale": "standard"}})
    for size in (1e300, 1e-300):
        found = features(table(x=values * size), {"x": {"scale": "standard"}})
        np.testing.assert_allclose(found, small, atol=2e-5)


def test_what_the_graph_takes_as_unknown_is_told() -> None:
    when = np.array([f"{1 + i % 28}.{1 + i % 12}.2020" for i in range(N)], dtype=object)
    city = np.array(["Oslo", "Rome"] * (N // 2), dtype=object)
    preparation = TablePreparation.fit(table(when=when, city=city))
    assert preparation.doubts(preparation.raw(table(when=when, city=city))) == ()
    other = table(
        when=np.array(["2020-01-05", "", *when[2:]], dtype=object),
        city=np.array(["Paris", "Bern", "", *city[3:]], dtype=object),
    )
    assert preparation.doubts(preparation.raw(other)) == (
        f"column 'when': 1 of {N} are no dates of the form d.m.y, and taken as missing ('2020-01-05')",
        f"column 'city': 2 of {N} are none of the levels that the model knows ('Paris', 'Bern')",
    )


def test_columns_that_say_nothing_are_left_out() -> None:
    data = table(
        constant=np.ones(N),
        empty=np.full(N, np.nan),
        row_id=np.arange(N),
        name=np.array([f"n{i}" for i in range(N)], dtype=object),
        x=RNG.normal(size=N),
    )
    said = report(data)
    assert said["constant"] == "left out: constant, always 1"
    assert said["empty"] == "left out: every value is missing"
    assert said["row_id"].startswith("left out: numbers the rows")
    assert said["name"].startswith("left out: 60 texts in 60 rows")
    assert said["x"].startswith("number")
    assert report(data, {"row_id": {"kind": "keep"}})["row_id"].startswith("number")
    kept = {"row_id": {"kind": "keep"}, "x": {"kind": "drop"}}
    assert report(data, kept)["x"] == "left out: as asked"
    with pytest.raises(DataError, match="no column is left to learn from"):
        TablePreparation.fit(table(constant=np.ones(N)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": {}}, "no column 'y'"),
        ({"x": {"scal": "log"}}, "no option 'scal'"),
        ({"x": {"scale": "cube"}}, "scale 'cube' is none of standard, log"),
        ({"x": {"impute": "many"}}, "neither mean, median, mode nor a number"),
        ({"x": {"pieces": -1}}, "pieces -1 must be a whole number"),
        ({"d": {"kind": "date"}}, "holds no dates"),
        ({"d": {"parts": "era"}}, "parts are of year"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    data = table(x=RNG.normal(size=N), d=np.array(["a", "b"] * (N // 2), dtype=object))
    with pytest.raises((ConfigError, DataError), match=message):
        TablePreparation.fit(data, options)


def test_statistics_are_of_the_training_part_alone() -> None:
    train = table(x=np.arange(50.0), c=np.array(["a", "b"] * 25, dtype=object))
    other = table(x=np.arange(50.0) * 1e6, c=np.array(["a", "zzz"] * 25, dtype=object))
    preparation = Preparation.fit(train)
    assert preparation.table is not None
    assert "zzz" not in json.dumps(preparation.to_json())
    assert preparation.apply(other).inputs["features"].max() == 10


def same(one: Dataset, other: Dataset) -> None:
    assert list(one.inputs) == list(other.inputs)
    for name, array in one.inputs.items():
        np.testing.assert_array_equal(array, other.inputs[name], err_msg=name)
    np.testing.assert_array_equal(one.targets, other.targets)
    assert one.classes == other.classes


def test_one_table_from_everywhere(tmp_path: Path) -> None:
    header = "n,b,s,d,y\n"
    rows = [
        (1.5, "true", "a", "2024-01-02", "no"),
        (None, "false", "b", "", "yes"),
        (3, "true", "", "2024-02-03", "no"),
    ]
    text = header + "".join(",".join("" if c is None else str(c) for c in row) + "\n" for row in rows)
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "t.tsv").write_text(text.replace(",", "\t"))
    plain = load_table(tmp_path / "t.csv", "y")
    assert plain.inputs["n"][:, 0].tolist()[::2] == [1.5, 3]
    assert plain.inputs["b"][:, 0].tolist() == [1, 0, 1]
    same(plain, load_table(tmp_path / "t.tsv", "y"))
    names = header.strip().split(",")
    records = [dict(zip(names, row, strict=True)) for row in rows]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    same(plain, load_table(tmp_path / "t.jsonl", "y"))
    with sqlite3.connect(tmp_path / "t.db") as connection:
        connection.execute("CREATE TABLE t (n REAL, b TEXT, s TEXT, d TEXT, y TEXT)")
        connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
    connection.close()
    same(plain, resolve(f"sqlite:{tmp_path / 't.db'}?query=SELECT * FROM t", target="y").dataset)
    columns = {name: [record[name] for record in records] for name in names}
    same(plain, load_table(columns, "y"))
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(columns)
    same(plain, load_table(frame, "y"))
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_feather(tmp_path / "t.feather")
    same(plain, resolve(str(tmp_path / "t.parquet"), target="y").dataset)
    same(plain, load_table(tmp_path / "t.feather", "y"))
    typed = frame.assign(b=frame["b"] == "true", s=frame["s"].astype("category"))
    same(plain, load_table(typed, "y"))
    same(plain, load_table(pytest.importorskip("polars").DataFrame(columns), "y"))


def test_typed_dates_are_texts() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"d": pandas.to_datetime(["2024-01-02 03:04:05", None]), "y": [0, 1]})
    assert load_table(frame, "y").inputs["d"][:, 0].tolist() == ["2024-01-02 03:04:05", ""]
    array = np.array(["2024-01-02", "NaT"], dtype="datetime64[D]")
    assert load_table({"d": array, "y": [0, 1]}, "y").inputs["d"][:, 0].tolist() == [
        "2024-01-02T00:00:00",
        "",
    ]
    structured = np.array([(1, "a", 0), (2, "b", 1)], dtype=[("x", "f8"), ("c", "U1"), ("y", "i8")])
    assert load_table(structured).inputs["c"][:, 0].tolist() == ["a", "b"]


def test_bad_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "1.5,a\n2.5,b\n" * 20 + "1,2,3\nbad,a\n4,\n")
    with pytest.raises(DataError, match="row 41 has 3 fields"):
        load_table(path, "y")
    data = load_table(path, "y", skip_bad_rows=True)
    assert len(data) == 40
    assert data.notes == (
        f"{path}: 3 rows left out: 1 with not 2 fields; 1 with no number in 'x'; 1 with no 'y'",
    )


def test_targets_are_guessed_and_said(tmp_path: Path) -> None:
    data = load_table({"Label": ["a", "b"], "x": [1, 2]})
    assert data.classes == ("a", "b")
    assert data.notes == ("table: column 'Label' is predicted; --target chooses another",)
    prices = load_table({"x": [1, 2, 3], "price": [1.5, 2.25, 1e9 + 0.125]})
    assert prices.task == "regression"
    assert prices.targets is not None
    assert prices.targets.tolist() == [[1.5], [2.25], [1e9 + 0.125]]
    assert load_table({"x": [1, 2, 3], "n": [1, 0, 1]}).task == "classification"
