"""Kernels that a user chooses: never by default, and never another session's."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onward.autodiff import gradients
from onward.compile.codegen.target import host_target
from onward.engine import CompileOptions, Session
from onward.engine.compiled import CompiledEngine
from onward.errors import ConfigError
from onward.graph import Array, Builder
from onward.train import Trainer

CHANNELS = host_target().tuning.winograd_channels
EXTENT = host_target().tuning.winograd_extent


def _made() -> tuple[ir.Model, dict[str, Array]]:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "ai.onward": 1}, name="wide")
    g = Builder(graph)
    rng = np.random.default_rng(0)
    image, inputs, outputs = (EXTENT + 7, EXTENT + 10), 2 * CHANNELS, CHANNELS + CHANNELS // 2
    extents = {"x": (2, inputs, *image), "w": (outputs, inputs, 3, 3), "dy": (2, outputs, *image)}
    values = {name: g.input(name, ir.DataType.FLOAT, shape) for name, shape in extents.items()}
    y = g.Conv(values["x"], values["w"], pads=[1, 1, 1, 1])
    g.output(y, "y")
    for name, gradient in zip("xw", gradients(g, {y: values["dy"]}, [values["x"], values["w"]]), strict=True):
        assert gradient is not None
        g.output(gradient, f"d{name}")
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in extents.items()}
    return ir.Model(graph, ir_version=10), feed


def _kernels(engine: CompiledEngine, feed: dict[str, Array]) -> set[str]:
    plan = engine.plan({name: array.shape for name, array in feed.items()})
    assert plan is not None
    return {row.kernel for row in plan.rows if row.kernel.startswith("winograd_")}


def _mean_error(array: Array, exact: Array) -> float:
    """Root of the mean squared error, relative to that of the values."""
    error = array.astype(np.float64) - exact
    return float(np.sqrt(np.square(error).mean() / np.square(exact, dtype=np.float64).mean()))


def test_larger_squares_are_chosen_and_not_the_default() -> None:
    model, feed = _made()
    exact = Session(model, engine="interpreter").run(feed)
    small, large = (CompiledEngine(model, threads=1, options=CompileOptions(n)) for n in (2, 4))
    assert _kernels(small, feed) == _kernels(CompiledEngine(model, threads=1), feed)
    assert not any("F4" in name for name in _kernels(small, feed))
    assert sum("F4" in name for name in _kernels(large, feed)) == 2
    # a sum over C channels in float32 errs, in the mean, by the unit roundoff times sqrt(C), relative to its
    # values; the transforms of larger squares multiply that (0.9 and 3.3 of it were seen, at any blocking)
    for engine, factor in ((small, 1.2), (large, 4.0)):
        bound = factor * np.finfo(np.float32).eps / 2 * np.sqrt(feed["x"].shape[1])
        for name, array in engine.run(feed).items():
            assert _mean_error(array, exact[name]) < bound
    assert small.run(feed)["y"].tobytes() != large.run(feed)["y"].tobytes()
    chosen = Session(model, engine="compiled", threads=1, options=CompileOptions(winograd=4)).run(feed)
    assert chosen["y"].tobytes() == large.run(feed)["y"].tobytes()


def test_a_trainer_passes_its_options_on() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="wide")
    g = Builder(graph)
    rng = np.random.default_rng(0)
    x = g.input("x", ir.DataType.FLOAT, ("batch", CHANNELS, EXTENT, EXTENT))
    w = g.initializer(
        "w", (rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) / (9 * CHANNELS) ** 0.5).astype(np.float32)
    )
    g.output(g.Flatten(g.GlobalAveragePool(g.Relu(g.Conv(x, w, pads=[1, 1, 1, 1])))), "y")
    model = ir.Model(graph, ir_version=10)
    images = rng.standard_normal((16, CHANNELS, EXTENT, EXTENT)).astype(np.float32)
    data = (images, rng.integers(0, CHANNELS, 16))
    weights = []
    for options in (CompileOptions(), CompileOptions(2), CompileOptions(4)):
        trainer = Trainer(model, engine="compiled", threads=1, options=options)
        trainer.fit(data, epochs=1, batch_size=8, progress=False)
        weights.append(trainer.weights()["w"])
    assert weights[0].tobytes() == weights[1].tobytes() != weights[2].tobytes()
    np.testing.assert_allclose(weights[2], weights[0], rtol=0, atol=1e-5)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="winograd 3: choose 2 or 4"):
        CompileOptions(winograd=3)


def test_other_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"accuracy_level 2: choose 1 \(float32\) or 4 \(int8\)"):
        CompileOptions(accuracy_level=2)
