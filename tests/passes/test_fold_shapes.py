"""Shape arithmetic of exports folds, wholly or element by element, and gradients go through it."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onward.autodiff import training_step
from onward.engine import Session, StepSession
from onward.errors import ConfigError, UnsupportedError
from onward.graph import bodies_of, dims_of
from onward.model import from_bytes, upgrade
from onward.passes import fix_inputs, fix_shapes, fold_shapes
from onward.train import MSE, SGD

HEADS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 6, 8] x) => (float[N, 6, 8] y)
<float[8, 8] w, int64 zero = {0}, int64[1] first = {0}, int64[3] rest = {6, 2, 4}, int64[1] minus = {-1}>
{
    shape = Shape(x)
    n = Gather(shape, zero)
    n1 = Unsqueeze(n, first)
    wanted = Concat<axis = 0>(n1, rest)
    k = MatMul(x, w)
    heads = Reshape(k, wanted)
    turned = Transpose<perm = [0, 2, 1, 3]>(heads)
    back = Transpose<perm = [0, 2, 1, 3]>(turned)
    eight = Constant<value = int64[1] {8}>()
    six = Constant<value = int64[1] {6}>()
    flat = Concat<axis = 0>(n1, six, minus)
    y = Reshape(back, flat)
}"""
"""How exporters write the split of a hidden vector into heads, with a dynamic batch."""

GUARD = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 1, 5] x, float[N, 4, 5] z) => (float[N, 4, 5] y)
<int64 zero = {0}, int64[1] first = {0}, int64[2] rest = {4, -1}, int64 minus = {-1}, float[1, 1, 5] w>
{
    shape = Shape(x)
    n = Gather(shape, zero)
    n1 = Unsqueeze(n, first)
    wanted = Concat<axis = 0>(n1, rest)
    length = Shape(wanted)
    ones = ConstantOfShape<value = int64[1] {1}>(length)
    minuses = Mul(ones, minus)
    open = Equal(wanted, minuses)
    target = Where(open, ones, wanted)
    scaled = Mul(x, w)
    wide = Expand(scaled, target)
    y = Add(wide, z)
}"""
"""torch's expand(n, 4, -1): a target whose −1 becomes 1, told from extents element by element."""

AXES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 6, 6, 3] x) => (float[N, 3, 3, 3] y)
<float[3] w, int64 one = {1}, int64[1] first = {0}, int64[1] last = {9223372036854775807}>
{
    axis = Unsqueeze(one, first)
    two = Add(axis, axis)
    scaled = Mul(x, w)
    rows = Slice(scaled, first, last, axis, two)
    y = Slice(rows, axis, last, two, two)
}"""
"""Windows every two rows and columns, whose axes and steps are computed."""


def model_of(text: str, seed: int = 0) -> ir.Model:
    """A parsed model; its weights without contents get random ones."""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for info in proto.graph.value_info:  # weights that the text declares without contents
        dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
        array = rng.standard_normal(dims).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    del proto.graph.value_info[:]
    return from_bytes(proto.SerializeToString())


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_what_follows_from_dimensions_becomes_dimensions() -> None:
    folded = fold_shapes(model_of(HEADS))
    heads = next(node for node in folded.graph if node.op_type == "Reshape").outputs[0]
    assert dims_of(heads) == ("N", 6, 2, 4)
    assert dims_of(folded.graph.outputs[0]) == ("N", 6, 8)


def test_a_guard_against_minus_one_is_decided_element_by_element() -> None:
    folded = fold_shapes(model_of(GUARD))
    wide = next(node for node in folded.graph if node.op_type == "Expand").outputs[0]
    assert dims_of(wide) == ("N", 4, 5)


def test_computed_axes_become_constants() -> None:
    folded = fold_shapes(model_of(AXES))
    assert operators(folded) == ["Mul", "Slice", "Slice"]
    assert all(v is None or v.is_initializer() for node in folded.graph for v in node.inputs[1:])


def test_a_known_condition_leaves_its_branch() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[2, 3] x) => (float[2, 3] y) <int64 zero = {0}, int64 two = {2}>
    {
        shape = Shape(x)
        n = Gather(shape, zero)
        flag = Equal(n, two)
        y = If (flag) <
            then_branch = a () => (float[2, 3] t) { t = Relu(x) },
            else_branch = b () => (float[2, 3] e) { e = Neg(x) }
        >
    }"""
    folded = fold_shapes(model_of(text))
    assert "If" not in operators(folded)
    x = np.array([[-1, 2, 3], [4, -5, 6]], np.float32)
    with Session(folded) as session:
        assert np.array_equal(session.run({"x": x})["y"], np.maximum(x, 0))


def test_from_weights_and_from_inputs_with_defaults_nothing_follows() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x, int64[1] k) => (float[2] y, int64[1] z) <int64[1] k = {1}, float[2] w = {2, 3}>
    { two = Mul(w, w) y = Mul(x, two) z = Add(k, k) }"""
    model = model_of(text)
    assert operators(fold_shapes(model, ["w"])) == ["Mul", "Mul", "Add"]
    assert operators(fold_shapes(model)) == ["Mul", "Add"]


def test_the_argument_stays_as_it_was() -> None:
    model = model_of(GUARD)
    before = ir.serde.serialize_model(model).SerializeToString()
    fold_shapes(model)
    assert ir.serde.serialize_model(model).SerializeToString() == before


@pytest.mark.parametrize("text", [HEADS, GUARD, AXES], ids=["heads", "guard", "axes"])
@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_gradients_are_those_of_central_differences(text: str, engine: str) -> None:
    model = upgrade(model_of(text))
    step = training_step(model, {"y": MSE()}, SGD(learning_rate=0.0), ["w"], expose_gradients=True)
    rng = np.random.default_rng(1)
    feeds = {}
    for value in model.graph.inputs:
        dims = [3 if not isinstance(d, int) else d for d in dims_of(value) or ()]
        feeds[value.name or ""] = rng.standard_normal(dims).astype(np.float32)
    with Session(model, engine="interpreter") as session:
        shape = session.run(feeds)["y"].shape
    target = rng.standard_normal(shape).astype(np.float32)
    scalars = {step.learning_rate: np.asarray(np.float32(0)), step.step: np.asarray(np.int64(0))}
    run = StepSession(step.model, step.bindings, engine=engine).run(  # type: ignore[arg-type]
        {**feeds, step.targets["y"]: target, **scalars}
    )
    w = model.graph.initializers["w"].const_value
    assert w is not None
    direction = rng.standard_normal(w.numpy().shape).astype(np.float32)

    def loss(at: float) -> float:
        with Session(model, engine="interpreter") as session:
            session.load_weights({"w": np.float32(w.numpy() + np.float32(at) * direction)})
            return float(np.mean(np.square(session.run(feeds)["y"].astype(np.float64) - target)))

    expected = (loss(1e-2) - loss(-1e-2)) / 2e-2
    assert np.sum(run[step.gradients["w"]] * direction) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("text", [HEADS, GUARD, AXES], ids=["heads", "guard", "axes"])
def test_plans_have_no_numpy_steps(text: str) -> None:
    from onward.engine.compiled import CompiledEngine

    model = upgrade(model_of(text))
    step = training_step(model, {"y": MSE()}, SGD(), ["w"])
    for made, bindings in ((model, {}), (step.model, step.bindings)):
        engine = CompiledEngine(made, bindings, 1)
        shapes = {
            v.name or "": tuple(3 if not isinstance(d, int) else d for d in dims_of(v) or ())
            for v in made.graph.inputs
            if v.name not in made.graph.initializers
        }
        plan = engine.plan(shapes)
        engine.close()
        assert plan is not None
        assert not [row for row in plan.rows if row.reason]


NESTED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, C, T] x, bool c) => (float[N, 4, U] y)
<float[4, 2, 1] w = {1, -1, 0.5, 2, -0.5, 1, 0, 1}, int64 last = {2}, int64 one = {1}>
{
    y = If (c) <
        then_branch = a () => (float[N, 4, U] p) {
            shape = Shape(x)
            n = Gather(shape, last)
            short = Equal(n, one)
            q = If (short) <
                then_branch = b () => (float s) {
                    axis = Constant<value = int64[1] {2}>()
                    s = Squeeze(x, axis)
                },
                else_branch = d () => (float t) {
                    inner = If (short) <
                        then_branch = k () => (float u) { u = Neg(x) },
                        else_branch = l () => (float v) { v = Abs(x) }>
                    t = Identity(inner)
                }>
            p = Conv(q, w)
        },
        else_branch = e () => (float[N, 4, U] r) { r = Conv(x, w) }>
}"""


def test_branches_inside_bodies_are_taken_once_shapes_are_known() -> None:
    model = upgrade(from_bytes(onnx.parser.parse_model(NESTED).SerializeToString()))
    rng = np.random.default_rng(0)
    with pytest.raises(UnsupportedError, match="needs the ranks"):
        training_step(model, {"y": MSE()}, SGD(), ["w"])
    known = fix_shapes(model, {"x": (None, 2, 5)})
    folded = fold_shapes(known, ["w"])
    (node,) = [n for n in folded.graph if n.op_type == "If"]
    inside = [n.op_type for body in bodies_of(node) for n in body]
    assert "If" not in inside
    assert "Abs" in inside
    step = training_step(known, {"y": MSE()}, SGD(), ["w"])
    feeds = {"x": rng.normal(size=(3, 2, 5)).astype(np.float32), "c": np.array(True)}
    feeds |= {
        step.targets["y"]: np.zeros((3, 4, 5), np.float32),
        step.learning_rate: np.array(0.1, np.float32),
    }
    losses = [
        float(session.run({**feeds, step.step: np.array(k)})[step.loss])
        for session in [StepSession(step.model, step.bindings)]
        for k in range(3)
    ]
    assert losses[2] < losses[1] < losses[0]


def test_an_input_that_is_a_constant_takes_its_branch() -> None:
    model = upgrade(from_bytes(onnx.parser.parse_model(NESTED).SerializeToString()))
    folded = fold_shapes(fix_inputs(model, {"c": np.array(False)}))
    assert [n.op_type for n in folded.graph] == ["Conv"]
    assert [v.name for v in folded.graph.inputs] == ["x"]
    with pytest.raises(ConfigError, match="input 'c': expected"):
        fix_inputs(model, {"c": np.array(1)})


def test_a_shape_that_contradicts_the_file_is_refused() -> None:
    model = upgrade(from_bytes(onnx.parser.parse_model(NESTED).SerializeToString()))
    with pytest.raises(ConfigError, match=r"shape \[2, 2\] does not fit input 'x'"):
        fix_shapes(model, {"x": (2, 2)})
    with pytest.raises(ConfigError, match="the inputs are x, c"):
        fix_shapes(model, {"z": (2, 2)})
