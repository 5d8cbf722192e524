"""The algorithm for a convolution (direct, depthwise, Winograd, …): the choice, and what each needs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from onward.compile.codegen.target import Target
from onward.compile.kernels import conv as direct
from onward.compile.kernels import conv_narrow, conv_pack, conv_weights, depthwise, weight_finish, winograd
from onward.compile.kernels.kernel import Kernel
from onward.compile.kernels.layout import Convolution, oihw
from onward.compile.kernels.tile import Epilogue
from onward.compile.options import CompileOptions

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


def _forward(conv: Convolution, target: Target, epilogue: Epilogue) -> Kernel:
    if conv_narrow.narrow_suits(conv, target, backward=False):
        return conv_narrow.narrow_forward(conv, target, epilogue)
    return direct.forward(conv, target, epilogue)


def _forward_pack(conv: Convolution, target: Target) -> Kernel:
    weights = oihw(conv.inputs, *conv.kernel)
    if conv_narrow.narrow_suits(conv, target, backward=False):
        return conv_narrow.narrow_forward_pack(conv, target, weights)
    return conv_pack.forward_pack(conv, target, weights)


def _forward_size(conv: Convolution, target: Target) -> int:
    if conv_narrow.narrow_suits(conv, target, backward=False):
        return conv_narrow.narrow_size(conv, target, backward=False)
    return conv_pack.packed_forward_size(conv, target)


def _backward(conv: Convolution, target: Target, epilogue: Epilogue) -> Kernel:
    if conv_narrow.narrow_suits(conv, target, backward=True):
        return conv_narrow.narrow_backward_data(conv, target, epilogue)
    return direct.backward_data(conv, target, epilogue)


def _backward_pack(conv: Convolution, target: Target) -> Kernel:
    weights = oihw(conv.inputs, *conv.kernel)
    if conv_narrow.narrow_suits(conv, target, backward=True):
        return conv_narrow.narrow_backward_pack(conv, target, weights)
    return conv_pack.backward_data_pack(conv, target, weights)


def _backward_size(conv: Convolution, target: Target) -> int:
    if conv_narrow.narrow_suits(conv, target, backward=True):
        return conv_narrow.narrow_size(conv, target, backward=True)
    return conv_pack.packed_backward_size(conv, target)


_DIRECT = (
    Technique(
        "direct forward", Convolution.input_halo, _cached(_forward), _cached(_forward_pack), _forward_size
    ),
    Technique(
        "direct backward",
        Convolution.gradient_halo,
        _cached(_backward),
        _cached(_backward_pack),
        _backward_size,
    ),
)


def _winograd(size: int) -> tuple[Technique, Technique]:
    """Forward and backward by F(size x size, 3x3)."""
    return (
        Technique(
            f"winograd {size} forward",
            functools.partial(winograd.winograd_input_halo, size=size),
            _cached(functools.partial(winograd.winograd_forward, size=size)),
            _cached(lambda c, t: winograd.winograd_pack(c, t, oihw(c.inputs, *c.kernel), size=size)),
            functools.partial(winograd.winograd_packed_size, size=size),
        ),
        Technique(
            f"winograd {size} backward",
            functools.partial(winograd.winograd_gradient_halo, size=size),
            _cached(functools.partial(winograd.winograd_backward_data, size=size)),
            _cached(lambda c, t: winograd.winograd_backward_pack(c, t, oihw(c.inputs, *c.kernel), size=size)),
            functools.partial(winograd.winograd_packed_size, backward=True, size=size),
        ),
    )


_WINOGRAD = {size: _winograd(size) for size in (2, 4)}

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


def technique(conv: Convolution, options: CompileOptions, target: Target, *, backward: bool) -> Technique:
    """The technique for a direction of a convolution, by its shape and what the user chose.

    Winograd F(2x2, 3x3) does 2.25 times fewer multiplications; it pays on wide ones, where products
    outweigh transforms, and on images of which little is lost to whole squares.
    """
    if _is_depthwise(conv):
        return _DEPTHWISE[backward]
    return (_WINOGRAD[options.winograd] if _winograd_pays(conv, target) else _DIRECT)[backward]


def _winograd_pays(conv: Convolution, target: Target) -> bool:
    tuning = target.tuning
    wide = min(conv.inputs, conv.outputs) >= tuning.winograd_channels
    large = wide and min(conv.y.height, conv.y.width) >= tuning.winograd_extent
    return large and winograd.winograd_suits(conv)


@dataclass(frozen=True)
class WeightTechnique:
    """How a weight gradient is computed: sets of sums first, then the weights in ONNX's order.

    Attributes:
        border: what x needs around it: (top, left, bottom, right).
        gradient: the kernel that sums; its slots are a = x, b = dy, c = the sums, batch.
        finish: the kernel that adds `parts` sets of sums; its slots are dw, parts, and of those above what it
            needs.
        size: floats of one set.
        parts: how many sets so many threads make.
    """

    border: Callable[[Convolution], Border]
    gradient: Callable[[Convolution, Target], Kernel]
    finish: Callable[[Convolution, Target], Kernel]
    size: Callable[[Convolution, Target], int]
    parts: Callable[[Convolution, Target, int], int]


_DIRECT_WEIGHTS = WeightTechnique(
    Convolution.input_halo,
    _cached(conv_weights.weight_gradient),
    _cached(weight_finish.finish_weights),
    conv_weights.partial_size,
    conv_weights.partial_count,
)

_WINOGRAD_WEIGHTS = WeightTechnique(
    winograd.winograd_input_halo,
    _cached(winograd.winograd_weight_gradient),
    _cached(lambda c, t: winograd.winograd_finish_weights(c, t, oihw(c.inputs, 3, 3))),
    winograd.winograd_partial_size,
    winograd.winograd_partial_count,
)

_DEPTHWISE_WEIGHTS = WeightTechnique(
    Convolution.input_halo,
    _cached(depthwise.depthwise_weight_gradient),
    _cached(lambda c, t: depthwise.depthwise_finish_weights(c, t, oihw(1, *c.kernel))),
    lambda c, t: depthwise.depthwise_partial_size(c, t, 1),
    lambda c, t, threads: threads,
)


def weight_technique(conv: Convolution, target: Target) -> WeightTechnique:
    """The technique for a convolution's weight gradient, by its shape."""
    if _is_depthwise(conv):
        return _DEPTHWISE_WEIGHTS
    return _WINOGRAD_WEIGHTS if _winograd_pays(conv, target) else _DIRECT_WEIGHTS
