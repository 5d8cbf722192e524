"""Trains what export.py wrote with onnxruntime and NumPy alone; see there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

BATCH, EPOCHS, RATE, HELD = 32, 3, 0.003, 297


def main(folder: Path) -> None:
    """Train, and print the loss of each epoch and the accuracy on images that were held back."""
    about = json.loads((folder / "step.json").read_text("utf-8"))
    labels = np.fromfile(folder / "labels.bin", np.int64)
    images = np.fromfile(folder / "images.bin", np.float32).reshape(len(labels), 1, 28, 28)
    providers = ["CPUExecutionProvider"]
    start = onnxruntime.InferenceSession(folder / "state.onnx", providers=providers)
    state = dict(zip([v.name for v in start.get_outputs()], start.run(None, {}), strict=True))
    session = onnxruntime.InferenceSession(folder / "step.onnx", providers=providers)
    names = [output.name for output in session.get_outputs()]
    (scores, target), (image,) = next(iter(about["targets"].items())), about["inputs"]

    def run(rows: slice, step: int) -> dict[str, np.ndarray]:
        feeds = {
            image: images[rows],
            target: labels[rows],
            about["learning_rate"]: np.array(RATE, np.float32),
            about["step"]: np.array(step, np.int64),
        }
        return dict(zip(names, session.run(names, {**feeds, **state}), strict=True))

    step, count = 0, len(labels) - HELD
    for epoch in range(1, EPOCHS + 1):
        losses = []
        for start in range(0, count, BATCH):
            results = run(slice(start, min(start + BATCH, count)), step)
            # the outputs of one step are the state of the next
            state = {name: results[output] for name, output in about["bindings"].items()}
            losses.append(float(results[about["loss"]]))
            step += 1
        print(f"epoch {epoch} loss {np.mean(losses):.4f}")
    answers = run(slice(count, len(labels)), step)[scores].argmax(axis=1)
    print(f"accuracy {(answers == labels[count:]).mean():.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/in_onnxruntime"))
