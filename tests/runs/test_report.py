"""The page about a trained model: its curves are right, and it stands alone."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import _run

pytest.importorskip("sklearn")

from sklearn.calibration import calibration_curve as sklearn_calibration
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc

from onward import runs
from onward.errors import DataError, StorageError
from onward.runs import report
from onward.train import History

VOID = {"meta", "img", "br", "line", "polyline", "circle"}


class Page(HTMLParser):
    """Checks that elements are closed, and collects what they refer to and say."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.3
    return np.round(np.clip(truth * 0.3 + rng.random(300) * 0.7, 0, 1), 2), truth


def test_curves_are_those_of_scikit_learn(scores: tuple[np.ndarray, np.ndarray]) -> None:
    values, truth = scores
    x, y, area = report.roc_curve(values, truth)
    theirs = sklearn_roc(truth, values, drop_intermediate=False)
    np.testing.assert_allclose(x, theirs[0])
    np.testing.assert_allclose(y, theirs[1])
    assert area == pytest.approx(roc_auc_score(truth, values))
    recall, precision, average = report.precision_recall_curve(values, truth)
    their_precision, their_recall, _ = precision_recall_curve(truth, values)
    np.testing.assert_allclose(recall[1:], their_recall[-2::-1])
    np.testing.assert_allclose(precision[1:], their_precision[-2::-1])
    assert average == pytest.approx(average_precision_score(truth, values))
    continuous = np.random.default_rng(1).random(300)  # none on the border of two bins
    mean, share, _ = report.calibration_curve(continuous, truth)
    np.testing.assert_allclose((share, mean), sklearn_calibration(truth, continuous, n_bins=10))
    exact = report.calibration_curve(np.array([0.05, 0.95, 0.95]), np.array([False, True, False]))
    np.testing.assert_allclose(exact[0], [0.05, 0.95])
    np.testing.assert_allclose(exact[1], [0.0, 0.5])
    assert exact[2] == pytest.approx(0.05 / 3 + 0.45 * 2 / 3)


def test_one_kind_alone_has_no_area() -> None:
    assert np.isnan(report.roc_curve(np.array([0.1, 0.2]), np.array([True, True]))[2])
    assert np.isnan(report.precision_recall_curve(np.array([0.1]), np.array([False]))[2])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("lenet5", "--data", "digits"), ["Confusion matrix", "Wrong answers", "ROC", "Epoch by epoch"]),
        (("mlp", "--data", "breast_cancer"), ["Confusion matrix", "malignant", "calibration"]),
        (("mlp", "--data", "diabetes"), ["Answers against targets", "rmse"]),
    ],
)
def test_a_run_has_a_page_that_stands_alone(
    arguments: tuple[str, ...], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run("train", *arguments, "--epochs", 2).code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    done = _run("report", folder)
    assert done.code == 0, done.err
    assert "no curves" not in done.out
    page = Page((folder / "report.html").read_text("utf-8"))
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    words = " ".join(page.words)
    for text in expected:
        assert text in words
    assert _run("report", folder).code == 2
    assert _run("report", folder, "--overwrite").code == 0


def test_names_cannot_break_out_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["a,target"] + [f"{i},{'<script>alert(1)</script>' if i % 2 else 'b'}" for i in range(60)]
    Path("table.csv").write_text("\n".join(lines))
    assert _run("train", "mlp", "--data", "csv:table.csv", "--epochs", 1, "--output", "m.onnx").code == 0
    done = _run("report", "m.onnx", "--output", "page.html")
    assert "no curves of the run" in done.out
    text = Path("page.html").read_text("utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_what_is_no_history_is_refused(tmp_path: Path) -> None:
    for text in ("epoch,loss\n1,x\n", "a,b\n1,2\n"):
        path = tmp_path / "history.csv"
        path.write_text(text)
        with pytest.raises(DataError, match="not the history of a run"):
            report.read_history(path)


def test_a_result_plots_its_curves_and_its_answers(tmp_path: Path) -> None:
    config = runs.RunConfig(
        model={"name": "mlp"}, data={"spec": "iris"}, epochs=3, output=tmp_path / "iris.onnx", seed=1
    )
    result = runs.execute(config)
    chart = result.plot()
    page = Page(chart._repr_html_())
    words = " ".join(page.words)
    for text in ("val_loss", "Confusion matrix", "ROC", "calibration", "Wrong answers", "versicolor"):
        assert text in words
    assert len(repr(chart)) < 100
    saved = Page(result.history.plot().save(tmp_path / "history.html").read_text("utf-8"))
    assert {"loss: ", "accuracy: "} & {word + " " for word in saved.words}
    with pytest.raises(StorageError, match=r"nowhere.*cannot be written"):
        chart.save(tmp_path / "nowhere" / "page.html")


def test_a_cancelled_run_plots_its_curves_alone(tmp_path: Path) -> None:
    token = runs.CancelToken()

    def stop(event: object) -> None:
        if isinstance(event, runs.EpochEnded):
            token.cancel()

    config = runs.RunConfig(model={"name": "mlp"}, data={"spec": "iris"}, output=tmp_path / "iris.onnx")
    result = runs.execute(config, events=stop, cancel=token)
    assert result.finished.output is None
    words = " ".join(Page(result.plot()._repr_html_()).words)
    assert "val_loss" in words
    assert "Confusion" not in words


def test_a_figure_that_only_validation_has_is_drawn() -> None:
    chart = History.of([{"epoch": 1, "val_loss": 0.5}, {"epoch": 2, "val_loss": 0.25}]).plot()
    assert "val_loss" in " ".join(Page(chart._repr_html_()).words)
