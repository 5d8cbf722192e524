"""What `onward train` makes of targets, heads, repeated rows and files that are there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.cli.conftest import Onward

from onward import nn
from onward.model import load, read_provenance, save


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"npz:{path}"


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(90, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("targets", "options", "says"),
    [
        ("classes", (), "task: multi-class, 3 classes; loss: cross_entropy; metrics: accuracy"),
        ("two", (), "task: binary, 2 classes; loss: cross_entropy; metrics: accuracy"),
        (
            "two",
            ("--loss", "binary_cross_entropy"),
            "task: binary, 2 classes; loss: binary_cross_entropy; metrics: accuracy",
        ),
        ("numbers", (), "task: regression, 2 values; loss: mse; metrics: mae"),
        (
            "labels",
            (),
            "task: multi-label, 3 labels; loss: binary_cross_entropy; metrics: accuracy, f1",
        ),
        ("onehot", (), "task: one-hot, 3 classes; loss: cross_entropy; metrics: accuracy"),
        (
            "onehot",
            ("--loss", "mse"),
            "task: one-hot, 3 classes; loss: mse; metrics: accuracy",
        ),
    ],
)
def test_the_task_is_said_and_has_fitting_figures(
    onward: Onward, features: np.ndarray, tmp_path: Path, targets: str, options: tuple[str, ...], says: str
) -> None:
    y = {
        "classes": np.digitize(features[:, 0], [-0.5, 0.5]),
        "two": (features[:, 0] > 0).astype(np.int64),
        "numbers": features[:, :2] * 3 + 1,
        "labels": (features[:, :3] > 0).astype(np.int64),
        "onehot": np.eye(3, dtype=np.int64)[np.digitize(features[:, 0], [-0.5, 0.5])],
    }[targets]
    done = onward(
        *("train", "mlp", "--data", npz(tmp_path / "d.npz", x=features, y=y), "--epochs", 100, "--lr", 0.01),
        *("-o", "hidden=[16]", "--output", tmp_path / "m.onnx", *options),
    )
    assert done.code == 0, done.err
    assert says in done.out
    found = json.loads(onward("evaluate", tmp_path / "m.onnx", "--part", "train", "--json").out)
    if targets == "numbers":
        assert found["r2"] > 0.8
        assert "accuracy" not in found
    else:
        assert found["accuracy"] > 0.9
        assert "r2" not in found


@pytest.mark.parametrize("metric", ["r2", "mae", "rmse"])
def test_errors_of_numbers_are_no_metrics_of_classes(
    onward: Onward, features: np.ndarray, tmp_path: Path, metric: str
) -> None:
    spec = npz(tmp_path / "d.npz", x=features, y=(features[:, :3] > 0).astype(np.int64))
    done = onward("train", "mlp", "--data", spec, "--metrics", metric, "--output", tmp_path / "m.onnx")
    assert done.code == 2
    assert f"metric {metric!r} is for numbers, the targets are labels" in done.err


@pytest.mark.parametrize("last", [True, False])
def test_sequence_labels(onward: Onward, tmp_path: Path, last: bool) -> None:
    tokens = np.random.default_rng(0).integers(0, 9, (80, 6))
    layers = [nn.Embedding(9, 8), nn.Dense(3), *([] if last else [nn.Transpose((0, 2, 1))])]
    network = nn.Sequential(layers, input_shape=(6,), input_dtype="int64", name="tagger")
    save(network.model, tmp_path / "tagger.onnx")
    spec = npz(tmp_path / "d.npz", x=tokens, y=tokens % 3)
    done = onward(
        *("train", tmp_path / "tagger.onnx", "--data", spec, "--epochs", 40, "--lr", 0.05),
        *("--output", tmp_path / "m.onnx"),
    )
    assert done.code == 0, done.err
    where = ", on the last axis" if last else ""
    assert f"task: sequence labels, 3 classes{where}; loss: cross_entropy; metrics: accuracy" in done.out
    assert json.loads(onward("evaluate", tmp_path / "m.onnx", "--json").out)["accuracy"] == 1
    np.save(tmp_path / "q.npy", tokens[:2])
    rows = json.loads(onward("predict", tmp_path / "m.onnx", tmp_path / "q.npy", "--json").out)
    assert [[int(c) for c in row["classes"]] for row in rows] == (tokens[:2] % 3).tolist()


def test_labels_that_do_not_count(onward: Onward, features: np.ndarray, tmp_path: Path) -> None:
    labels = np.digitize(features[:, 0], [-0.5, 0.5])
    ignored = np.arange(90) % 3 == 0
    # the labels of these rows are wrong, and must neither be learned nor be measured
    spec = npz(tmp_path / "d.npz", x=features, y=np.where(ignored, -1, labels))
    config = tmp_path / "run.toml"
    config.write_text('model = "mlp"\nepochs = 100\n[loss]\nignore_index = -1\nclass_weights = "balanced"\n')
    done = onward(
        *("train", "--config", config, "--data", spec, "--lr", 0.01, "-o", "hidden=[16]"),
        *("--output", tmp_path / "m.onnx"),
    )
    assert done.code == 0, done.err
    assert "task: multi-class, 3 classes" in done.out
    found = json.loads(onward("evaluate", tmp_path / "m.onnx", "--part", "all", "--json").out)
    assert np.sum(found["confusion_matrix"]) == 60
    assert found["accuracy"] > 0.9


def test_inputs_without_numbers_are_refused(onward: Onward, iris: Path, tmp_path: Path) -> None:
    spec = npz(tmp_path / "d.npz", x=np.zeros((9, 0), np.float32), y=np.arange(9) % 2)
    done = onward("train", "mlp", "--data", spec, "--output", tmp_path / "m.onnx")
    assert done.code == 2
    assert "there is no number in it" in done.err
    np.save(tmp_path / "none.npy", np.zeros((0, 4), np.float32))
    done = onward("predict", iris, tmp_path / "none.npy")
    assert done.code == 2
    assert "holds no samples" in done.err
    done = onward("inspect", iris, "--plan", "--dim", f"N={10**30}")
    assert done.code == 2
    assert "below 2**63" in done.err


def test_several_outputs(onward: Onward, features: np.ndarray, tmp_path: Path) -> None:
    x = nn.Input((4,), name="x")
    hidden = nn.Dense(8, "relu")(x)
    network = nn.Model(x, {"kind": nn.Dense(3)(hidden), "size": nn.Dense(1)(hidden)}, name="both")
    save(network.model, tmp_path / "both.onnx")
    spec = npz(
        tmp_path / "d.npz",
        x=features,
        y=np.digitize(features[:, 0], [-0.5, 0.5]),
        **{"size.target": features[:, 1:2]},
    )
    done = onward(
        *("train", tmp_path / "both.onnx", "--data", spec, "--epochs", 1, "--output", tmp_path / "m.onnx")
    )
    assert done.code == 0, done.err
    assert (
        "tasks: kind: multi-class, 3 classes, loss cross_entropy; size: regression, 1 value, loss mse"
        in done.out
    )
    common = ("train", tmp_path / "both.onnx", "--data", spec, "--epochs", 1)
    done = onward(*common, "--loss-weight", "size=0", "--output", tmp_path / "alone.onnx")
    assert done.code == 0, done.err
    before, after = (
        {
            name: value.const_value.numpy()
            for name, value in load(tmp_path / f"{file}.onnx").graph.initializers.items()
            if value.const_value is not None and value.const_value.shape == (1, 8)
        }
        for file in ("both", "alone")
    )
    assert len(before) == 1
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name], err_msg="a loss that weighs nothing trains nothing")
    done = onward(*common, "--loss-weight", "sizes=0.5", "--output", tmp_path / "none.onnx")
    assert done.code == 2
    assert "there is a weight for 'sizes', but the losses are for kind, size" in done.err


def test_a_file_with_a_training_step_of_its_own(onward: Onward, features: np.ndarray, tmp_path: Path) -> None:
    from onward.train import Trainer

    first = nn.Sequential([nn.Dense(1)], input_shape=(4,))
    save(Trainer(first, "mse").with_training_info(), tmp_path / "step.onnx")
    done = onward("inspect", tmp_path / "step.onnx")
    assert "1 training step of its own (training_info)" in done.out
    spec = npz(tmp_path / "d.npz", x=features, y=features[:, :1])
    done = onward(
        *("train", tmp_path / "step.onnx", "--data", spec, "--epochs", 1, "--output", tmp_path / "m.onnx")
    )
    assert done.code == 0, done.err
    assert "brings a training step of its own (training_info): its loss, optimizer" in done.err + done.out
    assert "of its own" not in onward("inspect", tmp_path / "m.onnx").out


def test_a_head_is_replaced_where_classes_differ(onward: Onward, iris: Path, tmp_path: Path) -> None:
    file = tmp_path / "others.csv"
    from onward.data import load_iris

    flowers = load_iris()
    rows = [
        f"{','.join(map(str, x))},{'high' if x[2] > 4 else 'low'}"
        for x in flowers.inputs["features"].tolist()
    ]
    file.write_text("\n".join([",".join(flowers.columns or ()) + ",kind", *rows]))
    common = ("train", iris, "--data", f"csv:{file}", "--target", "kind", "--epochs", 1)
    done = onward(*common, "--output", tmp_path / "a.onnx")
    assert done.code == 0, done.err
    assert "head: dense_2.weight had 3 outputs, now 2 new ones (the data are binary, 2 classes" in done.out
    provenance = read_provenance(load(tmp_path / "a.onnx"))
    assert provenance is not None
    assert provenance.class_names == ("high", "low")
    # stable by seed
    onward(*common, "--output", tmp_path / "b.onnx")
    weights = [
        load(tmp_path / name).graph.initializers["dense_2.weight"].const_value
        for name in ("a.onnx", "b.onnx")
    ]
    assert weights[0] is not None
    assert weights[1] is not None
    np.testing.assert_array_equal(weights[0].numpy(), weights[1].numpy())
    assert onward("train", "mlp", "--data", "iris", "--head", 3).code == 2


def test_numbers_alone_keep_the_head_and_say_so(onward: Onward, features: np.ndarray, tmp_path: Path) -> None:
    save(nn.zoo.mlp(10, input_shape=(4,)).model, tmp_path / "ten.onnx")
    spec = npz(tmp_path / "d.npz", x=features, y=np.digitize(features[:, 0], [-0.5, 0.5]))
    common = ("train", tmp_path / "ten.onnx", "--data", spec, "--epochs", 1)
    done = onward(*common, "--output", tmp_path / "kept.onnx")
    assert done.code == 0, done.err
    assert "warning: head: the labels 0 … 2 are taken as 3 of the model's 10 classes" in done.err
    assert "--head 3 puts a new last layer on it" in done.err
    assert load(tmp_path / "kept.onnx").graph.outputs[0].shape[1] == 10  # type: ignore[index]
    assert onward(*common, "--head", 3, "--output", tmp_path / "new.onnx").code == 0
    assert load(tmp_path / "new.onnx").graph.outputs[0].shape[1] == 3  # type: ignore[index]


def test_a_model_without_a_head_gets_one_and_says_so(onward: Onward, tmp_path: Path) -> None:
    network = nn.Sequential([nn.Dense(5), nn.Tanh()], input_shape=(4,), name="odd")
    save(network.model, tmp_path / "odd.onnx")
    done = onward("train", tmp_path / "odd.onnx", "--data", "iris", "--output", tmp_path / "m.onnx")
    assert done.code == 0, done.err
    assert "head: 3 new outputs of the 5 that the file gives (the data are multi-class" in done.out
    assert load(tmp_path / "m.onnx").graph.outputs[0].shape[1] == 3  # type: ignore[index]


def test_repeated_texts_are_kept_and_counted(onward: Onward, tmp_path: Path) -> None:
    rows = [f"a {word} film {i % 8},{int(word == 'good')}" for i in range(120) for word in ("good", "bad")]
    (tmp_path / "r.csv").write_text("\n".join(["text,label", *rows]))
    common = ("train", "textcnn", "--data", f"text:{tmp_path / 'r.csv'}", "--epochs", 1)
    small = ("-o", "embedding_size=4", "-o", "filters=2", "--tokens", 5, "--split", "0.5,0,0.5")
    done = onward(*common, *small, "--output", tmp_path / "a.onnx")
    assert done.code == 0, done.err
    assert "224 of 240 rows repeat the text and label of an earlier row; all are kept" in done.err
    assert "120 training + 120 test samples" in done.out
    done = onward(*common, *small, "--drop-duplicates", "--output", tmp_path / "b.onnx")
    assert done.code == 0, done.err
    assert "224 of 240 rows repeat the text and label of an earlier row and were left out" in done.err
    assert "8 training + 8 test samples" in done.out


@pytest.mark.parametrize("tokenizer", ["words", "bpe", "wordpiece"])
def test_tokenizers_travel_in_the_model(onward: Onward, tmp_path: Path, tokenizer: str) -> None:
    if tokenizer != "words":
        pytest.importorskip("tokenizers")
    good, bad = ("我喜欢这部电影", "很好看", "真精彩"), ("太无聊了", "我讨厌它", "很难看")
    rows = [
        f"{text}{i},{label}" for i in range(20) for label, texts in ((1, good), (0, bad)) for text in texts
    ]
    (tmp_path / "r.csv").write_text("\n".join(["text,label", *rows]), "utf-8")
    path = tmp_path / "m.onnx"
    done = onward(
        *("train", "textcnn", "--data", f"text:{tmp_path / 'r.csv'}", "--tokens", 24, "--epochs", 12),
        *("--tokenizer", tokenizer, "--vocabulary-size", 400, "--output", path, "--lr", 0.02),
        *("-o", "embedding_size=16", "-o", "filters=8"),
    )
    assert done.code == 0, done.err
    (tmp_path / "r.csv").unlink()
    said = json.loads(onward("predict", path, "我喜欢这部电影!", "太无聊了!", "--json").out)
    assert [row["class"] for row in said] == ["1", "0"]


def test_a_file_that_is_there_is_not_overwritten(onward: Onward, tmp_path: Path) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(b"precious")
    common = ("train", "mlp", "--data", "iris", "--epochs", 1, "-o", "hidden=[4]", "--output", path)
    done = onward(*common)
    assert done.code == 2
    assert done.err == f"error: {path} is there already: choose another --output, or say --overwrite\n"
    assert path.read_bytes() == b"precious"
    assert onward(*common, "--overwrite").code == 0
    assert load(path).graph.name == "mlp"


def test_every_run_has_a_folder_of_its_own(
    onward: Onward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for spec in ("iris", "wine", "iris"):
        done = onward("train", "mlp", "--data", spec, "--epochs", 1, "-o", "hidden=[4]")
        assert done.code == 0, done.err
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders == ["iris-mlp-1", "iris-mlp-2", "wine-mlp-1"]
    assert all((tmp_path / "runs" / name / "model.onnx").exists() for name in folders)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("hidden=128", "option 'hidden': a list is needed, such as hidden=[128]; got 128"),
        ("hidden=[1.5]", "item 0: input should be a valid integer"),
        ("hidden=wide", "a list is needed"),
        ("activation=3", "option 'activation': input should be a valid string; got 3"),
        ("activation=sharp", "unknown activation 'sharp'"),
        ("num_classes=2.5", "option 'num_classes'"),
        ("seed=true", "option 'seed'"),
        ("hidden=2020-01-01", "a list is needed"),
        ("hidden=[100000000000000]", "not enough memory"),
        ("hidden=[9999999999999999999999]", "units must be below 2**63"),
    ],
)
def test_options_of_networks_are_checked_by_type(
    onward: Onward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = onward("train", "mlp", "--data", "iris", "-o", option)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1
    assert says in done.err


def test_version_option(onward: Onward) -> None:
    import onward as package

    assert onward("--version").out == f"onward {package.__version__}\n"


def test_a_file_says_what_images_it_takes(onward: Onward, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 255, (20, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{i}.png")
    photos, first = f"images:{tmp_path / 'photos'}", tmp_path / "first.onnx"
    options = ("--epochs", 1, "--batch-size", 8)
    made = onward(
        "train", "lenet5", "--data", photos, "--image-size", 28, "--channels", 1, "--output", first, *options
    )
    assert made.code == 0, made.err
    tuned = onward("train", first, "--data", photos, "--output", tmp_path / "tuned.onnx", *options)
    assert tuned.code == 0, tuned.err
    assert "uint8 [N, 1, 28, 28]" in tuned.out
    bare = tmp_path / "bare.onnx"
    assert onward("train", first, "--data", photos, "--no-preparation", "--output", bare, *options).code == 0
    model = onnx.load(bare)
    del model.metadata_props[:]
    onnx.save(model, bare)
    done = onward("evaluate", bare, "--data", photos, "--part", "all", "--json")
    assert done.code == 0, done.err
