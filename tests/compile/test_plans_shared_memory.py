"""What a plan computes once is shared; memory that runs write, in part even, is never among it."""

from __future__ import annotations

import numpy as np
import onnx.parser

from onward.autodiff import training_step
from onward.compile.spec import Region
from onward.engine import StepSession
from onward.engine.compiled import CompiledEngine
from onward.model import from_bytes, upgrade
from onward.train import MSE, SGD

REORDERED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 6] x) => (float[N, 6] y)
<float[6] a = {1, 2, 3, 4, 5, 6}, float[6] b = {6, 5, 4, 3, 2, 1.5},
 int64[1] s0 = {0}, int64[1] s2 = {2}, int64[1] s4 = {4}, int64[1] s6 = {6}>
{
    a0 = Slice(a, s0, s2, s0)  a1 = Slice(a, s2, s4, s0)  a2 = Slice(a, s4, s6, s0)
    b0 = Slice(b, s0, s2, s0)  b1 = Slice(b, s2, s4, s0)  b2 = Slice(b, s4, s6, s0)
    A = Concat<axis = 0>(a1, a0, a2)
    B = Concat<axis = 0>(b1, b0, b2)
    t = Mul(x, A)
    y = Add(t, B)
}"""
"""Gates of recurrent weights in another order, as exporters write them; the gradients are padded alike."""


def test_gradients_of_weights_that_are_cut_alike_stay_apart() -> None:
    model = upgrade(from_bytes(onnx.parser.parse_model(REORDERED).SerializeToString()))
    step = training_step(model, {"y": MSE()}, SGD(), ["a", "b"], expose_gradients=True)
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((2, 3, 6), np.float32)
    scalars = {step.learning_rate: np.asarray(np.float32(1)), step.step: np.asarray(np.int64(0))}
    feeds = {"x": x, step.targets["y"]: target, **scalars}
    for _ in range(2):
        found = [
            StepSession(step.model, step.bindings, engine=engine).run(feeds)
            for engine in ("interpreter", "compiled")
        ]
        for name in ("a", "b"):
            expected, got = (results[step.gradients[name]] for results in found)
            np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_memory_that_holds_a_constant_in_part_is_the_run_s_own() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4] x) => (float[N, 4] z) <float[1, 4] w = {3, 3, 3, 3}>
    { y = Concat<axis = 0>(w, x) two = Identity(y) z = Pad(two, pads) }"""
    text = text.replace("<float", "<int64[4] pads = {0, 0, 1, 0}, float")
    model = from_bytes(onnx.parser.parse_model(text).SerializeToString())
    engines = [CompiledEngine(model, threads=1) for _ in range(2)]
    for engine in engines:
        plan = engine.plan({"x": (3, 4)})
        assert plan is not None
        assert not [b for b in plan.spec.buffers if b.region is Region.KEPT]
    for i, engine in enumerate(engines):
        x = np.full((3, 4), i, np.float32)
        expected = np.concatenate([np.full((1, 4), 3), x, np.zeros((1, 4))])
        assert np.array_equal(engine.run({"x": x})["z"], expected)
        engine.close()
