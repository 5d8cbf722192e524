"""Trained files that people use; `ONWARD_MODELS` names the folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onward.model import from_bytes, inspect_model, load, save, to_bytes, trainable_initializers, upgrade

FOLDER = os.environ.get("ONWARD_MODELS", "")
FILES = sorted(Path(FOLDER).glob("*.onnx")) if FOLDER else []
SIZES = {
    "p2o.DynamicDimension.0": 1,
    "?": 48,
    "p2o.DynamicDimension.1": 64,
    "s6": 1,
    "N": 1,
}

pytestmark = pytest.mark.skipif(not FILES, reason="ONWARD_MODELS names no folder of .onnx files")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def sizes(path: Path) -> dict[str, int]:
    return {**SIZES, **({"None": 512} if path.stem == "silero_vad" else {})}


def feeds_work(path: Path) -> bool:
    """silero_vad takes a sampling rate among its inputs, which random numbers do not give."""
    return path.stem != "silero_vad"


def test_outputs_survive_load_upgrade_and_save(
    path: Path, tmp_path: Path, run_ort: Callable[..., list[np.ndarray]]
) -> None:
    model = load(path)
    converted = upgrade(model)
    assert converted.opset_imports[""] == 21
    save(converted, tmp_path / "out.onnx")
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    assert to_bytes(load(tmp_path / "out.onnx")) == to_bytes(from_bytes(to_bytes(converted)))
    before = onnx.load(path)
    assert [value.name for value in converted.graph.inputs] == [value.name for value in before.graph.input]
    assert [value.name for value in converted.graph.outputs] == [value.name for value in before.graph.output]
    if feeds_work(path):
        old = run_ort(path.read_bytes(), sizes(path))
        # onnxruntime's AveragePool of opset 19 rounds otherwise than that of opset 11; nothing else differs.
        rounding = 1e-6 if path.stem == "ppocrv4_rec" else 0.0
        for stage, tolerance in ((to_bytes(model), 0.0), (to_bytes(converted), rounding)):
            for expected, found in zip(old, run_ort(stage, sizes(path)), strict=True):
                np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_weights_are_found(path: Path) -> None:
    model = load(path)
    names = trainable_initializers(model)
    report = inspect_model(model)
    total = sum(model.graph.initializers[name].const_value.size for name in names)
    assert names
    if "int8" not in path.stem:
        assert total > 0.9 * report.parameters


def test_silero_runs_with_its_sampling_rate() -> None:
    found = [path for path in FILES if path.stem == "silero_vad"]
    if not found:
        pytest.skip("the folder has no silero_vad.onnx")
    import onnxruntime

    rng = np.random.default_rng(0)
    feeds = {
        "input": rng.standard_normal((1, 576)).astype(np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000),
    }
    outputs = []
    for data in (found[0].read_bytes(), to_bytes(upgrade(load(found[0])))):
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, feeds))
    for expected, result in zip(*outputs, strict=True):
        np.testing.assert_allclose(expected, result, rtol=0, atol=1e-6)
