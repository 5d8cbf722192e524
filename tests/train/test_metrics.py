from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from onward.errors import ConfigError, DataError
from onward.train.metrics import (
    R2,
    Accuracy,
    ClassScore,
    ConfusionMatrix,
    Metric,
    RegressionError,
    TopK,
    available_metrics,
    create_metric,
)

CLASSES = 7
RNG = np.random.default_rng(0)
TARGETS = RNG.integers(0, CLASSES - 1, 203)  # class 6 never occurs
SCORES = RNG.normal(size=(203, CLASSES)).astype(np.float32)
SCORES[np.arange(203), TARGETS] += 1
SCORES[:, 5] -= 50  # class 5 is never predicted
PREDICTED = SCORES.argmax(axis=1)
LABELS = np.arange(CLASSES)


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order_of_tests() -> None:
    RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state


def stream(metric: Metric, outputs: np.ndarray, targets: np.ndarray, size: int = 40) -> Metric:
    for start in range(0, len(targets), size):
        metric.update(outputs[start : start + size], targets[start : start + size])
    return metric


@pytest.mark.parametrize("measure", ["precision", "recall", "f1"])
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "none"])
def test_class_scores_agree_with_scikit_learn(measure: str, average: str) -> None:
    theirs = getattr(sklearn_metrics, f"{measure}_score")(
        TARGETS, PREDICTED, labels=LABELS, average=None if average == "none" else average, zero_division=0
    )
    ours = stream(ClassScore(measure, average), SCORES, TARGETS).result()  # type: ignore[arg-type]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert isinstance(ours, np.ndarray if average == "none" else float)


def test_accuracy_and_confusion_matrix_agree_with_scikit_learn() -> None:
    accuracy = stream(Accuracy(), SCORES, TARGETS).result()
    assert accuracy == sklearn_metrics.accuracy_score(TARGETS, PREDICTED)
    matrix = stream(ConfusionMatrix(), SCORES, TARGETS).result()
    np.testing.assert_array_equal(matrix, sklearn_metrics.confusion_matrix(TARGETS, PREDICTED, labels=LABELS))
    assert matrix.dtype == np.int64  # type: ignore[union-attr]


@pytest.mark.parametrize("k", [1, 2, 3, 7, 9])
def test_top_k_agrees_with_scikit_learn(k: int) -> None:
    expected = (
        1.0 if k >= CLASSES else sklearn_metrics.top_k_accuracy_score(TARGETS, SCORES, k=k, labels=LABELS)
    )
    assert stream(TopK(k), SCORES, TARGETS).result() == pytest.approx(expected, rel=1e-12)


def test_top_1_is_accuracy_also_with_equal_scores() -> None:
    scores = RNG.integers(0, 3, (300, 5)).astype(np.float32)
    targets = RNG.integers(0, 5, 300)
    assert stream(TopK(1), scores, targets).result() == stream(Accuracy(), scores, targets).result()


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("measure", ["precision", "recall", "f1"])
def test_one_score_a_sample_means_two_classes(shape: tuple[int, ...], measure: str) -> None:
    logits = RNG.normal(size=150).astype(np.float32)
    targets = (logits + RNG.normal(size=150) > 0.5).astype(np.float32).reshape(shape)
    predicted = (logits > 0).astype(int)
    ours = stream(create_metric(f"{measure}_binary"), logits.reshape(shape), targets)
    theirs = getattr(sklearn_metrics, f"{measure}_score")(targets.ravel(), predicted)
    assert ours.result() == pytest.approx(theirs, rel=1e-12)
    probabilities = 1 / (1 + np.exp(-logits))
    from_probabilities = stream(create_metric(f"{measure}_binary", threshold=0.5), probabilities, targets)
    assert from_probabilities.result() == ours.result()
    accuracy = stream(Accuracy(), logits, targets).result()
    assert accuracy == sklearn_metrics.accuracy_score(targets.ravel(), predicted)
    macro = stream(create_metric(measure), logits, targets).result()
    two_columns = np.stack([np.zeros_like(logits), logits], axis=1)
    assert stream(create_metric(measure), two_columns, targets).result() == macro


def test_scores_per_pixel_with_an_ignored_class() -> None:
    scores = RNG.normal(size=(6, 4, 5, 3)).astype(np.float32)
    targets = RNG.integers(0, 4, (6, 5, 3))
    targets[RNG.random(targets.shape) < 0.3] = -100
    kept = targets != -100
    predicted = scores.argmax(axis=1)[kept]
    for name, theirs in [
        ("accuracy", sklearn_metrics.accuracy_score(targets[kept], predicted)),
        ("f1", sklearn_metrics.f1_score(targets[kept], predicted, average="macro")),
        ("top1", sklearn_metrics.accuracy_score(targets[kept], predicted)),
    ]:
        metric = stream(create_metric(name, ignore_index=-100), scores, targets, size=2)
        assert metric.result() == pytest.approx(theirs, rel=1e-12)
    with pytest.raises(DataError, match="target -100"):
        Accuracy().update(scores, targets)


@pytest.mark.parametrize("shape", [(203,), (203, 1), (203, 3)])
def test_regression_agrees_with_scikit_learn(shape: tuple[int, ...]) -> None:
    targets = RNG.normal(1000, 3, shape)
    outputs = targets + RNG.normal(0, 1, shape)
    for name, theirs in [
        ("mae", sklearn_metrics.mean_absolute_error),
        ("mse", sklearn_metrics.mean_squared_error),
        ("r2", sklearn_metrics.r2_score),
    ]:
        result = stream(create_metric(name), outputs, targets).result()
        assert result == pytest.approx(theirs(targets, outputs), rel=1e-11)
    mse = stream(create_metric("mse"), outputs, targets).result()
    assert stream(create_metric("rmse"), outputs, targets).result() == pytest.approx(np.sqrt(mse), rel=1e-15)


def test_regression_never_broadcasts_a_column_against_a_row() -> None:
    outputs, targets = np.array([[1.0], [2], [4]]), np.array([1.0, 2, 3])
    for name, expected in [("mae", 1 / 3), ("mse", 1 / 3), ("r2", 0.5)]:
        metric = create_metric(name)
        metric.update(outputs, targets)
        assert metric.result() == pytest.approx(expected, rel=1e-15)
        with pytest.raises(DataError, match=r"\[3, 2\], targets \[3\]"):
            metric.update(np.ones((3, 2)), targets)
        with pytest.raises(DataError, match="targets"):
            metric.update(np.ones((2, 1)), targets)
        with pytest.raises(DataError, match="scalars"):
            metric.update(1.0, 2.0)


def test_r2_keeps_its_digits_far_from_zero() -> None:
    targets = 1e8 + RNG.normal(size=1000)
    outputs = targets + 0.1 * RNG.normal(size=1000)
    result = stream(R2(), outputs, targets, size=7).result()
    assert result == pytest.approx(sklearn_metrics.r2_score(targets - 1e8, outputs - 1e8), rel=1e-6)


def test_r2_of_equal_targets() -> None:
    constant = np.full(30, 0.1)
    assert stream(R2(), constant, constant, size=7).result() == 1
    assert stream(R2(), constant + 1, constant, size=7).result() == 0
    with pytest.raises(DataError, match="2 target columns after batches of 1"):
        stream(R2(), constant, constant).update(np.ones((3, 2)), np.ones((3, 2)))


@pytest.mark.parametrize("name", available_metrics())
def test_batches_reset_and_state(name: str) -> None:
    regression = name in ("mae", "mse", "rmse", "r2")
    if regression:
        targets = RNG.normal(size=90)
        outputs = targets + RNG.normal(size=90)
    else:
        classes = 2 if name.endswith("binary") else 8
        outputs, targets = RNG.normal(size=(90, classes)), RNG.integers(0, classes, 90)
    metric = create_metric(name)
    assert metric.name == name
    whole = stream(create_metric(name), outputs, targets, size=90).result()
    np.testing.assert_allclose(stream(metric, outputs, targets, size=11).result(), whole, rtol=1e-12)
    first = stream(create_metric(name), outputs[:44], targets[:44], size=11)
    resumed = create_metric(name)
    resumed.load_state({key: np.array(array) for key, array in first.state().items()})
    stream(first, outputs[44:], targets[44:], size=11)
    stream(resumed, outputs[44:], targets[44:], size=11)
    assert np.asarray(resumed.result()).tobytes() == np.asarray(metric.result()).tobytes()
    state = metric.state()
    for array in state.values():
        assert isinstance(array, np.ndarray)
    metric.reset()
    assert not np.array_equal(np.asarray(metric.result()), np.asarray(whole))
    stream(metric, outputs, targets, size=11)
    assert np.asarray(metric.result()).tobytes() == np.asarray(first.result()).tobytes()


def test_nothing_seen() -> None:
    for name in ("accuracy", "top5", "precision", "recall_weighted", "f1_micro", "f1_binary"):
        assert create_metric(name).result() == 0
    assert np.asarray(create_metric("f1_per_class").result()).shape == (0,)
    for name in ("mae", "mse", "rmse", "r2"):
        assert np.isnan(create_metric(name).result())
    ignored = Accuracy(ignore_index=0)
    ignored.update(np.ones((3, 2)), np.zeros(3, int))
    assert ignored.result() == 0


def test_nan_scores_are_wrong_and_nan_predictions_show() -> None:
    scores = np.array([[0.0, 1.0], [np.nan, 5.0], [2.0, np.nan]])
    targets = np.array([1, 1, 0])
    for metric in (Accuracy(), TopK(1), TopK(2)):
        metric.update(scores, targets)
        assert metric.result() == pytest.approx(1 / 3)
    matrix = ConfusionMatrix()
    matrix.update(scores, targets)
    assert matrix.result().tolist() == [[0, 0], [0, 1]]
    recall = ClassScore("recall", "none")
    recall.update(scores, targets)
    assert np.asarray(recall.result()).tolist() == [0, 0.5]
    binary = Accuracy()
    binary.update(np.array([np.nan, -1.0]), np.array([0, 0]))
    assert binary.result() == 0.5
    mae = RegressionError("mae")
    mae.update([np.nan, 1.0], [1.0, 1.0])
    assert np.isnan(mae.result())


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (np.ones((2, 3)), [0, 3], "target 3 at position 1 is out of range; there are 3 classes"),
        (np.ones((2, 3)), [-1, 0], "target -1 at position 0"),
        (np.ones(2), [0, 2], "there are 2 classes"),
        (np.ones((2, 3)), [0.0, 0.5], "fractions"),
        (np.ones((2, 3)), [0.0, np.nan], "NaN"),
        (np.ones((2, 3)), ["a", "b"], "class numbers, not"),
        (np.ones((2, 3)), [0, 1, 2], r"shape \[3\], outputs \[2, 3\] need \[2\]"),
        (np.ones((2, 3)), np.zeros((2, 3), int), "targets have shape"),
        (np.ones((2, 0)), [0, 0], "must be scores"),
        (np.array(["a"]), [0], "must be scores"),
        (1.0, 0, "must be scores"),
    ],
)
@pytest.mark.parametrize("name", ["accuracy", "top2", "f1", "confusion_matrix"])
def test_bad_batches_are_refused_and_change_nothing(
    name: str, outputs: np.ndarray, targets: object, message: str
) -> None:
    metric = create_metric(name)
    before = metric.state()
    if name == "top2" and np.shape(outputs) == (2,):
        message = "there are 2 classes"
    with pytest.raises(DataError, match=message):
        metric.update(outputs, targets)  # type: ignore[arg-type]
    assert {k: v.tolist() for k, v in metric.state().items()} == {k: v.tolist() for k, v in before.items()}


def test_a_metric_keeps_its_number_of_classes() -> None:
    metric = Accuracy()
    metric.update(np.ones((2, 3)), [0, 1])
    with pytest.raises(DataError, match="4 classes after batches of 3"):
        metric.update(np.ones((2, 4)), [0, 1])
    with pytest.raises(DataError, match="3 classes, it is for 2"):
        create_metric("f1_binary").update(np.ones((2, 3)), [0, 1])
    with pytest.raises(DataError, match="no ranking"):
        create_metric("top2").update(np.ones(2), [0, 1])


def test_unknown_names_and_options() -> None:
    for name in ("acc", "top0", "top", "f1_", "f1_micro_", "f1_macro", "F1", ""):
        with pytest.raises(ConfigError, match="unknown; there are accuracy, top5"):
            create_metric(name)
    with pytest.raises(ConfigError, match="does not take"):
        create_metric("mae", ignore_index=3)
    with pytest.raises(ConfigError, match="k must be"):
        TopK(0)
    with pytest.raises(ConfigError, match="measure"):
        ClassScore("fscore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="average"):
        ClassScore("f1", "samples")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="deviation"):
        RegressionError("mape")  # type: ignore[arg-type]
    assert create_metric("top17").name == "top17"
