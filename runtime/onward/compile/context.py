"""What rules may ask of the compiler, and what they may add to a plan.

`Queries` changes nothing: a rule decides with it whether it suits a request, before anything is emitted.
`Context` adds the plan's calls. Both are made for one group of operations at a time (`Site`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from math import prod
from typing import Any, final

import numpy as np
import onnx_ir as ir

from onward.compile.codegen.target import Target
from onward.compile.codegen.types import ELEMENT_TYPES
from onward.compile.expressions import number
from onward.compile.groups import Group
from onward.compile.items import Call, Check, Copy, Fallback, ForeignCall, Item, Slot
from onward.compile.kernels import copy as copies
from onward.compile.kernels.element import Element
from onward.compile.kernels.expression import Expression
from onward.compile.kernels.kernel import Kernel
from onward.compile.kernels.layout import Image
from onward.compile.options import CompileOptions
from onward.compile.placement import Placement, image_tensor, whole
from onward.compile.program import Operation
from onward.compile.tensors import Buffer, Place, Tensor, gapless, reshaped
from onward.compile.unit import Unit
from onward.compile.uses import Uses
from onward.compile.write_back import WriteBack
from onward.graph import Array
from onward.graph.requests import Request

__all__ = ["Context", "Emitted", "Layout", "Queries", "Site"]

_FLOATS = frozenset(name for name, row in ELEMENT_TYPES.items() if row.generated)


class Layout(Enum):
    """The order in memory in which a call wants an operand."""

    PLAIN = "plain"
    """ONNX's order, without gaps."""

    IMAGE = "image"
    """Channels-last."""

    PRESENT = "present"
    """Any: where the value is."""


@final
@dataclass
class Emitted:
    """The calls of a plan, as far as they are lowered.

    Attributes:
        calls: of a run.
        prologue: those that depend on weights alone.
        input_checks: checks of the caller's inputs: they run before the first call.
        kept: what calls left for later ones, by a key that both know.
        changing: memory that calls of a run write.
    """

    calls: list[Item] = field(default_factory=list)
    prologue: list[Item] = field(default_factory=list)
    input_checks: list[Check] = field(default_factory=list)
    kept: dict[object, Any] = field(default_factory=dict)
    changing: set[Buffer] = field(default_factory=set)

    def add(self, call: Call, placement: Placement) -> None:
        """Add a call. One that reads constants and weights only runs once, before the first step."""
        once = bool(call.reads) and all(b in placement.constant for b in call.reads)
        if once and all(b.place is not Place.FIXED and b not in self.changing for b in call.writes):
            for buffer in call.writes:
                if buffer is not call.scratch:
                    placement.keep(buffer)
            self.prologue.append(call)
        else:
            self.change(call.writes, placement)
            self.calls.append(call)

    def change(self, buffers: Collection[Buffer], placement: Placement) -> None:
        """Memory that a call of a run writes, in part: what else is written there is written in each run.

        Memory that keeps its contents is shared, by runs that go on at once and by equal contents elsewhere.
        """
        self.changing.update(buffers)
        early = [item for item in self.prologue if any(b in buffers for b in item.writes)]
        if early:
            self.prologue = [item for item in self.prologue if item not in early]
            self.calls += early
            for buffer in {b for item in early for b in item.writes}:
                buffer.place = Place.ARENA
                placement.constant.discard(buffer)
                self.changing.add(buffer)
        placement.constant.difference_update(buffers)


@final
@dataclass(frozen=True, eq=False)
class Site:
    """Which operations calls are emitted for.

    Attributes:
        position: of the group that the walk over the program has come to.
        label: the operations, for reports.
        waiting: groups before it whose calls may still be to come.
        elements: element-wise operations whose results the calls compute while they read their operands.
        write_back: what the producing call does with its result, where that is more than to store it.
    """

    position: int
    label: str
    waiting: tuple[Group, ...] = ()
    elements: tuple[Operation, ...] = ()
    write_back: WriteBack | None = None


class Queries:
    """What a rule may ask."""

    def __init__(self, unit: Unit, placement: Placement, emitted: Emitted, site: Site) -> None:
        self._unit = unit
        self._placement = placement
        self._emitted = emitted
        self._site = site

    @property
    def target(self) -> Target:
        """The processor."""
        return self._unit.target

    def typed(self, dtype: np.dtype[np.generic]) -> Target:
        """The processor as generators see it that compute in an element type."""
        return self._unit.target.typed(dtype.name)

    @property
    def threads(self) -> int:
        """How many threads run the plan."""
        return self._unit.threads

    @property
    def options(self) -> CompileOptions:
        """What the user chose."""
        return self._unit.options

    @property
    def uses(self) -> Uses:
        """Who reads what."""
        return self._unit.uses

    @property
    def elements(self) -> tuple[Operation, ...]:
        """Element-wise operations whose results the calls compute while they read their operands."""
        return self._site.elements

    @property
    def requests(self) -> Sequence[Request]:
        """The requests of the whole program, in order."""
        return self._unit.program.requests

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """A value's shape."""
        return self._unit.program.shapes[value]

    def dtype(self, value: ir.Value) -> np.dtype[np.generic]:
        """A value's element type."""
        return self._unit.program.dtypes[value]

    def known(self, value: ir.Value) -> Array | None:
        """The contents of a constant."""
        return self._unit.program.constants.get(value)

    def number(self, value: ir.Value) -> Expression | None:
        """A constant of one element as an expression."""
        return number(self.known(value))

    def geometry(self, value: ir.Value) -> Image | None:
        """The geometry of a value that is kept channels-last."""
        return self._unit.images.get(value)

    def has_image(self, value: ir.Value) -> bool:
        """Whether a value is kept channels-last."""
        return value in self._unit.images

    def is_strided(self, value: ir.Value) -> bool:
        """Whether a value is a view on another one that has gaps, or another order of axes."""
        return value in self._placement.strided

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor's contents are the same in every run."""
        return tensor.buffer in self._placement.constant

    def is_placed(self, value: ir.Value) -> bool:
        """Whether a value has been computed."""
        return self._placement.find(value) is not None

    def kept(self, key: object) -> Any:
        """What an earlier call left under a key, or None."""
        return self._emitted.kept.get(key)

    def layout(self, value: ir.Value, wanted: Layout) -> Tensor:
        """The tensor that a value would be; its buffer stands for memory that may not be there yet."""
        place = self._placement
        if wanted is Layout.PRESENT and (found := place.find(value)) is not None:
            return found
        held = place.images if wanted is Layout.IMAGE else place.plain
        if value in held:
            return held[value]
        shape, dtype = self.shape(value), self.dtype(value)
        if wanted is Layout.IMAGE:
            return image_tensor(Buffer(0), shape, self._unit.images[value], dtype)
        return whole(Buffer(0), shape, dtype)

    # -- reasons to leave a node to its NumPy kernel -----------------------------------------------------

    def not_floats(self, *values: ir.Value | None) -> str | None:
        """The first value that is not of a type that kernels are made for, or not of the others' type."""
        common: np.dtype[np.generic] | None = None
        for value in values:
            if value is None:
                continue
            dtype = self.dtype(value)
            if dtype.name not in _FLOATS or (common is not None and dtype != common):
                return f"{value.name} is {dtype}"
            common = dtype
        return None

    def empty(self, *values: ir.Value | None) -> str | None:
        """The first value without elements."""
        for value in values:
            if value is not None and 0 in self.shape(value):
                return f"{value.name} is empty"
        return None

    def not_images(self, *values: ir.Value) -> str | None:
        """The first value that is not kept channels-last."""
        for value in values:
            if not self.has_image(value):
                return f"{value.name} is not an image"
        return None


@final
class Context(Queries):
    """What a rule may ask, and what it may add to the plan."""

    # -- operands ----------------------------------------------------------------------------------------

    def plain(self, value: ir.Value) -> Tensor:
        """A value in ONNX's order, converted if need be."""
        place = self._placement
        if value not in place.plain:
            if (content := self.known(value)) is not None:
                place.plain[value] = place.hold(content)
            else:
                source = place.strided[value] if value in place.strided else place.images[value]
                self.copy(source, self.new_plain(value))
        return place.plain[value]

    def image(self, value: ir.Value) -> Tensor:
        """A value channels-last, converted if need be; it must be kept so."""
        if value not in self._placement.images:
            source = self.present(value)
            self.copy(source, self.new_image(value))
        return self._placement.images[value]

    def either(self, value: ir.Value) -> Tensor:
        """A value in the layout that it is kept in."""
        return self.image(value) if self.has_image(value) else self.plain(value)

    def present(self, value: ir.Value) -> Tensor:
        """A value where it is, in whatever layout: nothing is converted."""
        found = self._placement.find(value)
        return self.plain(value) if found is None else found

    def operand(self, value: ir.Value, wanted: Layout) -> Tensor:
        """A value in the layout that a call wants."""
        if wanted is Layout.PRESENT:
            return self.present(value)
        return self.image(value) if wanted is Layout.IMAGE else self.plain(value)

    def constant(self, array: Array) -> Tensor:
        """An array that the plan keeps."""
        return self._placement.hold(array)

    # -- results -----------------------------------------------------------------------------------------

    def new_plain(self, value: ir.Value) -> Tensor:
        """Memory for a result in ONNX's order: the state that it replaces, where nobody reads that later."""
        place = self._placement
        if (reserved := place.reserved.get(value)) is not None:
            place.plain[value] = reserved
            return reserved
        state = place.targets.get(value)
        shape, dtype = self.shape(value), self.dtype(value)
        if state is not None and self._may_replace(state, value):
            tensor = replace(place.plain[state], shape=shape)
        else:
            tensor = whole(Buffer(max(1, prod(shape) * dtype.itemsize)), shape, dtype)
        place.plain[value] = tensor
        return tensor

    def new_image(self, value: ir.Value) -> Tensor:
        """Memory for a result that is kept channels-last."""
        image = self._unit.images[value]
        shape, dtype = self.shape(value), self.dtype(value)
        nbytes = shape[0] * image.size * dtype.itemsize
        buffer = Buffer(max(1, nbytes), image=None if image.contiguous else image)
        tensor = self._placement.images[value] = image_tensor(buffer, shape, image, dtype)
        return tensor

    def new(self, value: ir.Value) -> Tensor:
        """Memory for a result in the layout that it is kept in."""
        return self.new_image(value) if self.has_image(value) else self.new_plain(value)

    def write_back(self, value: ir.Value, *, image: bool) -> WriteBack:
        """Where and how a producing kernel stores a result, with the element-wise operations after it."""
        if self._site.write_back is not None:
            return self._site.write_back
        return WriteBack(self.new_image(value) if image else self.new_plain(value))

    def alias(self, value: ir.Value, view: Tensor) -> None:
        """A result whose elements are in memory already, as a view with any strides."""
        buffer = view.buffer
        if buffer.place is Place.FIXED and not self.is_constant(view) and value in self.uses.outputs:
            self.copy(view, self.new_plain(value))
        else:
            self._placement.view(value, view)

    def view(self, value: ir.Value, of: ir.Value) -> None:
        """A result that is another value's elements in the same order under another shape."""
        shape = self.shape(value)
        if (view := reshaped(self.present(of), shape)) is None:
            view = gapless(self.plain(of), shape)
        self.alias(value, view)

    def scratch(self, elements: int, dtype: np.dtype[np.generic]) -> Buffer:
        """Memory for the length of one call, or until its last use."""
        return Buffer(max(64, elements * dtype.itemsize))

    def vector(self, elements: int, dtype: np.dtype[np.generic]) -> Tensor:
        """The same as a tensor of one axis."""
        return whole(self.scratch(elements, dtype), (elements,), dtype)

    def keep(self, key: object, thing: object) -> None:
        """Leave something for later calls."""
        self._emitted.kept[key] = thing

    def once(self, key: object, make: Callable[[], Buffer]) -> Buffer:
        """What was made under a key, or is made now: packed weights, for all who read them alike."""
        found: Buffer | None = self.kept(key)
        if found is None:
            found = make()
            self.keep(key, found)
        return found

    def _may_replace(self, state: ir.Value, value: ir.Value) -> bool:
        """Whether nobody needs the old state any more, under whatever name."""
        aliases = self._placement.aliases[self._placement.plain[state].buffer]
        return not any(self._needed(alias, value, itself=alias is state) for alias in aliases)

    def _needed(self, state: ir.Value, value: ir.Value, *, itself: bool) -> bool:
        """Whether calls from here on read `state`.

        An element-wise group may read what it replaces while it writes, as each element is read first.
        """
        if state in self.uses.outputs or any(state in g.inputs for g in self._site.waiting):
            return True
        position, last = self._site.position, self.uses.last.get(state, -1)
        elementwise = self._unit.groups[position].shape == self.shape(value)
        return last > position or (last == position and not (itself and elementwise))

    # -- calls -------------------------------------------------------------------------------------------

    def call(
        self,
        kernel: Kernel,
        slots: Mapping[str, Slot],
        *,
        batch: int = 0,
        label: str | None = None,
        element: Element | None = None,
    ) -> None:
        """Add a kernel call; what it reads and writes follows from the kernel's declaration of its slots.

        Args:
            kernel: what is called.
            slots: its arguments by name; memory for `scratch` is added.
            batch: what the kernel's costs are multiplied by.
            label: the operators that it computes, for reports; by default those of the site.
            element: the element-wise pass over gapless float32 tensors that it is, if it is one.
        """
        scratch = Buffer(kernel.scratch * self.threads + 64) if kernel.scratch else None
        if scratch is not None:
            slots = {**slots, "scratch": scratch}
        call = Call(kernel, slots, label or self._site.label, batch, scratch, element)
        self._emitted.add(call, self._placement)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy between layouts."""
        label = f"copy for {self._site.label}"
        if source.size == 0:
            return
        if source.dtype.itemsize not in (1, 2, 4, 8) or source.dtype == object:
            self._emitted.change((target.buffer,), self._placement)
            self._emitted.calls.append(Copy(source, target, label))
            return
        batch, *rest = source.shape or (1,)
        spec = copies.StridedCopy(
            tuple(rest), source.strides or (1,), target.strides or (1,), source.dtype.itemsize
        )
        slots: dict[str, Slot] = {"x": source, "y": target, "batch": batch}
        self.call(_copy_kernel(spec, self.target), slots, batch=batch, label=label)

    def check_indices(
        self, indices: Tensor, extent: int, *, low: int | None = None, what: str = "index"
    ) -> None:
        """Refuse indices outside [low, extent) when the plan runs; low is −extent by default.

        Constant ones inside need no check.
        """
        lowest = -extent if low is None else low
        content = _content(indices) if self.is_constant(indices) else None
        if content is not None and np.all((content >= lowest) & (content < extent)):
            return
        check = Check(self._unit.groups[self._site.position].last, indices, lowest, extent, what)
        if indices.buffer.place is Place.INPUT:
            self._emitted.input_checks.append(check)
        else:
            self._emitted.calls.append(check)

    def foreign(self, name: str, block: Tensor, tag: int, *, waits: bool) -> None:
        """Call another library's function on a block, or wait until it has ended."""
        self._emitted.changing.add(block.buffer)
        self._emitted.calls.append(ForeignCall(name, block, tag, waits, self._site.label))

    def fallback(self, operation: Operation, reason: str) -> None:
        """Run an operation's NumPy kernel inside the plan."""
        inputs = tuple(None if v is None else self.plain(v) for v in operation.inputs)
        outputs = tuple(self.new_plain(v) if v.name else None for v in operation.outputs)
        self._emitted.calls.append(Fallback(operation, inputs, outputs, reason))


def _content(tensor: Tensor) -> Array | None:
    """The elements of what a plan keeps; None for what it does not have yet."""
    held, itemsize = tensor.buffer.array, tensor.dtype.itemsize
    if held is None:
        return None
    strides = tuple(itemsize * step for step in tensor.strides)
    return np.lib.stride_tricks.as_strided(held.reshape(-1)[tensor.offset :], tensor.shape, strides)


_copy_kernel = functools.lru_cache(512)(copies.copy)
