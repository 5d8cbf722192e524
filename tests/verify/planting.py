"""For tests that plant a wrong NumPy kernel: the compiled engine would not call it."""

from __future__ import annotations

import pytest

__all__ = ["interpret"]


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sessions choose the interpreter by themselves."""
    for module in ("engines", "stepping"):
        monkeypatch.setattr(f"onward.engine.{module}.resolve", lambda name: "interpreter")
