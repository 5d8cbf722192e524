"""LSTM, GRU and RNN: one product with W for all steps, one kernel that walks through time for each direction.

What the gradient needs stays where the forward pass left it, if the program has a gradient of the same
operands. Its products with W, X and the states are again one for all steps each.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from onward.compile.context import Context, Queries
from onward.compile.items import Slot
from onward.compile.kernels import panels
from onward.compile.kernels import recurrent as kernels
from onward.compile.kernels import recurrent_grad as gradients
from onward.compile.kernels.expression import operand
from onward.compile.kernels.kernel import Kernel
from onward.compile.kernels.recurrent_frame import ACTIVATIONS, GATES, Cell
from onward.compile.kernels.recurrent_grad import CellGradient
from onward.compile.kernels.reduce import Finish, finish_columns, partial_size
from onward.compile.placement import whole
from onward.compile.registry import lowers
from onward.compile.rules.product import product
from onward.compile.tensors import Buffer, Tensor, expanded, gapless, reshaped, sliced, swapped, taken
from onward.graph.requests import Recurrence, Recurrent, RecurrentGradient

__all__: list[str] = []

_pack = functools.lru_cache(512)(panels.pack_columns)
_forward = functools.lru_cache(64)(kernels.recurrent)
_backward = functools.lru_cache(64)(gradients.recurrent_gradient)
_finish = functools.lru_cache(64)(finish_columns)


@dataclass(frozen=True)
class _Kept:
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
    dtype: np.dtype[np.generic]

    @property
    def row(self) -> int:
        """Floats of the gates of a row in all directions."""
        return self.directions * self.width

    @property
    def rows(self) -> int:
        """Rows of all steps."""
        return self.time * self.batch

    def steps(self, count: int, columns: int) -> Tensor:
        """New memory [count, N, columns]."""
        return _tensor((count, self.batch, columns), self.dtype)


def _sizes(q: Queries, of: Recurrence) -> _Sizes:
    first, second, features = q.shape(of.x)
    time, batch = (second, first) if of.batch_major else (first, second)
    directions, _, size = q.shape(of.r)
    return _Sizes(time, batch, features, size, directions, GATES[of.kind] * size, q.dtype(of.x))


def _cell(of: Recurrence, sizes: _Sizes, d: int, *, kept: bool, trained: bool, sequence: bool) -> Cell:
    return Cell(
        of.kind,
        sizes.size,
        sizes.row,
        sizes.size * (sizes.directions if of.batch_major else 1),
        of.activations[d],
        reverse=of.reverse[d],
        kept=kept,
        trained=trained,
        bias=of.bias is not None,
        lens=of.lens is not None,
        peepholes=of.peepholes is not None,
        initial=tuple(s is not None for s in of.initial),
        sequence=sequence,
        clip=of.clip,
        before_reset=of.before_reset,
        input_forget=of.input_forget,
        dtype=sizes.dtype.name,
    )


def _unsuited(q: Queries, request: Recurrent) -> str | None:
    of = request.of
    floats = (of.x, of.w, of.r, of.bias, *of.initial, of.peepholes)
    if reason := q.not_floats(*floats) or q.empty(*floats):
        return reason
    for used in of.activations:
        for activation in used:
            if activation not in ACTIVATIONS:
                return f"activation {activation}"
    if of.lens is not None and q.dtype(of.lens) != np.int32:
        return f"{of.lens.name} is {q.dtype(of.lens)}"
    return None


def _tensor(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Tensor:
    """New memory."""
    return whole(Buffer(dtype.itemsize * prod(shape)), shape, dtype)


def _steps(c: Context, of: Recurrence, sizes: _Sizes) -> Tensor:
    """X as [T · N, features], copied where its memory is in another order."""
    source = c.present(of.x)
    source = swapped(source, 0, 1) if of.batch_major else source
    flat = reshaped(source, (sizes.rows, sizes.features))
    if (
        flat is not None
        and (flat.strides[1] == 1 or sizes.features == 1)
        and flat.strides[0] >= sizes.features
    ):
        return flat
    target = _tensor(source.shape, source.dtype)
    c.copy(source, target)
    return gapless(target, (sizes.rows, sizes.features))


def _packed(
    c: Context, w: ir.Value, d: int, first: int, rows: int, columns: int, *, transposed: bool
) -> Buffer:
    """Some rows of W's or R's direction d in blocks of columns: [rows, columns], or its transpose."""

    def make() -> Buffer:
        source = sliced(taken(c.plain(w), 0, d), 0, first, rows)
        machine = c.typed(source.dtype)
        n, k = (rows, columns) if transposed else (columns, rows)
        packed = c.scratch(panels.packed_size(n, k, machine), source.dtype)
        strides = (columns, 1) if transposed else (1, columns)
        slots: dict[str, Slot] = {"b": source, "packed": packed}
        c.call(_pack(n, k, *strides, machine), slots, label="pack columns")
        return packed

    return c.once(("recurrent", w, d, first, rows, transposed), make)


def _by_r(c: Context, of: Recurrence, d: int, size: int, *, transposed: bool) -> dict[str, Buffer]:
    """R as a kernel reads it; GRU's candidate apart."""
    whole = 2 if of.kind == "GRU" else GATES[of.kind]
    found = {"r": _packed(c, of.r, d, 0, whole * size, size, transposed=transposed)}
    if of.kind == "GRU":
        found["rh"] = _packed(c, of.r, d, 2 * size, size, size, transposed=transposed)
    return found


def _inside(q: Queries, sizes: _Sizes) -> bool:
    """Whether the kernel makes its products with W: packed W and R stay in the second-level cache, and enough
    rows read them at each step. The gates of all steps then need not come from memory.
    """
    tuning = q.target.tuning
    packed = sizes.dtype.itemsize * (sizes.features + sizes.size) * sizes.width
    return packed <= tuning.recurrent_weights and sizes.batch >= tuning.recurrent_shared * q.threads


def _of_state(of: Recurrence, tensor: Tensor, d: int) -> Tensor:
    """A direction of states [directions, N, size], or [N, directions, size]."""
    return taken(tensor, 1 if of.batch_major else 0, d)


def _of_sequence(name: str, of: Recurrence, tensor: Tensor, d: int) -> dict[str, Slot]:
    """A direction of Y [T, directions, N, size], or [N, T, directions, size], or of its gradient as slots."""
    one = taken(tensor, 2 if of.batch_major else 1, d)
    time, row = (one.strides[1], one.strides[0]) if of.batch_major else one.strides[:2]
    return {name: one, "y_time": time, "y_row": row}


def _operands(
    c: Context, of: Recurrence, sizes: _Sizes, kept: _Kept, d: int, *, transposed: bool
) -> dict[str, Slot]:
    """What the kernels of a direction work on, forward and backward: R `transposed`, or as it is."""
    found: dict[str, Slot] = {"time": sizes.time, "batch": sizes.batch}
    found["gates"] = sliced(kept.gates, 1, d * sizes.width, sizes.width)
    found |= _by_r(c, of, d, sizes.size, transposed=transposed)
    found |= dict(zip(("h", "c"), kept.states[d], strict=False))
    if (extra := kept.extras[d]) is not None:
        found["extra"] = extra
    for name, value in (("bias", of.bias), ("p", of.peepholes)):
        if value is not None:
            found[name] = taken(c.plain(value), 0, d)
    if of.lens is not None:
        found["lens"] = c.plain(of.lens)
    for name, value in zip(("h0", "c0"), of.initial, strict=False):
        if value is not None:
            found[name] = _of_state(of, c.plain(value), d)
    return found


def _call(c: Context, kernel: Kernel, slots: dict[str, Slot], sizes: _Sizes) -> None:
    """What a kernel has no slot for is not given to it."""
    c.call(kernel, {name: slots[name] for name in kernel.slots}, batch=sizes.rows)


@lowers(Recurrent, suits=_unsuited)
def recurrent(c: Context, request: Recurrent) -> None:
    """One product with W for all steps or within the kernel, then one call for each direction."""
    of = request.of
    sizes = _sizes(c, of)
    used = [v if v.name and c.uses.is_read(v) else None for v in request.outputs]
    Y, *last = [*used, None, None, None][: 1 + len(of.initial)]
    trained = any(isinstance(r, RecurrentGradient) and r.of == of for r in c.requests)
    # where the states of all steps are kept they are Y, unless Y has zeros beyond an end or two directions
    apart = Y is not None and (sizes.directions > 1 or of.lens is not None)
    kept = trained or (Y is not None and not apart)
    x = _steps(c, of, sizes)
    inside = _inside(c, sizes) and x.strides[0] == sizes.features
    gates = _tensor((sizes.batch * (sizes.time if trained or not inside else 1), sizes.row), sizes.dtype)
    if not inside:
        W = replace(c.plain(of.w), shape=(sizes.features, sizes.row), strides=(1, sizes.features))
        product(c, gates, x, W, of.w)
    y = c.new_plain(Y) if Y is not None and apart else None
    states = tuple(
        tuple(sizes.steps(sizes.time + 1 if kept else 1, sizes.size) for _ in of.initial)
        for _ in range(sizes.directions)
    )
    extras = tuple(
        sizes.steps(sizes.time if trained else 1, sizes.size) if of.kind == "GRU" else None
        for _ in range(sizes.directions)
    )
    left = _Kept(x, gates, states, extras)
    for d in range(sizes.directions):
        spec = _cell(of, sizes, d, kept=kept, trained=trained, sequence=apart)
        slots = _operands(c, of, sizes, left, d, transposed=True)
        if inside:
            spec = replace(spec, features=sizes.features)
            slots["x"] = x
            slots["w"] = _packed(c, of.w, d, 0, sizes.width, sizes.features, transposed=True)
        if y is not None:
            slots |= _of_sequence("y", of, y, d)
        _call(c, _forward(spec, c.target), slots, sizes)
        end = 0 if spec.reverse or not kept else sizes.time
        for value, tensor in zip(last, states[d], strict=True):
            if value is not None:
                _give_last(c, of, sizes, value, d, taken(tensor, 0, end))
        if Y is not None and y is None:
            steps = sliced(states[d][0], 0, 0 if spec.reverse else 1, sizes.time)
            c.alias(Y, expanded(swapped(steps, 0, 1), 2) if of.batch_major else expanded(steps, 1))
    if trained:
        c.keep(of, left)


def _give_last(c: Context, of: Recurrence, sizes: _Sizes, value: ir.Value, d: int, state: Tensor) -> None:
    """A last state [N, size] of a direction as the operator's result."""
    if sizes.directions == 1:
        c.alias(value, expanded(state, 1 if of.batch_major else 0))
        return
    target = c.new_plain(value) if d == 0 else c.plain(value)
    c.copy(state, _of_state(of, target, d))


def _gradient_unsuited(q: Queries, request: RecurrentGradient) -> str | None:
    of = request.of
    if q.kept(of) is None:
        return f"the states of {of.kind} are not kept"
    if of.clip is not None:
        return "clip"
    return q.not_floats(request.dy, *request.d_last)


@lowers(RecurrentGradient, suits=_gradient_unsuited)
def recurrent_gradient(c: Context, request: RecurrentGradient) -> None:
    """One call for each direction, and products for all steps."""
    of, dY, d_last = request.of, request.dy, request.d_last
    kept: _Kept = c.kept(of)
    c.keep(of, None)  # the call below writes over the gates
    count = len(of.initial)
    sizes = _sizes(c, of)
    wanted = [v if v.name and c.uses.is_read(v) else None for v in request.outputs]
    dX, dW, dR, dB, *rest = [*wanted, *[None] * 7][:7]
    d_initial, dP = rest[:count], rest[2] if of.kind == "LSTM" else None
    sums = dB is not None or dP is not None
    dB_whole, dP_whole, dR_whole = (None if v is None else c.new_plain(v) for v in (dB, dP, dR))
    for d in range(sizes.directions):
        cell = _cell(of, sizes, d, kept=True, trained=True, sequence=False)
        spec = CellGradient(cell, dY is not None, tuple(v is not None for v in d_last), sums)
        slots = _operands(c, of, sizes, kept, d, transposed=False)
        for name, value in zip(("dh_last", "dc_last"), d_last, strict=False):
            if value is not None:
                slots[name] = _of_state(of, c.plain(value), d)
        if dY is not None:
            slots |= _of_sequence("dy", of, c.plain(dY), d)
        begun = [_tensor((sizes.batch, sizes.size), sizes.dtype) for _ in of.initial]
        slots |= dict(zip(("dh", "dc"), begun, strict=False))
        slots["back"] = c.scratch(sizes.batch * sizes.size, sizes.dtype)
        partial = slots["sums"] = c.scratch(
            2 * partial_size(gradients.partial_sums(cell), c.target, c.threads), sizes.dtype
        )
        _call(c, _backward(spec, c.target), slots, sizes)
        for value, tensor in zip(d_initial, begun, strict=True):
            if value is not None:
                _give_last(c, of, sizes, value, d, tensor)
        if sums:
            _give_sums(c, cell, partial, dB_whole, dP_whole, d)
        if dR_whole is not None:
            _give_recurrent(c, cell, sizes, kept, taken(dR_whole, 0, d), d, of.r)
    if dX is not None:
        W = gapless(c.plain(of.w), (sizes.row, sizes.features))
        target = sizes.steps(sizes.time, sizes.features) if of.batch_major else c.new_plain(dX)
        product(c, gapless(target, (sizes.rows, sizes.features)), kept.gates, W, of.w)
        if of.batch_major:
            c.alias(dX, swapped(target, 0, 1))
    if dW is not None:
        place = gapless(c.new_plain(dW), (sizes.row, sizes.features))
        product(c, place, swapped(kept.gates, 0, 1), kept.x, of.x)


def _give_sums(
    c: Context, cell: Cell, partial: Tensor | Buffer, dB: Tensor | None, dP: Tensor | None, d: int
) -> None:
    """The threads' sums as gradients of both biases and of P."""
    gates, size = GATES[cell.kind], cell.size
    places: list[tuple[Tensor, int]] = []
    if dB is not None:
        of = taken(dB, 0, d)
        for g in range(gates):
            second = gates if cell.before_reset and g == gates - 1 else g
            places += [
                (sliced(of, 0, g * size, size), g),
                (sliced(of, 0, (gates + g) * size, size), second),
            ]
    if dP is not None:
        of = taken(dP, 0, d)
        places += [(sliced(of, 0, i * size, size), gates + i) for i in range(3)]
    columns = gradients.partial_sums(cell)
    finish = Finish((), (1,) * len(places), tuple(operand(e) for _, e in places))
    slots: dict[str, Slot] = {"partial": partial, "parts": c.threads}
    slots |= {f"y{i}": place for i, (place, _) in enumerate(places)}
    kernel = _finish(columns, finish, c.target)
    c.call(kernel, slots)


def _give_recurrent(
    c: Context, cell: Cell, sizes: _Sizes, kept: _Kept, dR: Tensor, d: int, R: ir.Value
) -> None:
    """dR of a direction: gradients of the gates, transposed, times the states before each step."""
    size = sizes.size
    gates, extra = sliced(kept.gates, 1, d * sizes.width, sizes.width), kept.extras[d]
    states = gapless(sliced(kept.states[d][0], 0, 1 if cell.reverse else 0, sizes.time), (sizes.rows, size))
    if extra is None:
        product(c, dR, swapped(gates, 0, 1), states, R)
        return
    flat = gapless(extra, (sizes.rows, size))
    product(c, sliced(dR, 0, 0, 2 * size), swapped(sliced(gates, 1, 0, 2 * size), 0, 1), states, R)
    rest = sliced(dR, 0, 2 * size, size)
    if cell.before_reset:
        product(c, rest, swapped(flat, 0, 1), states, R)
    else:
        product(c, rest, swapped(sliced(gates, 1, 2 * size, size), 0, 1), flat, R)
