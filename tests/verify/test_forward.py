from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.verify.planting import interpret

from onward import nn, verify
from onward.engine import Session
from onward.errors import ConfigError, InputError, UnsupportedError, VerificationError
from onward.graph import find
from onward.model import save


def parsed(text: str, opset: int = 21) -> ir.Model:
    head = f'<ir_version: 10, opset_import: ["": {opset}]>'
    return ir.serde.deserialize_model(onnx.parser.parse_model(head + text))


def chain() -> ir.Model:
    """Four nodes whose second is Tanh; Sigmoid at the end is where a difference shows."""
    return parsed(
        """chain (float[N, 6] x) => (float[N, 6] y) {
            [first] a = Mul(x, x)
            [second] b = Tanh(a)
            [third] c = Add(b, x)
            [fourth] y = Sigmoid(c)
        }"""
    )


def plant(monkeypatch: pytest.MonkeyPatch, op_type: str, factor: float = 1.001, domain: str = "") -> None:
    cls = find(domain, op_type, 1 if domain else 21)
    right = cls.kernel

    def wrong(self, *inputs):
        result = right(self, *inputs)
        first, *others = result if isinstance(result, tuple) else (result,)
        scaled = (first * first.dtype.type(factor)).astype(first.dtype)
        return (scaled, *others) if isinstance(result, tuple) else scaled

    interpret(monkeypatch)
    monkeypatch.setattr(cls, "kernel", wrong)


def test_engines_agree_on_a_small_network():
    network = nn.Sequential(
        [
            nn.Conv2D(4, 3, padding="same", activation="relu"),
            nn.BatchNorm(),
            nn.MaxPool2D(2),
            nn.Flatten(),
            nn.Dense(3),
        ],
        input_shape=(2, 8, 8),
    )
    report = verify.compare(network.model, samples=2, batch=3)
    assert report.passed
    assert report.verdict == "agree"
    assert report.first_difference is None
    (row,) = report.rows
    assert (row.name, row.kind, row.dtype, row.shape) == ("output", "output", "float32", (3, 3))
    assert "agree on 1 tensors over 2 runs" in str(report)
    report.raise_if_failed()


def test_a_planted_mismatch_is_traced_to_its_node(monkeypatch):
    plant(monkeypatch, "Tanh")
    report = verify.compare(chain())
    found = report.first_difference
    assert not report.passed
    assert report.verdict == "differ"
    assert found is not None
    assert (found.cause, found.node, found.operator, found.opset, found.output, found.index) == (
        "node",
        "second",
        "Tanh",
        21,
        "b",
        1,
    )
    assert found.max_abs == pytest.approx(1e-3, rel=0.1)
    with pytest.raises(
        VerificationError, match=r"first differing node: node 'second'.*operator Tanh, opset 21"
    ):
        report.raise_if_failed()


def test_a_mismatch_that_dies_out_is_no_failure(monkeypatch):
    plant(monkeypatch, "Tanh")
    model = parsed("g (float[N] x) => (float[N] y) { a = Tanh(x) y = Sign(a) }")
    assert verify.compare(model).passed


def test_only_the_node_that_differs_is_blamed(monkeypatch):
    """Two thousand times the difference of the first node arrives at the second, which is sound."""
    plant(monkeypatch, "Tanh", 1 + 2e-4)
    model = parsed(
        """g (float[N] x) => (float[N] y) <float k = {2000}> {
            [sound] a = Mul(x, x) [planted] b = Tanh(a) [loud] y = Mul(b, k) }"""
    )
    found = verify.compare(model, {"x": np.array([2, 3], np.float32)}).first_difference
    assert found is not None
    assert (found.cause, found.node) == ("node", "planted")


def test_rounding_that_adds_up_is_not_blamed_on_a_node():
    # each step is exact to rounding; the subtraction leaves nothing but rounding, a million times enlarged
    model = parsed(
        """g (float[N, 64] x) => (float[N, 64] y) <float k = {1e6}> {
            s = Softmax(x) l = Log(s) e = Exp(l) d = Sub(e, s) [last] y = Mul(d, k) }"""
    )
    report = verify.compare(model, batch=8)
    assert not report.passed
    assert report.verdict == "rounding"
    assert report.first_difference is not None
    assert report.first_difference.cause == "accumulation"
    assert "no single node differs" in str(report)


def test_a_kernel_that_fails_on_the_witness_inputs_is_named(monkeypatch):
    cls = find("", "Tanh", 21)

    def wrong(self, x):
        return x[..., :-1]

    interpret(monkeypatch)
    monkeypatch.setattr(cls, "kernel", wrong)
    model = parsed("g (float[N, 4] x) => (float[?, ?] y) { [t] y = Tanh(x) }")
    report = verify.compare(model)
    assert report.rows[0].note == "shape [2, 3] against [2, 4]"
    assert report.first_difference is not None
    assert report.first_difference.node == "t"


def test_nan_and_infinity_agree():
    model = parsed("g (float[N] x) => (float[N] y, float[N] z) { y = Log(x) z = Identity(x) }")
    x = np.array([-1, 0, 1, np.nan, np.inf], np.float32)
    assert verify.compare(model, {"x": x}).passed


def test_nan_against_a_number_is_a_mismatch(monkeypatch):
    cls = find("", "Tanh", 21)
    interpret(monkeypatch)
    monkeypatch.setattr(cls, "kernel", lambda self, x: np.full_like(x, np.nan))
    report = verify.compare(chain())
    assert report.failures[0].max_abs == np.inf
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["rows"][0]["max_abs"] == "inf"


def test_the_report_is_plain_json(monkeypatch):
    plant(monkeypatch, "Tanh")
    data = json.loads(json.dumps(verify.compare(chain()).to_dict(), allow_nan=False))
    assert data["passed"] is False
    assert data["verdict"] == "differ"
    assert data["first_difference"]["node"] == "second"
    assert data["rows"][0]["tolerance"]["relative"] == 1e-4


def test_integers_have_to_be_equal(monkeypatch):
    model = parsed("g (float[N] x) => (int64[N] y) { [c] y = Cast<to = 7>(x) }")
    x = {"x": np.array([1.5, 2.5], np.float32)}
    assert verify.compare(model, x).passed
    cls = find("", "Cast", 21)
    right = cls.kernel
    interpret(monkeypatch)
    monkeypatch.setattr(cls, "kernel", lambda self, x: right(self, x) + 1)
    assert not verify.compare(model, x, tolerance=verify.Tolerance(absolute=5)).passed


def test_tolerances_can_be_given(monkeypatch):
    plant(monkeypatch, "Tanh")
    assert verify.compare(chain(), tolerance=verify.Tolerance(absolute=0.01)).passed
    assert verify.compare(chain(), tolerance={"float32": verify.Tolerance(absolute=0.01)}).passed
    assert not verify.compare(chain(), tolerance={"float64": verify.Tolerance(absolute=0.01)}).passed


def test_bfloat16_inputs_and_outputs_travel():
    model = parsed("g (bfloat16[N] x) => (bfloat16[N] y) { y = Identity(x) }")
    assert verify.compare(model).passed


def test_a_file_can_be_compared(tmp_path):
    save(chain(), tmp_path / "m.onnx")
    assert verify.compare(tmp_path / "m.onnx").passed


def test_wrong_inputs_are_refused():
    with pytest.raises(InputError, match="expected dtype float32"):
        verify.compare(chain(), {"x": np.zeros((2, 6))})
    with pytest.raises(InputError, match="no input named 'q'"):
        verify.compare(chain(), {"q": np.zeros((2, 6))})
    with pytest.raises(ConfigError, match="samples"):
        verify.compare(chain(), samples=0)


def test_random_nodes_are_refused_by_name():
    model = parsed("g (float[N] x) => (float[N] y) { [noise] r = RandomNormalLike(x) y = Add(x, r) }")
    with pytest.raises(UnsupportedError, match="'noise', operator RandomNormalLike"):
        verify.compare(model)


def test_a_refusal_by_onnxruntime_is_one_line(monkeypatch):
    model = parsed("g (float[N] x) => (float[N] y) { y = Tanh(x) }", opset=21)
    model.ir_version = 99
    with pytest.raises(
        VerificationError, match=r"onnxruntime does not load the model: .*IR version"
    ) as caught:
        verify.compare(model)
    assert "\n" not in str(caught.value)


def test_a_failure_of_onnxruntime_is_one_line(monkeypatch):
    model = parsed("g (float[N] x, float[M] z) => (float[?] y) { y = Add(x, z) }")
    monkeypatch.setattr(Session, "run", lambda self, *args, **options: {"y": np.zeros(3, np.float32)})
    x, z = np.zeros(3, np.float32), np.zeros(2, np.float32)
    with pytest.raises(VerificationError, match="onnxruntime does not run the model") as caught:
        verify.compare(model, {"x": x, "z": z})
    assert "\n" not in str(caught.value)


def test_a_node_is_not_blamed_for_cancellation_in_its_inputs():
    """Each sum is zero but for the rounding of terms of a million: neither engine is wrong."""
    model = parsed(
        """g (float[N, 4096] x) => (float[N, 1] y) <int64[1] axes = {1}> {
            [sum] y = ReduceSum<keepdims = 1>(x, axes) }"""
    )
    rng = np.random.default_rng(0)
    half = rng.standard_normal((4, 2048)).astype(np.float32) * np.float32(1e6)
    x = rng.permuted(np.concatenate([half, -half], 1), axis=1)
    # a compiled kernel may sum in onnxruntime's order; NumPy sums by halves
    report = verify.compare(model, {"x": x}, engine="interpreter")
    assert not report.passed
    assert report.verdict != "differ"
