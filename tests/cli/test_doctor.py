"""`onward doctor` finds what is right, and says what is wrong."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
from tests.cli.conftest import Onward

from onward.cli import doctor


def test_a_sound_installation(onward: Onward) -> None:
    done = onward("doctor", "--json")
    found = json.loads(done.out)
    assert done.code == 0
    assert found["sound"]
    about = {finding["about"]: finding for finding in found["findings"]}
    assert "agree" in about["self-test of prediction"]["text"]
    assert "agree" in about["self-test of training"]["text"]
    assert "bits" in about["processor"]["text"]


def test_every_extra_is_looked_at() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {
        name: tuple(sorted(re.split("[>=;<]", each)[0] for each in packages))
        for name, packages in project["optional-dependencies"].items()
        if name not in ("dev", "docs")
    }
    assert {name: each for name, each in doctor._EXTRAS.items() if name != "server"} == extras


def test_what_is_wrong_is_said_and_the_rest_is_looked_at(
    onward: Onward, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def version(package: str) -> str:
        if package == "tokenizers":
            raise importlib.metadata.PackageNotFoundError
        return "1.0"

    def broken() -> None:
        raise OSError("no such instruction")

    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "kernels").mkdir(mode=0o777)
    (shared / "kernels").chmod(0o777)
    monkeypatch.setenv("ONWARD_CACHE_DIR", str(shared))
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "_self_test", broken)
    done = onward("doctor")
    assert done.code == 1
    assert "note  extra text: tokenizers not installed; pip install 'onward[text]' brings it" in done.out
    assert "note  cache of kernels" in done.out
    assert "FAULT broken: OSError: no such instruction" in done.out
    assert done.out.splitlines()[-1].startswith("1 of ")


def test_events_of_a_run_are_lines_of_json(onward: Onward, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    done = onward("train", "mlp", "--data", "iris", "--epochs", 2, "--output", output, "--json")
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [event["event"] for event in events] == [
        "data_read",
        "started",
        "epoch_ended",
        "epoch_ended",
        "measured",
        "exported",
        "finished",
    ]
    assert events[-3]["measures"]["samples"] == events[0]["test"]
    assert events[-1]["output"] == str(output)
    copied = onward("export", output, tmp_path / "copy.onnx", "--json")
    assert json.loads(copied.out)["compared"]["passed"] is True
