"""Element-wise operators inside the kernels before and after them give what they give alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.compile.plans import planned

from onward.compile.codegen.target import LANES, host_target
from onward.engine.interpreter import Interpreter
from onward.graph import ONWARD_DOMAIN, Array, Builder, dims_of

CONVOLUTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "same": ((12, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
    "strided": ((12, 8, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "strided pointwise": ((12, 8, 1, 1), {"strides": [2, 2]}),
    "strided past the kernel": ((5, 8, 2, 2), {"strides": [3, 3]}),
    "dilated": ((12, 8, 3, 3), {"dilations": [2, 2]}),
    "grouped": ((12, 4, 3, 3), {"pads": [1, 1, 1, 1], "group": 2}),
    "depthwise": ((8, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 8}),
    "depthwise strided": ((8, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 8, "strides": [2, 2]}),
    "winograd": ((33, 34, 3, 3), {"pads": [1, 1, 1, 1]}),
}


def _graph() -> Builder:
    return Builder(ir.Graph([], [], nodes=[], opset_imports={"": 21, "ai.onward": 1}, name="fused"))


def _feed(graph: ir.Graph) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shapes: Any = {v.name: tuple(dims_of(v) or ()) for v in graph.inputs}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _compare(model: ir.Model, feed: dict[str, Array], lanes: int) -> list[str]:
    """The kernels of a plan whose results are the interpreter's."""
    plan = planned(model, feed, lanes=lanes)
    assert plan.fallbacks == {}
    got = plan.run(feed)
    for name, want in Interpreter(model.graph).run(feed).items():
        np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=2e-6 * np.abs(want).max(), err_msg=name)
    return [row.kernel.split()[0] for row in plan.plan.rows]


@pytest.mark.parametrize("lanes", [n for n in LANES if n <= host_target().lanes])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolutions_gradient_is_added_and_masked_as_it_is_stored(name: str, lanes: int) -> None:
    kernel, attributes = CONVOLUTIONS[name]
    channels = kernel[1] * attributes.get("group", 1)
    g = _graph()
    shape = (3, channels, 15, 14)
    x, other = (g.input(n, ir.DataType.FLOAT, shape) for n in ("x", "other"))
    w = g.input("w", ir.DataType.FLOAT, kernel)
    y = g.Conv(g.Relu(x), w, **attributes)
    dx = g.emit("ConvGradInput", g.Tanh(y), w, domain=ONWARD_DOMAIN, spatial=[15, 14], **attributes)[0]
    g.output(g.Where(g.Greater(x, 0.0), g.Add(dx, other), 0.0), "dx")
    model = ir.Model(g.graph, ir_version=10)
    kernels = _compare(model, _feed(g.graph), lanes)
    assert kernels.count("element") == 1  # the first ReLU


@pytest.mark.parametrize("lanes", [n for n in LANES if n <= host_target().lanes])
def test_an_activation_after_normalization_is_computed_again(lanes: int) -> None:
    """Two passes and two reductions; the mask computed again is that of the result, element for element."""
    g = _graph()
    shape = (5, 20, 9, 7)
    x, dy = (g.input(n, ir.DataType.FLOAT, shape) for n in ("x", "dy"))
    scale, bias, mean, var = (g.input(n, ir.DataType.FLOAT, (20,)) for n in ("scale", "bias", "mean", "var"))
    normalized = g.emit("BatchNormalization", x, scale, bias, mean, var, outputs=3, training_mode=1)[0]
    y = g.Relu(normalized)
    masked = g.Where(g.Greater(y, 0.0), dy, 0.0)
    dx, _, dbias = g.emit("BatchNormalizationGrad", masked, x, scale, domain=ONWARD_DOMAIN, outputs=3)
    for value, name in ((y, "y"), (dx, "dx"), (dbias, "dbias")):
        g.output(value, name)
    model = ir.Model(g.graph, ir_version=10)
    feed = _feed(g.graph)
    assert sorted(k for k in _compare(model, feed, lanes) if k in ("element", "reduce")) == [
        *["element"] * 2,
        *["reduce"] * 2,
    ]
    feed["dy"][:] = 1
    got = planned(model, feed, lanes=lanes).run(feed)
    np.testing.assert_array_equal(got["dbias"], (got["y"] > 0).sum((0, 2, 3)))
