"""Windows over three spatial axes, and transposed convolutions: no call is NumPy's, forward or backward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.plans import planned
from tests.compile.rules.checks import check
from tests.compile.units import Build, floats, kinds, lowered_of, model_of

from onward.autodiff import gradients
from onward.compile.independence import not_independent
from onward.graph import Builder, dims_of


def _both_ways(build: Build, wrt: Sequence[str]) -> Build:
    """A result and its gradients by some inputs."""

    def with_gradients(g: Builder) -> list[ir.Value]:
        y = build(g)
        assert isinstance(y, ir.Value)
        dy = floats(g, "dy", *dims_of(y))  # type: ignore[arg-type, misc]
        by_name = {v.name: v for v in g.graph.inputs}
        found = gradients(g, {y: dy}, [by_name[name] for name in wrt])
        return [y, *(v for v in found if v is not None)]

    return with_gradients


def _conv(kind: str, spatial: Sequence[int], w: Sequence[int], bias: int, **attributes: object) -> Build:
    def build(g: Builder) -> ir.Value:
        x, weights = floats(g, "x", 2, 4, *spatial), floats(g, "w", *w)
        return g.emit(kind, x, weights, floats(g, "b", bias), **attributes)[0]

    return build


@pytest.mark.parametrize(
    "build",
    [
        _conv("ConvTranspose", [7], [4, 3, 4], 3, strides=[2], pads=[1, 1]),
        _conv("ConvTranspose", [5, 6], [4, 3, 2, 2], 6, strides=[2, 2], group=2),
        _conv("ConvTranspose", [5, 6], [4, 3, 3, 3], 3, strides=[2, 3], output_padding=[1, 2]),
        _conv("ConvTranspose", [5, 6], [4, 3, 3, 3], 3, dilations=[2, 1], auto_pad="SAME_UPPER"),
        _conv("ConvTranspose", [3, 4, 5], [4, 3, 2, 2, 2], 3, strides=[2, 2, 2]),
        _conv("Conv", [5, 6, 4], [3, 4, 3, 3, 3], 3, pads=[1] * 6),
        _conv("Conv", [5, 6, 4], [3, 4, 2, 3, 1], 3, strides=[3, 1, 2]),
        _conv("Conv", [5, 6, 4], [4, 1, 3, 3, 3], 4, group=4),
        _conv("Conv", [5, 6, 4], [3, 4, 1, 1, 1], 3),
    ],
)
def test_convolutions(build: Build) -> None:
    both = _both_ways(build, ["x", "w", "b"])
    found = kinds(lowered_of(both))
    assert "numpy" not in found
    check(both, found)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("ties", [False, True])
def test_pooling(kind: str, ties: bool) -> None:
    both = _both_ways(
        lambda g: g.emit(
            kind, floats(g, "x", 2, 3, 6, 5, 7), kernel_shape=[3, 2, 3], strides=[2, 1, 2], pads=[1, 0, 1] * 2
        )[0],
        ["x"],
    )
    found = kinds(lowered_of(both))
    assert "numpy" not in found
    x = np.random.default_rng(0).integers(0, 2, (2, 3, 6, 5, 7)).astype(np.float32)
    check(both, found, {"x": x} if ties else None)


def test_three_axes_in_float64_beside_a_type_without_kernels() -> None:
    for dtype, native in ((ir.DataType.DOUBLE, True), (ir.DataType.FLOAT16, False)):
        found = kinds(
            lowered_of(
                lambda g, dtype=dtype: g.MaxPool(  # type: ignore[misc]
                    floats(g, "x", 1, 2, 4, 4, 4, dtype=dtype), kernel_shape=[2, 2, 2]
                )
            )
        )
        assert ("numpy" not in found) == native


def test_pooled_windows_in_the_padding_alone_are_numpys() -> None:
    found = lowered_of(
        lambda g: g.AveragePool(
            floats(g, "x", 1, 2, 2, 3, 3), kernel_shape=[1, 1, 1], pads=[1, 0, 0] + [0] * 3
        )
    )
    assert kinds(found) == ["numpy"]


@pytest.mark.parametrize("rank", [2, 3])
def test_a_small_unet_and_its_gradients(rank: int) -> None:
    def build(g: Builder) -> ir.Value:
        x = floats(g, "x", 2, 3, *(8,) * rank)
        down = g.Relu(g.Conv(x, floats(g, "w0", 4, 3, *(3,) * rank), pads=[1] * 2 * rank))
        low = g.MaxPool(down, kernel_shape=[2] * rank, strides=[2] * rank)
        low = g.Relu(g.Conv(low, floats(g, "w1", 8, 4, *(3,) * rank), pads=[1] * 2 * rank))
        up = g.ConvTranspose(low, floats(g, "w2", 8, 4, *(2,) * rank), floats(g, "b", 4), strides=[2] * rank)
        both = g.Concat(down, g.Relu(up), axis=1)
        return g.Conv(both, floats(g, "w3", 2, 8, *(1,) * rank))

    both = _both_ways(build, ["x", "w0", "w1", "w2", "w3", "b"])
    found = kinds(lowered_of(both))
    assert "numpy" not in found
    check(both, found)


def test_samples_stay_apart_in_a_transposed_convolution() -> None:
    def build(g: Builder) -> ir.Value:
        x = g.input("x", ir.DataType.FLOAT, ("N", 2, 4, 4))
        y = g.ConvTranspose(x, g.const(np.ones((2, 3, 2, 2), np.float32)), strides=[2, 2])
        return g.MaxPool(y, kernel_shape=[2, 2])

    model = model_of(build)
    assert not_independent(model, {"x": (3, 2, 4, 4)}) is None
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype(np.float32)
    assert planned(model, {"x": x}).fallbacks == {}
