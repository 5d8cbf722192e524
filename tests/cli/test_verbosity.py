"""`-q` leaves results alone, `-v` says more; both on every command."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import Onward


@pytest.mark.parametrize(
    "command",
    [
        *("new", "train", "tune", "evaluate", "predict", "report", "export", "convert", "verify", "inspect"),
        *("doctor", "version", "serve"),
        *(f"client {name}" for name in ("predict", "metadata", "ready", "statistics", "repository", "load")),
        *("client unload", "client train start", "client train watch", "client train list"),
    ],
)
def test_every_command_has_both(onward: Onward, command: str) -> None:
    shown = onward(*command.split(), "--help").out
    assert "--quiet" in shown
    assert "--verbose" in shown


def test_a_quiet_run_shows_its_figures_and_its_file(onward: Onward, tmp_path: Path) -> None:
    run = ("train", "mlp", "--data", "iris", "--epochs", 2, "--output")
    quiet = onward(*run, tmp_path / "q.onnx", "-q")
    assert quiet.code == 0, quiet.err
    assert "epoch" not in quiet.out
    assert "data:" not in quiet.out
    assert "accuracy" in quiet.out
    assert "q.onnx: written" in quiet.out
    assert quiet.err == ""
    usual, verbose = onward(*run, tmp_path / "u.onnx"), onward(*run, tmp_path / "v.onnx", "--verbose")
    assert "epoch 2/2" in usual.out
    assert "step " not in usual.out
    assert "step 1  loss" in verbose.out
    assert "took" in verbose.err
    assert (tmp_path / "q.onnx").read_bytes()[:100] == (tmp_path / "v.onnx").read_bytes()[:100]


def test_notes_are_no_results(onward: Onward, tmp_path: Path, iris: Path) -> None:
    (tmp_path / "shop.csv").write_text("age,bought\n" + "\n".join(f"{i},{i % 2}" for i in range(60)))
    run = ("train", "mlp", "--data", tmp_path / "shop.csv", "--epochs", 1, "--output")
    assert "note: " in onward(*run, tmp_path / "a.onnx").err
    done = onward(*run, tmp_path / "b.onnx", "-q")
    assert (done.code, done.err) == (0, "")
    sample = "5.1,3.5,1.4,0.2"
    both = onward("predict", iris, sample, "-q", "-v")
    assert both.code == 2
    assert "exclude each other" in both.err
    assert onward("predict", iris, sample, "-q").out == onward("predict", iris, sample).out
