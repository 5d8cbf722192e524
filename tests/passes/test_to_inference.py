from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onward import nn
from onward.engine import Session
from onward.errors import UnsupportedError
from onward.graph import ONWARD_DOMAIN, Builder
from onward.model import to_bytes
from onward.passes import to_inference, to_training


def parsed(text: str, opset: int = 21, ir_version: int = 10) -> ir.Model:
    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}]>'
    return ir.serde.deserialize_model(onnx.parser.parse_model(head + text))


def checked(model: ir.Model) -> ir.Model:
    clean = to_inference(model)
    onnx.checker.check_model(to_bytes(clean), full_check=True)
    return clean


def names(values) -> list[str]:
    return [v.name for v in values]


def test_dropout_and_what_only_it_used_disappear():
    model = parsed(
        """g (float[N, 4] x, float ratio, bool training) => (float[N, 4] y) {
            a = Tanh(x)
            b, mask = Dropout(a, ratio, training)
            y = Tanh(b)
        }"""
    )
    clean = checked(model)
    assert [n.op_type for n in clean.graph] == ["Tanh", "Tanh"]
    assert names(clean.graph.inputs) == ["x"]
    assert len(model.graph) == 3, "the argument is left as it was"
    assert names(model.graph.inputs) == ["x", "ratio", "training"]


def test_an_unused_input_of_the_user_stays():
    clean = checked(parsed("g (float[N] x, float[N] spare) => (float[N] y) { y = Tanh(x) }"))
    assert names(clean.graph.inputs) == ["x", "spare"]


def test_an_input_that_something_else_uses_stays():
    clean = checked(
        parsed("""g (float[N] x, float ratio) => (float[N] y) { a = Dropout(x, ratio) y = Mul(a, ratio) }""")
    )
    assert names(clean.graph.inputs) == ["x", "ratio"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Tanh(x) y = Dropout(a)",
        "y = Dropout(x)",
        "a = Tanh(x) b = Dropout(a) y = Dropout(b)",
    ],
)
def test_an_output_behind_dropout_keeps_its_name(body):
    clean = checked(parsed("g (float[N, 2] x) => (float[N, 2] y) {" + body + "}"))
    assert names(clean.graph.outputs) == ["y"]
    assert names(clean.graph.inputs) == ["x"]
    x = np.array([[1.0, 2.0]], np.float32)
    expected = np.tanh(x) if "Tanh" in body else x
    np.testing.assert_allclose(Session(clean).run({"x": x})["y"], expected, rtol=1e-6)


def test_two_outputs_of_one_value_keep_their_names():
    clean = checked(
        parsed(
            """g (float[N] x) => (float[N] a, float[N] y, float[N] z)
            { a = Tanh(x) y = Dropout(a) z = Dropout(y) }"""
        )
    )
    assert names(clean.graph.outputs) == ["a", "y", "z"]


def test_a_mask_that_is_used_keeps_everything():
    clean = checked(parsed("g (float[N, 2] x) => (float[N, 2] y, bool[N, 2] mask) { y, mask = Dropout(x) }"))
    assert names(clean.graph.outputs) == ["y", "mask"]
    assert [n.op_type for n in clean.graph].count("Dropout") == 0
    assert {n.op_type for n in clean.graph} >= {"ConstantOfShape"}


BATCH_NORM = """g (float[N, 2, 3] x) => (float[N, 2, 3] y{more})
    <float[2] s = {{1, 2}}, float[2] b = {{0, 1}}, float[2] m = {{3, 4}}, float[2] v = {{4, 9}}> {{
        y, mean, var = BatchNormalization<training_mode = 1, epsilon = 0.0>(x, s, b, m, v)
    }}"""


def test_batch_normalization_uses_its_running_statistics():
    clean = checked(parsed(BATCH_NORM.format(more="")))
    (node,) = clean.graph
    assert "training_mode" not in node.attributes
    assert len(node.outputs) == 1
    x = np.full((1, 2, 3), 5, np.float32)
    y = Session(clean).run({"x": x})["y"]
    np.testing.assert_allclose(y[0, :, 0], [(5 - 3) / 2, 2 * (5 - 4) / 3 + 1], rtol=1e-6)


def test_statistics_that_are_outputs_are_those_that_went_in():
    clean = checked(parsed(BATCH_NORM.format(more=", float[2] mean")))
    assert names(clean.graph.outputs) == ["y", "mean"]
    producer = clean.graph.outputs[1].producer()
    assert producer is not None
    assert (producer.op_type, producer.inputs[0].name) == ("Identity", "m")


def test_training_form_comes_back():
    layers = [nn.Dense(4, name="d"), nn.BatchNorm(name="n"), nn.Dropout(0.5), nn.ReLU(), nn.Dense(2)]
    model = nn.Sequential(layers, input_shape=(3,)).model
    form = to_training(model, ["d.weight", "n.scale", "n.bias"])
    assert {"seed", "step"} <= set(names(form.model.graph.inputs))
    clean = checked(form.model)
    assert names(clean.graph.inputs) == names(model.graph.inputs)
    assert names(clean.graph.outputs) == names(model.graph.outputs)
    assert ONWARD_DOMAIN not in clean.graph.opset_imports
    x = {"input": np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)}
    assert (Session(clean).run(x)["output"] == Session(to_inference(model)).run(x)["output"]).all()


def test_onward_operators_become_standard_ones():
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, ONWARD_DOMAIN: 1}, name="g")
    g = Builder(graph)
    x = g.input("x", ir.DataType.FLOAT, ("N", 3))
    t = g.input("t", ir.DataType.INT64, ("N",))
    loss = g.emit("SoftmaxCrossEntropy", x, t, domain=ONWARD_DOMAIN, outputs=2)[0]
    g.output(loss, "loss")
    clean = checked(ir.Model(graph, ir_version=10))
    assert {n.domain for n in clean.graph} == {""}
    assert names(clean.graph.inputs) == ["x", "t"]
    assert names(clean.graph.outputs) == ["loss"]


def test_unused_nodes_initializers_and_opsets_disappear():
    model = parsed(
        """g (float[N] x) => (float[N] y) <float unused = {1}, float k = {2}> {
            y = Mul(x, k)
            dead = Tanh(x)
        }"""
    )
    model.graph.opset_imports["com.example"] = 1
    model.metadata_props["mine"] = "kept"
    model.doc_string = "about"
    clean = checked(model)
    assert list(clean.graph.initializers) == ["k"]
    assert [n.op_type for n in clean.graph] == ["Mul"]
    assert dict(clean.graph.opset_imports) == {"": 21}
    assert clean.metadata_props["mine"] == "kept"
    assert clean.doc_string == "about"


def test_declared_types_are_kept():
    clean = checked(
        parsed(
            "g (float[N, 4] x) => (float[N, 4] y) <float[N, 4] a> { a = Tanh(x) b = Dropout(a) y = Tanh(b) }"
        )
    )
    (a,) = next(iter(clean.graph)).outputs
    assert a.name == "a"
    assert str(a.shape) == "[N,4]"
    assert a.dtype == ir.DataType.FLOAT


@pytest.mark.parametrize(("opset", "ir_version", "result"), [(13, 7, 13), (21, 11, 21), (23, 11, 21)])
def test_opset_and_ir_version_are_what_runtimes_load(opset, ir_version, result):
    clean = checked(parsed("g (float[N] x) => (float[N] y) { y = Tanh(x) }", opset, ir_version))
    assert clean.graph.opset_imports[""] == result
    assert clean.ir_version == 10


def test_an_operator_that_opset_21_lacks_is_refused_by_name():
    model = parsed(
        """g (float[N, 4] x) => (float[N, 4] y) <float[4] s = {1, 1, 1, 1}>
        { [rms] y = RMSNormalization(x, s) }""",
        23,
        11,
    )
    with pytest.raises(UnsupportedError, match="RMSNormalization"):
        to_inference(model)


def test_dropout_inside_a_branch_disappears():
    model = parsed(
        """g (float[N] x, bool c) => (float[N] y) {
            y = If(c) <
                then_branch = yes () => (float[N] p) { p = Dropout(x) },
                else_branch = no () => (float[N] q) { a = Tanh(x) q = Dropout(a) }
            >
        }"""
    )
    clean = checked(model)
    assert "Dropout" not in {n.op_type for n in clean.graph.all_nodes()}
