"""`--shapes` and `--constants`, which every command that takes a file has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CONSTANTS", "SHAPES", "fixed_as_asked"]

SHAPES = "Extents of an input that the file leaves open: image=N,3,224,224; repeatable."
CONSTANTS = "An input that always has these contents: rate=16000, or mask=FILE.npy; repeatable."


def fixed_as_asked(
    model: ir.Model, shapes: Sequence[str] | None, constants: Sequence[str] | None
) -> ir.Model:
    """The model as the options say; the same one without any.

    Raises:
        ConfigError: an option is written otherwise, or does not fit the model.
    """
    if not shapes and not constants:
        return model
    from onward.runs.fixing import fixed, parsed

    return fixed(model, parsed("--shapes", shapes), parsed("--constants", constants))
