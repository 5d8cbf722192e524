"""The programs that measure and break the service say how they are called, and start nothing for it."""

from __future__ import annotations

import importlib
import sys

import pytest

PROGRAMS = ("batches", "faults", "fuzz", "load", "overload", "soak")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_tells_what_it_does(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.service.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert module.__doc__.splitlines()[0] in capsys.readouterr().out


def test_a_part_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.service import faults

    monkeypatch.setattr(sys, "argv", ["faults", "--parts", "serving,floods"])
    with pytest.raises(SystemExit) as ended:
        faults.main()
    assert ended.value.code == 2
    assert "there is no part 'floods'; there are serving, training, disk" in capsys.readouterr().err
