"""From a folder of WAV files to predictions, in the command line, onnxruntime and a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tests.cli.conftest import Onward
from tests.data.test_audio import write

from onward.data import read_wav


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for name, pitch in (("high", 2000), ("low", 300)):
        (root / name).mkdir()
        for number in range(20):
            rate = (8000, 16000)[number % 2]
            time = np.arange(rate // 4) / rate
            tone = 0.4 * np.sin(2 * np.pi * pitch * rng.uniform(0.9, 1.1) * time)
            noisy = np.clip(tone + 0.02 * rng.standard_normal(len(time)), -1, 1)
            write(root / name / f"{number:02}.wav", noisy, rate, bits=(8, 16, 24)[number % 3])
    return root


def test_sounds_are_trained_on_and_predicted(folder: Path, tmp_path: Path, onward: Onward) -> None:
    model, again = tmp_path / "model.onnx", tmp_path / "again.onnx"
    data = ("--data", f"audio:{folder}", "--seconds", 0.25)
    done = onward("train", "audiocnn", *data, "--epochs", 6, "--output", model)
    assert done.code == 0, done.err
    assert "audio float32 [N, 4000]" in done.out
    sounds = [folder / "high" / "00.wav", folder / "low" / "01.wav"]
    said = onward("predict", model, *sounds).out.splitlines()
    assert [line.split(": ")[1].split()[0] for line in said] == ["high", "low"]
    session = onnxruntime.InferenceSession(model)
    raw = np.stack([read_wav(sound, 16000, 4000) for sound in sounds])
    (scores,) = session.run(None, {session.get_inputs()[0].name: raw})
    np.testing.assert_array_equal(scores.argmax(axis=1), [0, 1])
    assert onward("train", model, *data, "--epochs", 1, "--output", again).code == 0
    measured = json.loads(onward("evaluate", again, "--json").out)
    assert measured["accuracy"] > 0.9


def test_what_is_no_sound_is_refused(folder: Path, tmp_path: Path, onward: Onward) -> None:
    sound = folder / "high" / "00.wav"
    digits = tmp_path / "digits.onnx"
    assert onward("train", "lenet5", "--data", "digits", "--epochs", 1, "--output", digits).code == 0
    done = onward("predict", digits, sound)
    assert done.code != 0
    assert "does not say that it takes sounds" in done.err
    done = onward("train", "audiocnn", "--data", "digits", "--output", tmp_path / "no.onnx")
    assert done.code != 0
    assert "takes spectrograms [N, bands, frames] (audio:FOLDER)" in done.err
