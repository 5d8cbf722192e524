"""A detector, whose shapes depend on data: in parts, by the interpreter, and by onnxruntime, in turns.

python -m benchmarks.detector [SIZE] [THREADS]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onward.engine import Session
from onward.graph import Builder


def detector(size: int) -> ir.Model:
    """A backbone of five convolutions, boxes and scores of four classes, those that are kept, their boxes."""
    rng = np.random.default_rng(0)
    g = Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="detector"))
    y = g.input("image", ir.DataType.FLOAT, ("N", 3, size, size))
    channels = 3
    for i, (wide, stride) in enumerate([(32, 2), (64, 1), (128, 2), (128, 2), (128, 1)]):
        w = (rng.normal(size=(wide, channels, 3, 3)) * np.sqrt(2 / (9 * channels))).astype(np.float32)
        pads = [1, 1, 1, 1]
        y = g.Relu(g.Conv(y, g.initializer(f"w{i}", w), kernel_shape=[3, 3], pads=pads, strides=[stride] * 2))
        channels = wide
    heads = []
    for name, count in (("boxes", 4), ("scores", 4)):
        w = (rng.normal(size=(count, channels, 1, 1)) / np.sqrt(channels)).astype(np.float32)
        maps = g.Conv(y, g.initializer(name, w), kernel_shape=[1, 1])
        heads.append(g.Sigmoid(g.Reshape(maps, g.const([0, count, -1]))))
    boxes = g.Mul(g.Transpose(heads[0], perm=[0, 2, 1]), g.initializer("size", np.full(4, size, np.float32)))
    overlap = g.initializer("overlap", np.array([0.4], np.float32))
    least = g.initializer("least", np.array([0.55], np.float32))
    kept = g.NonMaxSuppression(boxes, heads[1], g.const(20), overlap, least, center_point_box=1)
    g.output(kept, "kept")
    g.output(g.GatherND(boxes, g.Gather(kept, g.const([0, 2]), axis=1)), "picked")
    return ir.Model(g.graph, ir_version=10)


def main(size: int = 320, threads: int = 1, rounds: int = 15) -> None:
    """Print the median and the least milliseconds of each."""
    import onnxruntime

    model = detector(size)
    feed = {"image": np.random.default_rng(1).normal(size=(1, 3, size, size)).astype(np.float32)}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    content = ir.to_proto(model).SerializeToString()
    other = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    ours = Session(model, threads=threads)
    oracle = Session(model, engine="interpreter")
    runs: dict[str, Callable[[], object]] = {
        "interpreter": lambda: oracle.run(feed),
        "in parts": lambda: ours.run(feed),
        "onnxruntime": lambda: other.run(None, feed),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn > 1:
                times[name].append(1e3 * (time.perf_counter() - started))
    for name, found in times.items():
        print(f"{name:12} median {np.median(found):8.2f} ms, least {min(found):8.2f} ms")
    same = all(np.array_equal(a["kept"], b["kept"]) for a, b in [(ours.run(feed), oracle.run(feed))])
    print(f"{len(ours.run(feed)['kept'])} boxes, the same ones: {same}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
