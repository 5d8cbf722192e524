"""Gives a trained image classifier a new head for other classes, and checks the new file in onnxruntime.

    python examples/fine_tune_classifier.py --models FOLDER --data FOLDER [--training N] [--test N]

The folder of models has efficientnet_lite0_exported.onnx (ImageNet, batch normalization folded into its
convolutions; images [N, 3, 224, 224]), that of data fashion_mnist/ in MNIST's format, which is made RGB of
224 x 224. First the layers that stay are run once, and a head is trained on what they give; then head and
last block are trained together (Kumar et al. 2022: the head first, so that its first steps do not spoil the
rest).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from onward import Session, export, nn, train
from onward.data import load_idx_folder
from onward.model import load
from onward.passes import find_head, new_head

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
LAST_BLOCK = ("/_blocks.15/", "/_conv_head/")
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


def with_new_head(file: Path, x: Array, y: Labels) -> ir.Model:
    """The file with a head for ten classes, trained on what its other layers give for images."""
    model = new_head(load(file), 10)[0]
    head = find_head(model)
    body = model.clone()
    (layer,) = (n for n in body.graph if any(v is not None and v.name == head.weight for v in n.inputs))
    features = layer.inputs[0]
    assert features is not None
    features.shape = ir.Shape(["N", head.inputs])
    body.graph.outputs[:] = [features]
    with Session(body) as session:
        name = session.inputs[0].name
        parts = np.split(x, range(20, len(x), 20))
        found = np.concatenate([session.run({name: part})[features.name or ""] for part in parts])
    network = nn.Sequential([nn.Dense(10)], input_shape=(head.inputs,))
    probe = train.Trainer(network, optimizer=train.Adam(1e-3))
    probe.fit(found, y, epochs=30, batch_size=32, progress=False)
    for array in probe.weights().values():
        target = head.weight if array.ndim == 2 else head.bias
        assert target is not None
        array = array.T if array.ndim == 2 and head.axis == 1 else array
        model.graph.initializers[target].const_value = ir.tensor(np.ascontiguousarray(array), name=target)
    return model


def fine_tune(
    file: Path, training: tuple[Array, Labels], test: tuple[Array, Labels], output: Path, epochs: int = 1
) -> dict[str, float]:
    """Train a new head, then the last block with it; accuracies on the test, and what the file computes."""
    model = with_new_head(file, *training)
    block = [
        value.name or ""
        for node in model.graph
        if (node.name or "").startswith(LAST_BLOCK)
        for value in node.inputs[1:]
        if value is not None and value.is_initializer() and node.op_type == "Conv"
    ]
    head = find_head(model)
    trainer = train.Trainer(
        model,
        optimizer=train.Adam(1e-4),
        schedule=train.Cosine(),
        trainable=[head.weight, *([] if head.bias is None else [head.bias]), *block],
        metrics=["accuracy"],
    )
    before = float(trainer.evaluate(*test)["accuracy"])
    trainer.fit(*training, epochs=epochs, batch_size=20)
    (ours,) = trainer.predict(test[0]).values()
    export(trainer.model, output, inputs={trainer.inputs[0].name: test[0][:4]})
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(output), options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    parts = np.split(test[0], range(20, len(test[0]), 20))
    theirs = np.concatenate([session.run(None, {taken.name: x})[0] for x in parts])
    return {
        "with the head alone": before,
        "with the last block": float((ours.argmax(1) == test[1]).mean()),
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
    parser.add_argument("--training", type=int, default=2000, help="images to train on")
    parser.add_argument("--test", type=int, default=1000, help="images to test on")
    parser.add_argument("--epochs", type=int, default=1, help="with the last block")
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
