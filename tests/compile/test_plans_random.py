"""Plans of random graphs against the interpreter, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.compile.plans import assert_as_exact, interpreted, planned, wide

from onward.autodiff import gradients
from onward.compile.program import NotStaticError
from onward.errors import ShapeError
from onward.graph import Array, Builder, dims_of
from onward.passes import cast_floats

Draw = Any

bounded = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Net:
    """A graph that grows layer by layer; weights are graph inputs, so that they have gradients."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "ai.onward": 1}, name="random")
        self.g = Builder(graph)
        self.shapes: dict[str, tuple[int | str, ...]] = {}
        self.rng = np.random.default_rng(draw(st.integers(0, 99)))

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def source(self, name: str, shape: tuple[int | str, ...]) -> ir.Value:
        self.shapes[name] = shape
        return self.g.input(name, ir.DataType.FLOAT, shape)

    def weight(self, *shape: int) -> ir.Value:
        return self.source(f"w{len(self.shapes)}", shape)

    def feed(self, batch: int) -> dict[str, Array]:
        feed: dict[str, Array] = {}
        for name, dims in self.shapes.items():
            shape = tuple(batch if isinstance(d, str) else d for d in dims)
            fan = max(1, int(np.prod(shape[1:])) if name.startswith("w") else 1)
            feed[name] = (self.rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
        return feed


def _extents(value: ir.Value) -> tuple[int, ...]:
    dims = dims_of(value)
    assert dims is not None
    assume(all(isinstance(d, int) for d in dims[1:]))
    return tuple(d for d in dims[1:] if isinstance(d, int))


def _image_layer(net: Net, x: ir.Value) -> ir.Value:
    g = net.g
    channels, *spatial = _extents(x)
    rank = len(spatial)
    kind = net.pick(
        "conv", "conv", "depthwise", "grouped", "pool", "norm", "relu", "sigmoid", "double", "lrn", "pad"
    )
    if kind in ("conv", "depthwise", "grouped", "pool"):
        kernel = [net.pick(*range(1, min(4, n) + 1)) for n in spatial]
        strides = [net.pick(1, 1, 2, 3) for _ in spatial]
        pads = [net.pick(0, 0, k // 2, k - 1) for k in (*kernel, *kernel)]
        if kind == "pool":
            smaller = [min(p, (k - 1) // 2) for p, k in zip(pads, (*kernel, *kernel), strict=True)]
            shared = {"kernel_shape": kernel, "strides": strides, "pads": smaller}
            if net.pick(True, False):
                return g.MaxPool(x, **shared)
            return g.AveragePool(x, count_include_pad=net.pick(0, 1), **shared)
        dilations = [net.pick(1, 1, 2) if k > 1 else 1 for k in kernel]
        group = 1
        if kind == "depthwise":
            group = channels
        elif kind == "grouped":
            group = net.pick(*(n for n in range(1, channels + 1) if channels % n == 0))
        outputs = group * net.pick(1, 1, 2, 3) if kind != "conv" else net.pick(1, 3, 8, 17, 33)
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        assume(
            all(n + a + b >= r for n, a, b, r in zip(spatial, pads[:rank], pads[rank:], reach, strict=True))
        )
        weights = net.weight(outputs, channels // group, *kernel)
        operands = [x, weights, *([net.weight(outputs)] if net.pick(True, False) else [])]
        return g.Conv(*operands, strides=strides, pads=pads, dilations=dilations, group=group)
    if kind == "norm":
        scale, bias = net.weight(channels), net.weight(channels)
        running = [g.const(np.full(channels, v, np.float32)) for v in (0.0, 1.0)]
        return g.emit("BatchNormalization", x, scale, bias, *running, outputs=3, training_mode=1)[0]
    if kind == "double":
        return g.Add(x, g.Mul(g.Tanh(x), net.weight(channels, *(1,) * rank)))
    if kind == "lrn":
        return g.LRN(x, size=net.pick(1, 2, 3, 5), alpha=0.1, beta=net.pick(0.75, 0.5, 0.6))
    if kind == "pad":
        amounts = [0, net.pick(0, 1, 2), *(net.pick(0, 1) for _ in spatial)]
        return g.Pad(
            x, [*amounts, 0, net.pick(0, -1 if channels > 1 else 0), *(net.pick(0, 1) for _ in spatial)]
        )
    return g.Relu(x) if kind == "relu" else g.Sigmoid(x)


def _finish(net: Net, outputs: list[ir.Value]) -> ir.Model:
    """The model with its results, and the gradients of their weighted sum by every input, as outputs."""
    g = net.g
    graph_inputs = list(g.graph.inputs)
    for i, y in enumerate(outputs):
        g.output(y, f"y{i}")
    seeds = {}
    for i, y in enumerate(outputs):
        dims = dims_of(y)
        assert dims is not None
        seeds[y] = net.source(f"d{i}", tuple(d if isinstance(d, int) else "N" for d in dims))
    for x, dx in zip(graph_inputs, gradients(g, seeds, graph_inputs), strict=True):
        if dx is not None:
            g.output(dx, f"{x.name}.gradient")
    return ir.Model(g.graph, ir_version=10)


def _check(net: Net, model: ir.Model, batch: int, threads: int, lanes: int | None = None) -> None:
    feed = net.feed(batch)
    (single,), _ = interpreted(model, {}, [feed])
    (double,), _ = interpreted(cast_floats(model, ir.DataType.DOUBLE), {}, [wide(feed)])
    assume(all(np.isfinite(x).all() for x in double.values()))
    plan = planned(model, feed, threads=threads, lanes=lanes)
    for _ in range(2):
        assert_as_exact(plan.run(feed), single, double, "value")


@bounded
@given(st.data())
def test_images(data: st.DataObject) -> None:
    """Convolutions in every geometry, pooling, normalization, joins, over signals and images."""
    net = Net(data.draw)
    rank = net.pick(1, 2, 2)
    x = net.source("x", ("N", net.pick(1, 3, 4, 16), *(net.pick(5, 7, 8, 12) for _ in range(rank))))
    values = [x]
    for _ in range(net.pick(1, 2, 3, 4)):
        values.append(_image_layer(net, values[-1]))
        shape = _extents(values[-1])
        assume(all(shape))
        same = [v for v in values[:-1] if _extents(v) == shape]
        alike = [v for v in values[:-1] if _extents(v)[1:] == shape[1:]]
        join = net.pick("none", "none", "add", "concat")
        if join == "add" and same:
            values.append(net.g.Add(values[-1], net.pick(*same)))
        elif join == "concat" and alike:
            values.append(net.g.Concat(values[-1], net.pick(*alike), axis=1))
    last = values[-1]
    end = net.pick("none", "flat", "mean", "max")
    if end == "flat":
        size = int(np.prod(_extents(last)))
        last = net.g.Gemm(net.g.Flatten(last), net.weight(5, size), transB=1)
    elif end == "mean":
        last = net.g.GlobalAveragePool(last)
    elif end == "max":
        last = net.g.GlobalMaxPool(last)
    try:
        model = _finish(net, [last])
    except ShapeError:
        assume(False)
    # an empty batch has no statistics
    normalized = any(node.op_type == "BatchNormalization" for node in model.graph)
    batch = net.pick(*((1, 2, 3) if normalized else (0, 1, 2, 3)))
    try:
        _check(net, model, batch, net.pick(1, 2, 3), net.pick(None, None, 4))
    except NotStaticError:
        assert batch == 0


def _sequence_layer(net: Net, x: ir.Value) -> ir.Value:
    g = net.g
    length, size = _extents(x)
    kind = net.pick(
        "dense", "heads", "softmax", "norm", "chain", "reduce", "cut", "turn", "broadcast", "where", "outer"
    )
    if kind == "dense":
        wanted = net.pick(1, 5, 8, 17)
        return g.Add(g.MatMul(x, net.weight(size, wanted)), net.weight(wanted))
    if kind == "heads":
        heads = net.pick(*(n for n in (1, 2, 4) if size % n == 0))
        parts = [g.Reshape(x, [0, 0, heads, size // heads]) for _ in range(2)]
        left, right = g.Transpose(parts[0], perm=[0, 2, 1, 3]), g.Transpose(parts[1], perm=[0, 2, 3, 1])
        scores = g.Softmax(g.MatMul(left, right), axis=-1)
        return g.Reshape(g.Transpose(g.MatMul(scores, left), perm=[0, 2, 1, 3]), [0, 0, size])
    if kind == "softmax":
        return g.Add(x, g.emit(net.pick("Softmax", "LogSoftmax"), x, axis=net.pick(1, 2, -1))[0])
    if kind == "norm":
        return g.emit("LayerNormalization", x, net.weight(size), net.weight(size), axis=-1)[0]
    if kind == "chain":
        return g.Mul(g.Tanh(g.Sub(x, 0.25)), g.Sigmoid(g.Add(x, net.weight(net.pick(1, length), 1))))
    if kind == "reduce":
        axes = net.pick([1], [2], [1, 2])
        kinds = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceSumSquare")
        return g.Add(x, g.Mul(g.emit(net.pick(*kinds), x, axes, keepdims=1)[0], 0.1))
    if kind == "cut":
        first = net.pick(*range(size))
        left, right = g.Slice(x, [first], [size], [2]), g.Slice(x, [0], [first], [2])
        return g.Concat(left, right, axis=2) if first else g.Concat(left, left, axis=1)
    if kind == "turn":
        return g.Transpose(x, perm=[0, 2, 1])
    if kind == "broadcast":
        return g.Mul(x, g.Expand(net.weight(1, length, 1), [1, length, size]))
    if kind == "where":
        return g.Where(g.Greater(x, 0.1), g.Mul(x, 2.0), g.Neg(x))
    return g.MatMul(g.Transpose(x, perm=[0, 2, 1]), g.Mul(x, 1.0 / length))


@bounded
@given(st.data())
def test_sequences(data: st.DataObject) -> None:
    """Products with heads and broadcasts, softmax, layer normalization, reductions, windows and joins."""
    net = Net(data.draw)
    x = net.source("x", ("N", net.pick(1, 4, 7), net.pick(1, 6, 8, 20)))
    values = [x]
    for _ in range(net.pick(1, 2, 3, 4, 5)):
        values.append(_sequence_layer(net, values[-1]))
        assume(max(_extents(values[-1])) <= 64)
    used = [values[-1]] + ([net.pick(*values[1:])] if net.pick(True, False) else [])
    model = _finish(net, list(dict.fromkeys(used)))
    batch = net.pick(0, 1, 2, 3)
    try:
        _check(net, model, batch, net.pick(1, 2, 3), net.pick(None, None, 4))
    except NotStaticError:
        assert batch == 0
