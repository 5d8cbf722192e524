"""Runs the command line inside this process."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from onward.cli import main


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


Onward = Callable[..., Done]


def _run(*arguments: object) -> Done:
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def onward() -> Onward:
    """`onward ARGUMENTS` → exit code, standard output, standard error."""
    return _run


@pytest.fixture(scope="session")
def iris(onward: Onward, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained on iris."""
    pytest.importorskip("sklearn")
    path = tmp_path_factory.mktemp("iris") / "iris.onnx"
    done = onward(
        *("train", "mlp", "--data", "iris", "--epochs", 30, "--lr", 0.02, "--split", "0.6,0.2,0.2"),
        *("-o", "hidden=[16]", "--output", path),
    )
    assert done.code == 0, done.err
    return path


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short texts of two classes that words tell apart."""
    path = tmp_path_factory.mktemp("text") / "reviews.csv"
    rows = ["text,label"]
    for i in range(60):
        good = i % 2 == 0
        words = ("a fine", "great", "lovely") if good else ("a dull", "poor", "boring")
        rows.append(
            f"{words[i % 3]} film number {i} {'really' if i % 5 else 'so'} {words[(i + 1) % 3]},{int(good)}"
        )
    path.write_text("\n".join(rows), "utf-8")
    return path
