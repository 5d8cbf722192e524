"""Examples that fine-tune trained files, on a few samples; `ONWARD_MODELS` names the files' folder."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODELS, DATA = (Path(os.environ.get(name, "/nowhere")) for name in ("ONWARD_MODELS", "ONWARD_DATA"))
CLASSIFIER, INT8 = MODELS / "efficientnet_lite0_exported.onnx", MODELS / "smart_turn_v3.2_int8.onnx"

pytestmark = pytest.mark.slow


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not CLASSIFIER.exists(), reason="ONWARD_MODELS names no folder with efficientnet_lite0")
@pytest.mark.skipif(not (DATA / "fashion_mnist").exists(), reason="ONWARD_DATA names no folder of data")
def test_a_classifier_gets_a_new_head(tmp_path: Path) -> None:
    example = _example("fine_tune_classifier")
    training, test = example.images(DATA, 60, 40)
    found = example.fine_tune(CLASSIFIER, training, test, tmp_path / "fashion.onnx")
    assert found["with the last block"] >= 0.6, "one in ten is chance"
    assert found["in onnxruntime"] == found["with the last block"]
    assert found["outputs apart"] < 1e-4


@pytest.mark.skipif(not INT8.exists(), reason="ONWARD_MODELS names no folder with smart_turn")
def test_an_int8_file_is_trained_and_stays_int8(tmp_path: Path) -> None:
    """That it learns is seen on hundreds of samples: `examples/fine_tune_int8.py` says how far."""
    example = _example("fine_tune_int8")
    training, test = example.drawn(8, 0), example.drawn(8, 1)
    found = example.fine_tune(INT8, training, test, tmp_path / "tuned.onnx", 1)
    assert abs(found["in onnxruntime"] - found["after"]) <= 1 / 8, "a sample at the threshold may fall aside"
    assert found["int8 tensors"] == 109


def test_features_are_those_of_whisper() -> None:
    """A tone of 1 kHz, 0.1 s of it: the band around that is the loudest; -8 of it is the floor."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(1600) / 16_000).astype(np.float32)
    found = _example("fine_tune_int8").log_mel(tone)
    assert found.shape == (80, 800)
    assert found.dtype == np.float32
    assert np.allclose(found.max() - found.min(), 2.0)
    assert (found[:, :780] == found.min()).all()
    assert {25, 26} >= {int(found[:, 795].argmax())}
