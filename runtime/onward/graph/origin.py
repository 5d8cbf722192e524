"""Where nodes of a rewritten graph come from: messages speak of the user's model."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["note_opset", "opset_of"]

_OPSET = "onward.declared_opset"


def note_opset(node: ir.Node, opset: int) -> None:
    """Remember the opset at which the user's model has a node, unless that is known."""
    node.meta.setdefault(_OPSET, opset)


def opset_of(node: ir.Node, default: int) -> int:
    """The opset at which the user's model has a node, or what it was made from."""
    return int(node.meta.get(_OPSET, default))
