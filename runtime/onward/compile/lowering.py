"""From a program to kernel calls: which kernel computes what, on tensors in which layout.

Operators say how they are lowered (`lower` in their file) by calling the methods here; what has no rule runs
its NumPy kernel inside the plan. Values that convolutions, pooling and batch normalization touch are kept
channels-last with a border of zeros wide enough for every convolution that reads them; conversions happen
where such a value meets an operator that wants ONNX's order, once each way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, TypeAlias

import numpy as np
import onnx_ir as ir

from onward.compile.codegen.target import Target
from onward.compile.finish import Finish, finish_for
from onward.compile.fusion import Group, is_element, schedule
from onward.compile.images import image_geometry
from onward.compile.kernels import copy as copies
from onward.compile.kernels.element import Element, Operand, element
from onward.compile.kernels.expression import Expression, constant, operand
from onward.compile.kernels.kernel import Kernel
from onward.compile.kernels.layout import Image
from onward.compile.options import CompileOptions
from onward.compile.program import Operation, Program
from onward.compile.rules import convolution as rules_convolution
from onward.compile.rules import indexing as rules_indexing
from onward.compile.rules import matrix as rules_matrix
from onward.compile.rules import reduction as rules_reduction
from onward.compile.rules import rows as rules_rows
from onward.compile.rules import shape as rules_shape
from onward.compile.rules import special as rules_special
from onward.compile.tensors import Buffer, Place, Tensor, reshaped, row_major, strides_agree
from onward.errors import ShapeError
from onward.graph import Array
from onward.ops._window import Geometry

__all__ = ["Call", "Copy", "Fallback", "Item", "Lowering", "NotLoweredError", "Slot", "image_tensor"]

Slot: TypeAlias = "Tensor | Buffer | int"
"""What an argument slot holds: the address of a tensor's first element, of a buffer, or a number."""

_FLOAT = np.dtype(np.float32)


class NotLoweredError(Exception):
    """An operator's rule declines a node; the text says why, and the NumPy kernel runs instead."""


@dataclass(frozen=True, eq=False)
class Call:
    """One kernel call."""

    kernel: Kernel
    slots: Mapping[str, Slot]
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    label: str
    batch: int
    scratch: Buffer | None = None


@dataclass(frozen=True, eq=False)
class Copy:
    """A copy between layouts or buffers that NumPy makes inside the plan."""

    source: Tensor
    target: Tensor
    label: str

    @property
    def reads(self) -> tuple[Buffer, ...]:
        return (self.source.buffer,)

    @property
    def writes(self) -> tuple[Buffer, ...]:
        return (self.target.buffer,)


@dataclass(frozen=True, eq=False)
class Fallback:
    """A NumPy kernel inside the plan."""

    operation: Operation
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    reason: str

    @property
    def reads(self) -> tuple[Buffer, ...]:
        return tuple(t.buffer for t in self.inputs if t is not None)

    @property
    def writes(self) -> tuple[Buffer, ...]:
        return tuple(t.buffer for t in self.outputs)

    @property
    def label(self) -> str:
        return self.operation.label


@dataclass(frozen=True, eq=False)
class Check:
    """Indices that native kernels rely on: each must be in [low, extent)."""

    operation: Operation
    tensor: Tensor
    low: int
    extent: int
    what: str

    @property
    def reads(self) -> tuple[Buffer, ...]:
        return (self.tensor.buffer,)

    @property
    def writes(self) -> tuple[Buffer, ...]:
        return ()

    @property
    def label(self) -> str:
        return self.operation.label

    def apply(self, indices: Array) -> None:
        """Raises:
        ShapeError: an index is out of range.
        """
        if indices.size and not (indices.min() >= self.low and indices.max() < self.extent):
            wrong = (indices < self.low) | (indices >= self.extent)
            place = np.argwhere(wrong)[0].tolist()
            node = self.operation.node
            raise ShapeError(
                f"node {node.name!r}, operator {node.op_type}: {self.what} {indices[wrong][0]} "
                f"at position {place} is not in {self.low}…{self.extent - 1}"
            )


Item: TypeAlias = "Call | Check | Copy | Fallback"


class Lowering:
    """Builds the calls of a plan.

    Args:
        program: what to compute.
        target: for which processor.
        threads: how many threads will run it.
        fixed: the session's arrays of state and weights, by name.
        bindings: state inputs and the outputs that replace them.
        options: what the user chose.
    """

    def __init__(
        self,
        program: Program,
        target: Target,
        threads: int,
        fixed: Mapping[str, Array],
        bindings: Mapping[str, str],
        options: CompileOptions,
    ) -> None:
        self.options = options
        self.program = program
        self.target = target
        self.threads = threads
        self.calls: list[Item] = []
        self.prologue: list[Item] = []
        self.old_state: dict[str, Tensor] = {}
        """Copies of state that is an output, by the output's name."""
        self.input_checks: list[Check] = []
        """Checks of the caller's inputs: they run before the first call."""
        self.groups = schedule(program)
        self._geometry = image_geometry(program, self.groups, options)
        self._plain: dict[ir.Value, Tensor] = {}
        self._images: dict[ir.Value, Tensor] = {}
        self._strided: dict[ir.Value, Tensor] = {}
        self._aliases: dict[Buffer, list[ir.Value]] = {}
        self._position = 0
        self._constant_buffers: set[Buffer] = set()
        self._changing: set[Buffer] = set()
        self._label = ""
        self.row_statistics: dict[tuple[ir.Value, int, float], tuple[Tensor, Tensor]] = {}
        """Mean and inverse deviation of layer normalization, by operand, first axis and epsilon."""
        self._waiting: dict[ir.Value, Group] = {}
        self._finish: Finish | None = None
        self.packed: dict[object, Buffer] = {}
        """Weights in the order that kernels read them, by what they are packed for."""
        self.pooled: dict[tuple[ir.Value, Geometry], ir.Value] = {}
        """Results of max pooling, by operand and window: its gradient needs them."""
        for name, value in (*program.state.items(), *program.weights.items()):
            if value in program.shapes:
                array = fixed[name]
                buffer = Buffer(array.nbytes, Place.FIXED, array=array, name=name)
                self._plain[value] = self._whole(buffer, value)
                self._aliases[buffer] = [value]
                if name in program.weights:
                    self._constant_buffers.add(buffer)
        for name, value in program.inputs.items():
            if value in program.shapes:
                nbytes = int(np.prod(program.shapes[value])) * program.dtypes[value].itemsize
                self._plain[value] = self._whole(Buffer(nbytes, Place.INPUT, name=name), value)
        self._last_readers = self._find_last_readers()
        self._targets = self._update_targets(bindings)
        self._bindings = bindings

    # -- tensors -----------------------------------------------------------------------------------------

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
        """Whether nobody needs the old state any more, under whatever name.

        An element-wise group may read the state itself while it writes, as each element is read first.
        """
        group = self.groups[self._position]
        for alias in self._aliases[self._plain[state].buffer]:
            last = self._last_readers.get(alias, -1)
            itself = alias is state and group.shape == self.shape(value)
            if any(alias in g.inputs for g in self._waiting.values()):
                return False
            if alias in self._outputs or last > self._position or (last == self._position and not itself):
                return False
        return True

    def geometry(self, value: ir.Value) -> Image | None:
        """The geometry of a value that is kept channels-last."""
        return self._geometry.get(value)

    def finish(self, value: ir.Value, *, image: bool) -> Finish:
        """Where and how a producing kernel stores a result, with the element-wise operations after it."""
        if self._finish is not None:
            return self._finish
        return Finish(self.new_image(value) if image else self.new_plain(value))

    def number(self, value: ir.Value) -> Expression | None:
        """A constant of one element as an expression."""
        content = self.known(value)
        if content is None or content.size != 1:
            return None
        number = constant(float(content.reshape(())))
        return number.apply("ne", 0.0) if content.dtype == np.bool_ else number

    def view(self, value: ir.Value, of: ir.Value) -> None:
        """A result that is another value's elements in the same order under another shape."""
        shape = self.shape(value)
        if (window := reshaped(self.present(of), shape)) is None:
            window = replace(self.plain(of), shape=shape, strides=row_major(shape))
        self.alias(value, window)

    def alias(self, value: ir.Value, window: Tensor) -> None:
        """A result whose elements are in memory already, as a window with any strides."""
        buffer = window.buffer
        kept = buffer.place is Place.FIXED and buffer not in self._constant_buffers
        if kept and value in self._outputs:
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

    def scratch(self, floats: int) -> Buffer:
        """Memory for the length of one call, or until its last use."""
        return Buffer(max(64, 4 * floats))

    def constant(self, array: Array) -> Tensor:
        """An array that the plan keeps."""
        held = np.ascontiguousarray(array).reshape(array.shape)
        buffer = Buffer(max(1, held.nbytes), Place.FIXED, array=held)
        self._constant_buffers.add(buffer)
        return Tensor(buffer, held.shape, row_major(held.shape), held.dtype)

    def _whole(self, buffer: Buffer, value: ir.Value) -> Tensor:
        shape = self.program.shapes[value]
        return Tensor(buffer, shape, row_major(shape), self.program.dtypes[value])

    # -- calls -------------------------------------------------------------------------------------------

    def call(
        self,
        kernel: Kernel,
        slots: Mapping[str, Slot],
        *,
        reads: Sequence[Tensor | Buffer],
        writes: Sequence[Tensor | Buffer],
        batch: int = 0,
        label: str | None = None,
    ) -> None:
        """Add a kernel call. One that reads constants and weights only runs once, before the first step."""
        read, written = tuple(map(_buffer, reads)), tuple(map(_buffer, writes))
        scratch = None
        if kernel.scratch:
            scratch = Buffer(kernel.scratch * self.threads + 64)
            slots = {**slots, "scratch": scratch}
            written = (*written, scratch)
        call = Call(kernel, slots, read, written, label or self._label, batch, scratch)
        once = bool(read) and all(b in self._constant_buffers for b in read)
        if once and all(b.place is not Place.FIXED and b not in self._changing for b in written):
            for buffer in written:
                if buffer is not scratch:
                    self._keep(buffer)
            self.prologue.append(call)
        else:
            self._changing.update(written)
            self._constant_buffers.difference_update(written)
            self.calls.append(call)

    def _keep(self, buffer: Buffer) -> None:
        """Give a buffer memory of its own for as long as the plan lives."""
        if buffer.array is None:
            store = np.zeros(buffer.nbytes + 64, np.uint8)
            shift = -store.ctypes.data % 64
            buffer.array = store[shift : shift + buffer.nbytes]
        buffer.place = Place.FIXED
        self._constant_buffers.add(buffer)

    def fallback(self, operation: Operation, reason: str) -> None:
        """Run an operation's NumPy kernel inside the plan."""
        inputs = tuple(None if v is None else self.plain(v) for v in operation.inputs)
        for value in operation.outputs:
            self._images.pop(value, None)
            self._strided.pop(value, None)
        outputs = tuple(self.new_plain(v) for v in operation.outputs)
        self.calls.append(Fallback(operation, inputs, outputs, reason))

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy between layouts."""
        label = f"copy for {self._label}"
        if source.size == 0:
            return
        if source.dtype.itemsize not in (1, 4, 8) or source.dtype == object:
            self._changing.add(target.buffer)
            self.calls.append(Copy(source, target, label))
            return
        batch, *rest = source.shape or (1,)
        spec = copies.Copy(tuple(rest), source.strides or (1,), target.strides or (1,), source.dtype.itemsize)
        slots: dict[str, Slot] = {"x": source, "y": target, "batch": batch}
        self.call(
            _copy_kernel(spec, self.target), slots, reads=[source], writes=[target], batch=batch, label=label
        )

    def elements(
        self,
        shape: tuple[int, ...],
        operands: Sequence[Tensor],
        results: Sequence[Tensor],
        expressions: Sequence[Expression],
        label: str | None = None,
    ) -> None:
        """One pass over elements: results are expressions of operands, which are broadcast to `shape`."""
        walk = _walk(shape, operands, results)
        sizes = walk.sizes
        spec = Element(
            sizes[1:],
            tuple(Operand(s, t.dtype.name) for s, t in zip(walk.strides, operands, strict=False)),
            tuple(
                Operand(s, t.dtype.name) for s, t in zip(walk.strides[len(operands) :], results, strict=True)
            ),
            tuple(expressions),
        )
        kernel = _element_kernel(spec, self.target)
        slots: dict[str, Slot] = {f"x{i}": t for i, t in enumerate(operands)}
        slots |= {f"y{i}": t for i, t in enumerate(results)}
        slots["batch"] = sizes[0]
        self.call(kernel, slots, reads=operands, writes=results, batch=sizes[0], label=label)

    # -- what operators' rules call ----------------------------------------------------------------------

    def check_indices(
        self, indices: Tensor, extent: int, *, low: int | None = None, what: str = "index"
    ) -> None:
        """Refuse indices outside [low, extent) when the plan runs; low is −extent by default."""
        lowest = -extent if low is None else low
        check = Check(self.groups[self._position].operations[0], indices, lowest, extent, what)
        if indices.buffer.place is Place.INPUT:
            self.input_checks.append(check)
        else:
            self.calls.append(check)

    def decline(self, reason: str) -> NoReturn:
        """Leave a node to its NumPy kernel; only before the first call of its rule."""
        raise NotLoweredError(reason)

    def require_float(self, *values: ir.Value) -> None:
        """Decline unless all are float32."""
        for value in values:
            if self.program.dtypes[value] != _FLOAT:
                self.decline(f"{value.name} is {self.program.dtypes[value]}")

    def require_elements(self, *values: ir.Value) -> None:
        """Decline when one has no elements."""
        for value in values:
            if 0 in self.shape(value):
                self.decline(f"{value.name} is empty")

    def known(self, value: ir.Value) -> Array | None:
        """The contents of a constant."""
        return self.program.constants.get(value)

    convolution = rules_convolution.forward
    convolution_input = rules_convolution.backward_data
    convolution_weight = rules_convolution.backward_weights
    max_pool = rules_convolution.max_pool
    max_pool_gradient = rules_convolution.max_pool_gradient
    average_pool = rules_convolution.average_pool
    average_pool_gradient = rules_convolution.average_pool_gradient
    gemm = rules_matrix.gemm
    matmul = rules_matrix.matmul
    reduction = rules_rows.reduction
    arg_extreme = rules_rows.arg_extreme
    softmax = rules_rows.softmax
    layer_normalization = rules_rows.layer_normalization
    layer_normalization_gradient = rules_rows.layer_normalization_gradient
    rms_normalization = rules_rows.rms_normalization
    group_normalization = rules_rows.group_normalization
    gather_rows = rules_indexing.gather_rows
    scatter_rows = rules_indexing.scatter_rows
    forward = rules_shape.forward
    transpose = rules_shape.transpose
    slices = rules_shape.slices
    concat = rules_shape.concat
    pad = rules_shape.pad
    expand = rules_shape.expand
    tile = rules_shape.tile
    fill = rules_shape.fill
    convert = rules_shape.convert
    dropout = rules_special.dropout
    local_response = rules_special.local_response
    local_response_gradient = rules_special.local_response_gradient
    adam_factors = rules_special.adam_factors
    integers = rules_special.integers
    cross_entropy = rules_reduction.cross_entropy
    cross_entropy_gradient = rules_reduction.cross_entropy_gradient

    # -- the walk over the program -----------------------------------------------------------------------

    def run(self) -> None:
        """Lower every group, then bring replaced state home."""
        self._keep_old_state()
        for position, group in enumerate(self.groups):
            self._position = position
            self._lower(group)
        self._bring_state_home()

    def _bring_state_home(self) -> None:
        """Copy replacements that are not in the state's place; what is other state goes by way of a copy."""
        pending: list[tuple[str, Tensor, Tensor]] = []
        for name, output in self._bindings.items():
            state, value = self.program.state[name], self.program.outputs[output]
            source, target = self.plain(value), self._plain[state]
            if source.buffer is target.buffer:
                continue
            self._label = name
            if source.buffer.place is Place.FIXED and source.buffer not in self._constant_buffers:
                held = replace(source, buffer=Buffer(max(1, source.nbytes)), offset=0)
                held = replace(held, strides=row_major(held.shape))
                self.copy(source, held)
                source = held
            pending.append((name, source, target))
        for name, source, target in pending:
            self._label = name
            self.copy(source, target)

    def _keep_old_state(self) -> None:
        """State that is an output as it was before the run is copied before anything replaces it."""
        replaced = set(self._bindings.values())
        for name, value in self.program.outputs.items():
            if name not in replaced and value in self.program.state.values():
                self._label = name
                source = self._plain[value]
                held = self._whole(Buffer(max(1, source.nbytes)), value)
                self.copy(source, held)
                self.old_state[name] = held

    def _lower(self, group: Group) -> None:
        first = group.operations[0]
        self._label = " + ".join(o.label for o in group.operations)
        if group.shape is not None:
            try:
                if not self._lower_into_producer(group):
                    self._lower_elements(group)
            except NotLoweredError as error:
                for operation in group.operations:
                    self.fallback(operation, str(error))
            return
        if self._can_wait(group):
            self._waiting[first.outputs[0]] = group
            return
        self._lower_single(group)

    def _can_wait(self, group: Group) -> bool:
        """Whether a producer's result is read by one element-wise group alone, which it may then compute."""
        operation = group.operations[0]
        if not operation.operator.fuses_elements:
            return False
        value = operation.outputs[0]
        users = self._users.get(value, [])
        return value not in self._outputs and len(users) == 1 and users[0].shape == self.shape(value)

    def _lower_into_producer(self, group: Group) -> bool:
        """Let the kernel that produces one of a group's operands compute the group; False if it cannot."""
        hosts = [v for v in group.inputs if v in self._waiting]
        label, fused = self._label, False
        for value in reversed(hosts):
            producer = self._waiting.pop(value)
            operation = producer.operations[0]
            finish = finish_for(self, value, group) if value is hosts[0] else None
            if finish is not None:
                self._label, self._finish = f"{operation.label} + {label}", finish
                try:
                    operation.operator.lower(self, operation.outputs, *operation.inputs)  # type: ignore[attr-defined]
                    fused = True
                    continue
                except NotLoweredError:
                    fused = False
                finally:
                    self._finish = None
            self._label = operation.label
            self._lower_single(producer)
        self._label = label
        return fused

    def _lower_single(self, group: Group) -> None:
        first = group.operations[0]
        rule: Callable[..., None] | None = getattr(first.operator, "lower", None)
        reason = "no compiled kernel"
        if rule is not None:
            before = (len(self.calls), len(self.prologue))
            try:
                rule(self, first.outputs, *first.inputs)
                return
            except NotLoweredError as error:
                reason = str(error)
                assert before == (len(self.calls), len(self.prologue)), (
                    "a rule declines before its first call"
                )
        if is_element(first, self.program):
            raise AssertionError("element-wise operations are in groups")
        self.fallback(first, reason)

    def _lower_elements(self, group: Group) -> None:
        shape = group.shape or ()
        if 0 in shape:
            raise NotLoweredError("no elements")
        inside = {v for o in group.operations for v in o.outputs}
        tensors: list[Tensor] = []
        places: dict[ir.Value, Expression] = {}
        images = any(self.shape(v) == shape and v in self._geometry for v in (*group.inputs, *inside))
        for value in _operands(group):
            if (number := self.number(value)) is not None:
                places[value] = number
                continue
            place = operand(len(tensors))
            truth = self.program.dtypes[value] == np.bool_
            places[value] = place.apply("ne", 0.0) if truth else place
            tensors.append(self._operand(value, shape, images))
        made = self.expressions(group, places, tensors)
        wanted = [v for v in made if self.escapes(v, group)]
        results = [self.new(v) for v in wanted]
        self.elements(shape, tensors, results, [made[v] for v in wanted])

    def _operand(self, value: ir.Value, shape: tuple[int, ...], images: bool) -> Tensor:
        """An operand of a group over `shape`, where it is if vectors can run along it there."""
        whole = images and self.shape(value) == shape and value in self._geometry
        if whole and value not in self._strided:
            return self.image(value)
        found = self.present(value)
        if found.image is not None and not images:
            found = self.plain(value)
        order = _axis_order(shape, images)
        axis = order[-1] - (len(shape) - len(found.shape)) if order else -1
        if axis < 0 or found.shape[axis] == 1 or found.strides[axis] in (0, 1):
            return found
        if whole:
            return self.image(value)
        return self._channels_last(value, axis) if images else self.plain(value)

    def _channels_last(self, value: ir.Value, channel: int) -> Tensor:
        """A copy of an operand that is broadcast against images, with its channels next to each other."""
        source = self.present(value)
        order = [a for a in range(len(source.shape)) if a != channel] + [channel]
        steps = row_major([source.shape[a] for a in order])
        strides = [0] * len(order)
        for axis, step in zip(order, steps, strict=True):
            strides[axis] = step
        target = replace(source, buffer=Buffer(source.nbytes), strides=tuple(strides), offset=0, image=None)
        self.copy(source, target)
        return target

    def sole_reader(self, value: ir.Value) -> Operation | None:
        """The operation that alone reads a value; None where there are several, or it is element-wise."""
        users = self._users.get(value, [])
        if value in self._outputs or len(users) != 1 or users[0].shape is not None:
            return None
        return users[0].operations[0]

    def expressions(
        self, group: Group, places: Mapping[ir.Value, Expression], tensors: list[Tensor]
    ) -> dict[ir.Value, Expression]:
        """What each operation of a group computes, given the expressions of what comes from outside.

        Scalars that an operator computes once for all elements are added to `tensors`.
        """
        made: dict[ir.Value, Expression] = {}
        for operation in group.operations:
            scalars = operation.operator.element_scalars
            arguments = [
                None if v is None or i in scalars else made[v] if v in made else places[v]
                for i, v in enumerate(operation.inputs)
            ]
            if scalars:
                for tensor in operation.operator.scalars(self, *(operation.inputs[i] for i in scalars)):  # type: ignore[attr-defined]
                    arguments.append(operand(len(tensors)))
                    tensors.append(tensor)
            found = operation.operator.element(*arguments)  # type: ignore[attr-defined]
            results = found if isinstance(found, tuple) else (found,)
            made.update(zip(operation.outputs, results, strict=False))
        return made

    def escapes(self, value: ir.Value, group: Group) -> bool:
        """Whether a value of a group is used outside it."""
        return value in self._outputs or any(g is not group for g in self._users.get(value, ()))

    @functools.cached_property
    def _outputs(self) -> set[ir.Value]:
        return set(self.program.outputs.values())

    @functools.cached_property
    def _users(self) -> dict[ir.Value, list[Group]]:
        users: dict[ir.Value, list[Group]] = {}
        for group in self.groups:
            for value in group.inputs:
                users.setdefault(value, []).append(group)
        return users

    def _find_last_readers(self) -> dict[ir.Value, int]:
        last: dict[ir.Value, int] = {}
        for i, group in enumerate(self.groups):
            for operation in group.operations:
                last.update({v: i for v in operation.inputs if v is not None})
        return last

    def _update_targets(self, bindings: Mapping[str, str]) -> dict[ir.Value, ir.Value]:
        """Results that may be written over the state they replace.

        Nobody reads the old one later, and nothing that could fail comes later: a run that ends with an error
        leaves the state as it was.
        """
        position = {v: i for i, g in enumerate(self.groups) for o in g.operations for v in o.outputs}
        risky = max((i for i, g in enumerate(self.groups) if _may_fail(g)), default=-1)
        found: dict[ir.Value, ir.Value] = {}
        taken: set[ir.Value] = set()
        for name, output in bindings.items():
            state, value = self.program.state[name], self.program.outputs[output]
            if value not in position or value in taken or state not in self.program.shapes:
                continue
            if position[value] <= risky or self.shape(state) != self.shape(value):
                continue
            if self._last_readers.get(state, -1) <= position[value]:
                found[value] = state
                taken.add(value)
        return found


def _operands(group: Group) -> list[ir.Value]:
    """What a group's expressions read from outside."""
    made = {v for o in group.operations for v in o.outputs}
    found = (
        v
        for o in group.operations
        for i, v in enumerate(o.inputs)
        if v is not None and v not in made and i not in o.operator.element_scalars
    )
    return list(dict.fromkeys(found))


def _may_fail(group: Group) -> bool:
    """Whether a group may run NumPy kernels, which can refuse data: all but element-wise ones and updates."""
    return group.shape is None and not group.operations[0].node.op_type.endswith("Update")


@dataclass(frozen=True)
class _Walked:
    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


def _axis_order(shape: tuple[int, ...], images: bool) -> list[int]:
    """Axes of more than one position, the innermost in memory last."""
    order = (0, *range(2, len(shape)), 1) if images else range(len(shape))
    return [a for a in order if shape[a] != 1]


def _walk(shape: tuple[int, ...], operands: Sequence[Tensor], results: Sequence[Tensor]) -> _Walked:
    """An order of the axes in which every operand's last stride is 0 or 1, and every result's 1."""
    tensors = [*operands, *results]
    whole = all(t.plain and t.shape == shape for t in tensors if t.size != 1)
    if whole:
        size = int(np.prod(shape))
        return _Walked((size,), tuple((0,) if t.size == 1 and size != 1 else (1,) for t in tensors))
    for images in (True, False) if any(t.image for t in tensors) else (False,):
        order = _axis_order(shape, images)
        strides = tuple(_broadcast(t, shape, order) for t in tensors)
        if all(s[-1] in (0, 1) for s in strides) and all(s[-1] == 1 for s in strides[len(operands) :]):
            return _Walked(tuple(shape[a] for a in order), strides)
    raise NotLoweredError("operands in layouts that do not go together")


def _broadcast(tensor: Tensor, shape: tuple[int, ...], order: Sequence[int]) -> tuple[int, ...]:
    lead = len(shape) - len(tensor.shape)
    full = [0] * lead + [0 if n == 1 else s for n, s in zip(tensor.shape, tensor.strides, strict=True)]
    return tuple(full[a] for a in order)


def image_tensor(buffer: Buffer, shape: tuple[int, ...], image: Image, dtype: np.dtype[np.generic]) -> Tensor:
    """A value [N, C, W] or [N, C, H, W] kept channels-last in a buffer."""
    spatial = (image.row, image.pixel) if len(shape) == 4 else (image.pixel,)
    strides = (image.size, 1, *spatial)
    return Tensor(buffer, shape, strides, dtype, image.origin, image)


_copy_kernel = functools.lru_cache(512)(copies.copy)


@functools.lru_cache(maxsize=4096)
def _element_kernel(spec: Element, target: Target) -> Kernel:
    return element(spec, target)


def _buffer(place: Tensor | Buffer) -> Buffer:
    return place.buffer if isinstance(place, Tensor) else place
