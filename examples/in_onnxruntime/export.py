r"""Writes a training step that any onnxruntime can do, and data for it: train.py and train.cjs take them.

    python examples/in_onnxruntime/export.py build/in_onnxruntime
    python examples/in_onnxruntime/train.py build/in_onnxruntime      # onnxruntime and NumPy, nothing else
    cd build/in_onnxruntime && npm install onnxruntime-node           # or onnxruntime-web
    NODE_PATH=build/in_onnxruntime/node_modules node examples/in_onnxruntime/train.cjs build/in_onnxruntime \
        onnxruntime-node

`step.onnx` holds forward pass, loss, gradients and Adam in standard operators; `state.onnx` gives the weights
and moments that training begins with. `step.json` is the step's metadata `onward.training_step`, for runtimes
that do not show metadata: what inputs and outputs are called.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from onward import data, nn, train
from onward.model import save


def main(folder: Path) -> None:
    """Write step.onnx, state.onnx, step.json, images.bin (float32) and labels.bin (int64) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = data.load_digits()
    network = nn.Sequential(
        [nn.Conv2D(8, 3, padding="same", activation="relu"), nn.MaxPool2D(4), nn.Flatten(), nn.Dense(10)],
        input_shape=(1, 28, 28),
    )
    trainer = train.Trainer(network, optimizer=train.Adam(), seed=1)
    model = trainer.training_model(start=False)
    save(model, folder / "step.onnx")
    save(trainer.state_model(), folder / "state.onnx")
    (folder / "step.json").write_text(model.metadata_props["onward.training_step"], "utf-8")
    images, labels = next(iter(digits.inputs.values())), digits.targets
    assert labels is not None
    images.astype(np.float32).tofile(folder / "images.bin")
    labels.astype(np.int64).tofile(folder / "labels.bin")
    print(f"{folder}: a step of {len(list(model.graph)):,} nodes, {len(labels):,} images")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/in_onnxruntime"))
