"""Where the values of a program are: in ONNX's order, channels-last, or as windows on other values.

Values that convolutions, pooling and batch normalization touch are kept channels-last with a border of zeros
wide enough for every convolution that reads them; conversions happen where such a value meets an operator
that wants ONNX's order, once each way. State is replaced in place where nobody needs the old one any more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onward.compile.fusion import schedule
from onward.compile.groups import Group
from onward.compile.images import image_geometry
from onward.compile.kernels.layout import Image
from onward.compile.options import CompileOptions
from onward.compile.program import Program
from onward.compile.tensors import Buffer, Place, Tensor, reshaped, row_major, strides_agree
from onward.compile.uses import Uses
from onward.graph import Array

__all__ = ["NotLoweredError", "Placement", "image_tensor"]


class NotLoweredError(Exception):
    """An operator's rule declines a node; the text says why, and the NumPy kernel runs instead."""


class Placement(ABC):
    """The tensors of a program's values.

    Args:
        program: its operations are grouped here.
        fixed: the session's arrays of state and weights, by name.
        bindings: state inputs and the outputs that replace them.
        options: what the user chose about kernels.
    """

    def __init__(
        self,
        program: Program,
        fixed: Mapping[str, Array],
        bindings: Mapping[str, str],
        options: CompileOptions,
    ) -> None:
        self.program = program
        self.options = options
        self.groups = schedule(program)
        self.uses = Uses(program, self.groups)
        self.constant_buffers: set[Buffer] = set()
        """Memory whose contents stay for as long as the plan lives, or until weights are swapped."""
        self._geometry = image_geometry(program, self.groups, self.uses, options)
        self._plain: dict[ir.Value, Tensor] = {}
        self._images: dict[ir.Value, Tensor] = {}
        self._strided: dict[ir.Value, Tensor] = {}
        self._aliases: dict[Buffer, list[ir.Value]] = {}
        for name, value in (*program.state.items(), *program.weights.items()):
            if value in program.shapes:
                array = fixed[name]
                buffer = Buffer(array.nbytes, Place.FIXED, array=array, name=name)
                self._plain[value] = self._whole(buffer, value)
                self._aliases[buffer] = [value]
                if name in program.weights:
                    self.constant_buffers.add(buffer)
        for name, value in program.inputs.items():
            if value in program.shapes:
                nbytes = int(np.prod(program.shapes[value])) * program.dtypes[value].itemsize
                self._plain[value] = self._whole(Buffer(nbytes, Place.INPUT, name=name), value)
        self._targets = self._update_targets(bindings)

    @abstractmethod
    def copy(self, source: Tensor, target: Tensor) -> None:
        """Add a copy between layouts to the plan."""

    @abstractmethod
    def needed(self, state: ir.Value, value: ir.Value, *, itself: bool) -> bool:
        """Whether some of the plan's calls, from the next one on, read `state`.

        The next one writes `value`; where `itself`, it may read what it replaces.
        """

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """A value's shape."""
        return self.program.shapes[value]

    def plain(self, value: ir.Value) -> Tensor:
        """A value in ONNX's order, converted if need be."""
        if value not in self._plain:
            if value in self.program.constants:
                self._plain[value] = self.constant(self.program.constants[value])
            else:
                source = self._strided[value] if value in self._strided else self._images[value]
                tensor = self.new_plain(value)
                self._plain[value] = tensor
                self.copy(source, tensor)
        return self._plain[value]

    def image(self, value: ir.Value) -> Tensor:
        """A value channels-last, converted if need be.

        Raises:
            NotLoweredError: it is not a float32 signal or image.
        """
        if value not in self._images:
            if value not in self._geometry:
                raise NotLoweredError(f"{value.name} is not an image")
            source = self.present(value)
            tensor = self.new_image(value)
            self._images[value] = tensor
            self.copy(source, tensor)
        return self._images[value]

    def has_image(self, value: ir.Value) -> bool:
        """Whether a value is kept channels-last."""
        return value in self._geometry

    def is_strided(self, value: ir.Value) -> bool:
        """Whether a value is a window on another one that has gaps, or another order of axes."""
        return value in self._strided

    def either(self, value: ir.Value) -> Tensor:
        """A value in the layout that it is kept in."""
        return self.image(value) if value in self._geometry else self.plain(value)

    def present(self, value: ir.Value) -> Tensor:
        """A value where it is, in whatever layout: nothing is converted."""
        for found in (self._plain, self._strided, self._images):
            if value in found:
                return found[value]
        return self.plain(value)

    def new_plain(self, value: ir.Value) -> Tensor:
        """Memory for a result in ONNX's order: the state that it replaces, where nobody reads that later."""
        state = self._targets.get(value)
        if state is not None and self._may_replace(state, value):
            tensor = replace(self._plain[state], shape=self.shape(value))
        else:
            nbytes = int(np.prod(self.shape(value))) * self.program.dtypes[value].itemsize
            tensor = self._whole(Buffer(max(1, nbytes)), value)
        self._plain[value] = tensor
        return tensor

    def new_image(self, value: ir.Value) -> Tensor:
        """Memory for a result that is kept channels-last."""
        if (image := self._geometry.get(value)) is None:
            raise NotLoweredError(f"{value.name} is not an image")
        shape = self.shape(value)
        dtype = self.program.dtypes[value]
        nbytes = shape[0] * image.size * dtype.itemsize
        buffer = Buffer(max(1, nbytes), image=None if image.contiguous else image)
        tensor = image_tensor(buffer, shape, image, dtype)
        self._images[value] = tensor
        return tensor

    def new(self, value: ir.Value) -> Tensor:
        """Memory for a result in the layout that it is kept in."""
        return self.new_image(value) if value in self._geometry else self.new_plain(value)

    def _may_replace(self, state: ir.Value, value: ir.Value) -> bool:
        """Whether nobody needs the old state any more, under whatever name."""
        aliases = self._aliases[self._plain[state].buffer]
        return not any(self.needed(alias, value, itself=alias is state) for alias in aliases)

    def geometry(self, value: ir.Value) -> Image | None:
        """The geometry of a value that is kept channels-last."""
        return self._geometry.get(value)

    def view(self, value: ir.Value, of: ir.Value) -> None:
        """A result that is another value's elements in the same order under another shape."""
        shape = self.shape(value)
        if (window := reshaped(self.present(of), shape)) is None:
            window = replace(self.plain(of), shape=shape, strides=row_major(shape))
        self.alias(value, window)

    def alias(self, value: ir.Value, window: Tensor) -> None:
        """A result whose elements are in memory already, as a window with any strides."""
        buffer = window.buffer
        kept = buffer.place is Place.FIXED and buffer not in self.constant_buffers
        if kept and value in self.uses.outputs:
            self.copy(window, self.new_plain(value))
            return
        window = replace(window, image=None)
        if window.plain:
            self._plain[value] = window
        else:
            self._strided[value] = window
        if (image := self._geometry.get(value)) is not None and image.contiguous and window.offset == 0:
            whole = image_tensor(buffer, window.shape, image, window.dtype)
            if strides_agree(whole, window):
                self._images[value] = whole
        self._aliases.setdefault(buffer, []).append(value)

    def forget(self, value: ir.Value) -> None:
        """Drop the memory of a result that a rule asked for before it declined."""
        self._images.pop(value, None)
        self._strided.pop(value, None)

    def scratch(self, floats: int) -> Buffer:
        """Memory for the length of one call, or until its last use."""
        return Buffer(max(64, 4 * floats))

    def constant(self, array: Array) -> Tensor:
        """An array that the plan keeps."""
        held = np.ascontiguousarray(array).reshape(array.shape)
        buffer = Buffer(max(1, held.nbytes), Place.FIXED, array=held)
        self.constant_buffers.add(buffer)
        return Tensor(buffer, held.shape, row_major(held.shape), held.dtype)

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor's contents are the same in every run."""
        return tensor.buffer in self.constant_buffers

    def _whole(self, buffer: Buffer, value: ir.Value) -> Tensor:
        shape = self.program.shapes[value]
        return Tensor(buffer, shape, row_major(shape), self.program.dtypes[value])

    def _update_targets(self, bindings: Mapping[str, str]) -> dict[ir.Value, ir.Value]:
        """Results that may be written over the state they replace.

        Nobody reads the old one later, and nothing that could fail comes later: a run that ends with an error
        leaves the state as it was.
        """
        position, last = self.uses.position, self.uses.last
        risky = max((i for i, g in enumerate(self.groups) if _may_fail(g)), default=-1)
        found: dict[ir.Value, ir.Value] = {}
        taken: set[ir.Value] = set()
        for name, output in bindings.items():
            state, value = self.program.state[name], self.program.outputs[output]
            if value not in position or value in taken or state not in self.program.shapes:
                continue
            if position[value] <= risky or self.shape(state) != self.shape(value):
                continue
            if last.get(state, -1) <= position[value]:
                found[value] = state
                taken.add(value)
        return found


def _may_fail(group: Group) -> bool:
    """Whether a group may run NumPy kernels, which can refuse data: all but element-wise ones and updates."""
    return group.shape is None and not group.last.node.op_type.endswith("Update")


def image_tensor(buffer: Buffer, shape: tuple[int, ...], image: Image, dtype: np.dtype[np.generic]) -> Tensor:
    """A value [N, C, W] or [N, C, H, W] kept channels-last in a buffer."""
    spatial = (image.row, image.pixel) if len(shape) == 4 else (image.pixel,)
    strides = (image.size, 1, *spatial)
    return Tensor(buffer, shape, strides, dtype, image.origin, image)
