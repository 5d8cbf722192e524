"""One command on tables with the faults that people's have, against scikit-learn.

    python -m benchmarks.tables --seeds 5

For each seed and kind of table: `onward train mlp --data FILE` without a further option, measured on 4,000
rows that nobody saw, with onnxruntime on the cells as they are; HistGradientBoostingClassifier, with its own
handling of what is missing and of categories, and MLPClassifier, on the features that Onward's preparation
gives, on the same rows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks.made_tables import Rows, adult_like, titanic_like, write_csv
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import OrdinalEncoder

from onward import data
from onward.cli import main as onward
from onward.data.dataset import Array
from onward.data.frame import is_missing

SIZES = {"titanic_like": 891, "adult_like": 8000}
UNSEEN = 4000
MOST_LEVELS = 250


def boosting(known: data.Dataset, unseen: data.Dataset) -> float:
    """The accuracy of gradient boosting on columns as they are."""
    columns: list[tuple[Array, Array, bool]] = []
    for name, cells in known.inputs.items():
        others = unseen.inputs[name]
        if cells.dtype.kind == "f":
            columns.append((cells, others, False))
            continue
        plain, new = (
            np.array([["" if is_missing(text) else text] for text in each[:, 0]], dtype=object)
            for each in (cells, others)
        )
        if len(np.unique(plain.astype(str))) > MOST_LEVELS:
            continue
        encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
        columns.append((encoder.fit_transform(plain), encoder.transform(new), True))
    seen, told = (np.concatenate([column[i] for column in columns], axis=1) for i in (0, 1))
    mask = np.array([column[2] for column in columns])
    model = HistGradientBoostingClassifier(random_state=0, categorical_features=mask)
    return float(model.fit(seen, known.targets).score(told, unseen.targets))


def perceptron(known: data.Dataset, unseen: data.Dataset) -> float:
    """The accuracy of scikit-learn's perceptron on Onward's features."""
    preparation = data.Preparation.fit(known)
    seen, told = (preparation.apply(part).inputs["features"] for part in (known, unseen))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(MLPClassifier(random_state=0).fit(seen, known.targets).score(told, unseen.targets))


def ours(folder: Path, unseen: data.Dataset) -> float:
    """The accuracy of the file that one command writes, in onnxruntime on raw cells."""
    import onnxruntime

    from onward.model import load, read_provenance

    model = folder / "model.onnx"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            onward(["train", "mlp", "--data", str(folder / "table.csv"), "--output", str(model)])
        except SystemExit as end:
            if end.code:
                raise
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    kinds = {"tensor(string)": object, "tensor(double)": np.float64}
    feeds = {
        value.name: unseen.inputs[value.name].astype(kinds.get(value.type, np.float32))
        for value in session.get_inputs()
    }
    (scores,) = session.run(["output"], feeds)
    provenance = read_provenance(load(model))
    assert provenance is not None
    assert provenance.class_names == unseen.classes
    return float((scores.argmax(axis=1) == unseen.targets).mean())


def compare(make: Callable[..., Rows], seed: int) -> tuple[float, float, float]:
    """Accuracies on unseen rows: ours, boosting, perceptron."""
    count = SIZES[make.__name__]
    header, rows = make(rows=count + UNSEEN, seed=seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_csv(folder / "whole.csv", (header, rows))
        write_csv(folder / "table.csv", (header, rows[:count]))
        whole = data.load_table(folder / "whole.csv", header[-1])
        known, unseen = whole.take(np.arange(count)), whole.take(np.arange(count, count + UNSEEN))
        return ours(folder, unseen), boosting(known, unseen), perceptron(known, unseen)


def main() -> None:
    """Print a line a seed, and means."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    print(f"{'table':<14}{'seed':>5}{'onward':>9}{'boosting':>10}{'sk MLP':>9}")
    for make in (titanic_like, adult_like):
        found = []
        for seed in range(seeds):
            found.append(compare(make, seed))
            print(f"{make.__name__:<14}{seed:>5}" + "".join(f"{v:>9.4f} " for v in found[-1]), flush=True)
        means = np.mean(found, axis=0)
        print(f"{make.__name__:<14} mean" + "".join(f"{v:>9.4f} " for v in means))


if __name__ == "__main__":
    main()
