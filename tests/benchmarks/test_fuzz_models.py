"""A few files of every kind of the fuzz run, and what it would say of a fault."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from benchmarks import fuzz_models
from benchmarks.fuzz_models import KINDS, judge, random_graph

from onward.errors import OnwardError
from onward.model import from_bytes


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


_NNSMITH = """
< ir_version: 7, opset_import: ["" : 14] >
seed_14 (float v8, float v5) => (float[1] v6, float[5] v1, float v0)
< float w = {3.2400755882263184} >
{
    a = Div (v8, w)
    b = Sub (v5, a)
    c = Constant <value: tensor = int64[1] {1}> ()
    d = Shape (c)
    ones = ConstantOfShape <value: tensor = int64[1] {1}> (d)
    e = Constant <value: tensor = int64 {-1}> ()
    f = Mul (ones, e)
    g = Equal (c, f)
    h = Where (g, ones, c)
    i = Expand (b, h)
    v6 = Sub (i, v8)
    v1 = Concat <axis: int = 0> (i, i, i, i, i)
    v0 = Max (b, b)
}
"""
"""NNSmith's graph of seed 14, without its casts; its shapes are computed, as torch exports them."""


def _written(folder: Path, **outputs: list[float]) -> Path:
    """The graph with its inputs and what torch makes of them, as `nnsmith_graphs` writes them."""
    (folder / "14.onnx").write_bytes(onnx.parser.parse_model(_NNSMITH).SerializeToString())
    arrays = {f"out.{name}": np.array(x, np.float32) for name, x in outputs.items()}
    np.savez(folder / "14.npz", **{"in.v8": np.float32(1.62003779), "in.v5": np.float32(2)}, **arrays)
    return folder


def test_a_graph_of_nnsmith_is_replayed_forward_and_backward(tmp_path: Path) -> None:
    found = judge("nnsmith", 14, None, _written(tmp_path, v6=[-0.12003779], v1=[1.5] * 5))
    assert found == ("ran and compared", "")


def test_what_onnxruntime_does_not_run_is_compared_with_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_models, "_by_onnxruntime", lambda data, feeds: None)
    folder = _written(tmp_path, v6=[-0.12003779], v1=[1.5, 1.5, 1.5, 1.5, 1.6])
    result, wrong = judge("nnsmith", 14, None, folder)
    assert result == "ran, onnxruntime does not"
    assert wrong.startswith("torch and interpreter, 'v1': 0.1 apart")


def test_a_node_that_departs_is_told_from_rounding() -> None:
    text = """
    < ir_version: 10, opset_import: ["" : 21] >
    g (float[2] x) => (float[2] y) { a = Mul (x, x)  y = Floor (a) }
    """
    data = onnx.parser.parse_model(text).SerializeToString()
    theirs = {"a": np.array([1, 4], np.float32), "y": np.array([1, 4], np.float32)}

    def shown(changed: dict[str, np.ndarray]) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fuzz_models, "_by_onnxruntime", lambda data, feeds: theirs | changed)
            return fuzz_models._departs(data, {"x": np.array([1, 2], np.float32)})

    below = np.array([1, np.nextafter(np.float32(4), np.float32(0))], np.float32)
    assert shown({"a": below, "y": np.array([1, 3], np.float32)}) == ""  # a step that rounding crossed
    assert shown({"y": np.array([1, 3], np.float32)}) == ""  # what the reference sees as we do
    with pytest.MonkeyPatch.context() as patch:
        from onward.ops.floor import Floor

        patch.setattr(Floor, "kernel", lambda self, X: X - 1)
        assert "operator Floor" in shown({})


def test_gradients_are_those_of_onnx_ad() -> None:
    pytest.importorskip("onnx_ad")
    found = [fuzz_models.judge(fuzz_models.ADJOINT, number) for number in range(5)]
    assert not [wrong for _, wrong in found if wrong]
    assert ("compared with onnx-ad", "") in found


def test_about_half_of_the_files_with_changed_bytes_still_load() -> None:
    loaded = 0
    for number in range(60):
        with contextlib.suppress(OnwardError):
            from_bytes(fuzz_models.changed_bytes(np.random.default_rng([0, number])))
            loaded += 1
    assert 20 <= loaded <= 45
