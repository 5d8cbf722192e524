"""Every layer: accepted by the checker, run by onnxruntime at two batch sizes, refused where it must be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onward import nn
from onward.errors import ConfigError, ShapeError

IMAGE = (4, 9, 7)
SEQUENCE = (4, 11)

CASES: list[tuple[nn.Layer, tuple[int, ...], tuple[int, ...]]] = [
    (nn.Dense(5), (6,), (5,)),
    (nn.Dense(5, "gelu", bias=False), (6,), (5,)),
    (nn.Dense(5, "relu"), (3, 6), (3, 5)),
    (nn.Dense(5), (2, 3, 6), (2, 3, 5)),
    (nn.Conv1D(6, 3), SEQUENCE, (6, 9)),
    (nn.Conv1D(6, 4, 3, "same"), SEQUENCE, (6, 4)),
    (nn.Conv1D(6, 3, padding=[(2, 0)], dilation=2, groups=2, activation="relu"), SEQUENCE, (6, 9)),
    (nn.Conv2D(6, 3), IMAGE, (6, 7, 5)),
    (nn.Conv2D(6, 3, padding="same", bias=False), IMAGE, (6, 9, 7)),
    (nn.Conv2D(6, (4, 3), (2, 3), "same", activation="hard_swish"), IMAGE, (6, 5, 3)),
    (nn.Conv2D(6, 3, padding=2, dilation=(2, 1)), IMAGE, (6, 9, 9)),
    (nn.Conv2D(6, 3, padding=(1, 0), groups=2), IMAGE, (6, 9, 5)),
    (nn.Conv2D(6, 3, padding=((0, 1), (2, 3))), IMAGE, (6, 8, 10)),
    (nn.DepthwiseConv2D(3, padding="same", multiplier=2), IMAGE, (8, 9, 7)),
    (nn.DepthwiseConv2D(3, 2, 1, activation="relu6"), IMAGE, (4, 5, 4)),
    (nn.ConvTranspose2D(6, 3), IMAGE, (6, 11, 9)),
    (nn.ConvTranspose2D(6, 3, 2, "same"), IMAGE, (6, 18, 14)),
    (nn.ConvTranspose2D(6, 2, 3, "same"), IMAGE, (6, 27, 21)),
    (nn.ConvTranspose2D(6, 3, 2, 1, 1, groups=2), IMAGE, (6, 18, 14)),
    (nn.ConvTranspose2D(6, 3, dilation=2, padding=((0, 1), (1, 2))), IMAGE, (6, 12, 8)),
    (nn.MaxPool1D(3), SEQUENCE, (4, 3)),
    (nn.MaxPool1D(3, 2, "same"), SEQUENCE, (4, 6)),
    (nn.MaxPool2D(2), IMAGE, (4, 4, 3)),
    (nn.MaxPool2D(3, 2, padding=1), IMAGE, (4, 5, 4)),
    (nn.MaxPool2D(2, 1, dilation=2), IMAGE, (4, 7, 5)),
    (nn.AveragePool1D(2), SEQUENCE, (4, 5)),
    (nn.AveragePool1D(2, padding="same"), SEQUENCE, (4, 6)),
    (nn.AveragePool2D(3, 2, padding=1), IMAGE, (4, 5, 4)),
    (nn.AveragePool2D(3, 2, padding=1, count_include_pad=True), IMAGE, (4, 5, 4)),
    (nn.GlobalMaxPool(), SEQUENCE, (4,)),
    (nn.GlobalMaxPool(keepdims=True), IMAGE, (4, 1, 1)),
    (nn.GlobalAveragePool(), IMAGE, (4,)),
    (nn.GlobalAveragePool(keepdims=True), SEQUENCE, (4, 1)),
    (nn.BatchNorm(), IMAGE, IMAGE),
    (nn.BatchNorm(), (5,), (5,)),
    (nn.LayerNorm(), (3, 6), (3, 6)),
    (nn.LayerNorm(axis=1), IMAGE, IMAGE),
    (nn.GroupNorm(2), IMAGE, IMAGE),
    (nn.GroupNorm(4), SEQUENCE, SEQUENCE),
    (nn.LocalResponseNorm(3), IMAGE, IMAGE),
    (nn.Dropout(0.3), IMAGE, IMAGE),
    (nn.Flatten(), IMAGE, (252,)),
    (nn.Reshape((6, -1)), IMAGE, (6, 42)),
    (nn.Rescale((2.0, 3.0), (1.0, -1.0)), (2,), (2,)),
    (nn.Select(1, 3), (4,), (2,)),
    (nn.Transpose((0, 2, 3, 1)), IMAGE, (9, 7, 4)),
    (nn.Pad([(1, 2), (0, 0), (3, 0)], -1.0), IMAGE, (7, 9, 10)),
    (nn.LSTM(5), (7, 3), (5,)),
    (nn.LSTM(5, bidirectional=True), (7, 3), (10,)),
    (nn.LSTM(5, bidirectional=True, return_sequences=True), (7, 3), (7, 10)),
    (nn.SelfAttention(2), (7, 6), (7, 6)),
    (nn.PositionEmbedding(), (7, 6), (7, 6)),
    (nn.ReLU(), IMAGE, IMAGE),
    (nn.ReLU6(), IMAGE, IMAGE),
    (nn.LeakyReLU(0.2), IMAGE, IMAGE),
    (nn.PReLU(), IMAGE, IMAGE),
    (nn.PReLU(shared=True), SEQUENCE, SEQUENCE),
    (nn.ELU(0.5), IMAGE, IMAGE),
    (nn.SELU(), IMAGE, IMAGE),
    (nn.Sigmoid(), IMAGE, IMAGE),
    (nn.Tanh(), IMAGE, IMAGE),
    (nn.Softmax(), IMAGE, IMAGE),
    (nn.Softmax(axis=1), IMAGE, IMAGE),
    (nn.GELU(), IMAGE, IMAGE),
    (nn.GELU("tanh"), IMAGE, IMAGE),
    (nn.SiLU(), IMAGE, IMAGE),
    (nn.HardSwish(), IMAGE, IMAGE),
    (nn.Softplus(), IMAGE, IMAGE),
]


def single(layer: nn.Layer, shape: tuple[int | str, ...], dtype: str = "float32") -> nn.Sequential:
    return nn.Sequential([layer], input_shape=shape, input_dtype=dtype)


def samples(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=shape).astype(dtype) * 2


@pytest.mark.parametrize(
    ("layer", "shape", "expected"), CASES, ids=[f"{i}-{type(c[0]).__name__}" for i, c in enumerate(CASES)]
)
def test_layer_has_the_shape_it_says_and_runs(
    run: Any, layer: nn.Layer, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    network = single(layer, shape)
    assert network.outputs[0].shape == ("N", *expected)
    (batch,) = run(network, samples(3, *shape))
    assert batch.shape == (3, *expected)
    assert np.isfinite(batch).all()
    (one,) = run(network, samples(3, *shape)[:1])
    np.testing.assert_allclose(one, batch[:1], rtol=1e-4, atol=1e-5)


def test_every_layer_is_in_a_case() -> None:
    covered = {type(layer) for layer, _, _ in CASES} | {nn.Add, nn.Concat, nn.Embedding}
    layers = {getattr(nn.layers, name) for name in nn.layers.__all__}
    assert {c for c in layers if isinstance(c, type) and issubclass(c, nn.Layer)} == covered


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_embedding_takes_rows(run: Any, dtype: str) -> None:
    network = single(nn.Embedding(10, 3, name="table"), (4,), dtype)
    ids = np.array([[0, 9, 3, 3], [1, 2, 3, 4]], dtype)
    table = network.parameters["table.weight"]
    np.testing.assert_array_equal(run(network, ids)[0], table[ids])


def test_add_and_concat(run: Any) -> None:
    a, b = nn.Input((2, 3), name="a"), nn.Input((2, 3), name="b")
    network = nn.Model([a, b], {"sum": nn.Add()(a, b, a), "both": nn.Concat(axis=-1)([a, b])})
    x, y = samples(2, 2, 3), samples(2, 2, 3) + 1
    total, both = run(network, x, y)
    np.testing.assert_allclose(total, x + y + x, rtol=1e-6)
    np.testing.assert_array_equal(both, np.concatenate([x, y], -1))


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_parameters_have_the_input_dtype(run: Any, dtype: str) -> None:
    layers = [nn.BatchNorm(), nn.ReLU6(), nn.Flatten(), nn.Dropout(), nn.Dense(2)]
    network = nn.Sequential(layers, input_shape=(1, 5, 5), input_dtype=dtype)
    assert {name: array.dtype.name for name, array in network.parameters.items()} == {
        f"{layer}.{p}": dtype
        for layer, parameters in (
            ("batchnorm_1", ("scale", "bias", "running_mean", "running_var")),
            ("dense_1", ("weight", "bias")),
        )
        for p in parameters
    }
    assert run(network, samples(2, 1, 5, 5, dtype=dtype))[0].dtype == dtype


def test_dense_means_the_same_at_every_rank(run: Any) -> None:
    flat, deep = single(nn.Dense(3, name="d"), (4,)), single(nn.Dense(3, name="d"), (2, 4))
    x = samples(5, 2, 4)
    weight = flat.parameters["d.weight"]
    deep.model.graph.initializers["d.weight"].const_value = ir.tensor(weight.T.copy())
    np.testing.assert_allclose(
        run(deep, x)[0], run(flat, x.reshape(-1, 4))[0].reshape(5, 2, 3), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_same_padding_is_onnx_same_upper(kernel: int, stride: int, size: int) -> None:
    network = single(nn.Conv1D(1, kernel, stride, "same"), (1, size))
    (node,) = network.model.graph
    assert "auto_pad" not in node.attributes
    begin, end = node.attributes["pads"].value if "pads" in node.attributes else (0, 0)
    out = math.ceil(size / stride)
    total = max((out - 1) * stride + kernel - size, 0)
    assert (begin, end) == (total // 2, total - total // 2)
    assert network.outputs[0].shape == ("N", 1, out)


def test_same_padding_of_an_open_extent() -> None:
    steady = single(nn.Conv1D(1, 4, 1, "same"), (1, "T"))
    assert tuple(steady.model.graph[0].attributes["pads"].value) == (1, 2)
    strided = single(nn.Conv1D(1, 4, 2, "same"), (1, "T"))
    assert strided.model.graph[0].attributes["auto_pad"].value == "SAME_UPPER"


def test_padding_same_of_a_transposed_convolution_inverts_that_of_a_convolution(run: Any) -> None:
    """<conv(x), y> = <x, transposed(y)> for the same weight: the one is the other's adjoint."""
    forward = single(nn.Conv2D(3, 3, 2, "same", bias=False, name="c"), (2, 8, 8))
    back = single(nn.ConvTranspose2D(2, 3, 2, "same", bias=False, name="c"), (3, 4, 4))
    back.model.graph.initializers["c.weight"].const_value = forward.model.graph.initializers[
        "c.weight"
    ].const_value
    x, y = samples(1, 2, 8, 8), samples(1, 3, 4, 4) + 1
    np.testing.assert_allclose(np.sum(run(forward, x)[0] * y), np.sum(x * run(back, y)[0]), rtol=1e-4)


def test_attention_is_its_formula(run: Any) -> None:
    network = single(nn.SelfAttention(2, name="a"), (4, 6))
    p = network.parameters
    x = samples(2, 4, 6)

    def heads(role: str) -> np.ndarray[Any, Any]:
        projected = x @ p[f"a.{role}_weight"] + p[f"a.{role}_bias"]
        return projected.reshape(2, 4, 2, 3).transpose(0, 2, 1, 3)

    scores = heads("query") @ heads("key").swapaxes(-1, -2) / math.sqrt(3)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = (weights @ heads("value")).transpose(0, 2, 1, 3).reshape(2, 4, 6)
    expected = mixed @ p["a.output_weight"] + p["a.output_bias"]
    np.testing.assert_allclose(run(network, x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda: nn.Dense(0), "layer Dense: units must be a positive int, got 0"),
        (lambda: nn.Dense(4.0), "units must be a positive int"),  # type: ignore[arg-type]
        (lambda: nn.Dense(4, "swoosh"), "unknown activation 'swoosh'; known: relu"),
        (lambda: nn.Dense(4, weight_initializer="he"), "unknown initializer 'he'"),
        (lambda: nn.Conv2D(8, 3, groups=3, name="c"), "layer 'c' (Conv2D): filters 8 do not divide into 3"),
        (lambda: nn.Conv2D(8, (3, 3, 3)), "kernel_size must be an int or 2 of them"),
        (lambda: nn.Conv2D(8, 3, strides=0), "strides must be an int or 2 of them, each at least 1"),
        (lambda: nn.Conv2D(8, 3, padding="full"), "padding is 'same', 'valid'"),  # type: ignore[arg-type]
        (lambda: nn.Conv2D(8, 3, padding=-1), "padding is 'same', 'valid'"),
        (lambda: nn.Conv1D(8, 3, padding=(1, 2)), "1 int or 1 (begin, end) pair; got (1, 2)"),
        (lambda: nn.ConvTranspose2D(8, 3, 2, output_padding=2), "output_padding 2 must be below"),
        (lambda: nn.ConvTranspose2D(8, 3, 2, "same", 1), "padding 'same' sets output_padding itself"),
        (lambda: nn.MaxPool2D(2, padding=2), "padding 2 must be below the window (2, 2)"),
        (lambda: nn.Dropout(1.0), "ratio must be below 1, got 1.0"),
        (lambda: nn.Dropout(-0.1), "ratio must be at least 0"),
        (lambda: nn.BatchNorm(momentum=1.5), "momentum must be at most 1"),
        (lambda: nn.BatchNorm(epsilon=0.0), "epsilon must be above 0"),
        (lambda: nn.LocalResponseNorm(4), "size must be odd"),
        (lambda: nn.LeakyReLU(math.nan), "alpha must be a finite number"),
        (lambda: nn.GELU("erf"), "approximate is one of none, tanh"),  # type: ignore[arg-type]
        (lambda: nn.Reshape((-1, -1)), "at most one extent of shape may be -1"),
        (lambda: nn.Reshape((0, 4)), "shape has positive ints"),
        (lambda: nn.Transpose((1, 0)), "begins with 0 (the batch)"),
        (lambda: nn.Pad([(1, -1)]), "a pair (begin, end) of ints >= 0"),
        (lambda: nn.Embedding(5, 3, dtype="int64"), "dtype must name a floating-point type"),
    ],
)
def test_hyperparameters_are_checked_at_once(make: Any, fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "shape", "dtype", "fragment"),
    [
        (
            nn.Conv2D(8, 3),
            (784,),
            "float32",
            "input float32[N, 784]: expected rank 4 [N, C, H, W], got rank 2",
        ),
        (nn.Conv2D(8, 3, groups=2), (3, 8, 8), "float32", "divides into 2 groups, got 3"),
        (nn.Conv2D(8, 5), (3, 4, 9), "float32", "covers 5 cells of spatial axis 0, but the input has 4"),
        (nn.Conv2D(8, 3), (3, 8, 8), "int64", "expected floating-point numbers, got int64"),
        (nn.Conv2D(8, 3), ("C", 8, 8), "float32", "expected a fixed number of channels on axis 1, got C"),
        (nn.ConvTranspose2D(8, 3, padding=5), (3, 4, 4), "float32", "leaves nothing of the output"),
        (nn.Dense(3), ("T",), "float32", "expected a fixed number of features on axis -1, got T"),
        (nn.Dense(3), (), "float32", "expected rank 2 [N, in] or more, got rank 1"),
        (nn.MaxPool2D(3), (3, 2, 2), "float32", "expected at least 3 together"),
        (nn.GlobalMaxPool(), (3,), "float32", "expected rank 3 [N, C, L] or rank 4 [N, C, H, W]"),
        (nn.GroupNorm(3), (4, 8, 8), "float32", "divides into 3 groups, got 4"),
        (nn.LayerNorm(axis=0), (4,), "float32", "axis 0 is the batch"),
        (nn.LayerNorm(axis=3), (4,), "float32", "axis 3 does not exist in rank 2"),
        (nn.Softmax(axis=2), (4,), "float32", "axis 2 does not exist in rank 2"),
        (nn.Reshape((5, 5)), (4, 6), "float32", "24 cells a sample do not fit shape [5, 5]"),
        (nn.Reshape((5, -1)), (4, 6), "float32", "24 cells a sample do not fit shape [5, -1]"),
        (nn.Transpose((0, 2, 1)), (4,), "float32", "expected rank 3 for perm (0, 2, 1), got rank 2"),
        (nn.Pad([(1, 1)]), (4, 6), "float32", "pads has 1 pairs, expected 2"),
        (nn.Embedding(5, 3), (4,), "float32", "expected int32 or int64 ids, got float"),
        (nn.SelfAttention(4), (5, 6), "float32", "divide into 4 heads, got 6"),
        (nn.LSTM(4), (5,), "float32", "expected rank 3"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_and_the_layer_named(
    layer: nn.Layer, shape: tuple[int | str, ...], dtype: str, fragment: str
) -> None:
    kind = type(layer).__name__
    with pytest.raises(ShapeError) as caught:
        single(layer, shape, dtype)
    assert str(caught.value).startswith(f"layer '{kind.lower()}_1' ({kind}), input {dtype}[N")
    assert fragment in str(caught.value)


def test_joins_refuse_what_does_not_fit() -> None:
    a, b, c = nn.Input((2, 3)), nn.Input((2, 4)), nn.Input((2, 3), "float64")
    with pytest.raises(ShapeError, match=r"layer 'add_1' \(Add\).*same shape"):
        nn.Add()(a, b)
    with pytest.raises(ShapeError, match="one dtype"):
        nn.Add()(a, c)
    with pytest.raises(ShapeError, match="two inputs or more"):
        nn.Add()(a)
    with pytest.raises(ShapeError, match="differ on axis 1 only"):
        nn.Concat(axis=1)(a, b)
    with pytest.raises(ShapeError, match="after the batch"):
        nn.Concat(axis=0)(a, a)
    with pytest.raises(ShapeError, match="takes one input, got 2"):
        nn.ReLU()(a, b)
