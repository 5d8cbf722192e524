from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from onward import nn
from onward.errors import ConfigError
from onward.nn import initializers
from onward.nn.initializers import Fans, generator, resolve


def draw(initializer: str | nn.Initializer, shape: tuple[int, ...], fans: Fans) -> np.ndarray[Any, Any]:
    return resolve(initializer).draw(generator(0, "p"), shape, fans, np.dtype(np.float32))


@pytest.mark.parametrize(
    ("name", "variance"),
    [("he", 2 / 300), ("glorot", 1 / 200), ("lecun", 1 / 300)],
)
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_variance_scaling(name: str, variance: float, distribution: str) -> None:
    values = draw(f"{name}_{distribution}", (1000, 300), Fans(300, 100))
    assert values.dtype == np.float32
    assert abs(values.mean()) < 5 * math.sqrt(variance / values.size)
    assert values.var() == pytest.approx(variance, rel=0.02)
    if distribution == "normal":
        assert np.abs(values).max() <= 2 * math.sqrt(variance) / 0.8796 * (1 + 1e-6)
    if distribution == "uniform":
        assert np.abs(values).max() <= math.sqrt(3 * variance) * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 2, 3, 3)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    matrix = draw(nn.Orthogonal(2.0), shape, Fans(1, 1)).reshape(shape[0], -1)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-5)


def test_simple_ones() -> None:
    assert (draw("zeros", (3,), Fans(1, 1)) == 0).all()
    assert (draw("ones", (3,), Fans(1, 1)) == 1).all()
    assert (draw(nn.Constant(2.5), (3,), Fans(1, 1)) == 2.5).all()
    normal = draw(nn.Normal(0.5, 3.0), (100_000,), Fans(1, 1))
    assert normal.mean() == pytest.approx(3.0, abs=0.01)
    assert normal.std() == pytest.approx(0.5, rel=0.02)
    uniform = draw(nn.Uniform(2.0, 4.0), (100_000,), Fans(1, 1))
    assert 2.0 <= uniform.min() < 2.01
    assert 3.99 < uniform.max() <= 4.0


@pytest.mark.parametrize(
    ("layer", "shape", "fan_in", "fan_out"),
    [
        (nn.Dense(40, name="x"), (30,), 30, 40),
        (nn.Dense(40, name="x"), (2, 30), 30, 40),
        (nn.Conv2D(16, 3, name="x"), (8, 5, 5), 72, 144),
        (nn.Conv2D(16, 3, groups=4, name="x"), (8, 5, 5), 18, 36),
        (nn.Conv1D(16, 5, name="x"), (8, 5), 40, 80),
        (nn.DepthwiseConv2D(3, multiplier=2, name="x"), (8, 5, 5), 9, 18),
        (nn.ConvTranspose2D(16, 4, 2, name="x"), (8, 5, 5), 32, 256),
        (nn.Embedding(50, 20, name="x"), (4,), 1, 20),
    ],
)
def test_fans(
    monkeypatch: pytest.MonkeyPatch, layer: nn.Layer, shape: tuple[int, ...], fan_in: int, fan_out: int
) -> None:
    seen: list[Fans] = []

    class Spy(initializers.Initializer):
        def draw(self, rng: Any, shape: Any, fans: Fans, dtype: Any) -> np.ndarray[Any, Any]:
            seen.append(fans)
            return np.zeros(shape, dtype)

    monkeypatch.setitem(initializers._BY_NAME, "glorot_uniform", Spy())
    object.__setattr__(layer, "weight_initializer", "glorot_uniform")
    dtype = "int64" if isinstance(layer, nn.Embedding) else "float32"
    network = nn.Sequential([layer], input_shape=shape, input_dtype=dtype)
    assert not network.parameters["x.weight"].any()
    assert seen == [Fans(fan_in, fan_out)]


def test_lstm_draws_each_gate_for_itself() -> None:
    network = nn.Sequential([nn.LSTM(4, True, name="r")], input_shape=(5, 3))
    found = network.parameters
    assert found["r.weight"].shape == (2, 16, 3)
    for gate in found["r.recurrent_weight"].reshape(8, 4, 4):
        np.testing.assert_allclose(gate @ gate.T, np.eye(4), atol=1e-5)
    expected = np.zeros((2, 32), np.float32)
    expected[:, 8:12] = 1
    np.testing.assert_array_equal(found["r.bias"], expected)


def test_values_depend_on_seed_and_name_only() -> None:
    def network(seed: int, *more: nn.Layer) -> dict[str, np.ndarray[Any, Any]]:
        layers = [*more, nn.Dense(4, name="a"), nn.ReLU(), nn.Dense(4, name="b")]
        return nn.Sequential(layers, input_shape=(4,), seed=seed).parameters

    first, again, longer, other = network(7), network(7), network(7, nn.Dense(4, name="z")), network(8)
    for name in ("a.weight", "b.weight"):
        np.testing.assert_array_equal(first[name], again[name])
        np.testing.assert_array_equal(first[name], longer[name])
        assert (first[name] != other[name]).all()
    assert (first["a.weight"] != first["b.weight"]).all()


def test_the_stream_of_a_parameter_is_fixed() -> None:
    """Checkpoints and reports quote seeds: the same seed and name must mean the same stream for ever."""
    np.testing.assert_array_equal(
        generator(3, "conv1.weight").integers(0, 1000, 4), np.array([181, 807, 826, 146])
    )


def test_reading_twice_gives_the_same_array() -> None:
    network = nn.Sequential([nn.Dense(4, name="a")], input_shape=(4,))
    np.testing.assert_array_equal(network.parameters["a.weight"], network.parameters["a.weight"])


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda: nn.Normal(-1.0), "std must not be negative"),
        (lambda: nn.Uniform(1.0, 0.0), "low 1.0 is above high 0.0"),
        (lambda: nn.Constant(math.inf), "value must be finite"),
        (lambda: nn.VarianceScaling(0.0), "scale must be positive"),
        (lambda: nn.VarianceScaling(1.0, "fan"), "mode is fan_in"),  # type: ignore[arg-type]
        (lambda: nn.VarianceScaling(1.0, "fan_in", "cauchy"), "distribution is"),  # type: ignore[arg-type]
        (lambda: resolve("kaiming"), "unknown initializer 'kaiming'; known: zeros"),
    ],
)
def test_bad_initialisers(make: Any, fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert fragment in str(caught.value)
