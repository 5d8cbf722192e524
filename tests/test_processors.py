"""How many processors a process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from onward import processors
from onward.processors import bound_cores, quota, usable_cores


@pytest.mark.parametrize(
    ("own", "files", "granted"),
    [
        pytest.param("0::/\n", {"cpu.max": "200000 100000"}, 2.0, id="container"),
        pytest.param("0::/\n", {"cpu.max": "max 100000"}, math.inf, id="no limit"),
        pytest.param("0::/\n", {}, math.inf, id="no controller"),
        pytest.param(
            "0::/pods/one\n",
            {"pods/one/cpu.max": "max 100000", "pods/cpu.max": "150000 100000"},
            1.5,
            id="limit of the group above",
        ),
        pytest.param("0::/docker/7f\n", {"cpu.max": "50000 100000"}, 0.5, id="path of the host"),
        pytest.param("0::/../other\n", {"cpu.max": "300000 100000"}, 3.0, id="path beside the root"),
        pytest.param(
            "4:memory:/a\n3:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "400000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            4.0,
            id="version 1",
        ),
        pytest.param(
            "1:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            math.inf,
            id="version 1 without a limit",
        ),
        pytest.param("1:cpuset:/\n", {"cpuset/cpu.max": "1 1"}, math.inf, id="another controller"),
        pytest.param("0::/\n", {"cpu.max": "garbage"}, math.inf, id="not understood"),
    ],
)
def test_the_quota_of_control_groups(tmp_path: Path, own: str, files: dict[str, str], granted: float) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert quota(tmp_path / "groups", tmp_path / "own") == granted


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert quota(tmp_path, tmp_path / "missing") == math.inf


@pytest.mark.parametrize(("granted", "cores"), [(0.5, 1), (1.9, 1), (2.0, 2), (math.inf, 64)])
def test_threads_are_whole_processors_of_the_quota(
    monkeypatch: pytest.MonkeyPatch, granted: float, cores: int
) -> None:
    monkeypatch.setattr(processors, "bound_cores", lambda: 64)
    monkeypatch.setattr(processors, "quota", lambda: granted)
    assert usable_cores() == cores


def test_a_process_uses_the_processors_it_is_bound_to() -> None:
    assert 1 <= usable_cores() <= bound_cores() <= (os.cpu_count() or 1)
