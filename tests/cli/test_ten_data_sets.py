"""Ten data sets as people have them, each from file to served prediction with one train and one serve.

The answers of `onward predict`, of the server and of onnxruntime to what stands in the file are one.
"""

from __future__ import annotations

import csv
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from benchmarks.made_tables import Rows, adult_like, titanic_like, write_csv
from tests.cli.conftest import Onward

pytestmark = pytest.mark.slow

QUICK = ("--epochs", 3, "-o", "hidden=[16]")


@dataclass(frozen=True)
class Made:
    """A data set as a user gives it.

    Attributes:
        train: the arguments of `onward train`.
        given: what `onward predict` gets.
        said: what training says of the data's faults.
        raw: the file's content as a program without Onward reads it; by default the rows of `given`, a CSV.
    """

    train: Sequence[object]
    given: Path
    said: Sequence[str]
    raw: Callable[[onnxruntime.InferenceSession], Mapping[str, np.ndarray]] | None = None


def cells(path: Path) -> Callable[[onnxruntime.InferenceSession], Mapping[str, np.ndarray]]:
    """The cells of a CSV file as the graph's inputs say."""

    def read(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        arrays = {}
        for value in session.get_inputs():
            if value.type == "tensor(string)":
                arrays[value.name] = np.array([[row[value.name]] for row in rows], dtype=object)
                continue
            dtype = np.float64 if value.type == "tensor(double)" else np.float32
            columns = [value.name] if value.shape[1] == 1 else list(rows[0])[: value.shape[1]]
            arrays[value.name] = np.array([[float(row[c] or "nan") for c in columns] for row in rows], dtype)
        return arrays

    return read


def new_rows(folder: Path, rows: Rows, count: int = 25) -> Path:
    return write_csv(folder / "new.csv", (rows[0], rows[1][-count:]))


def titanic(folder: Path) -> Made:
    rows = titanic_like(400)
    file = write_csv(folder / "titanic.csv", rows)
    said = ("'Survived' is predicted", "numbers the rows", "median", "date", "category")
    return Made(["mlp", "--data", file, *QUICK], new_rows(folder, rows), said)


def adult(folder: Path) -> Made:
    rows = adult_like(600)
    file = write_csv(folder / "adult.csv", rows)
    columns = ("--column", "occupation:encode=embedding,size=4", "--column", "country:encode=hashing,size=8")
    scaled = ("--column", "age:scale=yeo-johnson,impute=mean", "--column", "fnlwgt:scale=quantile")
    arguments = ["mlp", "--data", file, *columns, *scaled, "--class-weight", "balanced", *QUICK]
    return Made(
        arguments, new_rows(folder, rows), ("embedding of 4", "hashing of 8", "yeo-johnson", "a level")
    )


def prices(folder: Path) -> Made:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(3)
    count = 300
    frame = pandas.DataFrame(
        {
            "sold": pandas.Timestamp("2020-01-01") + pandas.to_timedelta(rng.integers(0, 900, count), "D"),
            "area": np.where(rng.random(count) < 0.1, np.nan, rng.gamma(5, 20, count)),
            "serial": 1.7e9 + rng.random(count) * 50,
            "garden": rng.random(count) < 0.5,
            "town": rng.choice(["Ulm", "Köln", None], count, p=[0.6, 0.3, 0.1]),
        }
    )
    frame["price"] = 2000.5 * frame["area"].fillna(90) + 30_000 * frame["garden"] + 1e5
    frame.to_parquet(folder / "prices.parquet")
    new = frame.tail(20).assign(garden=frame["garden"].astype(int))
    new.to_csv(folder / "new.csv", index=False)
    arguments = ["mlp", "--data", folder / "prices.parquet", "--target", "price", *QUICK]
    return Made(arguments, folder / "new.csv", ("task: regression", "float64", "10 % missing", "date"))


def orders(folder: Path) -> Made:
    header, found = adult_like(500, seed=4)
    with sqlite3.connect(folder / "shop.db") as connection:
        connection.execute(f"CREATE TABLE orders ({', '.join(f'{name} TEXT' for name in header)})")
        connection.executemany(f"INSERT INTO orders VALUES ({', '.join('?' * len(header))})", found)
    connection.close()
    query = f"sqlite:{folder / 'shop.db'}?query=SELECT age, occupation, capital_gain, income FROM orders"
    arguments = ["mlp", "--data", query, "--class-weight", "<=50K=1,>50K=3", "--folds", 2, *QUICK]
    return Made(arguments, new_rows(folder, (header, found)), ("'income' is predicted", "2 folds: accuracy"))


def broken(folder: Path) -> Made:
    header, found = ["x", "kind", "useless", "label"], []
    for i in range(200):
        found.append([f"{i % 17 / 3:.3f}", "ab"[i % 2], "7", ["no", "yes"][i % 3 == 0]])
    whole = [*found, ["1", "a", "7"], ["twelve", "a", "7", "no"], ["1.0", "a", "7", ""]]
    file = write_csv(folder / "broken.csv", (header, whole))
    said = ("3 rows left out: 1 with not 4 fields; 1 with no number in 'x'; 1 with no 'label'", "constant")
    return Made(["mlp", "--data", file, "--skip-bad-rows", *QUICK], new_rows(folder, (header, found)), said)


def numbers(folder: Path) -> Made:
    rng = np.random.default_rng(5)
    values = np.exp(rng.normal(0, 2, (300, 4)))
    rows = [["" if rng.random() < 0.1 else f"{v:.5f}" for v in row] for row in values]
    labelled = (
        ["a", "b", "c", "d", "y"],
        [[*row, str(int(v[0] > 1))] for row, v in zip(rows, values, strict=True)],
    )
    file = write_csv(folder / "numbers.csv", labelled)
    return Made(
        ["mlp", "--data", file, *QUICK],
        new_rows(folder, labelled),
        ("with log", "takes input: float32[N, 4]"),
    )


def events(folder: Path) -> Made:
    header, found = titanic_like(300, seed=6)
    lines = [json.dumps(dict(zip(header, row, strict=True))) for row in found]
    (folder / "events.jsonl").write_text("\n".join(lines))
    arguments = ["mlp", "--data", folder / "events.jsonl", "--include", "Sex,Age,Booked,Fare,Embarked"]
    arguments += ["--target", "Survived", "--time", "Booked", "--column", "Booked:parts=month+weekday"]
    return Made([*arguments, *QUICK], new_rows(folder, (header, found)), ("month, weekday", "are not used"))


def sensors(folder: Path) -> Made:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(7)
    found = [
        [
            str(i // 10),
            f"{rng.normal():.4f}",
            "hot" if i % 4 else "cold",
            str(1 + i % 2),
            str(int(rng.random() < 0.2)),
        ]
        for i in range(300)
    ]
    header = ["machine", "value", "state", "importance", "fails"]
    frame = pandas.DataFrame(found, columns=header).astype(
        {"value": float, "importance": float, "fails": int}
    )
    frame.to_feather(folder / "sensors.feather")
    arguments = ["mlp", "--data", folder / "sensors.feather", "--group", "machine", "--weight", "importance"]
    return Made(
        [*arguments, "--class-weight", "balanced", *QUICK], new_rows(folder, (header, found)), ("'fails'",)
    )


def photos(folder: Path) -> Made:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(8)
    for label, base in (("dark", 40), ("light", 180)):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(24):
            size = (int(rng.integers(20, 60)), int(rng.integers(20, 60)))
            picture = image.fromarray(rng.integers(base, base + 60, (*size, 3), dtype=np.uint8))
            mode = ("RGB", "L", "RGBA", "P")[i % 4]
            exif = image.Exif()
            exif[0x0112] = 6 if i % 5 == 0 else 1
            picture.convert(mode).save(folder / "photos" / label / f"{i}.png", exif=exif)
        deep = np.full((30, 30), base * 257, np.uint16)
        image.fromarray(deep).save(folder / "photos" / label / "deep.png")
        (folder / "photos" / label / "readme.txt").write_text("photographed by us")
        (folder / "photos" / label / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    arguments = ["lenet5", "--data", f"images:{folder / 'photos'}", "--image-size", 20, "--channels", 3]
    arguments += ["--fit", "crop", "--skip-bad-files", "--augment", "flip,erase,mixup=0.2", "--epochs", 2]
    given = folder / "photos" / "dark" / "3.png"

    def pixels(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
        from onward.data import read_image

        return {session.get_inputs()[0].name: read_image(given, (20, 20), raw=True, fit="crop")[None]}

    said = ("2 files (readme.txt, readme.txt) are not among the images", "2 of 52 files left out")
    return Made(arguments, given, said, pixels)


def reviews(folder: Path) -> Made:
    rows = [
        ("a fine great film" if i % 6 else "a dull poor film", "good" if i % 6 else "bad") for i in range(120)
    ]
    records = [{"review": f"{text} {i}", "verdict": label} for i, (text, label) in enumerate(rows)]
    records += [{"review": "", "verdict": "good"}, {"review": None, "verdict": "bad"}]
    (folder / "reviews.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    arguments = ["textcnn", "--data", f"text:{folder / 'reviews.jsonl'}", "--skip-bad-rows", "--tokens", 8]
    arguments += ["--class-weight", "balanced", "--epochs", 2, "-o", "embedding_size=8", "-o", "filters=4"]
    given = folder / "new.txt"
    given.write_text("a fine film\na dull film\n")

    def tokens(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
        entry = session.get_modelmeta().custom_metadata_map["onward.vocabulary"]
        words = {word: number for number, word in enumerate(json.loads(entry))}
        found = np.zeros((2, 8), np.int64)
        for row, line in zip(found, given.read_text().splitlines(), strict=True):
            row[: len(line.split())] = [words.get(word, 1) for word in line.split()]
        return {session.get_inputs()[0].name: found}

    return Made(arguments, given, ("2 rows left out: 2 with no text",), tokens)


MAKERS = (titanic, adult, prices, orders, broken, numbers, events, sensors, photos, reviews)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def trained(onward: Onward, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """Every data set made, and its model trained by one command."""
    found = {}
    for make in MAKERS:
        made = make(tmp_path_factory.mktemp(make.__name__))
        output = repository / make.__name__ / "1" / "model.onnx"
        done = onward("train", *made.train, "--output", output)
        assert done.code == 0, f"{make.__name__}: {done.err}"
        for text in made.said:
            assert text in " ".join((done.out + done.err).split()), (make.__name__, done.out, done.err)
        found[make.__name__] = made
    return found


@pytest.fixture(scope="module")
def client(trained: dict[str, Made], repository: Path) -> Iterator[Any]:
    """A client of `onward serve`, a process of its own."""
    from onward_client import Client

    command = [sys.executable, "-m", "onward", "serve", str(repository), "--listen", "127.0.0.1:0", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            told = json.loads(server.stdout.readline())
            assert set(told["models"]) == set(trained)
            with Client(told["address"]) as found:
                yield found
        finally:
            server.terminate()
            server.communicate(timeout=60)
        assert server.returncode == 0


@pytest.mark.parametrize("name", [make.__name__ for make in MAKERS])
def test_one_answer(
    onward: Onward, trained: dict[str, Made], client: Any, repository: Path, name: str, tmp_path: Path
) -> None:
    made, model = trained[name], repository / name / "1" / "model.onnx"
    done = onward("predict", model, made.given, "--output", tmp_path / "answers.npz")
    assert done.code == 0, done.err
    predicted = np.load(tmp_path / "answers.npz")["output"]
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    raw = (made.raw or cells(made.given))(session)
    (reference,) = session.run(["output"], dict(raw))
    assert len(reference) == len(predicted)
    scale = np.abs(reference).max()
    np.testing.assert_allclose(predicted, reference, rtol=1e-4, atol=1e-4 * max(scale, 1))
    served = client.predict(name, raw)["output"]
    np.testing.assert_allclose(served, reference, rtol=1e-4, atol=1e-4 * max(scale, 1))
    measured = onward("evaluate", model, "--json")
    assert measured.code == 0, measured.err
    assert "not the data" not in measured.err
