"""Where the values of a program are: in ONNX's order, channels-last, or as views on other values.

Values that convolutions, pooling and batch normalization touch are kept channels-last with a border of zeros
wide enough for every convolution that reads them; conversions happen where such a value meets an operator
that wants ONNX's order, once each way. State is replaced in place where nobody needs the old one any more.

This module keeps the tables; what converts a value adds calls, and is in `onward.compile.context`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import final

import numpy as np
import onnx_ir as ir

from onward.compile.groups import Group
from onward.compile.kernels.layout import Image
from onward.compile.tensors import Buffer, Place, Tensor, row_major, strides_agree
from onward.compile.unit import Unit
from onward.graph import Array
from onward.graph.requests import Identity, StartCall, View

__all__ = ["Placement", "image_tensor", "place", "side_by_side", "whole"]


@final
class Placement:
    """The tensors of a program's values.

    Attributes:
        plain: values in ONNX's order without gaps.
        images: values kept channels-last.
        strided: values that are views with gaps, or another order of axes.
        aliases: the values of state, or views on it, by buffer.
        constant: memory whose contents stay for as long as the plan lives, or until weights are swapped.
        targets: results that may be written over the state that they replace.
        reserved: where results are to be computed, side by side in blocks.
    """

    def __init__(self, images: Mapping[ir.Value, Image]) -> None:
        self.geometry = images
        self.plain: dict[ir.Value, Tensor] = {}
        self.images: dict[ir.Value, Tensor] = {}
        self.strided: dict[ir.Value, Tensor] = {}
        self.aliases: dict[Buffer, list[ir.Value]] = {}
        self.constant: set[Buffer] = set()
        self.targets: Mapping[ir.Value, ir.Value] = {}
        self.reserved: dict[ir.Value, Tensor] = {}

    def find(self, value: ir.Value) -> Tensor | None:
        """A value where it is, in whatever layout; None where it has no place yet."""
        for found in (self.plain, self.strided, self.images):
            if value in found:
                return found[value]
        return None

    def view(self, value: ir.Value, view: Tensor) -> None:
        """Put a value where another one's elements are, with any strides."""
        view = replace(view, image=None)
        if view.plain:
            self.plain[value] = view
        else:
            self.strided[value] = view
        image = self.geometry.get(value)
        if image is not None and image.contiguous and view.offset == 0:
            found = image_tensor(view.buffer, view.shape, image, view.dtype)
            if strides_agree(found, view):
                self.images[value] = found
        self.aliases.setdefault(view.buffer, []).append(value)

    def keep(self, buffer: Buffer) -> None:
        """Give a buffer memory of its own for as long as the plan lives; its contents do not change."""
        buffer.place = Place.FIXED
        self.constant.add(buffer)

    def hold(self, array: Array) -> Tensor:
        """An array that the plan keeps."""
        held = np.ascontiguousarray(array).reshape(array.shape)
        buffer = Buffer(max(1, held.nbytes), Place.FIXED, array=held)
        self.constant.add(buffer)
        return Tensor(buffer, held.shape, row_major(held.shape), held.dtype)


def place(unit: Unit, fixed: Mapping[str, Array], bindings: Mapping[str, str]) -> Placement:
    """The places of what is there before a run: state, weights, inputs.

    Args:
        unit: what is planned.
        fixed: the session's arrays of state and weights, by name.
        bindings: state inputs and the outputs that replace them.
    """
    program = unit.program
    found = Placement(unit.images)
    for name, value in (*program.state.items(), *program.weights.items()):
        if value in program.shapes:
            array = fixed[name]
            buffer = Buffer(array.nbytes, Place.FIXED, array=array, name=name)
            found.plain[value] = whole(buffer, program.shapes[value], program.dtypes[value])
            found.aliases[buffer] = [value]
            if name in program.weights:
                found.constant.add(buffer)
    for name, value in program.inputs.items():
        if value in program.shapes:
            shape, dtype = program.shapes[value], program.dtypes[value]
            buffer = Buffer(prod(shape) * dtype.itemsize, Place.INPUT, name=name)
            found.plain[value] = whole(buffer, shape, dtype)
    found.targets = _update_targets(unit, bindings)
    for operation in program.operations:
        if isinstance(operation.request, StartCall):
            found.reserved.update(_block(unit, operation.request))
    return found


def whole(buffer: Buffer, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Tensor:
    """A tensor in ONNX's order at the start of a buffer."""
    return Tensor(buffer, shape, row_major(shape), dtype)


def side_by_side(block: Tensor, shapes: Sequence[tuple[int, ...]], first: int = 0) -> list[Tensor]:
    """Tensors of these shapes, one behind the other in a block, from element `first` on."""
    views = []
    offset = block.offset + first
    for shape in shapes:
        views.append(Tensor(block.buffer, shape, row_major(shape), block.dtype, offset))
        offset += prod(shape)
    return views


def _block(unit: Unit, request: StartCall) -> dict[ir.Value, Tensor]:
    """Where a block is, and those of its tensors that nobody reads by themselves.

    A tensor that is another one under a new shape stands for that one too.
    """
    program, uses = unit.program, unit.uses
    shape, dtype = program.shapes[request.block], program.dtypes[request.block]
    block = whole(Buffer(max(1, prod(shape) * dtype.itemsize)), shape, dtype)
    found = {request.block: block}
    makers = {v: o for o in program.operations for v in o.outputs}
    views = side_by_side(block, [program.shapes[x] for x in request.operands], request.offset)
    for x, view in zip(request.operands, views, strict=True):
        value: ir.Value = x
        while request.operands.count(x) == 1 and value not in uses.outputs and len(uses.groups(value)) == 1:
            extents = program.shapes[value]
            found[value] = replace(view, shape=extents, strides=row_major(extents))
            asked = makers[value].request if value in makers else None
            if not isinstance(asked, View | Identity):
                break
            value = asked.x
    return found


def image_tensor(buffer: Buffer, shape: tuple[int, ...], image: Image, dtype: np.dtype[np.generic]) -> Tensor:
    """A value [N, C, W] or [N, C, H, W] kept channels-last in a buffer."""
    spatial = (image.row, image.pixel) if len(shape) == 4 else (image.pixel,)
    strides = (image.size, 1, *spatial)
    return Tensor(buffer, shape, strides, dtype, image.origin, image)


def _update_targets(unit: Unit, bindings: Mapping[str, str]) -> dict[ir.Value, ir.Value]:
    """Results that may be written over the state they replace.

    Nobody reads the old one later, and nothing that could fail comes later: a run that ends with an error
    leaves the state as it was.
    """
    program, position, last = unit.program, unit.uses.position, unit.uses.last
    risky = max((i for i, g in enumerate(unit.groups) if _may_fail(g)), default=-1)
    found: dict[ir.Value, ir.Value] = {}
    taken: set[ir.Value] = set()
    for name, output in bindings.items():
        state, value = program.state[name], program.outputs[output]
        if value not in position or value in taken or state not in program.shapes:
            continue
        if position[value] <= risky or program.shapes[state] != program.shapes[value]:
            continue
        if last.get(state, -1) <= position[value]:
            found[value] = state
            taken.add(value)
    return found


def _may_fail(group: Group) -> bool:
    """Whether a group may run NumPy kernels that can refuse data."""
    return group.shape is None and group.last.operator.refuses_data
