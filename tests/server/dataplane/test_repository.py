"""Scanning a repository: what is served, what is reported, what is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto

from onward.errors import ConfigError
from onward_server.dataplane.repository import scan
from serving import identity, put

FLOAT = identity(TensorProto.FLOAT)


def problems(repository: Path) -> dict[tuple[str, int], str]:
    return {(entry.name, entry.version): entry.problem for entry in scan(repository)}


def test_models_and_versions_are_listed_in_order(repository: Path) -> None:
    for name, version in [("b", 10), ("b", 9), ("a.b-c_D", 1)]:
        put(repository, name, version, FLOAT)
    assert problems(repository) == {("a.b-c_D", 1): "", ("b", 9): "", ("b", 10): ""}


def test_what_is_no_model_is_skipped(repository: Path) -> None:
    put(repository, "m", 1, FLOAT)
    (repository / ".cache").mkdir()
    (repository / "README.md").write_text("about")
    (repository / "m" / "notes").mkdir()
    assert problems(repository) == {("m", 1): ""}


@pytest.mark.parametrize("name", ["a b", "-x", "ü", "x" * 129, "a:b"])
def test_unusable_names_are_reported(repository: Path, name: str) -> None:
    put(repository, name, 1, FLOAT)
    assert "name" in problems(repository)[name, 0]


@pytest.mark.parametrize("version", ["0", "01", "-1", "1.0", "v1", "1" * 10, "²"])
def test_unusable_versions_do_not_count(repository: Path, version: str) -> None:
    put(repository, "m", version, FLOAT)
    assert "no version folder" in problems(repository)["m", 0]


def test_a_version_without_a_model_file_is_reported(repository: Path) -> None:
    (repository / "m" / "1").mkdir(parents=True)
    (repository / "m" / "2" / "model.onnx").mkdir(parents=True)
    found = problems(repository)
    assert "No such file" in found["m", 1]
    assert "not a file" in found["m", 2]


def test_links_may_not_leave_the_repository(repository: Path, tmp_path: Path) -> None:
    outside = put(tmp_path / "elsewhere", "x", 1, FLOAT)
    inside = put(repository, "real", 1, FLOAT)
    for name, target in [("out", outside), ("in", inside)]:
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.onnx").symlink_to(target)
    found = problems(repository)
    assert "leads out of the repository" in found["out", 1]
    assert found["in", 1] == ""


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("engine = 'cuda'", "engine"),
        ("[cross_check]\npolicy = 'sometimes'", "cross_check.policy"),
        ("[cross_check]\nrate = 0", "cross_check.rate"),
        ("[cross_check]\npolicy = 'shadow'\non_mismatch = 'fail'", "answers first"),
        ("[cross_check.tolerance.float32]\nrtol = -1\natol = 0", "rtol"),
        ("thread = 2", "thread"),
        ("= 2", "not TOML"),
    ],
)
def test_a_bad_config_is_reported_with_its_field(repository: Path, text: str, field: str) -> None:
    put(repository, "m", 1, FLOAT)
    (repository / "m" / "config.toml").write_text(text)
    assert field in problems(repository)["m", 0]


def test_a_config_is_read(repository: Path) -> None:
    put(repository, "m", 1, FLOAT)
    (repository / "m" / "config.toml").write_text(
        "engine = 'onnxruntime'\nthreads = 3\n[cross_check]\npolicy = 'sample'\nrate = 0.5\n"
        "[cross_check.tolerance.float32]\nrtol = 0.5\natol = 0.25\n"
    )
    (entry,) = scan(repository)
    assert (entry.settings.engine, entry.settings.threads) == ("onnxruntime", 3)
    assert entry.settings.cross_check is not None
    assert entry.settings.cross_check.rate == 0.5
    tolerance = entry.settings.cross_check.tolerance_of("float32")
    assert tolerance is not None
    assert (tolerance.rtol, tolerance.atol) == (0.5, 0.25)
    assert entry.settings.cross_check.tolerance_of("float64") is not None
    assert entry.settings.cross_check.tolerance_of("int64") is None


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_repository_that_is_no_folder_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "file":
        path.write_text("")
    with pytest.raises(ConfigError, match=f"repository {path}"):
        scan(path)
