from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from onward.errors import ConfigError, InvalidModelError
from onward.model import (
    Provenance,
    current_versions,
    from_bytes,
    load,
    read_provenance,
    save,
    write_provenance,
)

FULL = Provenance(
    data_hash="sha256:00ff",
    created=datetime(2025, 3, 1, 12, 0, 0, 250, tzinfo=UTC),
    split_seed=0,
    configuration={"epochs": 3, "layers": [1, 2], "name": "ünïcode"},
    metrics={"accuracy": 0.1, "loss": math.inf},
    versions={"onward": "0.1.0"},
    normalisation={"mean": [0.5], "std": [0.25]},
    vocabulary=("", "a", "é"),
    class_names=("cat", "dog"),
)


@pytest.fixture
def model(mlp: onnx.ModelProto) -> ir.Model:
    return from_bytes(mlp.SerializeToString())


def test_survives_a_file(model: ir.Model, tmp_path: Path) -> None:
    model.metadata_props["other"] = "kept"
    write_provenance(model, FULL)
    save(model, tmp_path / "a.onnx")
    back = load(tmp_path / "a.onnx")
    assert read_provenance(back) == FULL
    assert back.metadata_props["other"] == "kept"
    for key, text in back.metadata_props.items():
        if key.startswith("onward."):
            json.loads(text)


def test_missing_parts_stay_missing(model: ir.Model) -> None:
    assert read_provenance(model) is None
    write_provenance(model, FULL)
    small = Provenance(data_hash="x", created=FULL.created)
    write_provenance(model, small)
    assert read_provenance(model) == small
    assert "onward.vocabulary" not in model.metadata_props


def test_nan_metrics(model: ir.Model) -> None:
    write_provenance(model, Provenance(data_hash="x", created=FULL.created, metrics={"auc": math.nan}))
    back = read_provenance(model)
    assert back is not None
    assert math.isnan(back.metrics["auc"])


def test_times_are_utc() -> None:
    local = datetime(2025, 3, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    assert Provenance(data_hash="x", created=local).created == datetime(2025, 3, 1, 12, tzinfo=UTC)
    assert Provenance(data_hash="x", created=local).created.tzinfo is UTC
    with pytest.raises(ConfigError, match="time zone"):
        Provenance(data_hash="x", created=datetime(2025, 3, 1))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("configuration", "{"),
        ("configuration", "[1]"),
        ("configuration", "[" * 100_000),
        ("class_names", '["a", 1]'),
        ("vocabulary", '"abc"'),
        ("split_seed", "1.5"),
        ("split_seed", "true"),
        ("metrics", '{"a": "b"}'),
        ("versions", '{"a": 1}'),
        ("created", '"yesterday"'),
        ("created", '"2025-03-01T00:00:00"'),
        ("data_hash", "1"),
    ],
)
def test_malformed_entries_are_named(model: ir.Model, key: str, text: str) -> None:
    write_provenance(model, FULL)
    model.metadata_props[f"onward.{key}"] = text
    with pytest.raises(InvalidModelError, match=f"onward.{key}"):
        read_provenance(model)


def test_a_missing_required_entry(model: ir.Model) -> None:
    write_provenance(model, FULL)
    del model.metadata_props["onward.created"]
    with pytest.raises(InvalidModelError, match=r"onward\.created.*missing"):
        read_provenance(model)


def test_values_that_json_lacks(model: ir.Model) -> None:
    bad = Provenance(data_hash="x", created=FULL.created, configuration={"when": FULL.created})
    with pytest.raises(ConfigError, match=r"Provenance\.configuration"):
        write_provenance(model, bad)
    assert read_provenance(model) is None


def test_versions() -> None:
    assert set(current_versions()) == {"onward", "onnx", "numpy", "python"}
    assert current_versions()["onnx"] == onnx.__version__
