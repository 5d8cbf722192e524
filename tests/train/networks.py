"""Small models for the training tests."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onward.graph import Builder


def mlp(
    features: int = 4, hidden: int = 8, classes: int = 3, dropout: float = 0.0, seed: int = 0
) -> ir.Model:
    """A classifier with one hidden layer, at opset 21."""
    rng = np.random.default_rng(seed)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="mlp")
    g = Builder(graph)

    def weight(name: str, *shape: int) -> ir.Value:
        return g.initializer(name, (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32))

    def bias(name: str, size: int) -> ir.Value:
        return g.initializer(name, np.zeros(size, np.float32))

    x = g.input("x", ir.DataType.FLOAT, ("N", features))
    h = g.Relu(g.Gemm(x, weight("hidden.weight", hidden, features), bias("hidden.bias", hidden), transB=1))
    if dropout:
        h = g.Dropout(h, dropout)
    y = g.Gemm(h, weight("out.weight", classes, hidden), bias("out.bias", classes), transB=1)
    g.output(y, "scores")
    return ir.Model(graph, ir_version=10)


def norm_net(seed: int = 0) -> ir.Model:
    """Convolution, batch normalization, dropout and a head, on images [N, 1, 6, 6], at opset 21."""
    rng = np.random.default_rng(seed)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="norm_net")
    g = Builder(graph)
    x = g.input("image", ir.DataType.FLOAT, ("N", 1, 6, 6))
    w = g.initializer("conv.weight", (rng.standard_normal((4, 1, 3, 3)) / 3).astype(np.float32))
    channels = {
        "scale": np.ones(4),
        "bias": np.zeros(4),
        "running_mean": np.zeros(4),
        "running_var": np.ones(4),
    }
    y = g.BatchNormalization(
        g.Conv(x, w, pads=[1, 1, 1, 1]),
        *(g.initializer(f"bn.{k}", v.astype(np.float32)) for k, v in channels.items()),
    )
    y = g.Dropout(g.Flatten(g.Relu(y)), 0.25)
    head = g.initializer("head.weight", (rng.standard_normal((3, 144)) / 12).astype(np.float32))
    g.output(g.Gemm(y, head, g.initializer("head.bias", np.zeros(3, np.float32)), transB=1), "scores")
    return ir.Model(graph, ir_version=10)


def blobs(samples: int = 60, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Three Gaussian clouds in four dimensions, and which one each point is of."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % 3
    centres = rng.standard_normal((3, 4)) * 2
    return (centres[labels] + rng.standard_normal((samples, 4)) * 0.5).astype(np.float32), labels
