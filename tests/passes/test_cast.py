from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tests.train import networks

from onward.autodiff import training_step
from onward.engine import Interpreter, Session
from onward.graph import Builder, dims_of
from onward.passes import cast_floats
from onward.train import CrossEntropy, RMSprop

FLOAT, DOUBLE = ir.DataType.FLOAT, ir.DataType.DOUBLE


def test_the_whole_model_is_of_the_other_type_and_the_argument_is_not() -> None:
    model = networks.norm_net()
    wide = cast_floats(model, DOUBLE)
    assert not any(v.dtype == FLOAT for n in wide.graph for v in n.outputs)
    assert not any(v.dtype == FLOAT for v in [*wide.graph.inputs, *wide.graph.initializers.values()])
    assert all(v.dtype == FLOAT for v in [*model.graph.inputs, *model.graph.outputs])
    assert [dims_of(v) for v in wide.graph.outputs] == [("N", 3)]
    x = np.random.default_rng(0).standard_normal((2, 1, 6, 6))
    (got,) = Session(wide).run({"image": x}).values()
    (expected,) = Session(model).run({"image": x.astype(np.float32)}).values()
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    back = cast_floats(wide, FLOAT, DOUBLE)
    np.testing.assert_array_equal(Session(back).run({"image": x.astype(np.float32)})["scores"], expected)


def test_constants_and_the_targets_of_casts_change_and_integers_do_not() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="test")
    g = Builder(graph)
    x = g.input("x", FLOAT, ("N",))
    i = g.Cast(x, to=int(ir.DataType.INT64))
    parts = [
        x,
        g.emit("Constant", value_float=0.1)[0],
        g.emit("Constant", value_floats=[0.5])[0],
        g.emit("Constant", value=ir.tensor(np.array([2.0], np.float32)))[0],
        g.Cast(i, to=int(FLOAT)),
        g.ConstantOfShape([1], value=ir.tensor(np.array([4.0], np.float32))),
        g.CastLike(i, x),
    ]
    g.output(g.Sum(*parts), "y")
    wide = cast_floats(ir.Model(graph, ir_version=10), DOUBLE)
    (y,) = Interpreter(wide.graph).run({"x": np.array([1.5])}).values()
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, [1.5 + float(np.float32(0.1)) + 0.5 + 2 + 1 + 4 + 1], rtol=1e-15)
    assert next(n for n in wide.graph if n.op_type == "Cast").outputs[0].dtype == ir.DataType.INT64


def test_a_training_step() -> None:
    step = training_step(networks.mlp(), {"scores": CrossEntropy()}, RMSprop(), ["out.weight"])
    wide = cast_floats(step.model, DOUBLE)
    types = {v.name: v.dtype for v in [*wide.graph.inputs, *wide.graph.outputs]}
    assert {types.pop(name) for name in (step.step, step.targets["scores"])} == {ir.DataType.INT64}
    assert set(types.values()) == {DOUBLE}
