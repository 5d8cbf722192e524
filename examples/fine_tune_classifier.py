"""Gives a trained image classifier a new head for other classes, and checks the new file in onnxruntime.

    python examples/fine_tune_classifier.py --models FOLDER --data FOLDER [--training N] [--test N]

The folder of models has efficientnet_lite0_exported.onnx (ImageNet, batch normalization folded into its
convolutions; images [N, 3, 224, 224]), that of data fashion_mnist/ in MNIST's format, which is made RGB of
224 x 224. The layers that stay are run once; what follows them is a small model, trained on what they give:
first the head alone, then the last block with it, so that the first steps of a random head do not spoil the
rest (Kumar et al. 2022).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onward import Session, export, train
from onward.data import load_idx_folder
from onward.model import load
from onward.passes import find_head, new_head

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
LAST_BLOCK = "/_blocks.15/"
"""How the names of its nodes begin."""


def images(data: Path, training: int, test: int) -> list[tuple[Array, Labels]]:
    """Images [N, 3, 224, 224] of -1 to 1 and labels of both parts."""
    parts = load_idx_folder(data / "fashion_mnist", image_size=224, channels=3, limit=max(training, test))
    found = []
    for part, count in zip(parts, (training, test), strict=True):
        assert part is not None
        assert part.targets is not None
        found.append((2 * part.inputs["image"][:count] - 1, part.targets[:count]))
    return found


def divided(model: ir.Model) -> tuple[ir.Model, ir.Model]:
    """The layers up to the last block, and a model of that block and what follows it, with the same names."""
    body, tail = model.clone(), model.clone()
    places = [next(n for n in each.graph if (n.name or "").startswith(LAST_BLOCK)) for each in (body, tail)]
    found, replaced = (node.inputs[0] for node in places)
    assert found is not None
    assert replaced is not None
    body.graph.outputs[:] = [found]
    features = ir.Value(
        name="features", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 192, 7, 7])
    )
    ir.convenience.replace_all_uses_with(replaced, features)
    for node in tail.graph:  # the number of images, which the last Reshape is told
        if node.op_type == "Shape" and node.inputs[0] is tail.graph.inputs[0]:
            node.replace_input_with(0, features)
    tail.graph.inputs[:] = [features]
    RemoveUnusedNodesPass()(tail)
    found.shape = ir.Shape(["N", 192, 7, 7])
    return body, tail


def run(model: ir.Model, x: Array) -> Array:
    """The first output for images, twenty at a time."""
    with Session(model) as session:
        (taken,), given = session.inputs, session.outputs[0]
        return np.concatenate(
            [session.run({taken.name: x[i : i + 20]})[given.name] for i in range(0, len(x), 20)]
        )


def fine_tune(
    file: Path, training: tuple[Array, Labels], test: tuple[Array, Labels], output: Path, epochs: int = 10
) -> dict[str, float]:
    """Train a new head, then the last block with it; accuracies on the test, and what the file computes."""
    model = new_head(load(file), 10)[0]
    head = find_head(model)
    body, tail = divided(model)
    features, held = run(body, training[0]), run(body, test[0])
    stages = ((1e-3, [name for name in (head.weight, head.bias) if name is not None]), (1e-4, None))
    accuracies = []
    for learning_rate, trainable in stages:
        trainer = train.Trainer(
            tail,
            optimizer=train.Adam(learning_rate),
            schedule=train.Cosine(),
            trainable=trainable,
            metrics=["accuracy"],
        )
        trainer.fit(features, training[1], epochs=epochs, batch_size=32)
        accuracies.append(float(trainer.evaluate(held, test[1])["accuracy"]))
        tail = trainer.model
    for name, value in tail.graph.initializers.items():
        if name in trainer.trainable:
            model.graph.initializers[name].const_value = value.const_value
    ours, taken = run(model, test[0]), model.graph.inputs[0].name or ""
    export(model, output, inputs={taken: test[0][:4]})
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(output), options, providers=["CPUExecutionProvider"])
    parts = np.split(test[0], range(20, len(test[0]), 20))
    theirs = np.concatenate([session.run(None, {taken: x})[0] for x in parts])
    return {
        "with the head alone": accuracies[0],
        "with the last block": accuracies[1],
        "the whole file": float((ours.argmax(1) == test[1]).mean()),
        "in onnxruntime": float((theirs.argmax(1) == test[1]).mean()),
        "outputs apart": float(np.abs(ours - theirs).max()),
    }


def main() -> None:
    """Print accuracies on images that training never saw, and in onnxruntime."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, required=True, help="has efficientnet_lite0_exported.onnx")
    parser.add_argument("--data", type=Path, required=True, help="has fashion_mnist/")
    parser.add_argument("--training", type=int, default=4000, help="images to train on")
    parser.add_argument("--test", type=int, default=1000, help="images to test on")
    parser.add_argument("--epochs", type=int, default=10, help="of the head, and again with the last block")
    parser.add_argument("--output", type=Path, default=Path("efficientnet_fashion.onnx"))
    options = parser.parse_args()
    began = time.perf_counter(), time.process_time()
    training, test = images(options.data, options.training, options.test)
    file = options.models / "efficientnet_lite0_exported.onnx"
    found = fine_tune(file, training, test, options.output, options.epochs)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    print(
        f"{options.output}: {figures}; {time.perf_counter() - began[0]:.0f} s, "
        f"of processors {time.process_time() - began[1]:.0f} s"
    )


if __name__ == "__main__":
    main()
