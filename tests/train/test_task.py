from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from onward import nn, train
from onward.data import Dataset
from onward.errors import ConfigError, DataError
from onward.graph import Dim
from onward.train.task import metric_of

RNG = np.random.default_rng(3)
X = RNG.normal(size=(40, 4)).astype(np.float32)
CLASSES = RNG.integers(0, 3, 40)
TAGS = RNG.integers(0, 3, (40, 6))
LABELS = RNG.integers(0, 2, (40, 5))


def dataset(targets: np.ndarray, task: str = "classification") -> Dataset:
    return Dataset({"x": X}, targets, task=task)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("targets", "output", "expected"),
    [
        (CLASSES, None, ("multi-class", 3, 1)),
        (CLASSES, ("N", 3), ("multi-class", 3, 1)),
        (CLASSES[:, None], ("N", 3), ("multi-class", 3, 1)),
        (CLASSES > 0, None, ("binary", 2, 1)),
        (CLASSES > 0, ("N", 1), ("binary", 2, 1)),
        (LABELS, None, ("multi-label", 5, 1)),
        (LABELS, ("N", 5), ("multi-label", 5, 1)),
        (np.eye(3, dtype=int)[CLASSES], ("N", 3), ("one-hot", 3, 1)),
        (TAGS, ("N", 6, 3), ("sequence labels", 3, -1)),
        (TAGS, ("N", "T", 3), ("sequence labels", 3, -1)),
        (TAGS, ("N", 3, 6), ("sequence labels", 3, 1)),
        (TAGS, ("N", 4, 6), ("sequence labels", 4, 1)),
        (LABELS, ("N", 5, 2), ("sequence labels", 2, -1)),
        (TAGS.reshape(40, 2, 3), ("N", 7, 2, 3), ("dense labels", 7, 1)),
    ],
)
def test_tasks(targets: np.ndarray, output: tuple[Dim, ...] | None, expected: tuple[object, ...]) -> None:
    task = train.infer_task(dataset(targets), output)
    assert (task.kind, task.count, task.axis) == expected


def test_numbers_are_regression() -> None:
    task = train.infer_task(dataset(RNG.normal(size=(40, 2)), "regression"), ("N", 2))
    assert (task.kind, task.count, task.loss) == ("regression", 2, "mse")


@pytest.mark.parametrize(
    ("targets", "output"),
    [(TAGS, ("N", 6)), (TAGS, None), (TAGS, ("N", 2, 6)), (TAGS, ("N", 5, 3)), (CLASSES, ("N", 6, 3))],
)
def test_targets_that_fit_no_output_are_refused(targets: np.ndarray, output: tuple[Dim, ...] | None) -> None:
    with pytest.raises(ConfigError):
        train.infer_task(dataset(targets), output)


def test_figures_of_labels_are_scikit_learns() -> None:
    scores = RNG.normal(size=(40, 5))
    found = {}
    for name in ("accuracy", "subset_accuracy", *(f"{m}{a}" for m in ("precision", "recall", "f1")
                 for a in ("", "_micro", "_weighted", "_per_class"))):  # fmt: skip
        metric = metric_of(train.Task("multi-label", 5), name)
        for part in (slice(0, 7), slice(7, 40)):
            metric.update(scores[part], LABELS[part])
        other = metric_of(train.Task("multi-label", 5), name)
        other.load_state(metric.state())
        np.testing.assert_array_equal(other.result(), metric.result())
        found[name] = metric.result()
    predicted = (scores > 0).astype(int)
    assert found["accuracy"] == pytest.approx((predicted == LABELS).mean())
    assert found["subset_accuracy"] == pytest.approx(reference.accuracy_score(LABELS, predicted))
    for measure in ("precision", "recall", "f1"):
        score = getattr(reference, f"{measure}_score")
        for average, suffix in (
            ("macro", ""),
            ("micro", "_micro"),
            ("weighted", "_weighted"),
            (None, "_per_class"),
        ):
            expected = score(LABELS, predicted, average=average, zero_division=0)
            np.testing.assert_allclose(found[measure + suffix], expected, rtol=1e-12)


def test_scores_that_are_nan_are_wrong_and_other_targets_refused() -> None:
    metric = train.LabelScore("accuracy")
    metric.update(np.array([[np.nan, 1.0], [np.nan, -1.0]]), np.array([[1, 1], [0, 1]]))
    assert metric.result() == 0.25
    with pytest.raises(DataError, match="0 or 1"):
        metric.update(np.zeros((1, 2)), np.array([[2, 0]]))
    with pytest.raises(DataError, match="shape"):
        metric.update(np.zeros((1, 2)), np.array([1]))


@pytest.mark.parametrize("ends", ["logits", "sigmoid"])
def test_accuracy_of_labels_knows_logits_from_probabilities(ends: str) -> None:
    layers = [nn.Dense(5), *([nn.Sigmoid()] if ends == "sigmoid" else [])]
    network = nn.Sequential(layers, input_shape=(4,))
    trainer = train.Trainer(network, "binary_cross_entropy", metrics=["accuracy", "subset_accuracy"])
    found = trainer.evaluate(dataset(LABELS))
    outputs = next(iter(trainer.predict(X).values()))
    right = (outputs > (0.5 if ends == "sigmoid" else 0)) == LABELS
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["subset_accuracy"] == pytest.approx(right.all(axis=1).mean())


def test_one_hot_rows_with_squares() -> None:
    trainer = train.Trainer(
        nn.Sequential([nn.Dense(3)], input_shape=(4,)), "mse", metrics=["accuracy", "mae"]
    )
    found = trainer.evaluate((X, np.eye(3)[CLASSES]))
    outputs = next(iter(trainer.predict(X).values()))
    assert found["accuracy"] == pytest.approx((outputs.argmax(axis=1) == CLASSES).mean())
    assert found["mae"] == pytest.approx(np.abs(outputs - np.eye(3)[CLASSES]).mean(), rel=1e-5)
    with pytest.raises(ConfigError, match="each row 0 but for one place"):
        trainer.evaluate((X, np.ones((40, 3))))


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_r2_of_classes_is_refused(loss: str) -> None:
    with pytest.raises(ConfigError, match="metric 'r2' is for numbers"):
        train.Trainer(nn.Sequential([nn.Dense(3)], input_shape=(4,)), loss, metrics=["r2"])


@pytest.mark.parametrize("softmax", [False, True])
def test_classes_on_the_last_axis_train_as_on_the_first(softmax: bool) -> None:
    """A network that gives [N, T, C] and one that gives [N, C, T] are the same but for the axis."""
    found = Dataset({"x": RNG.integers(0, 9, (40, 6))}, TAGS)

    def losses(last: bool) -> list[float]:
        layers: list[nn.Layer] = [nn.Embedding(9, 4), nn.Dense(3)]
        layers += [] if last else [nn.Transpose((0, 2, 1))]
        layers += [nn.Softmax(-1 if last else 1)] if softmax else []
        network = nn.Sequential(layers, input_shape=(6,), input_dtype="int64")
        loss = train.CrossEntropy(axis=-1 if last else 1, label_smoothing=0.1, class_weights=(1.0, 2.0, 3.0))
        trainer = train.Trainer(network, loss, train.SGD(learning_rate=0.5), metrics=["accuracy", "f1"])
        history = trainer.fit(found, epochs=3, progress=False)
        return [row[name] for row in history.rows for name in ("loss", "accuracy", "f1")]

    np.testing.assert_allclose(losses(True), losses(False), rtol=1e-5)


def test_an_axis_is_1_or_the_last() -> None:
    with pytest.raises(ConfigError, match="axis"):
        train.CrossEntropy(axis=2)


@pytest.mark.parametrize(
    ("loss", "targets", "tags", "says"),
    [
        ("cross_entropy", TAGS, True, r"the classes are on the last axis: CrossEntropy\(axis=-1\)"),
        ("mse", TAGS, True, r"CrossEntropy\(axis=-1\)"),
        ("cross_entropy", np.eye(3, dtype=int)[CLASSES], False, "they are one-hot rows"),
        ("cross_entropy", LABELS[:, :3], False, "choose binary_cross_entropy"),
        ("binary_cross_entropy", CLASSES, False, "choose cross_entropy"),
        ("binary_cross_entropy", LABELS, False, r"needs targets target: float32\[N, 3\]"),
    ],
)
def test_a_loss_that_does_not_fit_says_what_would(
    loss: str, targets: np.ndarray, tags: bool, says: str
) -> None:
    if tags:
        layers = [nn.Embedding(9, 4), nn.Dense(3)]
        network = nn.Sequential(layers, input_shape=(6,), input_dtype="int64")
        found = Dataset({"x": RNG.integers(0, 9, (40, 6))}, targets)
    else:
        network, found = nn.Sequential([nn.Dense(3)], input_shape=(4,)), dataset(targets)
    with pytest.raises(ConfigError, match=says):
        train.Trainer(network, loss).fit(found, epochs=1, progress=False)
