"""LSTM, GRU and RNN: one product with W for all steps, one kernel that walks through time for each direction.

What the gradient needs stays where the forward pass left it, if the program has a gradient of the same
operands. Its products with W, X and the states are again one for all steps each.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onward.compile.kernels import panels
from onward.compile.kernels import recurrent as kernels
from onward.compile.kernels import recurrent_grad as gradients
from onward.compile.kernels.expression import operand
from onward.compile.kernels.kernel import Kernel
from onward.compile.kernels.recurrent import ACTIVATIONS, GATES, Cell
from onward.compile.kernels.recurrent_grad import CellGradient
from onward.compile.kernels.reduce import Finish, finish_columns, partial_size
from onward.compile.rules.matrix import product
from onward.compile.tensors import Buffer, Tensor, reshaped, row_major
from onward.graph import ONWARD_DOMAIN
from onward.ops._recurrent import Attributes, attributes_of

if TYPE_CHECKING:
    from onward.compile.lowering import Lowering, Slot
    from onward.compile.program import Operation

__all__ = ["recurrent", "recurrent_gradient"]

_FLOAT = np.dtype(np.float32)

_CACHED = 1 << 20
"""Bytes of packed weights that may be read again at every step."""

_SHARED = 4
"""Rows of a thread from which reading them pays."""

_pack = functools.lru_cache(512)(panels.pack_columns)
_forward = functools.lru_cache(64)(kernels.recurrent)
_backward = functools.lru_cache(64)(gradients.recurrent_gradient)
_finish = functools.lru_cache(64)(finish_columns)


@dataclass(frozen=True)
class _Operands:
    """What an operator and its gradient read; absent ones are None."""

    X: ir.Value
    W: ir.Value
    R: ir.Value
    B: ir.Value | None
    lens: ir.Value | None
    initial: tuple[ir.Value | None, ...]
    P: ir.Value | None

    @classmethod
    def of(cls, kind: str, inputs: Sequence[ir.Value | None]) -> _Operands:
        operands: list[ir.Value | None] = [*inputs, *[None] * (8 - len(inputs))]
        X, W, R, B, lens = operands[:5]
        rest = operands[5:]
        assert X is not None
        assert W is not None
        assert R is not None
        if kind == "LSTM":
            return cls(X, W, R, B, lens, (rest[0], rest[1]), rest[2])
        return cls(X, W, R, B, lens, (rest[0],), None)


@dataclass(frozen=True)
class Kept:
    """What the forward pass leaves for the gradient, by direction where there is more than one tensor."""

    x: Tensor
    gates: Tensor
    states: tuple[tuple[Tensor, ...], ...]
    extras: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class _Sizes:
    """Extents: steps, batch, features, units, directions; and of all gates of a row."""

    time: int
    batch: int
    features: int
    size: int
    directions: int
    width: int

    @property
    def row(self) -> int:
        """Floats of the gates of a row in all directions."""
        return self.directions * self.width


def _sizes(b: Lowering, kind: str, operator: Attributes, x: _Operands) -> _Sizes:
    first, second, features = b.shape(x.X)
    time, batch = (second, first) if operator.batch_major else (first, second)
    directions, _, size = b.shape(x.R)
    return _Sizes(time, batch, features, size, directions, GATES[kind] * size)


def _cell(
    b: Lowering,
    kind: str,
    operator: Attributes,
    x: _Operands,
    sizes: _Sizes,
    d: int,
    *,
    kept: bool,
    trained: bool,
    sequence: bool,
) -> Cell:
    return Cell(
        kind,
        sizes.size,
        sizes.row,
        sizes.size * (sizes.directions if operator.batch_major else 1),
        tuple(a.name for a in operator.bound_activations(sizes.directions)[d]),
        reverse=operator.times(2, d)[0] == 1,
        kept=kept,
        trained=trained,
        bias=x.B is not None,
        lens=x.lens is not None,
        peepholes=x.P is not None,
        initial=tuple(s is not None for s in x.initial),
        sequence=sequence,
        clip=operator.clip,
        before_reset=bool(getattr(operator, "linear_before_reset", 0)),
        input_forget=bool(getattr(operator, "input_forget", 0)),
    )


def _require(b: Lowering, operator: Attributes, x: _Operands, sizes: _Sizes) -> None:
    floats = [v for v in (x.X, x.W, x.R, x.B, *x.initial, x.P) if v is not None]
    b.require_float(*floats)
    b.require_elements(*floats)
    for of in operator.bound_activations(sizes.directions):
        for activation in of:
            if activation.name not in ACTIVATIONS:
                b.decline(f"activation {activation.name}")
    if x.lens is not None and b.program.dtypes[x.lens] != np.int32:
        b.decline(f"{x.lens.name} is {b.program.dtypes[x.lens]}")


def _tensor(shape: tuple[int, ...]) -> Tensor:
    """New memory."""
    return Tensor(Buffer(4 * int(np.prod(shape))), shape, row_major(shape), _FLOAT)


def _part(tensor: Tensor, axis: int, index: int) -> Tensor:
    """One slice along an axis, which is left out."""
    shape, strides = (
        tuple(n for a, n in enumerate(values) if a != axis) for values in (tensor.shape, tensor.strides)
    )
    return replace(
        tensor, shape=shape, strides=strides, offset=tensor.offset + index * tensor.strides[axis], image=None
    )


def _window(tensor: Tensor, axis: int, start: int, count: int) -> Tensor:
    """Some positions along an axis."""
    shape = (*tensor.shape[:axis], count, *tensor.shape[axis + 1 :])
    return replace(tensor, shape=shape, offset=tensor.offset + start * tensor.strides[axis], image=None)


def _turned(tensor: Tensor, first: int, second: int) -> Tensor:
    """Two axes exchanged."""
    order = list(range(len(tensor.shape)))
    order[first], order[second] = second, first
    return replace(
        tensor,
        shape=tuple(tensor.shape[a] for a in order),
        strides=tuple(tensor.strides[a] for a in order),
        image=None,
    )


def _steps(b: Lowering, operator: Attributes, sizes: _Sizes, X: ir.Value) -> Tensor:
    """X as [T · N, features], copied where its memory is in another order."""
    source = b.present(X)
    source = _turned(source, 0, 1) if operator.batch_major else source
    flat = reshaped(source, (sizes.time * sizes.batch, sizes.features))
    if (
        flat is not None
        and (flat.strides[1] == 1 or sizes.features == 1)
        and flat.strides[0] >= sizes.features
    ):
        return flat
    target = _tensor(source.shape)
    b.copy(source, target)
    return replace(target, shape=(sizes.time * sizes.batch, sizes.features), strides=(sizes.features, 1))


def _packed(
    b: Lowering, w: ir.Value, d: int, first: int, rows: int, columns: int, *, transposed: bool
) -> Buffer:
    """Some rows of W's or R's direction d in blocks of columns: [rows, columns], or its transpose."""
    key = ("recurrent", w, d, first, rows, transposed)
    if (found := b.packed.get(key)) is None:
        source = _window(_part(b.plain(w), 0, d), 0, first, rows)
        n, k = (rows, columns) if transposed else (columns, rows)
        found = b.packed[key] = b.scratch(panels.packed_size(n, k, b.target))
        strides = (columns, 1) if transposed else (1, columns)
        slots: dict[str, Slot] = {"b": source, "packed": found}
        b.call(_pack(n, k, *strides, b.target), slots, reads=[source], writes=[found], label="pack columns")
    return found


def _by_r(b: Lowering, kind: str, R: ir.Value, d: int, size: int, *, transposed: bool) -> dict[str, Buffer]:
    """R as a kernel reads it; GRU's candidate apart."""
    whole = 2 if kind == "GRU" else GATES[kind]
    found = {"r": _packed(b, R, d, 0, whole * size, size, transposed=transposed)}
    if kind == "GRU":
        found["rh"] = _packed(b, R, d, 2 * size, size, size, transposed=transposed)
    return found


def _inside(b: Lowering, sizes: _Sizes) -> bool:
    """Whether the kernel makes its products with W: packed W and R stay in the second-level cache, and enough
    rows read them at each step. The gates of all steps then need not come from memory.
    """
    return 4 * (sizes.features + sizes.size) * sizes.width <= _CACHED and sizes.batch >= _SHARED * b.threads


def recurrent(
    b: Lowering, outputs: Sequence[ir.Value], inputs: Sequence[ir.Value | None], operator: Attributes
) -> None:
    """Y and the last states of LSTM, GRU or RNN."""
    kind = operator.op_type
    x = _Operands.of(kind, inputs)
    sizes = _sizes(b, kind, operator, x)
    _require(b, operator, x, sizes)
    used = [v if v.name and b.uses.is_read(v) else None for v in outputs]
    Y, *last = [*used, None, None, None][: 1 + len(x.initial)]
    key = _key(kind, operator, inputs)
    trained = any(_key_of_gradient(o) == key for o in b.program.operations)
    # where the states of all steps are kept they are Y, unless Y has zeros beyond an end or two directions
    apart = Y is not None and (sizes.directions > 1 or x.lens is not None)
    kept = trained or (Y is not None and not apart)
    flat = _steps(b, operator, sizes, x.X)
    inside = _inside(b, sizes) and flat.strides[0] == sizes.features
    gates = _tensor((sizes.batch * (sizes.time if trained or not inside else 1), sizes.row))
    if not inside:
        W = replace(b.plain(x.W), shape=(sizes.features, sizes.row), strides=(1, sizes.features))
        product(b, gates, flat, W, x.W)
    y = b.new_plain(Y) if Y is not None and apart else None
    slots_count = sizes.time + 1 if kept else 1
    states: list[tuple[Tensor, ...]] = []
    extras: list[Tensor | None] = []
    for d in range(sizes.directions):
        spec = _cell(b, kind, operator, x, sizes, d, kept=kept, trained=trained, sequence=apart)
        if inside:
            spec = replace(spec, features=sizes.features)
        held = tuple(_tensor((slots_count, sizes.batch, sizes.size)) for _ in x.initial)
        extra = _tensor((sizes.time if trained else 1, sizes.batch, sizes.size)) if kind == "GRU" else None
        tensors = _shared(b, operator, x, d)
        tensors |= {"gates": _window(gates, 1, d * sizes.width, sizes.width)}
        tensors |= _by_r(b, kind, x.R, d, sizes.size, transposed=True)
        if inside:
            tensors["x"] = flat
            tensors["w"] = _packed(b, x.W, d, 0, sizes.width, sizes.features, transposed=True)
        results: dict[str, Tensor] = dict(zip(("h", "c"), held, strict=False))
        numbers: dict[str, int] = {"time": sizes.time, "batch": sizes.batch}
        if extra is not None:
            results["extra"] = extra
        if y is not None:
            results["y"] = _part(y, 2 if operator.batch_major else 1, d)
            numbers |= _strides(operator, results["y"])
        _call(b, _forward(spec, b.target), tensors, results, numbers, sizes)
        states.append(held)
        extras.append(extra)
        end = 0 if spec.reverse or not kept else sizes.time
        for value, tensor in zip(last, held, strict=True):
            if value is not None:
                _give_last(b, operator, sizes, value, d, _part(tensor, 0, end))
        if Y is not None and y is None:
            whole = _window(held[0], 0, 0 if spec.reverse else 1, sizes.time)
            axis = 2 if operator.batch_major else 1
            whole = _turned(whole, 0, 1) if operator.batch_major else whole
            shape, strides = (
                (*values[:axis], one, *values[axis:])
                for values, one in ((whole.shape, 1), (whole.strides, sizes.size))
            )
            b.alias(Y, replace(whole, shape=shape, strides=strides))
    if trained:
        b.recurrent_states[key] = Kept(flat, gates, tuple(states), tuple(extras))


def _key(kind: str, operator: Attributes, inputs: Sequence[ir.Value | None]) -> tuple[object, ...]:
    """What an operator and its gradient have in common."""
    attributes = {**attributes_of(operator), "layout": operator.batch_major}
    operands = [*inputs, *[None] * (8 - len(inputs))]
    return kind, *operands, *sorted(attributes.items())


def _key_of_gradient(operation: Operation) -> tuple[object, ...] | None:
    """The key of the operator that an operation is the gradient of; None for other operations."""
    kind, operator = operation.node.op_type.removesuffix("Grad"), operation.operator
    if operation.node.domain != ONWARD_DOMAIN or not isinstance(operator, Attributes):
        return None
    return _key(kind, operator, operation.inputs[1 + _states(kind) :])


def _states(kind: str) -> int:
    return 2 if kind == "LSTM" else 1


def _shared(b: Lowering, operator: Attributes, x: _Operands, d: int) -> dict[str, Tensor | Buffer]:
    """Small operands of a direction."""
    found: dict[str, Tensor | Buffer] = {}
    for name, value in (("bias", x.B), ("p", x.P)):
        if value is not None:
            found[name] = _part(b.plain(value), 0, d)
    if x.lens is not None:
        found["lens"] = b.plain(x.lens)
    for name, value in zip(("h0", "c0"), x.initial, strict=False):
        if value is not None:
            found[name] = _part(b.plain(value), 1 if operator.batch_major else 0, d)
    return found


def _strides(operator: Attributes, y: Tensor) -> dict[str, int]:
    """How a kernel walks along one direction of Y, [T, N, size] or [N, T, size]."""
    time, row = (y.strides[1], y.strides[0]) if operator.batch_major else y.strides[:2]
    return {"y_time": time, "y_row": row}


def _call(
    b: Lowering,
    kernel: Kernel,
    operands: dict[str, Tensor | Buffer],
    results: dict[str, Tensor | Buffer] | dict[str, Tensor],
    numbers: dict[str, int],
    sizes: _Sizes,
    reads: Sequence[Tensor | Buffer] = (),
) -> None:
    slots: dict[str, Slot] = {**operands, **results, **numbers}
    # gates are read and written; what a kernel has no slot for is not given to it
    slots = {name: slots[name] for name in kernel.slots}
    read = [v for name, v in operands.items() if name in slots]
    written = [v for name, v in results.items() if name in slots]
    gates = [v for name, v in operands.items() if name == "gates"]
    b.call(kernel, slots, reads=[*read, *reads], writes=[*written, *gates], batch=sizes.time * sizes.batch)


def _give_last(
    b: Lowering, operator: Attributes, sizes: _Sizes, value: ir.Value, d: int, state: Tensor
) -> None:
    """A last state [N, size] of a direction as the operator's result."""
    axis = 1 if operator.batch_major else 0
    if sizes.directions == 1:
        shape, strides = (
            (*v[:axis], one, *v[axis:]) for v, one in ((state.shape, 1), (state.strides, sizes.size))
        )
        b.alias(value, replace(state, shape=shape, strides=strides))
        return
    target = b.new_plain(value) if d == 0 else b.plain(value)
    b.copy(state, _part(target, axis, d))


def recurrent_gradient(
    b: Lowering, outputs: Sequence[ir.Value], inputs: Sequence[ir.Value | None], operator: Attributes
) -> None:
    """The gradients of X, W, R, B, the initial states and P."""
    kind = operator.op_type.removesuffix("Grad")
    count = _states(kind)
    dY, *d_last = inputs[: 1 + count]
    operands = tuple(inputs[1 + count :])
    if (kept := b.recurrent_states.pop(_key(kind, operator, operands), None)) is None:
        b.decline(f"the states of {kind} are not kept")
    x = _Operands.of(kind, operands)
    sizes = _sizes(b, kind, operator, x)
    if operator.clip is not None:
        b.decline("clip")
    b.require_float(*(v for v in (dY, *d_last) if v is not None))
    wanted = [v if v.name and b.uses.is_read(v) else None for v in outputs]
    dX, dW, dR, dB, *rest = [*wanted, *[None] * 7][:7]
    d_initial, dP = rest[:count], rest[2] if kind == "LSTM" else None
    sums = dB is not None or dP is not None
    dB_whole, dP_whole, dR_whole = (None if v is None else b.new_plain(v) for v in (dB, dP, dR))
    for d in range(sizes.directions):
        cell = _cell(b, kind, operator, x, sizes, d, kept=True, trained=True, sequence=False)
        spec = CellGradient(cell, dY is not None, tuple(v is not None for v in d_last), sums)
        gates = _window(kept.gates, 1, d * sizes.width, sizes.width)
        states, extra = kept.states[d], kept.extras[d]
        shared = _shared(b, operator, x, d)
        tensors = {name: shared[name] for name in ("lens", "p") if name in shared} | {"gates": gates}
        tensors |= _by_r(b, kind, x.R, d, sizes.size, transposed=False)
        tensors |= dict(zip(("h", "c"), states, strict=False))
        numbers: dict[str, int] = {"time": sizes.time, "batch": sizes.batch}
        for name, value in zip(("dh_last", "dc_last"), d_last, strict=False):
            if value is not None:
                tensors[name] = _part(b.plain(value), 1 if operator.batch_major else 0, d)
        if dY is not None:
            arriving = _part(b.plain(dY), 2 if operator.batch_major else 1, d)
            tensors["dy"] = arriving
            numbers |= _strides(operator, arriving)
        begun = [_tensor((sizes.batch, sizes.size)) for _ in states]
        results: dict[str, Tensor | Buffer] = dict(zip(("dh", "dc"), begun, strict=False))
        results["back"] = b.scratch(sizes.batch * sizes.size)
        if extra is not None:
            results["extra"] = extra
        columns = gradients.partial_sums(cell)
        results["sums"] = b.scratch(2 * partial_size(columns, b.target, b.threads))
        _call(
            b, _backward(spec, b.target), tensors, results, numbers, sizes, [] if extra is None else [extra]
        )
        for value, tensor in zip(d_initial, begun, strict=True):
            if value is not None:
                _give_last(b, operator, sizes, value, d, tensor)
        if sums:
            _give_sums(b, cell, results["sums"], dB_whole, dP_whole, d)
        if dR_whole is not None:
            _give_recurrent(b, cell, sizes, _part(dR_whole, 0, d), gates, states[0], extra, x.R)
    whole = kept.gates
    if dX is not None:
        W = b.plain(x.W)
        target = (
            _tensor((sizes.time, sizes.batch, sizes.features)) if operator.batch_major else b.new_plain(dX)
        )
        place = replace(target, shape=(sizes.time * sizes.batch, sizes.features), strides=(sizes.features, 1))
        product(
            b, place, whole, replace(W, shape=(sizes.row, sizes.features), strides=(sizes.features, 1)), x.W
        )
        if operator.batch_major:
            b.alias(dX, _turned(target, 0, 1))
    if dW is not None:
        target = b.new_plain(dW)
        place = replace(target, shape=(sizes.row, sizes.features), strides=(sizes.features, 1))
        product(b, place, _turned(whole, 0, 1), kept.x, x.X)


def _give_sums(
    b: Lowering, cell: Cell, partial: Tensor | Buffer, dB: Tensor | None, dP: Tensor | None, d: int
) -> None:
    """The threads' sums as gradients of both biases and of P."""
    gates, size = GATES[cell.kind], cell.size
    places: list[tuple[Tensor, int]] = []
    if dB is not None:
        of = _part(dB, 0, d)
        for g in range(gates):
            second = gates if cell.before_reset and g == gates - 1 else g
            places += [
                (_window(of, 0, g * size, size), g),
                (_window(of, 0, (gates + g) * size, size), second),
            ]
    if dP is not None:
        of = _part(dP, 0, d)
        places += [(_window(of, 0, i * size, size), gates + i) for i in range(3)]
    columns = gradients.partial_sums(cell)
    finish = Finish((), (1,) * len(places), tuple(operand(e) for _, e in places))
    slots: dict[str, Slot] = {"partial": partial, "parts": b.threads}
    slots |= {f"y{i}": place for i, (place, _) in enumerate(places)}
    kernel = _finish(columns, finish, b.target)
    b.call(kernel, slots, reads=[partial], writes=[place for place, _ in places])


def _give_recurrent(
    b: Lowering,
    cell: Cell,
    sizes: _Sizes,
    dR: Tensor,
    gates: Tensor,
    h: Tensor,
    extra: Tensor | None,
    R: ir.Value,
) -> None:
    """dR of a direction: gradients of the gates, transposed, times the states before each step."""
    rows, size = sizes.time * sizes.batch, sizes.size
    before = _window(h, 0, 1 if cell.reverse else 0, sizes.time)
    states = replace(before, shape=(rows, size), strides=(size, 1))
    if extra is None:
        product(b, dR, _turned(gates, 0, 1), states, R)
        return
    flat = replace(extra, shape=(rows, size), strides=(size, 1))
    product(b, _window(dR, 0, 0, 2 * size), _turned(_window(gates, 1, 0, 2 * size), 0, 1), states, R)
    rest = _window(dR, 0, 2 * size, size)
    if cell.before_reset:
        product(b, rest, _turned(flat, 0, 1), states, R)
    else:
        product(b, rest, _turned(_window(gates, 1, 2 * size, size), 0, 1), flat, R)
