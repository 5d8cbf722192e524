"""CSV files: columns by name, several targets, headers that are missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import Onward

COLUMNS = ("height", "weight", "age")


def write(path: Path, columns: tuple[str, ...], values: dict[str, np.ndarray], header: bool = True) -> Path:
    lines = [",".join(columns)] if header else []
    count = len(next(iter(values.values())))
    lines += [",".join(str(values[column][i]) for column in columns) for i in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def people() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    height, weight, age = rng.normal(170, 10, 200), rng.normal(70, 12, 200), rng.uniform(18, 90, 200)
    return {
        "height": height.round(3),
        "weight": weight.round(3),
        "age": age.round(3),
        "old": np.where(age > 54, "yes", "no"),
        "tall": (height > 170).astype(int),
        "heavy": (weight > 70).astype(int),
        "note": np.arange(200),
    }


@pytest.fixture(scope="module")
def model(onward: Onward, people: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    file = write(folder / "people.csv", (*COLUMNS, "old"), people)
    done = onward(
        *("train", "mlp", "--data", f"csv:{file}", "--target", "old", "--epochs", 15, "--lr", 0.01),
        *("-o", "hidden=[16]", "--output", folder / "people.onnx"),
    )
    assert done.code == 0, done.err
    return folder / "people.onnx"


def answers(onward: Onward, model: Path, file: Path) -> tuple[list[dict[str, object]], str]:
    done = onward("predict", model, file, "--json")
    assert done.code == 0, done.err
    return [{k: v for k, v in row.items() if k != "input"} for row in json.loads(done.out)], done.err


def test_columns_are_found_by_name(
    onward: Onward, model: Path, people: dict[str, np.ndarray], tmp_path: Path
) -> None:
    plain, said = answers(onward, model, write(tmp_path / "a.csv", COLUMNS, people))
    assert said == ""
    turned, said = answers(onward, model, write(tmp_path / "b.csv", ("age", "height", "weight"), people))
    assert said == ""
    assert turned == plain
    more, said = answers(
        onward, model, write(tmp_path / "c.csv", ("note", "age", "weight", "height"), people)
    )
    assert more == plain
    assert said == f"note: {tmp_path / 'c.csv'}: column 'note' is not used\n"
    with_target, said = answers(onward, model, write(tmp_path / "d.csv", ("old", *COLUMNS), people))
    assert with_target == plain
    assert said == ""


def test_missing_columns_are_named(
    onward: Onward, model: Path, people: dict[str, np.ndarray], tmp_path: Path
) -> None:
    file = write(tmp_path / "a.csv", ("weight", "note"), people)
    done = onward("predict", model, file)
    assert done.code == 2
    assert done.err == f"error: {file}: no columns 'height', 'age'; the columns are weight, note\n"


def test_without_a_header_the_count_must_match(
    onward: Onward, model: Path, people: dict[str, np.ndarray], tmp_path: Path
) -> None:
    plain, _ = answers(onward, model, write(tmp_path / "a.csv", COLUMNS, people))
    bare, said = answers(onward, model, write(tmp_path / "b.csv", COLUMNS, people, header=False))
    assert bare == plain
    assert "no header row; its columns are taken as height, weight, age" in said
    file = write(tmp_path / "c.csv", (*COLUMNS, "note"), people, header=False)
    done = onward("predict", model, file)
    assert done.code == 2
    assert "no header row, and 4 columns where the model takes 3: height, weight, age" in done.err


def test_evaluation_finds_columns_by_name(
    onward: Onward, model: Path, people: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = []
    for name, columns in (("a", (*COLUMNS, "old")), ("b", ("old", "note", "age", "weight", "height"))):
        file = write(tmp_path / f"{name}.csv", columns, people)
        done = onward("evaluate", model, "--data", f"csv:{file}", "--part", "all", "--json")
        assert done.code == 0, done.err
        found.append({k: v for k, v in json.loads(done.out).items() if k not in ("data", "model")})
    assert found[0] == found[1]
    assert found[0]["accuracy"] > 0.8
    assert "column 'note' is not used" in done.err
    file = write(tmp_path / "c.csv", ("height", "old"), people)
    done = onward("evaluate", model, "--data", f"csv:{file}", "--part", "all")
    assert done.code == 2
    assert "no columns 'weight', 'age'" in done.err


def test_training_further_finds_columns_by_name(
    onward: Onward, model: Path, people: dict[str, np.ndarray], tmp_path: Path
) -> None:
    file = write(tmp_path / "b.csv", ("note", "old", "age", "weight", "height"), people)
    done = onward(
        *("train", model, "--data", f"csv:{file}", "--target", "old", "--epochs", 1, "--lr", 1e-9),
        *("--output", tmp_path / "further.onnx"),
    )
    assert done.code == 0, done.err
    assert "column 'note' is not used" in done.err
    plain = write(tmp_path / "a.csv", COLUMNS, people)
    before, after = (answers(onward, path, plain)[0] for path in (model, tmp_path / "further.onnx"))
    assert [row["class"] for row in before] == [row["class"] for row in after]


def test_a_model_that_names_no_columns_says_so(
    onward: Onward, people: dict[str, np.ndarray], tmp_path: Path
) -> None:
    from onward import nn
    from onward.model import save

    save(nn.zoo.mlp(2, input_shape=(3,)).model, tmp_path / "plain.onnx")
    _, said = answers(onward, tmp_path / "plain.onnx", write(tmp_path / "a.csv", COLUMNS, people))
    assert "the model names no columns" in said


def test_several_labels(onward: Onward, people: dict[str, np.ndarray], tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", (*COLUMNS, "tall", "heavy"), people)
    path = tmp_path / "p.onnx"
    done = onward(
        *("train", "mlp", "--data", f"csv:{file}", "--target", "tall,heavy", "--epochs", 25, "--lr", 0.01),
        *("-o", "hidden=[16]", "--output", path, "--metrics", "accuracy,subset_accuracy,f1_micro"),
    )
    assert done.code == 0, done.err
    assert (
        "task: multi-label, 2 labels; loss: binary_cross_entropy; metrics: accuracy, subset_accuracy, "
        "f1_micro" in done.out
    )
    found = json.loads(onward("evaluate", path, "--json").out)
    assert found["classes"] == ["tall", "heavy"]
    assert found["accuracy"] >= found["subset_accuracy"] > 0.6
    assert "r2" not in found
    rows, _ = answers(onward, path, write(tmp_path / "x.csv", COLUMNS, people))
    right = [
        set(row["labels"]) == {name for name in ("tall", "heavy") if people[name][i]}  # type: ignore[arg-type]
        for i, row in enumerate(rows)
    ]
    assert np.mean(right) > 0.8


def test_several_numbers(onward: Onward, people: dict[str, np.ndarray], tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", (*COLUMNS, "tall"), people)
    done = onward(
        *("train", "mlp", "--data", f"csv:{file}", "--target", "height,age", "--epochs", 1),
        *("-o", "hidden=[4]", "--output", tmp_path / "p.onnx"),
    )
    assert done.code == 0, done.err
    assert "task: regression, 2 values; loss: mse; metrics: mae" in done.out


def test_numbers_may_begin_with_a_minus(onward: Onward, model: Path) -> None:
    done = onward("predict", model, "-1.5,70,30", "170,-.5,30")
    assert done.code == 0, done.err
    assert [line.partition(":")[0] for line in done.out.splitlines()] == ["-1.5,70,30", "170,-.5,30"]
    done = onward("predict", model, "1,2,3", "--topp", 3)
    assert done.code == 2
    assert "no such option: --topp (possible options: --top)" in " ".join(done.err.split())


def test_the_file_of_a_data_frame_with_its_index(
    onward: Onward, people: dict[str, np.ndarray], tmp_path: Path
) -> None:
    numbered = {"": np.arange(200), **people}
    file = write(tmp_path / "people.csv", ("", *COLUMNS, "old"), numbered)
    run = ("train", "mlp", "--data", file, "--epochs", 1, "-o", "hidden=[4]", "--output")
    done = onward(*run, tmp_path / "people.onnx")
    assert done.code == 0, done.err
    assert "Unnamed: 0  left out  numbers the rows" in done.out
    for columns in (("", "age", "weight", "height"), ("weight", "height", "age")):
        given = write(tmp_path / "given.csv", columns, numbered)
        found, said = answers(onward, tmp_path / "people.onnx", given)
        plain, _ = answers(onward, tmp_path / "people.onnx", file)
        assert found == plain
        assert said == ""


def test_one_class_is_nothing_to_learn(onward: Onward, people: dict[str, np.ndarray], tmp_path: Path) -> None:
    one = {**people, "old": np.array(["yes"] * 200)}
    done = onward("train", "mlp", "--data", write(tmp_path / "one.csv", (*COLUMNS, "old"), one))
    assert done.code == 2
    assert "all samples are of one class, 'yes'; at least two are needed" in done.err


def test_names_are_shown_with_their_brackets(onward: Onward, tmp_path: Path) -> None:
    rows = "".join(f"{i % 7},{i % 5},{'[red]' if i % 2 else ':smile:'}\n" for i in range(100))
    (tmp_path / "a.csv").write_text("weight [kg],b,kind\n" + rows)
    run = ("train", "mlp", "--data", tmp_path / "a.csv", "--target", "kind", "--epochs", 1, "--output")
    done = onward(*run, tmp_path / "a.onnx")
    assert done.code == 0, done.err
    for name in ("weight [kg]", "[red]", ":smile:"):
        assert name in done.out


def test_texts_for_columns_from_arrays(onward: Onward, tmp_path: Path) -> None:
    rows = "".join(f"{i % 7},{'Oslo' if i % 3 else 'Rome'},{i % 2}\n" for i in range(100))
    (tmp_path / "a.csv").write_text("a,city,kind\n" + rows)
    run = ("train", "mlp", "--data", tmp_path / "a.csv", "--target", "kind", "--epochs", 1, "--output")
    assert onward(*run, tmp_path / "a.onnx").code == 0
    np.savez(tmp_path / "given.npz", a=np.float64([[3], [4]]), city=np.array([["Oslo"], ["Rome"]]))
    found, _ = answers(onward, tmp_path / "a.onnx", tmp_path / "given.npz")
    (tmp_path / "given.csv").write_text("city,a\nOslo,3\nRome,4\n")
    assert found == answers(onward, tmp_path / "a.onnx", tmp_path / "given.csv")[0]
    (tmp_path / "given.csv").write_text("city,a\nOslo,3\nRoma,4\n")
    _, said = answers(onward, tmp_path / "a.onnx", tmp_path / "given.csv")
    assert "column 'city': 1 of 2 are none of the levels that the model knows ('Roma')" in said
