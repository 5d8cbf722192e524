"""Which kernels compute a convolution forward and backward-data: the choice and what each needs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from onward.compile.codegen.target import Target
from onward.compile.kernels import conv as direct
from onward.compile.kernels import conv_pack, conv_weights, depthwise, weight_finish, winograd
from onward.compile.kernels.kernel import Kernel
from onward.compile.kernels.layout import Convolution, oihw
from onward.compile.kernels.tile import Epilogue

__all__ = ["Technique", "WeightTechnique", "technique", "weight_technique"]

Border = tuple[int, int, int, int]

_cached = functools.lru_cache(512)


@dataclass(frozen=True)
class Technique:
    """One direction of a convolution.

    Attributes:
        name: of the technique and direction.
        border: what the source needs around it: (top, left, bottom, right).
        kernel: the convolution for a target and an epilogue.
        pack: the kernel that packs weights in ONNX's order; its slots are `source` and `packed`.
        packed_size: floats of the packed weights.
        source, packed: names of the packing kernel's slots.
    """

    name: str
    border: Callable[[Convolution], Border]
    kernel: Callable[[Convolution, Target, Epilogue], Kernel]
    pack: Callable[[Convolution, Target], Kernel]
    packed_size: Callable[[Convolution, Target], int]
    source: str = "w"
    packed: str = "packed"


_DIRECT = (
    Technique(
        "direct forward",
        Convolution.input_halo,
        _cached(direct.forward),
        _cached(lambda c, t: conv_pack.forward_pack(c, t, oihw(c.inputs, *c.kernel))),
        conv_pack.packed_forward_size,
    ),
    Technique(
        "direct backward",
        Convolution.gradient_halo,
        _cached(direct.backward_data),
        _cached(lambda c, t: conv_pack.backward_data_pack(c, t, oihw(c.inputs, *c.kernel))),
        conv_pack.packed_backward_size,
    ),
)

_WINOGRAD = (
    Technique(
        "winograd forward",
        winograd.winograd_input_halo,
        _cached(winograd.winograd_forward),
        _cached(lambda c, t: winograd.winograd_pack(c, t, oihw(c.inputs, *c.kernel))),
        winograd.winograd_packed_size,
    ),
    Technique(
        "winograd backward",
        winograd.winograd_gradient_halo,
        _cached(winograd.winograd_backward_data),
        _cached(lambda c, t: winograd.winograd_backward_pack(c, t, oihw(c.inputs, *c.kernel))),
        functools.partial(winograd.winograd_packed_size, backward=True),
    ),
)

_DEPTHWISE = tuple(
    Technique(
        f"depthwise {direction}",
        border,
        kernel,
        _cached(lambda c, t: depthwise.depthwise_pack(c, t, oihw(1, *c.kernel))),
        lambda c, t: c.weights,
        source="x",
        packed="y",
    )
    for direction, border, kernel in (
        ("forward", Convolution.input_halo, _cached(depthwise.depthwise_forward)),
        ("backward", Convolution.gradient_halo, _cached(depthwise.depthwise_backward_data)),
    )
)


def _is_depthwise(conv: Convolution) -> bool:
    """Whether every channel is a group of its own, with one result."""
    return conv.group > 1 and conv.inputs == 1 and conv.outputs == 1


def technique(conv: Convolution, *, backward: bool) -> Technique:
    """The technique for a direction of a convolution, by its shape.

    Winograd F(2x2, 3x3) does 2.25 times fewer multiplications; it pays from 32 channels on images that are
    large enough to fill its units of work.
    """
    if _is_depthwise(conv):
        return _DEPTHWISE[backward]
    large = min(conv.inputs, conv.outputs) >= 32 and min(conv.y.height, conv.y.width) >= 12
    if large and winograd.winograd_suits(conv):
        return _WINOGRAD[backward]
    return _DIRECT[backward]


@dataclass(frozen=True)
class WeightTechnique:
    """How a weight gradient is computed: sets of sums first, then the weights in ONNX's order.

    Attributes:
        gradient: the kernel that sums; its slots are a = x, b = dy, c = the sums, batch.
        finish: the kernel that adds `parts` sets of sums; its slots are c, dw, parts.
        size: floats of one set.
        parts: how many sets so many threads make.
    """

    gradient: Callable[[Convolution, Target], Kernel]
    finish: Callable[[Convolution, Target], Kernel]
    size: Callable[[Convolution, Target], int]
    parts: Callable[[Convolution, Target, int], int]


_DIRECT_WEIGHTS = WeightTechnique(
    _cached(conv_weights.weight_gradient),
    _cached(weight_finish.finish_weights),
    conv_weights.partial_size,
    conv_weights.partial_count,
)

_DEPTHWISE_WEIGHTS = WeightTechnique(
    _cached(depthwise.depthwise_weight_gradient),
    _cached(lambda c, t: depthwise.depthwise_finish_weights(c, t, oihw(1, *c.kernel))),
    lambda c, t: depthwise.depthwise_partial_size(c, t, 1),
    lambda c, t, threads: threads,
)


def weight_technique(conv: Convolution) -> WeightTechnique:
    """The technique for a convolution's weight gradient, by its shape."""
    return _DEPTHWISE_WEIGHTS if _is_depthwise(conv) else _DIRECT_WEIGHTS
