"""From a program to kernel calls: which kernel computes what, on tensors in which layout.

Operators say how they are lowered (`lower` in their file) by calling the methods here; what has no rule runs
its NumPy kernel inside the plan.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn, final

import numpy as np
import onnx_ir as ir

from onward.compile.codegen.target import Target
from onward.compile.finish import Finish, finish_for
from onward.compile.fusion import is_element
from onward.compile.groups import Group
from onward.compile.items import Call, Check, Copy, Fallback, Item, Slot
from onward.compile.kernels import copy as copies
from onward.compile.kernels.element import Element
from onward.compile.kernels.expression import Expression, constant
from onward.compile.kernels.kernel import Kernel
from onward.compile.options import CompileOptions
from onward.compile.placement import NotLoweredError, Placement
from onward.compile.program import Operation, Program
from onward.compile.rules import convolution as rules_convolution
from onward.compile.rules import element as rules_element
from onward.compile.rules import indexing as rules_indexing
from onward.compile.rules import matrix as rules_matrix
from onward.compile.rules import recurrent as rules_recurrent
from onward.compile.rules import reduction as rules_reduction
from onward.compile.rules import rows as rules_rows
from onward.compile.rules import shape as rules_shape
from onward.compile.rules import special as rules_special
from onward.compile.rules.element import Expressed
from onward.compile.sweeps import swept
from onward.compile.tensors import Buffer, Place, Tensor, row_major
from onward.graph import Array
from onward.ops._window import Geometry

__all__ = ["Lowering", "Slot"]

_FLOAT = np.dtype(np.float32)


@final
class Lowering(Placement):
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
        super().__init__(program, fixed, bindings, options)
        self.target = target
        self.threads = threads
        self.calls: list[Item] = []
        self.prologue: list[Item] = []
        self.old_state: dict[str, Tensor] = {}
        """Copies of state that is an output, by the output's name."""
        self.input_checks: list[Check] = []
        """Checks of the caller's inputs: they run before the first call."""
        self.row_statistics: dict[tuple[ir.Value, int, float], tuple[Tensor, Tensor]] = {}
        """Mean and inverse deviation of layer normalization, by operand, first axis and epsilon."""
        self.packed: dict[object, Buffer] = {}
        """Weights in the order that kernels read them, by what they are packed for."""
        self.pooled: dict[tuple[ir.Value, Geometry], ir.Value] = {}
        """Results of max pooling, by operand and window: its gradient needs them."""
        self.recurrent_states: dict[object, rules_recurrent.Kept] = {}
        """What recurrent operators leave for their gradients, by operator and operands."""
        self._bindings = bindings
        self._position = 0
        self._label = ""
        self._changing: set[Buffer] = set()
        self._waiting: dict[ir.Value, Group] = {}
        self._finish: Finish | None = None
        self._expressed: Group | None = None

    def needed(self, state: ir.Value, value: ir.Value, *, itself: bool) -> bool:
        """An element-wise group may read what it replaces while it writes, as each element is read first."""
        if state in self.uses.outputs or any(state in g.inputs for g in self._waiting.values()):
            return True
        last = self.uses.last.get(state, -1)
        elementwise = self.groups[self._position].shape == self.shape(value)
        return last > self._position or (last == self._position and not (itself and elementwise))

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
        element: Element | None = None,
    ) -> None:
        """Add a kernel call. One that reads constants and weights only runs once, before the first step."""
        read, written = tuple(map(_buffer, reads)), tuple(map(_buffer, writes))
        scratch = None
        if kernel.scratch:
            scratch = Buffer(kernel.scratch * self.threads + 64)
            slots = {**slots, "scratch": scratch}
            written = (*written, scratch)
        call = Call(kernel, slots, read, written, label or self._label, batch, scratch, element)
        once = bool(read) and all(b in self.constant_buffers for b in read)
        if once and all(b.place is not Place.FIXED and b not in self._changing for b in written):
            for buffer in written:
                if buffer is not scratch:
                    self._keep(buffer)
            self.prologue.append(call)
        else:
            self._changing.update(written)
            self.constant_buffers.difference_update(written)
            self.calls.append(call)

    def _keep(self, buffer: Buffer) -> None:
        """Give a buffer memory of its own for as long as the plan lives."""
        buffer.place = Place.FIXED
        self.constant_buffers.add(buffer)

    def fallback(self, operation: Operation, reason: str) -> None:
        """Run an operation's NumPy kernel inside the plan."""
        inputs = tuple(None if v is None else self.plain(v) for v in operation.inputs)
        for value in operation.outputs:
            self.forget(value)
        outputs = tuple(self.new_plain(v) if v.name else None for v in operation.outputs)
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

    # -- what operators' rules call ----------------------------------------------------------------------

    def check_indices(
        self, indices: Tensor, extent: int, *, low: int | None = None, what: str = "index"
    ) -> None:
        """Refuse indices outside [low, extent) when the plan runs; low is −extent by default."""
        lowest = -extent if low is None else low
        check = Check(self.groups[self._position].last, indices, lowest, extent, what)
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

    elements = rules_element.elements
    convolution = rules_convolution.forward
    convolution_input = rules_convolution.backward_data
    convolution_weight = rules_convolution.backward_weights
    max_pool = rules_convolution.max_pool
    max_pool_gradient = rules_convolution.max_pool_gradient
    average_pool = rules_convolution.average_pool
    average_pool_gradient = rules_convolution.average_pool_gradient
    gemm = rules_matrix.gemm
    matmul = rules_matrix.matmul
    recurrent = rules_recurrent.recurrent
    recurrent_gradient = rules_recurrent.recurrent_gradient
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
        self.calls = swept(self.calls, self.target)

    def _bring_state_home(self) -> None:
        """Copy replacements that are not in the state's place; what is other state goes by way of a copy."""
        pending: list[tuple[str, Tensor, Tensor]] = []
        for name, output in self._bindings.items():
            state, value = self.program.state[name], self.program.outputs[output]
            source, target = self.plain(value), self._plain[state]
            if source.buffer is target.buffer:
                continue
            self._label = name
            if source.buffer.place is Place.FIXED and source.buffer not in self.constant_buffers:
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
        self._label = " + ".join(o.label for o in group.operations)
        if group.shape is not None:
            try:
                if not self._lower_into_producer(group):
                    rules_element.lower_group(self, group)
            except NotLoweredError as error:
                for operation in group.operations:
                    self.fallback(operation, str(error))
            return
        if self._can_wait(group):
            self._waiting[group.last.outputs[0]] = group
            return
        self._lower_single(group)

    def _can_wait(self, group: Group) -> bool:
        """Whether a producer's result is read by one element-wise group alone, which it may then compute."""
        operation = group.last
        if group.elements or not operation.operator.fuses_elements:
            return False
        value = operation.outputs[0]
        users = self.uses.groups(value)
        return value not in self.uses.outputs and len(users) == 1 and users[0].shape == self.shape(value)

    def _lower_into_producer(self, group: Group) -> bool:
        """Let the kernel that produces one of a group's operands compute the group; False if it cannot."""
        hosts = [v for v in group.inputs if v in self._waiting]
        label, fused = self._label, False
        for value in reversed(hosts):
            producer = self._waiting.pop(value)
            operation = producer.last
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
        """Let an operation's rule lower it, with the element-wise ones before it as expressions if it can."""
        operation = group.last
        rule: Callable[..., None] | None = getattr(operation.operator, "lower", None)
        reason = "no compiled kernel"
        if rule is not None:
            before = (len(self.calls), len(self.prologue))
            try:
                self._expressed = group
                rule(self, operation.outputs, *operation.inputs)
                return
            except NotLoweredError as error:
                reason = str(error)
                assert before == (len(self.calls), len(self.prologue)), (
                    "a rule declines before its first call"
                )
            finally:
                self._expressed = None
        assert not is_element(operation, self.program), "element-wise operations are in groups"
        if group.elements:
            rules_element.store(self, group.elements, operation.inputs)
        self.fallback(operation, reason)

    def expressed(self, *values: ir.Value) -> Expressed:
        """An operation's operands of one shape as expressions of tensors, for a kernel that takes those."""
        elements = [] if self._expressed is None else self._expressed.elements
        return rules_element.expressed(self, elements, values)


_copy_kernel = functools.lru_cache(512)(copies.copy)


def _buffer(place: Tensor | Buffer) -> Buffer:
    return place.buffer if isinstance(place, Tensor) else place
