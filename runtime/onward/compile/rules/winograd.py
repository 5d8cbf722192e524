"""The weight gradient by Winograd."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import onnx_ir as ir

from onward.compile.kernels import winograd
from onward.compile.kernels.layout import Convolution, oihw
from onward.compile.tensors import Tensor

if TYPE_CHECKING:
    from onward.compile.lowering import Lowering, Slot

__all__ = ["weights_by_winograd"]

_gradient = functools.lru_cache(512)(winograd.winograd_weight_gradient)
_finish = functools.lru_cache(512)(winograd.winograd_finish_weights)


def weights_by_winograd(
    b: Lowering, dw: ir.Value, source: Tensor, gradient: Tensor, conv: Convolution
) -> None:
    """dw from x (`source`) and dy (`gradient`)."""
    count = winograd.winograd_partial_count(conv, b.target, b.threads)
    panels = b.scratch(count * winograd.winograd_partial_size(conv, b.target))
    batch = source.shape[0]
    images: dict[str, Slot] = {"a": source.buffer, "b": gradient.buffer, "c": panels, "batch": batch}
    reads = [source, gradient]
    b.call(_gradient(conv, b.target), images, reads=reads, writes=[panels], batch=batch)
    target = b.new_plain(dw)
    finish = _finish(conv, b.target, oihw(conv.inputs, 3, 3))
    slots = {**images, "dw": target, "parts": count}
    b.call(finish, slots, reads=[*reads, panels], writes=[target])
