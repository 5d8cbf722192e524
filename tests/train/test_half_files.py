"""Files of float16 and bfloat16: trained with float32 weights, and what they were again."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.nn.test_zoo import SMALL
from tests.train import networks

from onward.engine import Session
from onward.errors import TrainingError
from onward.graph import dtype_of, numpy_dtype
from onward.model import load, save
from onward.nn import zoo
from onward.passes import half_types, in_float32, to_half
from onward.train import SGD, Adam, Trainer
from onward.train.obstacles import training_obstacles
from onward.verify import compare_training, export

_DEEP = ("mobilenet_v2", "resnet50")
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def signature(model: ir.Model) -> list[tuple[str, list[object], list[object]]]:
    """Operators in order, with the element types of what they take and give."""
    return [(n.op_type, [v and v.dtype for v in n.inputs], [v.dtype for v in n.outputs]) for n in model.graph]


@pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _DEEP else n for n in sorted(SMALL)]
)
def test_converted_networks_train_and_keep_their_types(name: str, dtype: ir.DataType) -> None:
    network = zoo.build(name, **SMALL[name])
    model = to_half(network.model, dtype)
    (spec,) = network.inputs
    rng = np.random.default_rng(0)
    shape = (8, *(d for d in (spec.shape or ())[1:] if isinstance(d, int)))
    x = rng.integers(0, 30, shape) if spec.dtype == np.int64 else rng.normal(size=shape)
    x, y = x.astype(spec.dtype), np.arange(8) % 2
    trainer = Trainer(model, optimizer=Adam(learning_rate=2e-3))
    assert trainer.half_types == (dtype.name.lower(),)
    first = trainer.evaluate(x, y)["loss"]
    trainer.fit(x, y, epochs=10, batch_size=8, progress=False)
    assert trainer.evaluate(x, y)["loss"] < first
    assert all(a.dtype == np.float32 for a in trainer.weights().values())
    written = trainer.model
    assert signature(written) == signature(model)
    changed = 0
    for key, old in model.graph.initializers.items():
        new = written.graph.initializers[key].const_value
        assert new is not None
        assert old.const_value is not None
        assert new.dtype == old.const_value.dtype
        changed += not np.array_equal(new.numpy(), old.const_value.numpy())
    assert changed >= len(trainer.trainable) // 2
    # what is written gives what was trained, but for rounding to 16 bits
    wide = trainer.predict(x)["output"]
    own = trainer.predict(x, own_types=True)["output"]
    assert own.dtype == np.float32
    coarse = 0.01 if dtype == ir.DataType.FLOAT16 else 0.08
    assert np.linalg.norm(own - wide) <= coarse * np.linalg.norm(wide)


def test_updates_that_16_bits_would_lose_add_up() -> None:
    trainer = Trainer(to_half(networks.mlp(), ir.DataType.BFLOAT16), optimizer=SGD(learning_rate=1e-4))
    x, y = networks.blobs()
    before = {n: a.copy() for n, a in trainer.weights().items()}
    trainer.fit(x, y, epochs=1, batch_size=16, progress=False)
    after = trainer.weights()
    once = {n: np.abs(after[n] - before[n]).max() for n in before}
    assert 0 < once["out.weight"] < np.abs(before["out.weight"]).max() / 512
    exact = Trainer(in_float32(to_half(networks.mlp(), ir.DataType.BFLOAT16)), optimizer=SGD(1e-4))
    exact.fit(x, y, epochs=1, batch_size=16, progress=False)
    for name, array in exact.weights().items():
        np.testing.assert_array_equal(array, after[name])


def _half(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array.astype(np.float16), name)


def _mixed(path: Path) -> None:
    """Casts both ways, one weight used twice and transposed, normalizations with float16 statistics."""
    rng = np.random.default_rng(0)
    make = helper.make_node
    nodes = [
        make("Cast", ["x"], ["xh"], to=TensorProto.FLOAT16),
        make("MatMul", ["xh", "w"], ["a"]),
        make("LayerNormalization", ["a", "ls", "lb"], ["l"], stash_type=1),
        make("Cast", ["l"], ["lf"], to=TensorProto.FLOAT),
        make("Cast", ["v"], ["vf"], to=TensorProto.FLOAT),
        make("MatMul", ["lf", "vf"], ["c"]),
        make("Cast", ["c"], ["ch"], to=TensorProto.FLOAT16),
        make("MatMul", ["ch", "w"], ["d"]),
        make("BatchNormalization", ["d", "bs", "bb", "bm", "bv"], ["e"]),
        make("Constant", [], ["half"], value=numpy_helper.from_array(np.float16(0.5))),
        make("Mul", ["e", "half"], ["f"]),
        make("Tanh", ["f"], ["t"]),
        make("Transpose", ["w"], ["wt"]),
        make("MatMul", ["t", "wt"], ["g"]),
        make("MatMul", ["g", "head"], ["y0"]),
        make("Cast", ["y0"], ["y"], to=TensorProto.FLOAT),
    ]
    weights = [
        _half("w", rng.standard_normal((8, 8)) * 0.3),
        _half("v", rng.standard_normal((8, 8)) * 0.3),
        _half("head", rng.standard_normal((8, 3)) * 0.3),
        *(_half(n, np.ones(8)) for n in ("ls", "bs", "bv")),
        *(_half(n, np.zeros(8)) for n in ("lb", "bb", "bm")),
    ]
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _samples(features: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((256, features)).astype(np.float32)
    return x, (x @ rng.standard_normal((features, 3))).argmax(1)


def test_a_file_of_mixed_types(tmp_path: Path) -> None:
    _mixed(tmp_path / "mixed.onnx")
    assert not training_obstacles(load(tmp_path / "mixed.onnx"))
    trainer = Trainer(tmp_path / "mixed.onnx", optimizer="adam", metrics=["accuracy"])
    assert trainer.trainable == ["w", "v", "head", "ls", "bs", "lb", "bb"]
    x, y = _samples()
    first = trainer.evaluate(x, y)["loss"]
    trainer.fit(x, y, epochs=40, batch_size=32, progress=False)
    figures = trainer.evaluate(x, y)
    assert figures["loss"] < first / 2
    # running statistics, float16 in the file, have followed
    assert not np.array_equal(trainer.weights()["bm"], np.zeros(8, np.float32))
    export(trainer.model, tmp_path / "trained.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "trained.onnx"))
    (scores,) = session.run(None, {"x": x})
    assert (scores.argmax(1) == y).mean() == pytest.approx(figures["accuracy"], abs=0.02)
    again = load(tmp_path / "trained.onnx")
    assert {v.dtype for v in again.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert [n.op_type for n in again.graph].count("Cast") == 5


def test_weights_inside_a_branch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    make, info = helper.make_node, helper.make_tensor_value_info
    branches = [
        helper.make_graph(
            [make("MatMul", ["x", weight], [out])], out, [], [info(out, TensorProto.FLOAT16, ["N", 3])]
        )
        for weight, out in (("w", "one"), ("u", "other"))
    ]
    nodes = [
        make("ReduceSum", ["x"], ["s"], keepdims=0),
        make("Greater", ["s", "zero"], ["p"]),
        make("If", ["p"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    weights = [_half(n, rng.standard_normal((8, 3)) * 0.3) for n in ("w", "u")]
    graph = helper.make_graph(
        nodes,
        "branches",
        [info("x", TensorProto.FLOAT16, ["N", 8])],
        [info("y", TensorProto.FLOAT16, ["N", 3])],
        [*weights, _half("zero", np.array(0))],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "branches.onnx",
    )
    trainer = Trainer(tmp_path / "branches.onnx", optimizer="adam")
    assert trainer.trainable == ["w", "u"]
    x, y = _samples()
    first = trainer.evaluate(x, y)["loss"]
    trainer.fit(x, y, epochs=30, batch_size=16, progress=False)
    assert trainer.evaluate(x, y)["loss"] < first
    export(trainer.model, tmp_path / "trained.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "trained.onnx"))
    half = x[:32].astype(np.float16)
    theirs = session.run(None, {"x": half})[0].astype(np.float32)
    np.testing.assert_allclose(trainer.predict(half, own_types=True)["y"], theirs, rtol=2e-2, atol=1e-2)


def test_a_weight_beyond_float16_is_refused() -> None:
    trainer = Trainer(to_half(networks.mlp(), ir.DataType.FLOAT16))
    state = {n: np.array(a) for n, a in trainer.state.items()}
    state["out.weight"][0, 0] = 1e6
    trainer.load_state(state)
    with pytest.raises(TrainingError, match=r"'out.weight' has come to 1e\+06, which float16"):
        _ = trainer.model


def test_a_weight_that_is_read_in_both_types_stays_one() -> None:
    model = networks.mlp()
    graph = model.graph
    weight = graph.initializers["out.weight"]
    extra = ir.node("ReduceL2", [weight], {"keepdims": 0})  # sums squares: stays in float32
    extra.outputs[0].name, extra.outputs[0].type = "norm", ir.TensorType(ir.DataType.FLOAT)
    extra.outputs[0].shape = ir.Shape([])
    graph.append(extra)
    graph.outputs.append(extra.outputs[0])
    half = to_half(model, ir.DataType.FLOAT16)
    content = half.graph.initializers["out.weight"].const_value
    assert content is not None
    assert content.dtype == ir.DataType.FLOAT
    assert not any(name.startswith("out.weight/") for name in half.graph.initializers)
    trainer = Trainer(half, {"scores": "cross_entropy"}, optimizer="adam")
    assert [name for name in trainer.trainable if "out.weight" in name] == ["out.weight"]
    x, y = networks.blobs()
    trainer.fit(x, y, epochs=2, batch_size=16, progress=False)
    (norm,) = (a for n, a in Session(trainer.model).run({"x": x.astype(np.float16)}).items() if n == "norm")
    trained = trainer.weights()["out.weight"]
    assert float(norm) == pytest.approx(float(np.linalg.norm(trained)), rel=1e-3)


def test_onnxruntime_agrees_on_the_step_of_a_half_model() -> None:
    report = compare_training(to_half(networks.norm_net(), ir.DataType.FLOAT16), steps=2)
    report.raise_if_failed()
    assert {row.dtype for row in report.rows} == {"float32"}


def test_bfloat16_is_written_where_onnxruntime_has_no_kernels(tmp_path: Path) -> None:
    trainer = Trainer(to_half(networks.mlp(), ir.DataType.BFLOAT16))
    report = export(trainer.model, tmp_path / "m.onnx")
    assert report is not None
    assert report.subject == "mlp in float32"
    assert half_types(load(tmp_path / "m.onnx")) == (ir.DataType.BFLOAT16,)
    (given,) = (numpy_dtype(dtype_of(v)) for v in load(tmp_path / "m.onnx").graph.inputs)
    assert given == ml_dtypes.bfloat16


def test_a_file_in_float32_is_what_it_was(tmp_path: Path) -> None:
    model = networks.mlp()
    assert in_float32(model) is model
    save(model, tmp_path / "m.onnx")
    assert Trainer(tmp_path / "m.onnx").half_types == ()
