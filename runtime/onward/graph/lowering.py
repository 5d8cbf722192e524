"""What an operator's `lower` rule may ask of the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import onnx_ir as ir

from onward.graph.types import Array

__all__ = ["Lowering"]


class Lowering(Protocol):
    """The compiler, as operators see it: values in, kernel calls out.

    Shapes are those of the plan: every extent is known. The families of kernels (convolution, pooling, matrix
    products, reductions) are functions of the same names in `onward.compile.rules`, where their arguments are
    described.
    """

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """A value's shape."""

    def known(self, value: ir.Value) -> Array | None:
        """The contents of a constant."""

    def decline(self, reason: str) -> NoReturn:
        """Leave the node to its NumPy kernel; only before the rule's first call."""

    def view(self, value: ir.Value, of: ir.Value) -> None:
        """The result is another value's elements in the same order under another shape."""

    convolution: Callable[..., None]
    convolution_input: Callable[..., None]
    convolution_weight: Callable[..., None]
    max_pool: Callable[..., None]
    max_pool_gradient: Callable[..., None]
    average_pool: Callable[..., None]
    average_pool_gradient: Callable[..., None]
    gemm: Callable[..., None]
    matmul: Callable[..., None]
    recurrent: Callable[..., None]
    recurrent_gradient: Callable[..., None]
    reduction: Callable[..., None]
    arg_extreme: Callable[..., None]
    softmax: Callable[..., None]
    layer_normalization: Callable[..., None]
    layer_normalization_gradient: Callable[..., None]
    rms_normalization: Callable[..., None]
    group_normalization: Callable[..., None]
    gather_rows: Callable[..., None]
    scatter_rows: Callable[..., None]
    forward: Callable[..., None]
    transpose: Callable[..., None]
    slices: Callable[..., None]
    concat: Callable[..., None]
    pad: Callable[..., None]
    expand: Callable[..., None]
    tile: Callable[..., None]
    fill: Callable[..., None]
    convert: Callable[..., None]
    dropout: Callable[..., None]
    local_response: Callable[..., None]
    local_response_gradient: Callable[..., None]
    integers: Callable[..., None]
    adam_factors: Callable[..., Any]
    cross_entropy: Callable[..., None]
    cross_entropy_gradient: Callable[..., None]
