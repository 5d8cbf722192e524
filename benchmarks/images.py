"""Image operators in small networks: the compiled engine and onnxruntime in turns, on one thread.

python -m benchmarks.images [--only TEXT] [--rounds N]

Results must agree before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from onward.engine import Session
from onward.graph import Array, Builder

Build = Callable[[Builder, np.random.Generator], ir.Value]


def _input(g: Builder, *shape: int) -> ir.Value:
    return g.input("x", ir.DataType.FLOAT, shape)


def _weights(rng: np.random.Generator, *shape: int) -> Array:
    fan = np.prod(shape[1:])
    return (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


def _conv(
    g: Builder, rng: np.random.Generator, x: ir.Value, inputs: int, outputs: int, rank: int
) -> ir.Value:
    w, b = _weights(rng, outputs, inputs, *(3,) * rank), _weights(rng, outputs)
    return g.Relu(g.Conv(x, g.const(w), g.const(b), pads=[1] * 2 * rank))


def _up(rank: int, size: int, inputs: int, outputs: int, taps: int, stride: int) -> Build:
    def build(g: Builder, rng: np.random.Generator) -> ir.Value:
        x = _input(g, 4, inputs, *(size,) * rank)
        w = g.const(_weights(rng, inputs, outputs, *(taps,) * rank))
        b, pad = g.const(_weights(rng, outputs)), (taps - stride) // 2
        return g.ConvTranspose(x, w, b, strides=[stride] * rank, pads=[pad] * 2 * rank)

    return build


def unet(g: Builder, rng: np.random.Generator, rank: int = 2, size: int = 64, width: int = 16) -> ir.Value:
    """Two levels down by MaxPool and up by ConvTranspose, the levels concatenated."""
    x = _input(g, 2, 3, *(size,) * rank)
    levels, inputs = [], 3
    for depth in range(3):
        outputs = width << depth
        x = _conv(g, rng, _conv(g, rng, x, inputs, outputs, rank), outputs, outputs, rank)
        inputs = outputs
        if depth < 2:
            levels.append(x)
            x = g.MaxPool(x, kernel_shape=[2] * rank, strides=[2] * rank)
    for level in reversed(levels):
        outputs = inputs // 2
        w = g.const(_weights(rng, inputs, outputs, *(2,) * rank))
        x = g.ConvTranspose(x, w, g.const(_weights(rng, outputs)), strides=[2] * rank)
        x = _conv(g, rng, g.Concat(level, x, axis=1), inputs, outputs, rank)
        inputs = outputs
    return g.Conv(x, g.const(_weights(rng, 2, inputs, *(1,) * rank)))


def _resized(mode: str) -> Build:
    """A decoder whose levels are doubled by Resize, each between two convolutions."""

    def build(g: Builder, rng: np.random.Generator) -> ir.Value:
        x = _conv(g, rng, _input(g, 2, 32, 16, 16), 32, 64, 2)
        for inputs, outputs in ((64, 32), (32, 16)):
            scales = np.array([1, 1, 2, 2], np.float32)
            place = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            x = g.Resize(x, None, scales, mode=mode, **(place if mode == "nearest" else {}))
            x = _conv(g, rng, x, inputs, outputs, 2)
        return x

    return build


def _volume(inputs: int, outputs: int, size: int, stride: int) -> Build:
    def build(g: Builder, rng: np.random.Generator) -> ir.Value:
        w = g.const(_weights(rng, outputs, inputs, 3, 3, 3))
        return g.Conv(_input(g, 2, inputs, *(size,) * 3), w, pads=[1] * 6, strides=[stride] * 3)

    return build


def _pooled(kind: str) -> Build:
    def build(g: Builder, rng: np.random.Generator) -> ir.Value:
        x = _input(g, 2, 16, 32, 32, 32)
        return g.emit(kind, x, kernel_shape=[3] * 3, strides=[2] * 3, pads=[1] * 6)[0]

    return build


NETWORKS: dict[str, Build] = {
    "ConvTranspose 2x2 s2 64-32": _up(2, 32, 64, 32, 2, 2),
    "ConvTranspose 4x4 s2 128-64": _up(2, 16, 128, 64, 4, 2),
    "ConvTranspose 3x3 s1 64-64": _up(2, 32, 64, 64, 3, 1),
    "ConvTranspose 1-D 4 s2 64-32": _up(1, 256, 64, 32, 4, 2),
    "unet": unet,
    "unet 3-D": lambda g, rng: unet(g, rng, 3, 24, 8),
    "Conv 3-D 16-32": _volume(16, 32, 24, 1),
    "Conv 3-D 3-32 s2": _volume(3, 32, 32, 2),
    "MaxPool 3-D": _pooled("MaxPool"),
    "AveragePool 3-D": _pooled("AveragePool"),
    "decoder nearest": _resized("nearest"),
    "decoder linear": _resized("linear"),
}


def _model(build: Build) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "ai.onward": 1}, name="network")
    g = Builder(graph)
    g.output(build(g, np.random.default_rng(0)), "y")
    del graph.opset_imports["ai.onward"]
    return ir.Model(graph, ir_version=10)


def _row(name: str, build: Build, rounds: int) -> None:
    model = _model(build)
    ours = Session(model, engine="compiled", threads=1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    text: Any = ir.to_proto(model).SerializeToString()
    theirs = onnxruntime.InferenceSession(text, options, providers=["CPUExecutionProvider"])
    shape = model.graph.inputs[0].shape
    assert shape is not None
    feed = {"x": np.random.default_rng(1).standard_normal(shape.numpy()).astype(np.float32)}
    got, want = ours.run(feed)["y"], np.asarray(theirs.run(["y"], feed)[0])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * float(np.abs(want).max()))
    runs: list[Callable[[], object]] = [lambda: ours.run(feed), lambda: theirs.run(["y"], feed)]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for run, taken in zip(runs, seconds, strict=True):
            start = time.thread_time()
            run()
            taken.append(time.thread_time() - start)
    mine, other = (statistics.median(s) * 1e3 for s in seconds)
    print(f"{name:32} {mine:8.3f} ms {other:8.3f} ms  {mine / other:5.2f}")


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name has this")
    parser.add_argument("--rounds", type=int, default=50)
    given = parser.parse_args()
    print(f"{'processor time, one thread':32} {'ours':>11} {'onnxruntime':>11}  ratio")
    for name, build in NETWORKS.items():
        if given.only in name:
            _row(name, build, given.rounds)


if __name__ == "__main__":
    main()
