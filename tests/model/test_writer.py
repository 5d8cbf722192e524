from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onward.errors import InvalidModelError, StorageError
from onward.model import from_bytes, load, save, to_bytes, writer

Run = Callable[..., list[np.ndarray]]


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {
        k: v.const_value.numpy() for k, v in model.graph.initializers.items() if v.const_value is not None
    }


def test_round_trip(mlp: onnx.ModelProto, tmp_path: Path, run_ort: Run) -> None:
    model = from_bytes(mlp.SerializeToString())
    model.metadata_props["note"] = "kept"
    model.graph.doc_string = "also"
    save(model, tmp_path / "a.onnx")
    onnx.checker.check_model(str(tmp_path / "a.onnx"), full_check=True)
    back = load(tmp_path / "a.onnx")
    for name, array in arrays(model).items():
        np.testing.assert_array_equal(arrays(back)[name], array)
    assert [node.name for node in back.graph] == ["first", "act", "second"]
    assert (back.producer_name, back.metadata_props["note"], back.graph.doc_string) == (
        "tests",
        "kept",
        "also",
    )
    for before, after in zip(run_ort(mlp.SerializeToString()), run_ort(to_bytes(back)), strict=True):
        np.testing.assert_array_equal(before, after)
    assert os.listdir(tmp_path) == ["a.onnx"]


def test_bytes_equal_the_file_and_repeat(mlp: onnx.ModelProto, tmp_path: Path) -> None:
    model = from_bytes(mlp.SerializeToString())
    save(model, tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == to_bytes(model)
    assert to_bytes(from_bytes(to_bytes(model))) == to_bytes(model)


def big(seed: int) -> ir.Model:
    text = """<ir_version: 10, opset_import: ["" : 21]>
        g (float[n, 40] x) => (float[n, 50] y) { m = MatMul(x, w) y = Add(m, b) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, shape in (("w", (40, 50)), ("b", (50,))):
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return from_bytes(proto.SerializeToString())


def test_external_data(tmp_path: Path) -> None:
    model = big(0)
    before = to_bytes(model)
    save(model, tmp_path / "a.onnx", external_data_threshold=1000)
    files = sorted(os.listdir(tmp_path))
    assert len(files) == 2
    assert re.fullmatch(r"a\.onnx\.[0-9a-f]{16}\.data", files[1])
    assert (tmp_path / files[1]).stat().st_size == 40 * 50 * 4
    onnx.checker.check_model(str(tmp_path / "a.onnx"))
    for name, array in arrays(model).items():
        np.testing.assert_array_equal(arrays(load(tmp_path / "a.onnx"))[name], array)
    reference = onnx.load(tmp_path / "a.onnx")
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(reference.graph.initializer[0]), arrays(model)["w"]
    )
    assert to_bytes(model) == before


def test_a_later_save_removes_the_data_of_the_earlier(tmp_path: Path) -> None:
    (tmp_path / "other.onnx.0123456789abcdef.data").write_bytes(b"")
    save(big(0), tmp_path / "a.onnx", external_data_threshold=1000)
    save(big(1), tmp_path / "a.onnx", external_data_threshold=1000)
    assert len(os.listdir(tmp_path)) == 3
    np.testing.assert_array_equal(arrays(load(tmp_path / "a.onnx"))["w"], arrays(big(1))["w"])
    assert (tmp_path / "other.onnx.0123456789abcdef.data").exists()


@pytest.mark.parametrize("threshold", [1000, 10**9])
@pytest.mark.parametrize("failing", range(2))
def test_a_failure_leaves_a_model_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: int, failing: int
) -> None:
    save(big(0), tmp_path / "a.onnx", external_data_threshold=threshold)
    original, calls = os.replace, []

    def replace(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) > (failing if threshold == 1000 else 0):
            raise OSError(28, "No space left on device")
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(StorageError, match="No space left"):
        save(big(1), tmp_path / "a.onnx", external_data_threshold=threshold)
    monkeypatch.undo()
    np.testing.assert_array_equal(arrays(load(tmp_path / "a.onnx"))["w"], arrays(big(0))["w"])
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_saving_below_a_file(mlp: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="Not a directory"):
        save(from_bytes(mlp.SerializeToString()), tmp_path / "file" / "a.onnx")


def test_beyond_protobuf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(writer, "PROTOBUF_LIMIT", 1000)
    with pytest.raises(InvalidModelError, match="2 GiB"):
        to_bytes(big(0))
    with pytest.raises(StorageError, match="external_data_threshold"):
        save(big(0), tmp_path / "a.onnx")
    assert os.listdir(tmp_path) == []


def test_an_initialiser_without_data() -> None:
    model = big(0)
    model.graph.initializers["w"].const_value = None
    with pytest.raises(InvalidModelError, match="initialiser 'w' has no data"):
        to_bytes(model)


def test_strings_and_layouts_that_are_not_contiguous(tmp_path: Path) -> None:
    model = big(0)
    base = np.arange(2000, dtype=np.float32).reshape(50, 40)
    model.graph.initializers["w"].const_value = ir.Tensor(base.T, name="w")
    names = ir.Value(name="names", type=ir.TensorType(ir.DataType.STRING), shape=ir.Shape([2]))
    names.const_value = ir.StringTensor([b"a", b"\xc3\xbc"], shape=ir.Shape([2]), name="names")
    model.graph.register_initializer(names)
    save(model, tmp_path / "a.onnx", external_data_threshold=1000)
    back = load(tmp_path / "a.onnx")
    np.testing.assert_array_equal(arrays(back)["w"], base.T)
    assert list(arrays(back)["names"]) == ["a", "ü"]
