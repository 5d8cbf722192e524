from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onward.data import load_npz
from onward.errors import DataError, StorageError


def test_inputs_and_targets(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.ones((3, 2), np.float32), z=np.zeros((3, 1)), y=np.array([0, 2, 1]))
    data = load_npz(path)
    assert list(data.inputs) == ["x", "z"]
    assert data.task == "classification"
    assert data.class_count == 3
    assert list(load_npz(path, inputs=["x"]).inputs) == ["x"]
    regression = load_npz(path, "z", inputs=["x"])
    assert regression.task == "regression"
    assert load_npz(path, None).targets is None


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    good, path = tmp_path / "good.npz", tmp_path / "bad.npz"
    np.savez(good, x=np.ones(3), y=np.array([0, 1, 1]))
    with pytest.raises(DataError, match="no array 'label'; the arrays are x, y"):
        load_npz(good, "label")
    with pytest.raises(DataError, match="no input arrays"):
        load_npz(good, inputs=[])
    with pytest.raises(DataError, match=r"row 1: label 1 is out of range"):
        load_npz(good, classes=["a"])
    np.savez(path, x=np.array([{"a": 1}], object), y=np.array([0]))
    with pytest.raises(DataError, match=r"bad\.npz.*without Python objects"):
        load_npz(path)
    np.savez(path, x=np.array([0, np.nan]), y=np.array([0, 1]))
    with pytest.raises(DataError, match="input 'x', row 1"):
        load_npz(path)
    whole = good.read_bytes()
    for content in (b"", b"not a zip", whole[:-30], whole[:40]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a readable"):
            load_npz(path)
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(DataError, match="one unnamed array"):
        load_npz(tmp_path / "one.npy")
    with pytest.raises(StorageError, match="absent"):
        load_npz(tmp_path / "absent.npz")


def test_damaged_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.arange(1000.0), y=np.zeros(1000, int))
    content = bytearray(path.read_bytes())
    content[2000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        load_npz(path)
