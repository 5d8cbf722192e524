from __future__ import annotations

import datetime

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from tests.verify.planting import interpret

from onward import nn, verify
from onward.errors import ConfigError, StorageError, UnsupportedError, VerificationError
from onward.graph import find
from onward.model import Provenance, load, read_provenance
from onward.passes import to_training


@pytest.fixture
def model():
    layers = [
        nn.Dense(5, name="a"),
        nn.BatchNorm(name="norm"),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Dense(3, name="b"),
    ]
    return nn.Sequential(layers, input_shape=(4,), name="small").model


def run(path, x):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(
        None, {"input": x}
    )[0]


def test_the_file_is_clean_checked_and_runs(model, tmp_path):
    path = tmp_path / "m.onnx"
    report = verify.export(model, path)
    assert report is not None
    assert report.passed
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [node.op_type for node in proto.graph.node].count("Dropout") == 0
    assert proto.ir_version == 10
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 21)]
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert run(path, np.ones((7, 4), np.float32)).shape == (7, 3)


def test_training_form_and_inference_form_give_one_file(model, tmp_path):
    verify.export(model, tmp_path / "a.onnx")
    verify.export(to_training(model, ["a.weight", "norm.scale"]).model, tmp_path / "b.onnx")
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    assert (run(tmp_path / "a.onnx", x) == run(tmp_path / "b.onnx", x)).all()


def test_weights_are_put_in_and_copied(model, tmp_path):
    bias = np.array([1, 2, 3], np.float32)
    weights = {"b.bias": bias, "b.weight": np.zeros((3, 5), np.float32)}
    verify.export(model, tmp_path / "m.onnx", weights=weights)
    assert (run(tmp_path / "m.onnx", np.ones((2, 4), np.float32)) == bias).all()
    assert not (model.graph.initializers["b.bias"].const_value.numpy() == bias).any()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"q": np.zeros(3, np.float32)}, "weight 'q' is not an initializer"),
        (
            {"b.bias": np.zeros(4, np.float32)},
            r"weight 'b.bias': the model has float32\[3\], given float32\[4\]",
        ),
        ({"b.bias": np.zeros(3)}, "given float64"),
    ],
)
def test_weights_that_do_not_fit_are_refused(model, tmp_path, weights, message):
    with pytest.raises(ConfigError, match=message):
        verify.export(model, tmp_path / "m.onnx", weights=weights)
    assert list(tmp_path.iterdir()) == []


def test_provenance_and_metadata_are_in_the_file(model, tmp_path):
    model.metadata_props["mine"] = "kept"
    provenance = Provenance(
        data_hash="abc", created=datetime.datetime.now(datetime.UTC), split_seed=7, metrics={"accuracy": 0.5}
    )
    verify.export(model, tmp_path / "m.onnx", provenance=provenance)
    loaded = load(tmp_path / "m.onnx")
    assert read_provenance(loaded) == provenance
    assert loaded.metadata_props["mine"] == "kept"
    assert "onward.data_hash" not in model.metadata_props


def test_a_mismatch_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"what was there before")
    cls = find("", "Tanh", 21)
    right = cls.kernel
    interpret(monkeypatch)
    monkeypatch.setattr(cls, "kernel", lambda self, x: (right(self, x) * 1.01).astype(x.dtype))
    with pytest.raises(VerificationError, match=r"(?s)m.onnx is not written: .*operator Tanh, opset 21"):
        verify.export(model, path)
    assert path.read_bytes() == b"what was there before"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert verify.export(model, path, check=False) is None
    assert load(path).graph.name == "small"


def test_what_onnxruntime_refuses_is_not_written(model, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    clean = verify.exporting.to_inference

    def misdeclared(source):
        result = clean(source)
        result.ir_version = 99
        return result

    monkeypatch.setattr(verify.exporting, "to_inference", misdeclared)
    with pytest.raises(VerificationError, match=r"is not written: onnxruntime does not load"):
        verify.export(model, path)
    assert not path.exists()


def test_an_unwritable_folder_is_one_error(model, tmp_path):
    with pytest.raises(StorageError):
        verify.export(model, tmp_path / "missing" / "m.onnx")


def test_used_masks_of_old_operators_are_an_error(tmp_path):
    text = """<ir_version: 7, opset_import: ["": 9]>
        g (float[N, 2, 3] x) => (float[N, 2, 3] y, float[2] mean)
        <float[2] s = {1, 1}, float[2] b = {0, 0}, float[2] m = {0, 0}, float[2] v = {1, 1}> {
            [bn] y, mean, var, sm, sv = BatchNormalization(x, s, b, m, v)
        }"""
    with pytest.raises(UnsupportedError, match="'bn', operator BatchNormalization, opset 9"):
        verify.export(ir.serde.deserialize_model(onnx.parser.parse_model(text)), tmp_path / "m.onnx")
