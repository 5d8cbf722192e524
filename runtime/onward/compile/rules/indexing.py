"""Rows of tables by index, and the gradient that adds them back."""

from __future__ import annotations

import functools
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onward.compile.kernels import copy as copies
from onward.compile.kernels import embedding as kernels

if TYPE_CHECKING:
    from onward.compile.lowering import Lowering

__all__ = ["gather_rows", "scatter_rows"]

_gather = functools.lru_cache(256)(kernels.gather_rows)
_scatter = functools.lru_cache(256)(kernels.scatter_rows)
_clear = functools.lru_cache(8)(copies.clear)


def gather_rows(b: Lowering, y: ir.Value, data: ir.Value, indices: ir.Value, axis: int) -> None:
    """y = data[indices] along the first axis."""
    shape = b.shape(data)
    b.require_float(data)
    b.require_elements(data, indices)
    if axis % len(shape) != 0 or b.program.dtypes[indices] != np.int64:
        b.decline("only the first axis by int64 indices")
    table, index = b.plain(data), b.plain(indices)
    b.check_indices(index, shape[0])
    target = b.new_plain(y)
    kernel = _gather(shape[0], prod(shape[1:]), b.target)
    b.call(
        kernel,
        {"table": table, "index": index, "y": target, "batch": index.size},
        reads=[table, index],
        writes=[target],
        batch=index.size,
    )


def scatter_rows(b: Lowering, y: ir.Value, dy: ir.Value, indices: ir.Value, axis: int) -> None:
    """Zeros, to which the rows of dy are added where their index points, in order."""
    shape = b.shape(y)
    b.require_float(dy)
    b.require_elements(y, indices)
    if axis % len(shape) != 0 or b.program.dtypes[indices] != np.int64:
        b.decline("only the first axis by int64 indices")
    gradient, index = b.plain(dy), b.plain(indices)
    b.check_indices(index, shape[0])
    target = b.new_plain(y)
    b.call(
        _clear(b.target), {"y": target, "batch": prod(shape)}, reads=[], writes=[target], batch=prod(shape)
    )
    b.call(
        _scatter(shape[0], prod(shape[1:]), b.target),
        {"dy": gradient, "index": index, "dtable": target, "batch": index.size},
        reads=[gradient, index],
        writes=[target],
        batch=index.size,
    )
