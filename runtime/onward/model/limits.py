"""Bounds on what a model file may ask of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from onward.errors import ConfigError

__all__ = ["Limits"]


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """How large a model may be before `load` refuses it.

    Args:
        max_file_bytes: size of the .onnx file; protobuf itself ends at 2 GiB.
        max_external_bytes: bytes of all external tensors together, counted once per tensor.
        max_nodes: nodes of all graphs together, after model-local functions are expanded.
        max_calls: calls of model-local functions, those inside functions counted as often as they are
            expanded; each costs time in proportion to their number.
        max_depth: how deep graphs may nest (a body of `If`, `Loop` or `Scan` is one level).

    Raises:
        ConfigError: a bound is below 1.
    """

    max_file_bytes: int = 2**31 - 1
    max_external_bytes: int = 64 * 2**30
    max_nodes: int = 500_000
    max_calls: int = 4096
    max_depth: int = 32

    def __post_init__(self) -> None:
        for name in ("max_file_bytes", "max_external_bytes", "max_nodes", "max_calls", "max_depth"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"Limits.{name} is {value}: give at least 1")
