from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onward.errors import InvalidModelError
from onward.model import Limits, from_bytes, load
from onward.model import external as module

External = Callable[..., tuple[onnx.ModelProto, bytes]]
Write = Callable[..., Path]


def weight(model: ir.Model) -> np.ndarray:
    tensor = model.graph.initializers["W1"].const_value
    assert tensor is not None
    return tensor.numpy()


def test_data_is_in_memory_after_load(external: External, write: Write, tmp_path: Path) -> None:
    proto, data = external(offset="8", length="48")
    (tmp_path / "w.bin").write_bytes(b"12345678" + data + b"rest")
    model = load(write(proto))
    (tmp_path / "w.bin").unlink()
    np.testing.assert_array_equal(weight(model), np.arange(1, 13, dtype=np.float32).reshape(3, 4))
    assert not weight(model).flags.writeable
    tensor = model.graph.initializers["W1"].const_value
    assert isinstance(tensor, ir.Tensor)


def test_data_in_a_subfolder(external: External, write: Write, tmp_path: Path) -> None:
    proto, data = external("deep/er/w.bin")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "w.bin").write_bytes(data)
    assert weight(load(write(proto)))[0, 0] == 1


@pytest.mark.parametrize(
    "location",
    [
        "../w.bin",
        "a/../../w.bin",
        "./w.bin",
        "/etc/passwd",
        "C:\\w.bin",
        "C:/w.bin",
        "..\\w.bin",
        "",
        ".",
        "a//w.bin",
        "w.bin\0",
    ],
)
def test_locations_that_are_not_plain_relative_paths(
    external: External, write: Write, tmp_path: Path, location: str
) -> None:
    proto, data = external(location)
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "a").mkdir()
    (tmp_path / "w.bin").write_bytes(data)
    (inner / "w.bin").write_bytes(data)
    with pytest.raises(InvalidModelError, match=r"plain relative path"):
        load(write(proto, "inner/model.onnx"))


def test_a_symbolic_link_as_file(external: External, write: Write, tmp_path: Path) -> None:
    proto, data = external()
    (tmp_path / "real.bin").write_bytes(data)
    (tmp_path / "w.bin").symlink_to("real.bin")
    with pytest.raises(InvalidModelError, match="reached through no link"):
        load(write(proto))


def test_a_symbolic_link_as_folder(external: External, write: Write, tmp_path: Path) -> None:
    proto, data = external("link/w.bin")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "w.bin").write_bytes(data)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(InvalidModelError, match="reached through no link"):
        load(write(proto))


def test_a_hard_link(external: External, write: Write, tmp_path: Path) -> None:
    proto, data = external()
    (tmp_path / "elsewhere").write_bytes(data)
    os.link(tmp_path / "elsewhere", tmp_path / "w.bin")
    with pytest.raises(InvalidModelError, match="hard links"):
        load(write(proto))


@pytest.mark.parametrize("kind", ["folder", "fifo", "missing"])
def test_what_is_not_a_regular_file(external: External, write: Write, tmp_path: Path, kind: str) -> None:
    proto, _ = external()
    if kind == "folder":
        (tmp_path / "w.bin").mkdir()
    elif kind == "fifo":
        os.mkfifo(tmp_path / "w.bin")
    with pytest.raises(InvalidModelError, match=r"missing from|not a regular file"):
        load(write(proto))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "1"}, "past the end"),
        ({"offset": "-1"}, "not a byte count"),
        ({"offset": "99999999999999999999"}, "not a byte count"),
        ({"offset": " 1"}, "not a byte count"),
        ({"length": "47"}, "needs 48 bytes"),
        ({"length": "1000000000000"}, "needs 48 bytes"),
    ],
)
def test_offsets_and_lengths(
    external: External, write: Write, tmp_path: Path, entries: dict[str, str], message: str
) -> None:
    proto, data = external(**entries)
    (tmp_path / "w.bin").write_bytes(data)
    with pytest.raises(InvalidModelError, match=message):
        load(write(proto))


def test_a_swap_after_the_check_is_not_seen(
    external: External, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto, data = external()
    (tmp_path / "w.bin").write_bytes(data)
    (tmp_path / "secret").write_bytes(b"\0" * 48)
    original = module._fill

    def swap_first(descriptor: int, view: memoryview, offset: int) -> int:
        if len(view) == 48:
            (tmp_path / "w.bin").unlink()
            (tmp_path / "w.bin").symlink_to("secret")
        return original(descriptor, view, offset)

    monkeypatch.setattr(module, "_fill", swap_first)
    assert weight(load(write(proto)))[0, 0] == 1
    assert (tmp_path / "w.bin").is_symlink()


def test_without_descriptors_of_folders(
    external: External, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RELATIVE", False)
    proto, data = external()
    (tmp_path / "w.bin").write_bytes(data)
    path = write(proto)
    assert weight(load(path))[0, 0] == 1
    (tmp_path / "w.bin").rename(tmp_path / "real.bin")
    (tmp_path / "w.bin").symlink_to("real.bin")
    with pytest.raises(InvalidModelError, match="reached through no link"):
        load(path)


def test_the_bound_on_external_bytes(external: External, write: Write, tmp_path: Path) -> None:
    proto, data = external()
    (tmp_path / "w.bin").write_bytes(data)
    with pytest.raises(InvalidModelError, match="max_external_bytes"):
        load(write(proto), limits=Limits(max_external_bytes=47))


def test_bytes_have_no_folder(external: External, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proto, data = external()
    (tmp_path / "w.bin").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidModelError, match="bytes alone cannot reach"):
        from_bytes(proto.SerializeToString())


def test_external_attribute_tensors_are_contained_too(write: Write, tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[2] x) => (float[2] y) { c = Constant<value = float[2] {1, 2}>() y = Add(x, c) }"""
    )
    tensor = proto.graph.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../w.bin")
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "w.bin").write_bytes(np.float32([3, 4]).tobytes())
    with pytest.raises(InvalidModelError, match="plain relative path"):
        load(write(proto, "inner/model.onnx"))
    tensor.external_data[0].value = "w.bin"
    (inner / "w.bin").write_bytes(np.float32([3, 4]).tobytes())
    model = load(write(proto, "inner/model.onnx"))
    constant = model.graph.initializers["c"].const_value
    assert constant is not None
    np.testing.assert_array_equal(constant.numpy(), np.float32([3, 4]))


def test_no_descriptor_is_left_open(external: External, write: Write, tmp_path: Path) -> None:
    proto, data = external()
    (tmp_path / "w.bin").write_bytes(data)
    path = write(proto)
    before = len(os.listdir("/proc/self/fd"))
    load(path)
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(InvalidModelError):
        load(path)
    assert len(os.listdir("/proc/self/fd")) == before
