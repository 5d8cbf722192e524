"""Targets with some blockings of one's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onward.compile.codegen.target import Target

__all__ = ["tuned"]


def tuned(target: Target, **constants: Any) -> Target:
    """The target with these constants of its tuning."""
    return replace(target, tuning=replace(target.tuning, **constants))
