"""Winograd convolution: F(2x2, 3x3) forward and backward-data, F(3x3, 2x2) for weights.

(Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.)
"""

from onward.compile.kernels.winograd.convolve import (
    winograd_backward_data,
    winograd_forward,
)
from onward.compile.kernels.winograd.gradient import (
    winograd_finish_weights,
    winograd_partial_count,
    winograd_partial_size,
    winograd_weight_gradient,
)
from onward.compile.kernels.winograd.pack import (
    winograd_backward_pack,
    winograd_pack,
    winograd_packed_size,
)
from onward.compile.kernels.winograd.problem import (
    winograd_gradient_halo,
    winograd_input_halo,
    winograd_suits,
)

__all__ = [
    "winograd_backward_data",
    "winograd_backward_pack",
    "winograd_finish_weights",
    "winograd_forward",
    "winograd_gradient_halo",
    "winograd_input_halo",
    "winograd_pack",
    "winograd_packed_size",
    "winograd_partial_count",
    "winograd_partial_size",
    "winograd_suits",
    "winograd_weight_gradient",
]
