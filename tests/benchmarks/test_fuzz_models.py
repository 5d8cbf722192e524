"""A few files of every kind of the fuzz run, and what it would say of a fault."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from benchmarks import fuzz_models
from benchmarks.fuzz_models import KINDS, judge, random_graph


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_nobody_wrote(kind: str) -> None:
    classes = set()
    for number in range(12):
        result, wrong = judge(kind, number)
        assert not wrong, f"{kind} {number}: {result}: {wrong}"
        classes.add(result)
    assert "ran and compared" in classes


def test_random_graphs_are_sound_and_reproducible() -> None:
    for number in range(40):
        first, second = (random_graph(np.random.default_rng(number)) for _ in range(2))
        assert first.SerializeToString() == second.SerializeToString()
        onnx.checker.check_model(first, full_check=True)


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from onward.ops.tanh import Tanh

    monkeypatch.setattr(Tanh, "gradient", lambda self, g, dy, y, x: (g.Mul(dy, 0.5),))
    found = [fuzz_models._backward(number) for number in range(60)]
    assert any("central differences" in wrong for wrong in found)


def test_a_process_that_ends_is_charged_to_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    found = fuzz_models.run_batch([("bytes", 1), ("bytes", 2)])
    assert [(number, result) for _, number, result, _ in found] == [(1, "process lost"), (2, "process lost")]
