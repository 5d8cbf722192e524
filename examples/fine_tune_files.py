"""Fine-tunes two trained files and checks them in onnxruntime: an image classifier that gets a new head, and
an int8 file (QDQ) that is trained through its rounding and exported int8 again.

    python examples/fine_tune_files.py --models FOLDER --data FOLDER [--images N] [--turns N] [--only NAME]

The folder of models has efficientnet_lite0_exported.onnx (ImageNet, batch normalization folded into its
convolutions; images [N, 3, 224, 224]) and smart_turn_v3.2_int8.onnx (whether a speaker has finished; log-mel
features [N, 80, 800]); that of data Fashion-MNIST in MNIST's format, which is made RGB of 224 x 224. For
the second file no public data are small enough: spectrograms of made-up speech, which ends or is cut off, are
drawn.
A few hundred samples are minutes; `--images 5000` is better, and takes longer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from onward import export, train
from onward.data import load_idx_folder

Array = NDArray[np.float32]
_MELS, _FRAMES = 80, 800


def classifier(models: Path, data: Path, count: int, output: Path) -> dict[str, float]:
    """EfficientNet-lite0 with ten new outputs, its other layers as they are; accuracies on test images."""
    parts = load_idx_folder(data / "fashion_mnist", image_size=224, channels=3, limit=count)
    training, test = parts
    assert test is not None
    x, test_x = (2 * part.inputs["image"] - 1 for part in (training, test))
    y, test_y = training.targets, test.targets
    assert y is not None
    assert test_y is not None
    trainer = train.Trainer(
        models / "efficientnet_lite0_exported.onnx",
        optimizer=train.Adam(5e-3),
        head=10,
        trainable=["_fc*"],
        metrics=["accuracy"],
    )
    before = _accuracy(trainer, test_x, test_y)
    trainer.fit(x, y, epochs=6, batch_size=20)
    return {
        "before": before,
        "after": _accuracy(trainer, test_x, test_y),
        **_exported(trainer, output, test_x, lambda scores: scores.argmax(1) == test_y),
    }


def end_of_turn(models: Path, count: int, output: Path) -> dict[str, float]:
    """The int8 file, all layers trained; it stays int8. Accuracies on other made-up speech."""
    x, y = speech(count, seed=0)
    test_x, test_y = speech(count, seed=1)
    trainer = train.Trainer(
        models / "smart_turn_v3.2_int8.onnx", "binary_cross_entropy", train.Adam(5e-5), metrics=["accuracy"]
    )
    before = _accuracy(trainer, test_x, test_y)
    trainer.fit(x, y, epochs=2, batch_size=8)
    found = {
        "before": before,
        "after": _accuracy(trainer, test_x, test_y),
        **_exported(trainer, output, test_x, lambda chances: (chances > 0.5) == (test_y > 0.5)),
    }
    integers = (ir.DataType.INT8, ir.DataType.UINT8)
    found["int8 tensors"] = sum(v.dtype in integers for v in trainer.model.graph.initializers.values())
    return found


def speech(count: int, seed: int) -> tuple[Array, Array]:
    """Log-mel features [N, 80, 800] as Whisper scales them, and 1 where the speaker has finished, [N, 1].

    Syllables are harmonics of a pitch under a formant, 8 to 20 frames long. Who has finished lets the pitch
    fall and is silent for 0.2 to 0.8 seconds; who has not is cut off in a syllable or just behind one.
    """
    rng = np.random.default_rng(seed)
    mels = np.arange(_MELS)[:, None]
    found = np.full((count, _MELS, _FRAMES), -0.6, np.float32)
    finished = np.arange(count) % 2
    for spectrum, done in zip(found, finished, strict=True):
        end = _FRAMES - int(rng.integers(20, 80) if done else rng.integers(0, 12))
        at, pitch = int(rng.integers(0, 400)), rng.uniform(5, 9)
        while at < end:
            length = min(int(rng.integers(8, 20)), end - at)
            falling = 1 - 0.35 * max(0.0, 1 - (end - at) / 80) if done else 1 + 0.1 * rng.standard_normal()
            harmonics = np.cos(2 * np.pi * mels / (pitch * falling)) > 0.2
            formant = np.exp(-(((mels - rng.uniform(10, 50)) / 14) ** 2))
            envelope = np.sin(np.pi * (np.arange(length) + 1) / (length + 1))
            spectrum[:, at : at + length] += 1.6 * (harmonics * formant) * envelope
            at += length + int(rng.integers(0, 6))
        spectrum += 0.05 * rng.standard_normal(spectrum.shape)
    return found, finished[:, None].astype(np.float32)


def _accuracy(trainer: train.Trainer, x: Array, y: NDArray[Any]) -> float:
    return float(trainer.evaluate(x, y)["accuracy"])


def _exported(
    trainer: train.Trainer, output: Path, x: Array, right: Callable[[Array], NDArray[np.bool_]]
) -> dict[str, float]:
    """Write the file, and its accuracy in onnxruntime with the largest difference from ours."""
    export(trainer.model, output, inputs={trainer.inputs[0].name: x[:4]})
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(output), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    theirs = np.concatenate([session.run(None, {name: x[i : i + 16]})[0] for i in range(0, len(x), 16)])
    ours = next(iter(trainer.predict(x).values()))
    return {
        "in onnxruntime": float(right(theirs).mean()),
        "outputs apart": float(np.abs(ours - theirs).max()),
    }


def main() -> None:
    """Print accuracies before and after, and in onnxruntime."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=400, help="to train on, and as many to test on")
    parser.add_argument("--turns", type=int, default=64, help="to train on, and as many to test on")
    parser.add_argument("--only", choices=("efficientnet", "smart_turn"))
    parser.add_argument("--output", type=Path, default=Path(), help="a folder for the files")
    options = parser.parse_args()
    began = time.perf_counter()
    if options.only != "smart_turn":
        output = options.output / "efficientnet_fashion.onnx"
        _print(output, classifier(options.models, options.data, options.images, output), began)
        began = time.perf_counter()
    if options.only != "efficientnet":
        output = options.output / "smart_turn_tuned_int8.onnx"
        _print(output, end_of_turn(options.models, options.turns, output), began)


def _print(output: Path, found: dict[str, float], began: float) -> None:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    print(f"{output}: {figures}; {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
