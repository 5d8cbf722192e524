"""One answer on raw input: `onward predict`, `onward evaluate`, a server, and plain onnxruntime."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from tests.cli.conftest import Onward

from onward import data, nn, verify
from onward.model import Provenance, load, read_provenance, save, write_provenance

CLASSES = "abcdefghij"


def plain(path: Path, array: np.ndarray) -> np.ndarray:
    """onnxruntime's first output, with nothing of Onward's before it."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: array})[0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as image files in folders that are called a, b, …"""
    image = pytest.importorskip("PIL.Image")
    digits = data.load_digits(8, raw=True)
    root = tmp_path_factory.mktemp("photos")
    assert digits.targets is not None
    for i in range(400):
        folder = root / CLASSES[digits.targets[i]]
        folder.mkdir(exist_ok=True)
        # off centre, so that a normalisation that is left out is seen
        image.fromarray(96 + digits.inputs["image"][i, 0] // 2).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(onward: Onward, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "digits" / "1" / "model.onnx"
    done = onward(
        *("train", "lenet5", "--data", f"images:{photos}", "--image-size", 8, "--channels", 1),
        *("--epochs", 10, "--lr", 0.004, "--split", "0.7,0,0.3", "--output", path),
    )
    assert done.code == 0, done.err
    assert "takes input: uint8[N, 1, 8, 8]" in done.out
    return path


@pytest.fixture(scope="module")
def raw_test(photos: Path) -> data.Dataset:
    found = data.load_image_folder(photos, 8, channels=1, raw=True)
    test = data.split(found, (0.7, 0.0, 0.3), seed=0).test
    assert test is not None
    return test


def accuracy(scores: np.ndarray, test: data.Dataset) -> float:
    assert test.targets is not None
    return float((scores.argmax(axis=1) == test.targets).mean())


def test_every_way_gives_one_answer(
    onward: Onward, trained: Path, raw_test: data.Dataset, tmp_path: Path
) -> None:
    from onward_client import Client
    from onward_server import ServerThread
    from onward_server.settings import ServerSettings

    images = raw_test.inputs["image"]
    assert images.dtype == np.uint8
    np.save(tmp_path / "images.npy", images)
    done = onward("predict", trained, tmp_path / "images.npy", "--output", tmp_path / "answers.npz")
    assert done.code == 0, done.err
    predicted = np.load(tmp_path / "answers.npz")["output"]
    with (
        ServerThread(ServerSettings(repository=trained.parents[2], listen="127.0.0.1:0")) as server,
        Client(server.address) as client,
    ):
        served = np.concatenate(
            [client.predict("digits", images[i : i + 50])["output"] for i in range(0, len(images), 50)]
        )
    reference = plain(trained, images)
    np.testing.assert_allclose(predicted, reference, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(served, reference, rtol=1e-4, atol=1e-4)
    found = json.loads(onward("evaluate", trained, "--json").out)["accuracy"]
    assert found > 0.9
    assert accuracy(predicted, raw_test) == accuracy(served, raw_test) == accuracy(reference, raw_test)
    assert found == pytest.approx(accuracy(reference, raw_test), abs=1e-9)
    provenance = read_provenance(load(trained))
    assert provenance is not None
    assert provenance.metrics["test_accuracy"] == pytest.approx(found)


def test_an_image_file_and_its_pixels_give_one_answer(onward: Onward, trained: Path, photos: Path) -> None:
    from PIL import Image

    file = sorted((photos / "d").iterdir())[0]
    done = onward("predict", trained, file, "--json")
    scores = plain(trained, np.asarray(Image.open(file))[None, None])
    assert json.loads(done.out)[0]["class"] == CLASSES[int(scores.argmax())]


def test_pixels_that_are_scaled_already_are_refused(
    onward: Onward, trained: Path, raw_test: data.Dataset, tmp_path: Path
) -> None:
    np.save(tmp_path / "scaled.npy", raw_test.inputs["image"].astype(np.float32) / 255)
    done = onward("predict", trained, tmp_path / "scaled.npy")
    assert done.code == 2
    assert "pixels of 0 … 255" in done.err


def test_the_bare_network_says_so_and_predicts_the_same(
    onward: Onward, photos: Path, trained: Path, raw_test: data.Dataset, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.onnx"
    done = onward(
        *("train", "lenet5", "--data", f"images:{photos}", "--image-size", 8, "--channels", 1),
        *("--epochs", 10, "--lr", 0.004, "--split", "0.7,0,0.3", "--output", bare, "--no-preparation"),
    )
    assert done.code == 0, done.err
    assert "takes input: float32[N, 1, 8, 8]" in done.out
    assert "the graph is the bare network" in done.out
    np.save(tmp_path / "images.npy", raw_test.inputs["image"])
    answers = []
    for path in (bare, trained):
        assert (
            onward("predict", path, tmp_path / "images.npy", "--output", tmp_path / "a.npz", "--json").code
            == 0
        )
        answers.append(np.load(tmp_path / "a.npz")["output"])
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-4, atol=1e-4)
    assert onward("evaluate", bare, "--json").out.replace(str(bare), "") == onward(
        "evaluate", trained, "--json"
    ).out.replace(str(trained), "")


@pytest.mark.parametrize("twice", [False, True])
def test_training_a_prepared_file_further_prepares_once(
    onward: Onward, trained: Path, photos: Path, raw_test: data.Dataset, tmp_path: Path, twice: bool
) -> None:
    further = tmp_path / "further.onnx"
    options = ("--image-size", 8, "--channels", 1, "--epochs", 1, "--lr", 1e-9, "--split", "0.7,0,0.3")
    done = onward("train", trained, "--data", f"images:{photos}", *options, "--output", further)
    assert done.code == 0, done.err
    if twice:
        again = tmp_path / "again.onnx"
        done = onward("train", further, "--data", f"images:{photos}", *options, "--output", again)
        assert done.code == 0, done.err
        further = again
    images = raw_test.inputs["image"]
    np.testing.assert_allclose(plain(further, images), plain(trained, images), rtol=1e-3, atol=1e-3)
    operators = [node.op_type for node in onnx.load(further).graph.node]
    assert operators == [node.op_type for node in onnx.load(trained).graph.node]
    before, after = (read_provenance(load(path)) for path in (trained, further))
    assert before is not None
    assert after is not None
    assert before.preparation == after.preparation


def test_a_prepared_file_trains_in_python_on_raw_pixels(trained: Path, raw_test: data.Dataset) -> None:
    from onward.train import Trainer

    trainer = Trainer(str(trained), "cross_entropy", "sgd", metrics=["accuracy"])
    assert not any(name.startswith("preparation/") for name in trainer.trainable)
    assert trainer.evaluate(raw_test)["accuracy"] == accuracy(
        plain(trained, raw_test.inputs["image"]), raw_test
    )
    assert verify.compare_training(load(trained), steps=2).passed


def test_a_changed_file_is_refused(onward: Onward, trained: Path, photos: Path, tmp_path: Path) -> None:
    content = onnx.load(trained)
    for node in content.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = "renamed" if name == "preparation/input" else name
    onnx.save(content, tmp_path / "changed.onnx")
    done = onward("train", tmp_path / "changed.onnx", "--data", f"images:{photos}", "--image-size", 8)
    assert done.code == 2
    assert "another tool has changed the file" in done.err


def test_files_whose_preparation_is_in_the_metadata_alone_predict_right(
    onward: Onward, photos: Path, tmp_path: Path
) -> None:
    """What Onward 0.1 wrote: a network that takes normalised pixels of 0 … 1."""
    network = nn.zoo.lenet5(10, image_size=8, seed=3)
    found = data.load_image_folder(photos, 8, channels=1)
    normalization = data.Normalization.fit(found)
    path = tmp_path / "old.onnx"
    model = network.model
    provenance = Provenance(
        data_hash=f"sha256:{found.digest()}",
        created=__import__("datetime").datetime.now(__import__("datetime").UTC),
        configuration={
            "data": {"spec": f"images:{photos}", "image_size": 8, "channels": 1},
            "task": "classification",
        },
        normalisation=normalization.to_json(),
        class_names=tuple(CLASSES),
    )
    write_provenance(model, provenance)
    save(model, path)
    expected = plain(path, normalization.apply(found.inputs["image"]))
    np.save(tmp_path / "x.npy", found.inputs["image"])
    done = onward("predict", path, tmp_path / "x.npy", "--output", tmp_path / "a.npz")
    assert done.code == 0, done.err
    np.testing.assert_allclose(np.load(tmp_path / "a.npz")["output"], expected, rtol=1e-4, atol=1e-5)
    measured = onward("evaluate", path, "--part", "all", "--json")
    assert measured.err == ""
    assert json.loads(measured.out)["accuracy"] == pytest.approx(accuracy(expected, found))
    # trained further, its normalisation goes into the graph, behind the division of bytes
    further = tmp_path / "further.onnx"
    done = onward(
        *("train", path, "--data", f"images:{photos}", "--image-size", 8, "--channels", 1),
        *("--epochs", 1, "--lr", 1e-9, "--output", further),
    )
    assert done.code == 0, done.err
    raw = data.load_image_folder(photos, 8, channels=1, raw=True).inputs["image"]
    np.testing.assert_allclose(plain(further, raw), expected, rtol=1e-3, atol=1e-3)


def test_classes_of_other_data_are_matched_by_name(
    onward: Onward, trained: Path, photos: Path, tmp_path: Path
) -> None:
    """A folder without some of the classes numbers the others anew."""
    for name in "bdj":
        (tmp_path / "some" / name).mkdir(parents=True)
        for file in sorted((photos / name).iterdir())[:10]:
            (tmp_path / "some" / name / file.name).write_bytes(file.read_bytes())
    done = onward("evaluate", trained, "--data", f"images:{tmp_path / 'some'}", "--part", "all", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["accuracy"] > 0.9


def test_tables_take_the_numbers_of_the_file(onward: Onward, iris: Path) -> None:
    flowers = data.load_iris()
    test = data.split(flowers, (0.6, 0.2, 0.2), seed=0).test
    assert test is not None
    found = json.loads(onward("evaluate", iris, "--json").out)["accuracy"]
    assert accuracy(plain(iris, test.inputs["features"]), test) == pytest.approx(found)


def test_texts_say_what_the_graph_takes(onward: Onward, reviews: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    done = onward(
        *("train", "textcnn", "--data", f"text:{reviews}", "--tokens", 8, "--epochs", 1, "--output", path),
        *("-o", "embedding_size=8", "-o", "filters=4"),
    )
    assert done.code == 0, done.err
    assert "the graph takes token numbers" in done.out
    provenance = read_provenance(load(path))
    assert provenance is not None
    assert provenance.preparation is not None
    assert "token numbers" in provenance.preparation["text"]["note"]
    assert provenance.preparation["text"]["tokens"] == 8


def test_files_are_read_as_texts_and_never_taken_for_one(
    onward: Onward, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.onnx"
    with reviews.open(encoding="utf-8") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    training = tmp_path / "reviews.tsv"
    training.write_text("verdict\treview\n" + "".join(f"{label}\t{text}\n" for text, label in rows))
    done = onward(
        *("train", "textcnn", "--data", f"text:{training}", "--tokens", 8, "--epochs", 1, "--output", path),
        *("-o", "embedding_size=8", "-o", "filters=4"),
    )
    assert done.code == 0, done.err

    def answers(*arguments: object) -> list[dict[str, object]]:
        found = onward("predict", path, *arguments, "--json")
        assert found.code == 0, found.err
        return [{k: v for k, v in row.items() if k != "input"} for row in json.loads(found.out)]

    texts = [text for text, _ in rows[:5]]
    expected = answers(*texts)
    assert len({json.dumps(answer) for answer in expected}) > 1
    (tmp_path / "a.tsv").write_text("review\n" + "".join(f"{text}\n" for text in texts))
    (tmp_path / "a.csv").write_text("n;review\n" + "".join(f"1;{text}\n" for text in texts), "utf-16")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"review": text}) + "\n" for text in texts))
    (tmp_path / "a.txt").write_text("\n\n".join(texts), "utf-8-sig")
    for name in ("a.tsv", "a.csv", "a.jsonl", "a.txt"):
        assert answers(tmp_path / name) == expected, name
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(b"")
    for argument, says in (
        ("absent.csv", "absent.csv: cannot be read"),
        ("photo.png", "photo.png: the model takes .csv,"),
        ("text.onnx", "text.onnx: the model takes .csv,"),
        (" ", "the text is empty"),
    ):
        done = onward("predict", path, argument)
        assert done.code == 2, argument
        assert says in done.err
    assert len(answers("what is in absent.csv")) == 1
